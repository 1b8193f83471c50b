"""Recovery: least squares against numpy's, replay against whole passes, statistics against their definition."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.least_squares import Equations, patch_rows
from pruneport.compress.activations.replay import Replay, find_cuts
from pruneport.compress.options import PruneOptions, RecoveryOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.recovery.reconstruct import reconstruct
from pruneport.compress.recovery.recover import choose_recovery, output_error, recover
from pruneport.compress.resize.layers import narrow
from pruneport.compress.surgery.plan import positions_kept
from pruneport.errors import ImageFolderError, PruningError
from pruneport.models.digits.network import digits_resnet
from pruneport.models.record import Source

SHAPE = (1, 8, 8)


def network(seed: int = 0) -> nn.Module:
    """The embedded architecture with random weights and statistics that are alive."""
    torch.manual_seed(seed)
    built = digits_resnet()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return built.eval()


def pruned_from(dense: nn.Module, flops: float = 0.6) -> Pruned:
    return prune(dense, Source(spec="x:y", model_args={}, input_shape=SHAPE), PruneOptions(flops=flops))


def batches_of(inputs: Tensor, size: int) -> Batches:
    return [lambda part=part: part.clone() for part in inputs.split(size)]  # type: ignore[misc]


def kept_of(pruned: Pruned) -> dict[str, dict[str, list[int]]]:
    groups = [group for group in pruned.plan.groups if group.kept is not None]
    return positions_kept([(member, group.kept or ()) for group in groups for member in group.members])


def images(count: int = 96) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# The equations


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    seed=st.integers(0, 1000), unknowns=st.integers(1, 6), outputs=st.integers(1, 3), ridge=st.sampled_from([0.0, 0.1])
)
def test_streamed_equations_give_the_least_squares_solution(
    seed: int, unknowns: int, outputs: int, ridge: float
) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(1, 2, (40, unknowns))
    targets = inputs @ generator.normal(size=(unknowns, outputs)) + 3 + generator.normal(size=(40, outputs))
    start = generator.normal(size=(unknowns, outputs))
    equations = Equations(unknowns, outputs)
    for first in range(0, 40, 7):
        rows = slice(first, first + 7)
        equations.add(*(torch.from_numpy(side[rows]).float() for side in (inputs, targets)))
    weight, intercept = equations.solve(torch.from_numpy(start), ridge)

    # The same problem as one tall system: centred rows, and one row an unknown for the ridge.
    centred, wanted = inputs - inputs.mean(0), targets - targets.mean(0)
    pull = np.sqrt(ridge * centred.var(0).mean() * 40)
    tall = np.vstack([centred, pull * np.eye(unknowns)])
    right = np.vstack([wanted, pull * start])
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
    ],
)
def test_patch_rows_times_the_weight_is_the_convolution(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    layer = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=False)
    inputs = torch.randn(2, 3, 9, 10)
    outputs = layer(inputs).detach()
    positions = torch.randperm(outputs.shape[2] * outputs.shape[3])[:7]
    rows, targets = patch_rows(inputs, outputs, positions, kernel, stride, padding, dilation)
    torch.testing.assert_close(rows @ layer.weight.detach().flatten(1).T, targets, atol=1e-5, rtol=1e-5)


# Replay


def test_cuts_are_where_one_output_decides_the_rest() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(2, 2, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            out: Tensor = self.third(self.second(first) + first)
            return out

    assert find_cuts(Around().eval(), torch.randn(2, 2, 4, 4)) == ["first", "third"]
    cuts = find_cuts(network(), images(2))
    assert cuts == ["stem.0", "stem.1", "stem.2", "blocks.0", "blocks.1", "blocks.2", "pool", "head"]


def test_cuts_of_a_network_that_writes_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.first(x).relu_()
            out: Tensor = self.second(first).relu_()
            return out

    assert find_cuts(InPlace().eval(), torch.randn(2, 2, 4, 4)) == ["first", "second"]


def test_replay_from_any_frontier_gives_the_same_activations() -> None:
    dense, inputs = network(), images(10)
    batches = batches_of(inputs, 4)
    caught: list[Tensor] = []
    handle = dense.blocks[2].conv2.register_forward_hook(lambda m, i, output: caught.append(output.clone()))
    with torch.inference_mode():
        dense(inputs)
    expected = caught.pop()
    loads = 0

    def counted(load: Any) -> Any:
        def call() -> Tensor:
            nonlocal loads
            loads += 1
            return load()

        return call

    with Replay(dense, find_cuts(dense, inputs[:2]), [counted(load) for load in batches]) as replay:
        caught.clear()
        for frontier in ("stem.0", "blocks.1.conv1", "blocks.2.conv1"):
            replay.advance(frontier)
            before = loads
            list(replay.passes())
            torch.testing.assert_close(torch.cat(caught[-3:]), expected, atol=0, rtol=0)
        assert loads == before  # behind the first frontier nothing is loaded again
    handle.remove()
    assert all("forward" not in vars(module) for module in dense.modules())


# Reconstruction


def test_removed_channels_that_were_copies_are_recovered_exactly() -> None:
    dense = network()
    block = dense.blocks[2]
    with torch.no_grad():  # every second channel inside the block repeats the one before it
        for tensor in (
            block.conv1.weight,
            block.norm1.weight,
            block.norm1.bias,
            block.norm1.running_mean,
            block.norm1.running_var,
        ):
            tensor[1::2] = tensor[0::2]
        block.conv2.weight[:, 1::2] *= 3  # so that the copies matter
        block.conv1.weight[0::2] *= 1.0
    pruned = copy.deepcopy(dense)
    keep = list(range(0, 64, 2))
    kept = {"blocks.2.conv1": {"out": keep}, "blocks.2.norm1": {"channels": keep}, "blocks.2.conv2": {"in": keep}}
    for name, axes in kept.items():
        narrow(pruned, name, axes)
    batches = batches_of(images(), 32)
    assert output_error(dense, pruned, batches) > 0.01
    before = copy.deepcopy(dense)
    solved = reconstruct(dense, pruned, kept, batches, ridge=1e-9)
    assert solved == ["blocks.2.conv2"]
    assert output_error(dense, pruned, batches) < 1e-6
    assert same_state(dense, before)


def test_reconstruction_comes_nearer_to_dense_on_images_it_has_not_seen() -> None:
    dense = network()
    pruned = pruned_from(dense)
    unseen = batches_of(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(9)), 32)
    plain = output_error(dense, pruned.network, unseen)
    done = recover("reconstruct", dense, pruned.network, pruned.plan.groups, batches_of(images(512), 64))
    assert done.images == 512
    assert done.error_after < done.error_before
    assert output_error(dense, pruned.network, unseen) < 0.5 * plain


@pytest.mark.parametrize("name", ["none", "bn", "reconstruct"])
def test_what_is_held_out_is_only_measured_on(name: str) -> None:
    """Against errors and agreement by numpy; the solution is the one without a hold-out."""
    dense = network()
    pruned, same = pruned_from(dense), pruned_from(dense)
    unseen = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(9))

    def compare() -> tuple[float, float]:
        with torch.inference_mode():
            theirs, ours = dense(unseen).double().numpy(), pruned.network(unseen).double().numpy()
        return np.square(theirs - ours).mean() / theirs.var(), (theirs.argmax(1) == ours.argmax(1)).mean()

    before = compare()
    calibration = batches_of(images(512), 64)
    done = recover(name, dense, pruned.network, pruned.plan.groups, calibration, heldout=batches_of(unseen, 32))
    if name != "none":
        recover(name, dense, same.network, same.plan.groups, calibration)
    assert same_state(pruned.network, same.network)
    after = compare()
    assert (done.heldout, done.images) == (40, 512)
    assert (done.heldout_error_before, done.heldout_agreement_before) == pytest.approx(before)
    assert (done.heldout_error_after, done.heldout_agreement) == pytest.approx(after)
    assert (before == after) is (name == "none")
    assert (done.error_before == done.error_after) is (name == "none")


def test_few_images_are_fitted_better_than_others() -> None:
    """So the in-sample figure is too good."""
    dense = network()
    pruned = pruned_from(dense, flops=0.4)
    unseen = batches_of(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(9)), 32)
    done = recover("reconstruct", dense, pruned.network, pruned.plan.groups, batches_of(images(48), 24), heldout=unseen)
    assert done.heldout_error_after is not None
    assert done.error_after < 0.7 * done.heldout_error_after


def test_outputs_without_classes_have_an_error_and_no_agreement() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            scores = self.body(x)
            return {"classes": scores.argmax(1), "maps": scores[:, :, None]}

    dense = Maps().eval()
    pruned = pruned_from(dense)
    done = recover(
        "none", dense, pruned.network, pruned.plan.groups, batches_of(images(), 32), heldout=batches_of(images(16), 16)
    )
    assert done.heldout_error_after is not None
    assert done.heldout_agreement is None
    without = recover("none", dense, pruned.network, pruned.plan.groups, batches_of(images(), 32))
    assert (without.heldout, without.heldout_error_after, without.heldout_agreement) == (0, None, None)


def test_classes_masked_by_infinity_are_left_out_of_the_error() -> None:
    class Masked(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).masked_fill(torch.arange(10) == 3, -torch.inf)

    class Unmasked(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[:, torch.arange(10) != 3]

    dense = network()
    pruned = pruned_from(dense)
    inputs = batches_of(images(), 32)
    masked = recover("none", Masked(dense), Masked(pruned.network), (), inputs, heldout=inputs)
    plain = recover("none", Unmasked(dense), Unmasked(pruned.network), (), inputs, heldout=inputs)
    assert masked.heldout_error_after == pytest.approx(plain.heldout_error_after)
    assert masked.heldout_agreement == plain.heldout_agreement


@pytest.mark.parametrize(("broken", "whose"), [("dense", "dense"), ("pruned", "pruned")])
def test_outputs_that_are_no_numbers_are_refused(broken: str, whose: str) -> None:
    dense, pruned = network(), network()
    {"dense": dense, "pruned": pruned}[broken].head.weight.data.fill_(torch.nan)
    inputs = batches_of(images(), 32)
    with pytest.raises(PruningError, match=f"the {whose} network's outputs are not finite numbers"):
        recover("none", dense, pruned, (), inputs, heldout=inputs)


def test_the_batch_size_does_not_change_the_solution() -> None:
    dense = network()
    pruned = pruned_from(dense)
    other = copy.deepcopy(pruned.network)
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(), 96))
    reconstruct(dense, other, kept_of(pruned), batches_of(images(), 48))
    with torch.inference_mode():
        torch.testing.assert_close(pruned.network(images(8)), other(images(8)), atol=1e-3, rtol=1e-3)


def test_the_sum_with_the_shortcut_is_fitted_and_not_the_branch() -> None:
    """Against an independent least squares on the last block: target = dense sum - pruned shortcut."""
    dense = network()
    pruned = pruned_from(dense)
    inputs = images(256)
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(inputs, 64), ridge=1e-8)
    ours, theirs = pruned.network.blocks[2], dense.blocks[2]
    with torch.inference_mode():
        x = pruned.network.blocks[1](pruned.network.blocks[0](pruned.network.stem(inputs)))
        wanted = theirs.norm2(
            theirs.conv2(theirs.relu(theirs.norm1(theirs.conv1(dense.blocks[1](dense.blocks[0](dense.stem(inputs)))))))
        ) + dense.blocks[1](dense.blocks[0](dense.stem(inputs)))
        hidden = ours.relu(ours.norm1(ours.conv1(x)))
        got = ours.norm2(ours.conv2(hidden)) + x
    rows = nn.functional.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1).double().numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    target = (wanted - x).flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    best = np.linalg.lstsq(rows, target, rcond=None)[0]
    least = float(np.square(rows @ best - target).mean())
    reached = float((got - wanted).double().square().mean())
    assert reached <= least * 1.01


def test_a_layer_with_nothing_for_an_intercept_is_fitted_by_its_weights_alone() -> None:
    """As a DenseNet's last convolution of a layer: no bias, and what comes behind reads others too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        dense = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.Sigmoid()).eval()
    pruned, keep, inputs = copy.deepcopy(dense), [0, 1, 2, 4, 7], images(64)
    narrow(pruned, "0", {"out": keep})
    narrow(pruned, "2", {"in": keep})
    kept = {"0": {"out": keep}, "2": {"in": keep}}
    assert reconstruct(dense, pruned, kept, batches_of(inputs, 32), ridge=1e-9) == ["2"]
    with torch.inference_mode():
        rows = pruned[:2](inputs).transpose(0, 1).flatten(1).T.double().numpy()
        targets = dense[:3](inputs).transpose(0, 1).flatten(1).T.double().numpy()
    fitted = np.linalg.lstsq(rows, targets, rcond=None)[0]
    np.testing.assert_allclose(pruned[2].weight.detach().flatten(1).T.numpy(), fitted, atol=1e-4)


