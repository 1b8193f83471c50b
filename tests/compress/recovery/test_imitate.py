"""Imitation: nearer to the dense network than reconstruction, never further, and the same for the same seed."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import set_aside
from pruneport.compress.recovery.augment import augmented
from pruneport.compress.recovery.features import feature_place
from pruneport.compress.recovery.imitate import Effort, imitate
from pruneport.compress.recovery.recover import recover
from pruneport.errors import ImageFolderError, PruningError
from recovery_cases import SHAPE, batches_of, images, network, output_error, pruned_from
from small_networks import same_state


def _unseen() -> Tensor:
    return torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(9))


def test_it_comes_nearer_to_dense_on_inputs_that_it_has_not_seen() -> None:
    dense = network()
    pruned = pruned_from(dense, flops=0.5).network
    unseen = batches_of(_unseen(), 32)
    plain = output_error(dense, pruned, unseen)
    done = imitate(dense, pruned, batches_of(images(96), 32), batches_of(images(128)[96:], 32), Effort(steps=20))
    assert output_error(dense, pruned, unseen) < 0.9 * plain
    assert done.distance_after < 0.9 * done.distance_before
    assert (done.planned, done.tuning, done.features, done.kept) == (20, 32, "blocks", "imitation")
    assert not any(module.training for module in pruned.modules())


def test_batch_norms_keep_their_statistics() -> None:
    dense = network()
    pruned = pruned_from(dense, flops=0.5).network
    before = {name: tensor.clone() for name, tensor in pruned.named_buffers()}
    batches = batches_of(images(64), 32)
    imitate(dense, pruned, batches, batches, Effort(steps=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.named_buffers())


def test_the_same_seed_and_steps_give_the_same_network() -> None:
    dense = network()
    made = []
    for effort in (Effort(steps=3), Effort(steps=3), Effort(steps=3, seed=1)):
        pruned = pruned_from(dense, flops=0.5).network
        torch.rand(1 + len(made))  # what others draw is no part of it
        imitate(dense, pruned, batches_of(images(64), 32), batches_of(_unseen(), 32), effort)
        made.append(pruned)
    assert same_state(made[0], made[1])
    assert not same_state(made[0], made[2])


def test_what_brings_nothing_is_not_kept() -> None:
    """A network that is dense already can only get worse."""
    dense = network()
    pruned = copy.deepcopy(dense)
    done = imitate(dense, pruned, batches_of(images(64), 32), batches_of(_unseen(), 32), Effort(steps=3))
    assert same_state(pruned, dense)
    assert (done.kept, done.distance_before, done.distance_after) == ("reconstruction", 0, 0)


@pytest.mark.slow
def test_the_size_of_weights_does_not_matter_where_a_norm_makes_up_for_it() -> None:
    done = []
    for scale in (1.0, 0.125):
        dense = network()
        pruned = _scaled(pruned_from(dense, flops=0.5).network, scale)
        fit, tuning = batches_of(images(96), 32), batches_of(images(128)[96:], 32)
        done.append(imitate(dense, pruned, fit, tuning, Effort(steps=20)))
    assert done[0].distance_after < 0.9 * done[0].distance_before
    assert done[1].distance_before == pytest.approx(done[0].distance_before, rel=1e-4)
    assert done[1].distance_after == pytest.approx(done[0].distance_after, rel=1e-3)
    assert done[1].learning_rate == done[0].learning_rate


@pytest.mark.slow
def test_rates_are_tried_from_the_highest_until_one_gains() -> None:
    dense, batches = network(), batches_of(images(64), 32)
    pruned = pruned_from(dense, flops=0.5).network
    gained = imitate(dense, pruned, batches, batches, Effort(steps=40))
    vain = imitate(dense, copy.deepcopy(dense), batches, batches, Effort(steps=40))  # it is dense already
    assert gained.trial_steps == 6, "15 % of the steps with the highest"
    assert 12 < vain.trial_steps <= 24, "all four"


def _scaled(network: nn.Module, scale: float) -> nn.Module:
    """The same function with other convolution weights: each norm behind one remembers the smaller outputs."""
    modules = list(network.modules())
    for layer, norm in itertools.pairwise(modules):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layer.weight.data *= scale
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean *= scale
            norm.running_var *= scale**2
            norm.eps *= scale**2
    return network


def test_time_gives_the_number_of_steps() -> None:
    dense = network()
    pruned = pruned_from(dense).network
    done = imitate(dense, pruned, batches_of(images(64), 32), batches_of(_unseen(), 32), Effort(minutes=1e-9))
    assert (done.planned, done.steps) == (1, 1)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory")])
def test_memory_that_runs_out_in_a_step_is_no_fault_of_the_network(error: Exception) -> None:
    """Who runs it goes on with smaller batches."""

    def crowded(*_: object) -> None:
        if torch.is_grad_enabled():
            raise error

    dense = network()
    pruned = pruned_from(dense, flops=0.5).network
    pruned.register_forward_pre_hook(crowded)
    with pytest.raises(type(error)) as raised:
        imitate(dense, pruned, batches_of(images(64), 32), batches_of(_unseen(), 32), Effort(steps=3))
    assert raised.value is error


def test_a_network_that_lets_no_gradient_through_is_named() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    dense = Frozen().eval()
    batches = batches_of(images(64), 32)
    with pytest.raises(PruningError, match=r"cannot be trained to imitate the dense one .* `recover=reconstruct`"):
        imitate(dense, copy.deepcopy(dense), batches, batches, Effort(steps=1))


def test_too_few_inputs_are_named() -> None:
    dense = network()
    pruned = pruned_from(dense)
    with pytest.raises(ImageFolderError, match="`recover=imitate` needs 32 calibration inputs at least"):
        recover("imitate", dense, pruned.network, pruned.plan.groups, batches_of(images(31), 31))


# What is compared


class _Pooled(nn.Module):
    """Pools with a function: no module tells where."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 5, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.norm(self.second(self.first(x))).mean((2, 3)))
        return scores


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixer, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.mixer(self.embed(x[:, 0]))[:, 0])
        return scores


