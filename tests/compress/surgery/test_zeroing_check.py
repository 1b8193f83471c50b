"""The proof: removing units changes the outputs as zeroing them does, or it says that it does not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.zeroing_check import check_against_masked, masked_outputs
from pruneport.errors import PruningError
from pruneport.models.record import Source
from small_networks import zeroed

SOURCE = Source(spec="tests:network", model_args={}, input_shape=(3, 8, 8))
DIGITS = Source(spec="pruneport:digits_resnet", model_args={}, input_shape=(1, 8, 8))


def test_a_wrong_coupling_is_caught(digits: nn.Module) -> None:
    pruned = prune(digits, DIGITS, PruneOptions(ratio=0.5))
    groups = list(pruned.plan.groups)
    index = next(index for index, group in enumerate(groups) if group.name == "blocks.2.conv1")
    members = [
        replace(member, positions=member.positions[::-1].copy()) if member.axis == "in" else member
        for member in groups[index].members
    ]
    groups[index] = replace(groups[index], members=tuple(members))
    wrong = copy.deepcopy(digits)
    apply_plan(wrong, groups)
    images = torch.randn(2, 1, 8, 8)
    coupling = find_coupling(digits, images)
    assert (check_against_masked(digits, pruned.network, pruned.plan.groups, images, coupling) or 0) < 1e-4
    with pytest.raises(PruningError, match=r"changes the outputs by .* beyond what zeroing them does .*`keep=PATTERN`"):
        check_against_masked(digits, wrong, pruned.plan.groups, images, coupling)


def test_masked_outputs_are_those_of_zeroed_weights(digits: nn.Module) -> None:
    plan = prune(digits, DIGITS, PruneOptions(ratio=0.5, scope="channels")).plan
    images = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        expected = zeroed(digits, plan, only_inputs=True)(images)
        assert not torch.allclose(expected, digits(images), atol=1e-3)
    actual = masked_outputs(digits, plan.groups, images)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in digits.modules())


def test_outputs_that_are_all_zero_prove_nothing(digits: nn.Module) -> None:
    network = copy.deepcopy(digits)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    proved = prune(network, DIGITS, PruneOptions(ratio=0.5)).plan.masked_error
    assert proved is not None, "what the head reads is looked at, too"
    assert proved < 1e-5
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert prune(network, DIGITS, PruneOptions(ratio=0.5)).plan.masked_error is None


def test_masked_outputs_that_are_no_numbers_prove_nothing_by_themselves() -> None:
    """Where zeros make a weight that is no number, the proof must not be silent: it counts zeros for it."""

    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight / self.weight.abs().amax((1, 2, 3), keepdim=True), self.bias)

    torch.manual_seed(0)
    network = nn.Sequential(Scaled(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    proved = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1)).plan
    assert proved.masked_error is not None
    assert proved.masked_error < 1e-5
    shifted = copy.deepcopy(network)
    shifted[0].forward = lambda x: x.new_full((len(x), 12, 6, 6), float("nan"))  # type: ignore[index,union-attr]
    with pytest.raises(PruningError):
        check_against_masked(
            network, shifted, proved.groups, torch.randn(2, 3, 8, 8), find_coupling(network, torch.randn(1, 3, 8, 8))
        )


def test_norms_that_average_over_channels_are_proved_too() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 2, 1)
    ).eval()
    for layer in network.modules():  # removing the units must not be the same as zeroing them
        if isinstance(layer, nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    assert pruned.plan.masked_error is not None
    assert pruned.plan.masked_error < 1e-6
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    zeroed = masked_outputs(network, pruned.plan.groups, example)[0]
    with torch.inference_mode():
        assert not torch.allclose(pruned.network(example), zeroed, atol=1e-2)
    assert (pruned.network[1].num_channels, pruned.network[1].num_groups) == (4, 2)
    kept = next(group.kept for group in pruned.plan.groups if group.name == "0")
    assert [unit < 4 for unit in kept or ()] == [True, True, False, False]


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised by a BatchNorm over its inputs, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        out: Tensor = nn.functional.conv2d(x, weight, self.bias, padding=self.padding, groups=self.groups)
        return out


@pytest.mark.parametrize("groups", [1, 4])
def test_standardised_weights_are_proved(groups: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        StandardisedConv(3, 12, 3, padding=1),
        nn.ReLU(),
        StandardisedConv(12, 24, 3, padding=1, groups=groups),
        nn.ReLU(),
        StandardisedConv(24, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    with torch.no_grad():
        network[0].weight[:3] *= 0.01  # type: ignore[index,operator]  # so that the first inputs go
        network[2].weight[:, :3] *= 0.01  # type: ignore[index,operator]
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    assert pruned.network[0].out_channels == 6  # type: ignore[index]
    assert pruned.plan.masked_error is not None
    assert pruned.plan.masked_error < 1e-6


class Chosen(nn.Module):
    """As many boxes as have a score above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)
        self.threshold = threshold

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        scores, boxes = self.scores(y).flatten(), self.boxes(y).permute(0, 2, 3, 1).reshape(-1, 4)
        chosen = scores > self.threshold
        return {"boxes": boxes[chosen], "scores": scores[chosen], "labels": chosen[chosen].long()}


def test_a_number_of_boxes_that_hangs_on_rounding_is_proved() -> None:
    """The threshold is one of the masked network's scores, to the last bit: the pruned one's may be just above it."""
    torch.manual_seed(0)
    network = Chosen(0.0).eval()
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # as the proof has it
    plan = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1)).plan
    with torch.no_grad():
        network.threshold = -1e9
        smaller = copy.deepcopy(network)
        apply_plan(smaller, plan.groups)
        pruned = smaller(example)["scores"]
        masked = masked_outputs(network, plan.groups, example)[1]
    above = torch.nonzero(pruned > masked).flatten()
    assert len(above), "no score differs by rounding: choose another seed"
    network.threshold = float(masked[above[0]])
    again = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1)).plan
    assert [group.kept for group in again.groups] == [group.kept for group in plan.groups]
    assert all("removing some of it" not in group.reason for group in again.groups)


def test_nothing_chosen_is_no_fault() -> None:
    """The masked network finds nothing where the dense one does."""
    torch.manual_seed(0)
    network = Chosen(0.0).eval()
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1)).plan
    with torch.no_grad():
        network.threshold = -1e9
        masked = masked_outputs(network, plan.groups, example)[1].max()
        dense = network(example)["scores"].max()
    network.threshold = float((masked + dense) / 2)
    assert dense > network.threshold > masked, "choose another seed"
    assert prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1)).plan.masked_error is not None
