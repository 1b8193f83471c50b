"""fp16 and int8 of a real checkpoint on real images that neither pruning nor calibration has seen."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import pruneport

_DATA = Path(os.environ.get("PRUNEPORT_TEST_DATA", "."))
_SAMPLES = _DATA / "data/imagenet-samples"

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif("PRUNEPORT_TEST_DATA" not in os.environ, reason="PRUNEPORT_TEST_DATA is not set"),
]


def test_mobilenet_v2_keeps_its_decisions(tmp_path: Path) -> None:
    files = sorted(path for path in _SAMPLES.rglob("*") if path.is_file())
    (tmp_path / "calibration").mkdir()
    for number, file in enumerate(files[5::10][:96]):  # of which 32 and more are held out
        shutil.copy(file, tmp_path / "calibration" / f"{number:03}{file.suffix}")
    result = pruneport.ship(
        "torchvision:mobilenet_v2",
        checkpoint=_DATA / "weights/mobilenet_v2-b0353104.pth",
        macs=0.97,
        criterion="l1",
        ranking="uniform",
        recover="bn",  # in seconds; what the others add is tested elsewhere
        calibration=tmp_path / "calibration",
        calibration_images=80,
        images=_SAMPLES,
        images_limit=100,  # every tenth, from the first
        resize=256,
        precisions=["fp32", "fp16", "int8"],
        parity_batches=[1],
        batches=[1],
        repeats=3,
        warmup=1,
        out=tmp_path / "bundle",
    )
    records = {(record.network, record.precision): record for record in result.verification.precisions}
    for network in ("dense", "pruned"):
        for precision, least in (("fp16", 0.99), ("int8", 0.9)):
            record = records[network, precision]
            assert record.count == 100
            assert record.agreement is not None
            assert record.agreement >= least, record
            fp32, top1 = records[network, "fp32"].top1, record.top1
            assert fp32 is not None
            assert top1 is not None
            assert top1 >= fp32 - 0.05, record
    sizes = {
        name: (result.folder / name).stat().st_size for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx")
    }
    assert sizes["model.fp16.onnx"] < 0.55 * sizes["model.onnx"]
    assert sizes["model.int8.onnx"] < 0.35 * sizes["model.onnx"]
