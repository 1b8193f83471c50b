"""What torch-pruning's removal and its pruner get wrong: why ``compress/resize`` shrinks layers, and not they.

Each test fails once a release mends its fault. ``docs/torch_pruning.md`` tells them to users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from small_networks import Net, conv
from torch_pruning_faults import outcome, pruned_by, removed_from, still_a_fault

pytestmark = pytest.mark.slow  # what another release of torch-pruning may change

RESIZE = "compress/resize/layers.py"
PRUNER = "compress/removal.py and compress/graph/widths.py"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(3, 8), *layers)


# Layers


def test_layer_norms_with_few_channels_left_are_permuted() -> None:
    """The kept indices come from a set, and are sorted in a copy that is thrown away."""
    permuted = 0
    for seed in range(40):
        network = nn.Sequential(nn.Linear(3, 64), nn.LayerNorm(64), nn.Linear(64, 5))
        nn.init.normal_(network[1].weight)
        drawn = torch.randperm(64, generator=torch.Generator().manual_seed(seed)).tolist()
        kept, removed = sorted(drawn[:13]), drawn[13:]  # 20 %
        pruned = removed_from(network, torch.randn(2, 3), "0", removed)
        wanted = network[1].weight[kept]
        assert torch.equal(pruned.get_submodule("1").weight.sort().values, wanted.sort().values)
        permuted += not torch.equal(pruned.get_submodule("1").weight, wanted)
    still_a_fault(permuted == 40, f"LayerNorms keep their order ({permuted} of 40 permuted)", RESIZE)


def running(norm: nn.Module) -> nn.Module:
    """With running statistics of something."""
    norm(torch.randn(4, 8, 6, 6) + torch.arange(8.0)[:, None, None])
    return norm


def depthwise(multiplier: int) -> nn.Module:
    return nn.Conv2d(8, 8 * multiplier, 3, padding=1, groups=8)


LAYERS: dict[str, tuple[Callable[[], nn.Sequential], str, list[int], str]] = {
    "grouped convolutions lose the same inputs in each group": (
        lambda: chain(conv(8, 4, groups=2)),
        "0",
        [1, 6],
        "wrong",
    ),
    "inputs of grouped transposed convolutions": (
        lambda: chain(nn.ConvTranspose2d(8, 4, 2, groups=2)),
        "0",
        [1, 5],
        "raises",
    ),
    "outputs of grouped transposed convolutions": (
        lambda: chain(nn.ConvTranspose2d(8, 8, 2, groups=2), conv(8, 4)),
        "1",
        [1, 5],
        "raises",
    ),
    "depthwise convolutions with two outputs for an input": (
        lambda: chain(depthwise(2), conv(16, 4)),
        "0",
        [1],
        "raises",
    ),
    "a grouped convolution with one output a group, taken for depthwise": (
        lambda: chain(conv(8, 2, groups=2)),
        "0",
        [1, 5],
        "raises",
    ),
    "InstanceNorm with running statistics": (
        lambda: chain(running(nn.InstanceNorm2d(8, track_running_stats=True)), conv(8, 4)),
        "0",
        [1],
        "raises",
    ),
    "weight norm": (lambda: chain(parametrizations.weight_norm(conv(8, 4))), "0", [1], "raises"),
    "spectral norm": (lambda: chain(parametrizations.spectral_norm(conv(8, 4))), "0", [1], "raises"),
    "GroupNorms may lose different numbers in each group": (
        lambda: chain(nn.GroupNorm(2, 8), conv(8, 4)),
        "0",
        [1],
        "raises",
    ),
}


@pytest.mark.parametrize("what", LAYERS)
def test_removal_is_not_that_of_the_zeroed_network(what: str) -> None:
    build, layer, units, expected = LAYERS[what]
    found = outcome(build(), maps(), layer, units)
    still_a_fault(found == expected, f"{what} (now: {found})", RESIZE)


def test_frozen_layers_become_trainable() -> None:
    network = chain(nn.BatchNorm2d(8), conv(8, 4))
    network[1].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    pruned = removed_from(network, maps(), "0", [1])
    trainable = [name for name, parameter in pruned.named_parameters() if parameter.requires_grad]
    still_a_fault({"1.weight", "1.bias", "2.weight"} <= set(trainable), "frozen parameters stay frozen", RESIZE)


def test_buffers_keep_their_width() -> None:
    network = Net(lambda n, x: n.b(n.a(x) * n.gain), a=conv(3, 8), b=conv(8, 4))
    network.register_buffer("gain", torch.rand(8, 1, 1))
    found = outcome(network, maps(), "a", [1])
    still_a_fault(found == "raises", f"buffers shrink (now: {found})", RESIZE)


def test_what_1_6_does_right() -> None:
    """What was said of earlier releases: none of these is a reason to keep code of ours."""
    assert tp.ops.module2type(nn.Conv2d(1, 1, 3)) == tp.ops.OPTYPE.CONV  # not depthwise
    for affine in (False, True):
        norm = nn.InstanceNorm2d(8, affine=affine)
        if affine:
            nn.init.normal_(norm.weight)
        assert outcome(chain(norm, conv(8, 4)), maps(), "0", [1]) == "right"
    assert outcome(chain(nn.ConvTranspose2d(8, 8, 2, groups=8, bias=False), conv(8, 4)), maps(), "0", [1]) == "right"
    assert outcome(chain(conv(8, 4, groups=2)), maps(), "0", [1, 5]) == "right"  # the same in each group


# The pruner


def widths(network: nn.Module) -> list[int]:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def test_rounding_to_nothing_leaves_a_group_dense_without_a_word() -> None:
    network = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 32), nn.ReLU(), conv(32, 4))
    pruned = pruned_by(network, maps(), pruning_ratio=0.6, round_to=8, ignored_layers=[network[4]])
    still_a_fault(widths(pruned) == [16, 8, 4], f"6 of 16 rounded to 8 leaves 8 ({widths(pruned)})", PRUNER)


@pytest.mark.parametrize("round_to", [4, 8])
def test_rounding_of_grouped_convolutions_mixes_counts_of_a_group_and_of_all(round_to: int) -> None:
    """Half of 16 is 8, a multiple of both; four groups of 2 are left dense."""
    network = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16, groups=4), nn.ReLU(), conv(16, 4))
    pruned = pruned_by(network, maps(), pruning_ratio=0.5, round_to=round_to, ignored_layers=[network[4]])
    still_a_fault(widths(pruned) == [16, 16, 4], f"grouped convolutions are rounded ({widths(pruned)})", PRUNER)


def test_an_ignored_classifier_loses_half_its_inputs() -> None:
    network = chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    pruned: Any = pruned_by(network, maps(), pruning_ratio=0.5, ignored_layers=[network[3]])
    still_a_fault(pruned[3].in_features == 4, "inputs of ignored layers are kept", PRUNER)


def test_pruners_share_the_dicts_that_they_default_to() -> None:
    importance = tp.importance.MagnitudeImportance()
    first, second = (
        tp.pruner.BasePruner(chain(conv(8, 8, groups=4), conv(8, 4)).eval(), maps(), importance) for _ in range(2)
    )
    still_a_fault(first.out_channel_groups is second.out_channel_groups, "each pruner has its dicts", PRUNER)


def test_a_network_in_training_is_left_in_eval_mode() -> None:
    network = chain(nn.BatchNorm2d(8), conv(8, 4)).train()
    tp.DependencyGraph().build_dependency(network, example_inputs=maps())
    still_a_fault(not network.training, "the mode of the network is kept", "compress/graph/tracing/tracer.py")