def test_the_last_features_with_positions_are_compared() -> None:
    example = images(2)
    assert feature_place(network(), network(), example) == "blocks"
    assert feature_place(_Pooled(), _Pooled(4), example) == "norm"
    assert feature_place(_Tokens(), _Tokens(), example) == "mixer"
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))
    assert feature_place(flat, flat, example) is None
    narrower = _Pooled()
    narrower.second, narrower.norm, narrower.last = nn.Conv2d(6, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)
    assert feature_place(_Pooled(), narrower, example) is None


# Inputs


def test_images_are_mixed_with_others_as_wholes_or_in_rectangles() -> None:
    """Of images of one value each, a mixed one has one value or two, which are its own and another's."""
    values = torch.arange(64.0)
    inputs = values[:, None, None, None].expand(64, 3, 12, 10).clone()
    assert torch.equal(augmented(inputs, 5), inputs)
    shown = augmented(inputs, 5, mixed=0.5)
    changed = [place for place in range(64) if not torch.equal(shown[place], inputs[place])]
    assert 16 < len(changed) < 48
    seen = [shown[place].unique() for place in changed]
    rectangles = [pair for pair in seen if len(pair) == 2]
    assert all(len(pair) <= 2 for pair in seen)
    assert all(float(pair[0]) in values and float(pair[1]) in values for pair in rectangles)
    assert 0 < len(rectangles) < len(changed)


def test_images_are_augmented_as_the_seed_says_and_others_left_alone() -> None:
    inputs = images(8)
    assert torch.equal(augmented(inputs, 3), augmented(inputs, 3))
    assert not torch.equal(augmented(inputs, 3), augmented(inputs, 4))
    columns = torch.arange(16.0).expand(64, 3, 9, 16)
    shown = augmented(columns, 3)
    assert shown.shape == columns.shape
    middles = shown[:, 0, 0, 7]
    assert set(middles.tolist()) == {5.0, 6.0, 7.0, 8.0, 9.0, 10.0}  # up to two pixels away, mirrored or not
    assert torch.equal(augmented(torch.ones(8, 3, 1, 7), 3), torch.ones(8, 3, 1, 7))
    tokens = torch.ones(2, 4, 6)
    assert augmented(tokens, 0) is tokens


def test_of_large_images_a_part_is_enlarged() -> None:
    """On ramps it shows how large the part is: so much less steep is what is enlarged."""
    across, down = torch.meshgrid(torch.arange(128.0), torch.arange(96.0), indexing="xy")
    shown = augmented(torch.stack([across, down]).expand(64, 2, 96, 128), 3)
    wide = shown[:, 0, 48].diff()[:, 60:68].mean(1)
    high = shown[:, 1, :, 64].diff()[:, 44:52].mean(1)
    assert torch.allclose(shown[:, 0, 20, 50:70], shown[:, 0, 70, 50:70], atol=1e-3), "nothing is turned"
    area, aspect = wide.abs() * high, wide.abs() / high
    assert 0.349 < float(area.min()) < 0.45
    assert 0.9 < float(area.max()) <= 1.001
    assert 0.74 < float(aspect.min()) < 0.85
    assert 1.2 < float(aspect.max()) < 1.34
    assert 16 < int((wide < 0).sum()) < 48
    assert float(shown[:, 0].min()) >= 0
    assert float(shown[:, 0].max()) <= 127


@pytest.mark.parametrize("size", [32, 10, 1])
def test_a_tenth_of_the_inputs_is_set_aside(size: int) -> None:
    inputs = torch.arange(160.0)[:, None]
    fitted, aside = set_aside(batches_of(inputs, size))
    parts = [{float(x) for load in batches for x in load()} for batches in (fitted, aside)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(160))
    assert len(parts[1]) == (20 if size == 32 else 16)
    again = [load() for load in fitted]
    assert all(torch.equal(one, load()) for one, load in zip(again, fitted, strict=True))


def test_of_few_inputs_none_is_set_aside() -> None:
    batches = batches_of(torch.zeros(31, 1), 8)
    assert set_aside(batches) == (batches, ())
