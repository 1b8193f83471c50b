"""Least squares from streamed rows, against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruneport.compress.activations.least_squares import Equations, output_rows, patch_rows


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    seed=st.integers(0, 1000), unknowns=st.integers(1, 6), outputs=st.integers(1, 3), ridge=st.sampled_from([0.0, 0.1])
)
def test_streamed_equations_give_the_least_squares_solution(
    seed: int, unknowns: int, outputs: int, ridge: float
) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(1, 2, (40, unknowns)) * 2.0 ** np.arange(unknowns)
    targets = inputs @ generator.normal(size=(unknowns, outputs)) + 3 + generator.normal(size=(40, outputs))
    start = generator.normal(size=(unknowns, outputs))
    equations = Equations(unknowns, outputs)
    for first in range(0, 40, 7):
        rows = slice(first, first + 7)
        equations.add(*(torch.from_numpy(side[rows]).float() for side in (inputs, targets)))
    weight, intercept = equations.solve(torch.from_numpy(start), ridge)

    # The same problem as one tall system: centred rows, and one row an unknown for the ridge.
    centred, wanted = inputs - inputs.mean(0), targets - targets.mean(0)
    pull = np.sqrt(ridge * centred.var(0) * 40)
    tall = np.vstack([centred, np.diag(pull)])
    right = np.vstack([wanted, pull[:, None] * start])
    expected = np.linalg.lstsq(tall, right, rcond=None)[0]
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(intercept.numpy(), targets.mean(0) - inputs.mean(0) @ expected, atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 5), (2, 1), (0, 2), (1, 1)),
        ((3, 3), (1, 2), (2, 2), (2, 2)),
        ((1, 1), (2, 2), (0, 0), (1, 1)),
        ((3,), (2,), (1,), (2,)),
        ((3, 1, 2), (1, 2, 1), (0, 1, 2), (2, 1, 1)),
    ],
)
def test_patch_rows_times_the_weight_is_the_convolution(
    kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    kinds: list[Any] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    layer = kinds[len(kernel) - 1](3, 4, kernel, stride, padding, dilation, bias=False)
    inputs = torch.randn(2, 3, *[9, 10, 7][: len(kernel)])
    outputs = layer(inputs).detach()
    positions = torch.randperm(outputs[0, 0].numel())[:7]
    rows = patch_rows(inputs, outputs.shape[2:], positions, kernel, stride, padding, dilation)
    targets = output_rows(layer, outputs, positions)
    torch.testing.assert_close(rows @ layer.weight.detach().flatten(1).T, targets, atol=1e-5, rtol=1e-5)


def test_equations_of_float32_rows_are_those_of_float64() -> None:
    """Of 700 columns that are far from zero, in blocks of columns and parts of rows."""
    rows = torch.randn(9000, 700, generator=torch.Generator().manual_seed(2)).exp()
    targets = rows[:, :3] - 2 * rows[:, -3:]
    equations, exact = Equations(700, 3), Equations(700, 3)
    equations.add(rows, targets)
    exact.add(rows.double(), targets.double())
    (found, mean), (wanted, _) = equations.moments(), exact.moments()
    independent = torch.from_numpy(np.cov(rows.double().numpy(), rowvar=False, bias=True))
    torch.testing.assert_close(wanted, independent, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found, found.T, atol=1e-12, rtol=1e-12)
    norms = rows.double().square().mean(0).sqrt()
    assert float(((found - wanted).abs() / norms.outer(norms)).max()) < 2e-6
    start = torch.zeros(700, 3)
    torch.testing.assert_close(equations.solve(start, 1e-3)[0], exact.solve(start, 1e-3)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(mean, rows.double().mean(0))
