"""fp16 and int8 beside fp32: agreement, error and top-1 as NumPy counts them, on images and on tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruneport.export.cpu_session import open_cpu_session, run_onnx
from pruneport.export.precisions.comparison import calibration_parts, compare, image_parts
from pruneport.export.precisions.quantise import quantise
from pruneport.models.digits.train import write_images
from pruneport.models.images.images import list_folder
from pruneport.models.outputs import Tolerance
from pruneport.models.record import Preprocessing


class _Fixed:
    """A session's stand-in that gives chosen outputs: what compare counts is then known by hand."""

    def __init__(self, session: Any, outputs: Any) -> None:
        self._session, self._outputs = session, outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, given: Any) -> list[Any]:
        return [self._outputs[: len(next(iter(given.values())))]]


@pytest.fixture(scope="module")
def sessions(small: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    quantise(small.path, path, [lambda: small.inputs[0]], "cpu", "")
    return {"fp32": open_cpu_session(small.path), "int8": open_cpu_session(path)}


def _compare(sessions: Any, parts: Any, **options: Any) -> Any:
    return compare("pruned", sessions, parts, "held-out", {"int8": "cpu"}, Tolerance(1e-5, 1e-2), **options)


def test_figures_are_as_counted_by_hand(small: Any, sessions: Any) -> None:
    inputs = torch.cat(small.inputs)
    labels = np.arange(21) % 5
    parts = [(inputs[:16], 16, labels[:16]), (torch.cat([inputs[16:], inputs[:3]]), 5, labels[16:])]
    (fp32, int8), _ = _compare(sessions, iter(parts))
    theirs, ours = (run_onnx(sessions[name], inputs)[0].astype(np.float64) for name in ("fp32", "int8"))
    assert (fp32.agreement, fp32.output_error, fp32.count) == (1.0, 0.0, 21)
    assert (int8.network, int8.precision, int8.provider, int8.inputs) == ("pruned", "int8", "cpu", "held-out")
    assert int8.agreement == (ours.argmax(1) == theirs.argmax(1)).mean()
    assert int8.output_error == pytest.approx(np.square(ours - theirs).mean() / theirs.var())
    assert fp32.top1 == (theirs.argmax(1) == labels).mean()
    assert int8.top1 == (ours.argmax(1) == labels).mean()
    (fp32, _), _ = _compare(sessions, iter(parts), classified=False)
    assert fp32.top1 is None


def test_outputs_that_are_not_finite_are_a_fault(small: Any, sessions: Any) -> None:
    bad = run_onnx(sessions["fp32"], small.inputs[0])[0].copy()
    bad[2, 1] = np.nan
    broken = {"fp32": sessions["fp32"], "fp16": _Fixed(sessions["fp32"], bad)}
    (_, fp16), compared = _compare(broken, calibration_parts([lambda: small.inputs[0]], None, None))
    assert fp16.fault == "it gives numbers that are not finite where fp32 gives finite ones"
    assert fp16.output_error is None
    assert compared.faults()


def test_images_are_given_as_the_folder_has_them(small: Any, tmp_path: Path) -> None:
    preprocessing = Preprocessing(resize=8, mean=(0.5,), std=(0.5,), interpolation="bilinear", origin="")
    images = list_folder(write_images(tmp_path), (1, 8, 8), preprocessing, 7)
    parts = list(image_parts(images, 4, None))
    assert [(part.shape, count) for part, count, _ in parts] == [((4, 1, 8, 8), 4), ((4, 1, 8, 8), 3)]
    inputs = torch.cat([inputs for inputs, _ in images.batches(7)])
    assert torch.equal(torch.cat([part for part, _, _ in parts])[:7], inputs)
    assert torch.equal(parts[1][0][3], parts[1][0][2])  # the last one fills the batch
    assert np.concatenate([labels for _, _, labels in parts]).tolist() == list(images.labels or ())
