"""What a network takes, and the values that are drawn for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneport.errors import InputError
from pruneport.models.inputs import (
    InputSpec,
    TensorSpec,
    batch_of,
    changed,
    inputs_of,
    rows_of_inputs,
    run_on,
    tensors_in,
)
from pruneport.models.live.example import read_example


def test_an_image_is_the_case_of_one_tensor() -> None:
    images = inputs_of((3, 4, 5))
    assert images.image_shape == (3, 4, 5)
    assert images.names == ("input",)
    assert inputs_of(images) is images
    drawn = images.drawn(2, seed=7)
    assert torch.equal(drawn, torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(7)))  # as it always was
    assert torch.equal(images.filled(2), torch.zeros(2, 3, 4, 5))


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(tensors=(TensorSpec(name="input", shape=(3, 4, 5)),), by_name=True),
        InputSpec(tensors=(TensorSpec(name="image", shape=(3, 4, 5)),)),
        InputSpec(tensors=(TensorSpec(name="input", shape=(3, 4)),)),
        InputSpec(tensors=(TensorSpec(name="input", shape=(3, 4, 5), dtype="uint8", low=0, high=255),)),
        InputSpec(tensors=tuple(TensorSpec(name=name, shape=(3, 4, 5)) for name in ("input", "other"))),
    ],
)
def test_anything_else_is_no_image(spec: InputSpec) -> None:
    assert spec.image_shape is None


@pytest.mark.parametrize(
    ("example", "low", "high", "dtype"),
    [
        (torch.tensor([[5, -3], [90, 7]]), -3, 90, "int64"),
        (torch.tensor([[5], [5]], dtype=torch.int32), 5, 5, "int32"),
        (torch.tensor([[0], [255]], dtype=torch.uint8), 0, 255, "uint8"),
        (torch.tensor([[True], [False]]), 0, 1, "bool"),
        (torch.tensor([[False], [False]]), 0, 0, "bool"),
        (torch.tensor([2**63 - 1, 0]), 0, 2**63 - 1, "int64"),
        (torch.tensor([[-1.0], [3.0]]), None, None, "float32"),
        (torch.tensor([[0.0], [0.0]]), None, None, "float32"),
        (torch.tensor([[0.0], [3.0]], dtype=torch.float64), 0.0, 3.0, "float64"),
        (torch.tensor(-0.5), -0.5, -0.5, "float32"),
        (torch.tensor(3), 3, 3, "int64"),
    ],
)
def test_values_stay_in_the_example_s_range(example: Tensor, low: Any, high: Any, dtype: str) -> None:
    (tensor,) = read_example(nn.Identity(), (example,)).tensors
    assert (tensor.low, tensor.high, tensor.dtype, tensor.batched) == (low, high, dtype, example.ndim > 0)
    for batch in (1, 40):
        for value in (tensor.drawn(batch, torch.Generator().manual_seed(0)), tensor.filled(batch, 0)):
            assert value.dtype == example.dtype
            assert value.shape == ((batch, *example.shape[1:]) if example.ndim else ())
            if low is not None:
                assert low <= value.min().item() <= value.max().item() <= high


def test_the_same_seed_draws_the_same() -> None:
    spec = read_example(nn.Identity(), {"tokens": torch.arange(10)[None], "known": torch.randn(1, 3)})
    first, again, other = (spec.drawn(3, seed) for seed in (1, 1, 2))
    assert isinstance(first, dict)
    assert all(torch.equal(one, two) for one, two in zip(tensors_in(first), tensors_in(again), strict=True))
    assert not torch.equal(first["tokens"], other["tokens"])  # type: ignore[call-overload]


def test_arguments_have_the_names_of_the_forward() -> None:
    class Several(nn.Module):
        def forward(self, image: Tensor, *others: Tensor) -> Tensor:
            return image

    one = torch.zeros(1, 2)
    assert read_example(Several(), (one, one, one)).names == ("image", "others_0", "others_1")
    assert read_example(nn.Linear(2, 2), one).names == ("input",)


@pytest.mark.parametrize("form", [tuple, list, lambda parts: dict(zip("ab", parts, strict=True))])
def test_batches_are_cut_and_changed_in_the_form_that_they_have(form: Any) -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * b

    inputs = form([torch.tensor(2.0), torch.arange(5.0)])
    assert batch_of(inputs) == 5
    part = rows_of_inputs(inputs, [1, 3])
    assert run_on(Sum(), part).tolist() == [2.0, 6.0]
    assert run_on(Sum(), changed(part, torch.neg)).tolist() == [2.0, 6.0]


def test_more_inputs_at_once_than_memory_holds_are_refused() -> None:
    with pytest.raises(InputError, match=r"a batch of 1000000000000 of input .* takes 12\.\d+ TB .* choose a smaller"):
        inputs_of((3, 1, 1)).drawn(10**12, 0)
    assert batch_of(inputs_of((3, 1, 1)).drawn(2, 0)) == 2
