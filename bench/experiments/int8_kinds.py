"""int8 of networks of many kinds, dense, without timing: how far outputs move, and what stays in float.

``python bench/experiments/int8_kinds.py --data FOLDER --out bench/results/int8_kinds.json``, where FOLDER holds what
the tests marked ``real`` use. Trained networks are counted in top-1 and agreement; those with random weights say only
whether the files are right and how far outputs move, and agreement of random scores means little. Forms: ``cpu``,
``tensorrt`` (computed by ONNX Runtime on the CPU), and of trained networks ``cpu`` with the limit ``--max-drop``, for
which layers are left in float by the calibration images. Photos are the same throughout; no step but the last has seen
those that are counted. A row that is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pruneport.bench.experiments.accuracy import CASES, Case, read_images
from pruneport.compress.activations.calibration import Calibration
from pruneport.export.cpu_session import open_cpu_session
from pruneport.export.onnx.exporter import export_network
from pruneport.export.precisions.comparison import Part, compare
from pruneport.export.precisions.float_choice import FloatChooser
from pruneport.export.precisions.providers import Int8Provider
from pruneport.export.precisions.quantise import quantise
from pruneport.export.precisions.quantiser import left_in_float
from pruneport.export.precisions.weights_check import check_weights
from pruneport.files import write_whole
from pruneport.models.options import SourceOptions
from pruneport.models.outputs import Tolerance
from pruneport.models.source import open_source

__all__ = ["main"]

_TRAINED = ("mobilenet_v2", "efficientnet_lite0")
_RANDOM = (
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:convnext_atto",
    "timm:efficientnet_b0",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:deeplabv3_mobilenet_v3_large",
)


class _Images(NamedTuple):
    """What is counted, and what int8 is calibrated with."""

    test: list[tuple[Tensor, Tensor]]
    calibration: Calibration


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description="int8 of networks of many kinds.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=(*_TRAINED, *_RANDOM), default=(*_TRAINED, *_RANDOM))
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--max-drop", type=float, default=1.0)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    done = {(row["network"], row["form"], row["max_drop"]) for row in rows}
    for name in arguments.networks:
        case = replace(CASES.get(name, CASES["mobilenet_v2"]), calibration=arguments.calibration_images)
        test, calibrations = read_images(case, arguments.data)
        kept = test[: -(-arguments.images // len(test[0][0]))]
        images = _Images(kept, calibrations["images"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _export(name, case, arguments.data, path)
            forms: list[tuple[Int8Provider, float | None]] = [("cpu", None), ("tensorrt", None)]
            if name in _TRAINED:
                forms.append(("cpu", arguments.max_drop))
            for provider, limit in forms:
                if (name, provider, limit) not in done:
                    rows.append({"network": name, "trained": name in _TRAINED, "form": provider, "max_drop": limit})
                    rows[-1] |= _measure(path, provider, limit, images, trained=name in _TRAINED)
                    print(json.dumps(rows[-1]), flush=True)
                    write_whole(arguments.out, json.dumps({"rows": rows}, indent=1) + "\n")


def _export(name: str, case: Case, data: Path, path: Path) -> None:
    """The network's fp32 file."""
    options = SourceOptions(source=name, input_shape=case.shape)
    if name in _TRAINED:
        options = replace(options, source=case.source, checkpoint=data / "weights" / case.weights)
    network, _ = open_source(options)
    export_network(network, case.shape).save(path, {})


def _measure(path: Path, provider: Int8Provider, limit: float | None, images: _Images, *, trained: bool) -> Any:
    """Make int8 of a file in one form, and compare it with fp32."""
    made, calibration = path.with_name("model.int8.onnx"), images.calibration
    chooser = FloatChooser(provider=provider, max_drop=limit, calibration=calibration, progress=print)
    kept = quantise(path, made, calibration.batches, provider, "", choose=chooser)
    _, wrong = check_weights(made, path)
    sessions = {"fp32": open_cpu_session(path), "int8": open_cpu_session(made)}
    tolerance = Tolerance(atol=0, rtol=0)
    (exact, found), _ = compare("dense", sessions, _parts(images), "images", {}, tolerance, trained)  # type: ignore[arg-type]
    return {
        "images": found.count,
        "calibration_images": calibration.record.count,
        "top1_fp32": exact.top1,
        "top1": found.top1,
        "agreement": found.agreement,
        "output_error": found.output_error,
        "faults": [*wrong, *([found.fault] if found.fault else [])],
        "float_operators": left_in_float(path, provider),
        "float_layers": list(kept.layers),
        "float_reason": kept.reason,
        "bytes_fp32": path.stat().st_size,
        "bytes": made.stat().st_size,
    }


def _parts(images: _Images) -> Iterator[Part]:
    """What is counted, with labels."""
    return ((inputs.contiguous(), len(labels), labels.numpy()) for inputs, labels in images.test)


if __name__ == "__main__":
    main()