def test_too_few_images_are_named() -> None:
    dense = network()
    pruned = pruned_from(dense)
    with pytest.raises(
        ImageFolderError, match=r"1 calibration images are too few to solve blocks\S+: .* at least \d+ images"
    ):
        recover("reconstruct", dense, pruned.network, pruned.plan.groups, batches_of(images(1), 1))


# Statistics


def test_bn_measures_mean_and_variance_of_what_the_norm_sees() -> None:
    dense = network()
    pruned = pruned_from(dense)
    inputs = images(64)
    recover("bn", dense, pruned.network, pruned.plan.groups, batches_of(inputs, 64))
    first = pruned.network.stem[1]
    seen = pruned.network.stem[0](inputs).detach()
    torch.testing.assert_close(first.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.running_var, seen.var((0, 2, 3)), atol=1e-5, rtol=1e-3)
    assert first.momentum == 0.1
    assert not any(module.training for module in pruned.network.modules())


# Options


@pytest.mark.parametrize(
    ("options", "trained", "expected"),
    [
        ({}, True, "data-free"),
        ({}, False, "none"),
        ({"recover": "data-free"}, False, "data-free"),
        ({"calibration": Path("x")}, True, "reconstruct"),
        ({"calibration": Path("x"), "recover": "bn"}, True, "bn"),
        ({"calibration": Path("x"), "recover": "none"}, True, "none"),
    ],
)
def test_auto_is_the_best_that_the_inputs_allow(options: dict[str, Any], trained: bool, expected: str) -> None:
    assert choose_recovery(RecoveryOptions(**options), network(), trained) == expected


def test_recovery_that_its_inputs_do_not_allow_is_refused() -> None:
    dense, normless = network(), nn.Sequential(nn.Conv2d(1, 8, 3))
    with pytest.raises(ImageFolderError, match="`recover=reconstruct` needs images: give `calibration=FOLDER`"):
        choose_recovery(RecoveryOptions(recover="reconstruct"), dense, True)
    with pytest.raises(ImageFolderError, match="data-free` uses no images: leave out `calibration`"):
        choose_recovery(RecoveryOptions(recover="data-free", calibration=Path("x")), dense, True)
    with pytest.raises(PruningError, match="no BatchNorm statistics to make synthetic inputs from"):
        choose_recovery(RecoveryOptions(recover="data-free"), normless, True)
    assert choose_recovery(RecoveryOptions(), normless, True) == "none"


def test_data_free_recovery_leaves_a_layer_with_too_few_inputs_as_it_is() -> None:
    dense = network()
    pruned = pruned_from(dense)
    before = copy.deepcopy(pruned.network)
    done = recover("data-free", dense, pruned.network, pruned.plan.groups, batches_of(images(1), 1))
    assert done.images == 1
    assert torch.equal(pruned.network.blocks[2].conv2.weight, before.blocks[2].conv2.weight)
