"""Calibration inputs reach the quantiser in parts of one size, as images where the file takes these."""

from __future__ import annotations

import numpy as np
import torch

from pruneport.export.onnx.embedding import Embedding
from pruneport.export.precisions.calibration_reader import CalibrationReader


def test_parts_have_one_size_and_leave_nothing_out() -> None:
    first, second = torch.arange(10.0).reshape(5, 2, 1, 1), torch.arange(4.0).reshape(2, 2, 1, 1)
    said: list[str] = []
    reader = CalibrationReader("x", [lambda: first, lambda: second], 3, progress=said.append)
    parts = []
    while (part := reader.get_next()) is not None:
        parts.append(part["x"])
    expected = [first[:3], torch.cat([first[3:], first[-1:]]), torch.cat([second, second[-1:]])]
    assert all(np.array_equal(part, wanted.numpy()) for part, wanted in zip(parts, expected, strict=True))
    assert said == ["calibrating int8, batch 1 of 2", "calibrating int8, batch 2 of 2"]


def test_embedded_files_get_the_images_that_inputs_were_made_of() -> None:
    embedding = Embedding("uint8-nhwc", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    pixels = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = embedding(pixels).contiguous(memory_format=torch.channels_last)
    part = CalibrationReader("x", [lambda: inputs], 3, embedding).get_next()
    assert part is not None
    assert np.array_equal(part["x"], pixels.numpy())
    floats = Embedding("float-nchw", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    part = CalibrationReader("x", [lambda: 100 * inputs], 3, floats).get_next()
    assert part is not None
    assert (part["x"].min(), part["x"].max()) == (0, 1)  # what no image can be
