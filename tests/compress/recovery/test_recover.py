"""Recovery: what it brought, on inputs that were used and on others, and which way the options allow."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.options import RecoveryOptions
from pruneport.compress.recovery.reconstruct import reconstruct
from pruneport.compress.recovery.recover import choose_recovery, recover
from pruneport.errors import ImageFolderError, InputError, PruningError
from recovery_cases import SHAPE, batches_of, images, kept_of, network, output_error, pruned_from
from small_networks import same_state


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


@pytest.mark.parametrize(("name", "mirrored"), [("reconstruct", True), ("data-free", False)])
def test_images_are_shown_mirrored_and_synthetic_inputs_have_been(name: str, mirrored: bool) -> None:
    dense = network()
    pruned, same = pruned_from(dense), pruned_from(dense)
    recover(name, dense, pruned.network, pruned.plan.groups, batches_of(images(), 32))
    reconstruct(dense, same.network, kept_of(same), batches_of(images(), 32), mirrored=mirrored)
    assert same_state(pruned.network, same.network)


def test_few_images_are_fitted_better_than_others() -> None:
    """So the in-sample figure is too good."""
    dense = network()
    pruned = pruned_from(dense, flops=0.4)
    unseen = batches_of(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(9)), 32)
    done = recover("reconstruct", dense, pruned.network, pruned.plan.groups, batches_of(images(36), 18), heldout=unseen)
    assert done.heldout_error_after is not None
    assert done.error_after < 0.95 * done.heldout_error_after


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
        ({"calibration": Path("x"), "recover": "imitate"}, True, "imitate"),
        ({"recover": "imitate"}, False, "imitate"),
        ({"calibration": Path("x"), "recovery_minutes": 1}, True, "imitate"),
        ({"recovery_steps": 9}, True, "imitate"),
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
    with pytest.raises(PruningError, match="no BatchNorm statistics to make synthetic inputs from"):
        choose_recovery(RecoveryOptions(recover="imitate"), normless, True)
    assert choose_recovery(RecoveryOptions(), normless, True) == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recovery_minutes": 0}, "`recovery_minutes` is 0; expected a number above 0"),
        ({"recovery_minutes": float("inf")}, "`recovery_minutes` is inf; expected a number above 0"),
        ({"recovery_steps": 0}, "`recovery_steps` is 0; expected at least 1"),
        ({"recovery_steps": 1, "recovery_minutes": 1}, "imitation's length comes from one"),
        ({"recovery_minutes": 1, "recover": "bn"}, "`recovery_minutes` is for `recover=imitate`, and `recover=bn`"),
        ({"recovery_steps": 1, "recover": "none"}, "`recovery_steps` is for `recover=imitate`, and `recover=none`"),
    ],
)
def test_a_length_that_imitation_cannot_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_recovery(RecoveryOptions(calibration=Path("x"), **options), network(), True)


def test_a_time_to_imitate_with_nothing_to_imitate_on_is_refused() -> None:
    with pytest.raises(ImageFolderError, match="`recovery_minutes` is given, and there is nothing to imitate on"):
        choose_recovery(RecoveryOptions(recovery_minutes=1), nn.Sequential(nn.Conv2d(1, 8, 3)), True)


def test_data_free_recovery_leaves_a_layer_with_too_few_inputs_as_it_is() -> None:
    dense = network()
    pruned = pruned_from(dense)
    before = copy.deepcopy(pruned.network)
    done = recover("data-free", dense, pruned.network, pruned.plan.groups, batches_of(images(1), 1))
    assert done.images == 1
    assert torch.equal(pruned.network.blocks[2].conv2.weight, before.blocks[2].conv2.weight)
