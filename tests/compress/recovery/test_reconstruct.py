"""Reconstruction: the weights that are solved for, against an independent least squares."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruneport.compress.activations.least_squares import ridge_of
from pruneport.compress.activations.row_weights import RowWeights
from pruneport.compress.recovery import layer_rows
from pruneport.compress.recovery import reconstruct as reconstruct_module
from pruneport.compress.recovery.augment import mirror_images
from pruneport.compress.recovery.reconstruct import reconstruct
from pruneport.compress.resize.layers import narrow
from pruneport.errors import ImageFolderError
from recovery_cases import (
    SHAPE,
    batches_of,
    images,
    kept_of,
    network,
    output_error,
    pruned_from,
    solved_behind,
    weights_of_rows,
)
from small_networks import same_state


def calls_of(layers: Mapping[str, nn.Module]) -> Counter[str]:
    """How often each runs from now on, on a batch of 32."""
    calls: Counter[str] = Counter()

    def count(name: str, layer: nn.Module) -> None:
        layer.register_forward_hook(lambda module, inputs, output: calls.update([name] * (len(inputs[0]) == 32)))

    for name, layer in layers.items():
        count(name, layer)
    return calls


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


def test_the_dense_network_runs_once() -> None:
    dense = network()
    pruned = pruned_from(dense)
    inside = dense.blocks.named_modules(prefix="blocks")  # no cuts, whose stand-ins call hooks, too
    layers = {name: layer for name, layer in inside if isinstance(layer, nn.Conv2d)}
    calls = calls_of(layers)
    solved = reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(), 32))
    assert len(solved) > 5
    assert calls == dict.fromkeys(layers, 3)  # batches


@pytest.mark.parametrize(("room", "passes"), [(2**30, 1), (100_000, 4)])
def test_rows_are_held_while_there_is_room_and_else_seen_again(
    room: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer is solved four times; the solution is the same."""
    dense = network()
    pruned = pruned_from(dense)
    whole = copy.deepcopy(pruned.network)
    reconstruct(dense, whole, kept_of(pruned), batches_of(images(), 32))
    monkeypatch.setattr(layer_rows, "_MOST_BYTES", room)
    calls = calls_of({name: pruned.network.get_submodule(name) for name in ("blocks.1.conv1", "blocks.1.conv2")})
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(), 32))
    assert same_state(pruned.network, whole)
    # Both run in the passes of conv2 and of the shortcut, and once more to go on behind the block: of three batches.
    assert calls == dict.fromkeys(("blocks.1.conv1", "blocks.1.conv2"), 3 * (2 * passes + 1))


