"""Synthetic inputs: the statistics that the BatchNorms see, measured with hooks of our own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations import synthetic
from pruneport.compress.activations.calibration import BATCH
from pruneport.compress.activations.synthetic import _Moments, dead_leaves, enough, has_statistics, synthesise
from pruneport.errors import PruningError
from pruneport.models.digits.network import digits_resnet
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    network, _ = open_source(SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT", input_shape=SHAPE))
    return network


def mismatch(network: nn.Module, inputs: Tensor) -> float:
    """Mean squared distance of the means at every BatchNorm, in its deviations."""
    found: list[float] = []

    def look(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        mean = arguments[0].double().mean((0, 2, 3))
        found.append(float(((mean - norm.running_mean).square() / norm.running_var).mean()))

    handles = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.inference_mode():
        network(inputs)
    for handle in handles:
        handle.remove()
    return sum(found) / len(found)


def test_batch_norms_see_what_they_remember(trained: nn.Module) -> None:
    before = copy.deepcopy(trained.state_dict())
    made = synthesise(trained, SHAPE, 40, seed=3)
    sizes = [len(load()) for load in made.batches]
    assert sizes == [20, 20] * 4, "each is shown in four views"
    assert max(sizes) <= BATCH
    inputs = torch.cat([load() for load in made.batches])
    assert len(torch.unique(inputs.flatten(1), dim=0)) == 160
    start = dead_leaves(40, SHAPE, torch.Generator().manual_seed(3))
    noise = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(3))
    assert mismatch(trained, inputs) < 0.15 * mismatch(trained, start)
    assert mismatch(trained, inputs) < 0.15 * mismatch(trained, noise)
    assert (made.record.inputs, made.record.count, made.labels) == ("synthetic", 160, None)
    after = trained.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in trained.modules())


def test_moments_and_their_derivatives_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = 3 * torch.randn(4, 5, 6, 7, generator=generator) + 2
    about = torch.linspace(-1, 4, 5)
    weights = torch.randn(2, 5, generator=generator)
    found = []
    for moments in (
        lambda given: _Moments.apply(given, about),
        lambda given: (given.mean((0, 2, 3)), given.var((0, 2, 3), correction=0)),
    ):
        leaf = inputs.clone(memory_format=torch.channels_last).requires_grad_()
        mean, variance = moments(leaf)
        (weights[0] * mean.square() + weights[1] * variance.log()).sum().backward()
        found.append((mean, variance, leaf.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_seed_decides_and_batches_repeat(trained: nn.Module) -> None:
    one, same, other = (synthesise(trained, SHAPE, 4, seed).batches[0] for seed in (1, 1, 2))
    assert torch.equal(one(), same())
    assert not torch.equal(one(), other())
    one().zero_()
    assert torch.equal(one(), same())


@pytest.mark.slow
def test_what_is_held_out_is_made_besides_and_is_no_view_of_the_others(trained: nn.Module) -> None:
    plain, found = synthesise(trained, SHAPE, 36, 1), synthesise(trained, SHAPE, 36, 1, held_out=16)
    assert plain.heldout == []
    assert all(torch.equal(one(), two()) for one, two in zip(plain.batches, found.batches, strict=True))
    assert found.record == plain.record
    assert [len(load()) for load in found.heldout] == [16]
    solved = torch.cat([load() for load in found.batches]).flatten(1)
    views = [[x, x.flip(3)] for x in found.heldout[0]().split(1)]
    for down in range(8):
        for right in range(8):
            rolled = torch.cat([one.roll((down, right), (2, 3)) for pair in views for one in pair]).flatten(1)
            assert torch.cdist(rolled, solved).min() > 0.5


def test_of_small_inputs_more_are_made() -> None:
    assert [enough((3, side, 128)) for side in (32, 95, 96, 224)] == [256, 256, 64, 64]


def test_small_inputs_are_cheap_and_get_more_steps(trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_LARGE", 9)
    for side, steps in ((8, 60), (9, 30)):
        calls: list[int] = []
        network = copy.deepcopy(trained)
        network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))  # noqa: B023
        synthesise(network, (1, side, side), 2, seed=3)
        assert calls == [2] * steps


@pytest.mark.parametrize("shape", [(1, 9, 12), (3, 16, 16), (4, 24, 20)])
def test_dead_leaves_have_edges_and_even_statistics(shape: tuple[int, int, int]) -> None:
    images = dead_leaves(8, shape, torch.Generator().manual_seed(0))
    assert images.shape == (8, *shape)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-5)
    steps = (images[..., 1:] - images[..., :-1]).abs()
    assert steps.median() < 0.3 * steps.quantile(0.95)  # flat inside a leaf, sharp at its edge


def test_a_network_without_statistics_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert has_statistics(digits_resnet())
    assert not has_statistics(network)
    with pytest.raises(PruningError, match=r"no BatchNorm statistics .* `calibration=FOLDER`"):
        synthesise(network, SHAPE, 4, 0)
