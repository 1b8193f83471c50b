"""Cost: counts against hand-computed ones, predictions against networks that were really pruned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from pruneport.compress.allocation.cost import Cost, count_cost, count_macs_by_module
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.graph.groups import find_groups
from pruneport.compress.graph.widths import choose_units
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import group_plan
from pruneport.errors import ModelError

SHAPE = (3, 8, 8)


def test_a_convolution() -> None:
    # 10 x 10 outputs of 16 filters, each 3 x 5 x 5; the bias costs no multiplication.
    assert count_cost(nn.Conv2d(3, 16, 5, padding=2), (3, 10, 10)) == Cost(
        macs=10 * 10 * 16 * 3 * 5 * 5, params=16 * 3 * 5 * 5 + 16
    )


def test_stride_groups_and_depthwise() -> None:
    assert count_cost(nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False), (8, 9, 9)) == Cost(
        macs=4 * 4 * 12 * (8 // 4) * 9, params=12 * 2 * 9
    )
    assert count_cost(nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 8, 8)) == Cost(macs=8 * 8 * 6 * 9, params=6 * 9 + 6)


def test_linear_layers_and_their_sum() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10)).eval()
    convolution, linear = 36 * 4 * 2 * 9, 144 * 10
    assert count_macs_by_module(network, (2, 8, 8)) == {
        "": convolution + linear,
        "0": convolution,
        "1": 0,
        "2": 0,
        "3": linear,
    }
    cost = count_cost(network, (2, 8, 8))
    assert cost.params == 4 * 18 + 4 + 1440 + 10


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(16, 3 * 16)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).reshape(1, 64, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(query, key, value)
        return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def test_fused_attention_is_counted_as_its_two_products() -> None:
    by_hand = 64 * 16 * 48 + 2 * (4 * 64 * 64 * 4)
    assert count_cost(Attention(fused=True).eval(), (16, 8, 8)).macs == by_hand
    assert count_cost(Attention(fused=False).eval(), (16, 8, 8)).macs == by_hand


def test_attention_with_unlike_lengths() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.values = nn.Parameter(torch.randn(1, 5, 3)), nn.Parameter(torch.randn(1, 5, 7))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x.flatten(2).transpose(1, 2), self.keys, self.values)

    assert count_cost(Cross().eval(), (3, 4, 4)).macs == 16 * 5 * 3 + 16 * 5 * 7


def test_counting_leaves_the_network_alone(random_network: Callable[..., nn.Module]) -> None:
    network = random_network(3)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_cost(network, SHAPE)
    assert not network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("runs", [0, 1])
def test_hooks_are_gone_where_forward_raises(runs: int) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            y: Tensor = self.conv(x)
            if self.runs > runs:
                raise ValueError("on purpose")
            return y

    network = Failing().eval()
    message = "refuses an input of shape .*on purpose" if runs == 0 else "cannot be counted: ValueError: on purpose"
    with pytest.raises(ModelError, match=message):
        count_cost(network, SHAPE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Checkpointed(nn.Sequential):
    """Blocks that are computed anew for the gradient, in torch's older way, also where nothing is trained."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = checkpoint(block, x, use_reentrant=True)
        return x


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, that no gradient is asked for
def test_blocks_that_are_computed_anew_are_counted() -> None:
    blocks = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    kept = CheckpointFunction.apply
    assert count_cost(Checkpointed(*blocks).eval(), SHAPE) == count_cost(nn.Sequential(*blocks), SHAPE)
    assert CheckpointFunction.apply == kept


class Traced(nn.Module):
    """Takes its sizes as tensors where it is traced, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            assert all(isinstance(size, Tensor) for size in x.shape)
        return self.layer(x)


def test_forwards_that_take_traced_sizes_are_counted() -> None:
    assert count_cost(Traced().eval(), SHAPE) == count_cost(nn.Conv2d(3, 8, 3), SHAPE)


def test_a_layer_of_one_output_shrinks_with_its_inputs() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), parametrizations.weight_norm(nn.Linear(16, 1)))
    groups = find_groups(network, torch.randn(1, *SHAPE))
    model = CostModel(network, groups, count_macs_by_module(network, SHAPE))
    kept = np.array([10.0 if group.name == "1" else group.width for group in groups])
    assert model.params(kept) == 10 * 193 + 10 + 1  # of the last layer's weight norm, folded, no gain is left


def test_a_refused_input_shape() -> None:
    with pytest.raises(ModelError, match=r"refuses an input of shape \(1, 4, 8, 8\): .*`input_shape` C H W"):
        count_cost(nn.Conv2d(3, 4, 3), (4, 8, 8))


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_predictions_are_what_a_pruned_network_counts(
    random_network: Callable[..., nn.Module], seed: int, data: Any
) -> None:
    from fvcore.nn import FlopCountAnalysis

    network = random_network(seed)
    groups = find_groups(network, torch.randn(1, *SHAPE))
    model = CostModel(network, groups, count_macs_by_module(network, SHAPE))
    kept = [
        group.width
        if group.role == "output" or group.reason
        else data.draw(st.integers(1, group.width // group.blocks)) * group.blocks
        for group in groups
    ]
    plans = [
        group_plan(group, choose_units(group, np.arange(group.width) * 1.0, count), count, "", Cost(macs=0, params=0))
        for group, count in zip(groups, kept, strict=True)
    ]
    apply_plan(network, plans)
    predicted = np.array(kept, dtype=np.float64)
    assert model.params(predicted) == pytest.approx(sum(p.numel() for p in network.parameters()), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = FlopCountAnalysis(network, torch.zeros(1, *SHAPE)).unsupported_ops_warnings(False).total()
    assert model.macs(predicted) == pytest.approx(counted, rel=0.01)
    dense = np.array([group.width for group in groups], dtype=np.float64)
    assert model.macs(dense) == model.dense.macs
    assert model.params(dense) == model.dense.params


def test_what_hangs_on_a_group() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    groups = find_groups(network, torch.randn(1, *SHAPE))
    macs = count_macs_by_module(network, SHAPE)
    first = next(index for index, group in enumerate(groups) if group.name == "0")
    cost = CostModel(network, groups, macs).group_cost(first)
    assert cost.params == (4 * 27 + 4) + (4 + 4) + 5 * 4 * 9
    assert cost.macs == 36 * 4 * 27 + macs["1"] + 16 * 5 * 36