def test_the_batch_size_does_not_change_the_solution() -> None:
    dense = network()
    pruned = pruned_from(dense)
    other = copy.deepcopy(pruned.network)
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(), 96))
    reconstruct(dense, other, kept_of(pruned), batches_of(images(), 48))
    with torch.inference_mode():
        torch.testing.assert_close(pruned.network(images(8)), other(images(8)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mirrored", [False, True])
def test_weights_are_held_by_six_times_unknowns_over_the_equations_of_the_images(
    mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy: a ridge is equations more, one for each unknown."""
    monkeypatch.setattr(RowWeights, "of", lambda *_: None)
    torch.manual_seed(0)
    dense: Any = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    pruned, keep = copy.deepcopy(dense), [0, 2, 3, 5, 7]
    kept = {"0": {"out": keep}, "2": {"in": keep}}
    for name, axes in kept.items():
        narrow(pruned, name, axes)
    given = torch.randn(6, 3, 8, 8)
    shown = torch.cat([given, given.flip(3)]) if mirrored else given
    with torch.inference_mode():
        read, wanted = (tensor.movedim(1, -1).flatten(0, 2) for tensor in (dense[:2](shown), dense(shown)))
    rows, targets = read[:, keep].double().numpy(), wanted.double().numpy()
    rows, targets = rows - rows.mean(0), targets - targets.mean(0)
    views = len(shown) // len(given)
    held = np.diag(rows.std(0) * np.sqrt(6 * len(keep) * views))
    start = pruned[2].weight.detach().flatten(1).T.double().numpy()
    fitted, *_ = np.linalg.lstsq(np.vstack([rows, held]), np.vstack([targets, held @ start]), rcond=None)
    assert np.abs(fitted - start).max() > 0.01
    assert reconstruct(dense, pruned, kept, batches_of(given, 3), mirrored=mirrored) == ["2"]
    np.testing.assert_allclose(pruned[2].weight.detach().flatten(1).T.numpy(), fitted, atol=1e-5)


def test_mirrored_is_with_the_mirror_images_beside_and_a_ridge_for_the_images_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RowWeights, "of", lambda *_: None)  # a mirror image's are taken from the image
    dense = network()
    pruned = pruned_from(dense)
    beside = copy.deepcopy(pruned.network)
    given = images(96)
    both = batches_of(torch.cat([given, given.flip(3)]), 48)
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(given, 48), mirrored=True)
    monkeypatch.setattr(reconstruct_module, "ridge_of", lambda unknowns, rows: ridge_of(unknowns, rows // 2))
    reconstruct(dense, beside, kept_of(pruned), both)
    assert same_state(pruned.network, beside)


def test_mirror_images_are_left_out_where_the_images_give_equations_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct_module, "_FEW", 64)
    dense = network()
    pruned = pruned_from(dense)
    alone = copy.deepcopy(pruned.network)
    reconstruct(dense, alone, kept_of(pruned), batches_of(images(96), 32), strict=False)
    calls = calls_of({"conv1": dense.blocks[0].conv1})
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(96), 32), mirrored=True, strict=False)
    assert same_state(pruned.network, alone)
    assert calls == {"conv1": 3}  # batches


def test_few_images_bring_other_images_nearer_with_their_mirror_images() -> None:
    dense = network()
    pruned = pruned_from(dense)
    alone = copy.deepcopy(pruned.network)
    unseen = batches_of(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(9)), 32)
    reconstruct(dense, alone, kept_of(pruned), batches_of(images(64), 32))
    reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(64), 32), mirrored=True)
    assert output_error(dense, pruned.network, unseen) < 0.95 * output_error(dense, alone, unseen)


def test_too_few_images_are_too_few_with_their_mirror_images_and_counted_without() -> None:
    dense = network()
    pruned = pruned_from(dense)
    with pytest.raises(ImageFolderError) as alone:
        reconstruct(dense, copy.deepcopy(pruned.network), kept_of(pruned), batches_of(images(1), 1))
    with pytest.raises(ImageFolderError) as mirrored:
        reconstruct(dense, pruned.network, kept_of(pruned), batches_of(images(1), 1), mirrored=True)
    assert str(mirrored.value) == str(alone.value)


def test_inputs_that_are_no_images_have_no_mirror_images() -> None:
    pictures = torch.ones(2, 3, 4, 4)
    assert len(mirror_images([lambda: pictures], pictures)) == 1
    for inputs in (torch.ones(2, 3, 4), torch.ones(2, 3, 4, 4, dtype=torch.long), (pictures, pictures)):
        assert mirror_images([lambda inputs=inputs: inputs], inputs) == ()  # type: ignore[misc]


def test_the_sum_with_the_shortcut_is_fitted_and_not_the_branch() -> None:
    """Against an independent least squares on the last block: target = dense sum - pruned shortcut.

    What is compared is what the ReLU behind gives, which is fitted closer than by least squares on what it reads.
    """
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
    counts = weights_of_rows(dense, "blocks.2.conv2", batches_of(inputs, 64), 16)[:, None]
    best = np.linalg.lstsq(rows * np.sqrt(counts), target * np.sqrt(counts), rcond=None)[0]
    shortcut, given, asked = (
        side.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy() for side in (x, got, wanted)
    )

    def error(sums: np.ndarray) -> float:
        return float((counts * np.square(np.maximum(sums, 0) - np.maximum(asked, 0))).mean())

    assert error(given) < error(rows @ best + shortcut)


def test_a_layer_with_nothing_for_an_intercept_is_fitted_by_its_weights_alone() -> None:
    """As a DenseNet's last convolution of a layer: no bias, and what comes behind reads others too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        dense = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.Sigmoid()).eval()
    inputs = images(64)
    batches = batches_of(inputs, 32)
    pruned = solved_behind(dense, "0", "2", [0, 1, 2, 4, 7], batches)
    with torch.inference_mode():
        rows = pruned[:2](inputs).transpose(0, 1).flatten(1).T.double().numpy()
        targets = dense[:3](inputs).transpose(0, 1).flatten(1).T.double().numpy()
    root = np.sqrt(weights_of_rows(dense, "2", batches, len(targets) // len(inputs)))[:, None]
    fitted = np.linalg.lstsq(rows * root, targets * root, rcond=None)[0]
    np.testing.assert_allclose(pruned[2].weight.detach().flatten(1).T.numpy(), fitted, atol=1e-4)
