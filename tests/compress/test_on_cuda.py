"""What is computed on a GPU, against the CPU: the same choice of filters, and outputs within a stated tolerance."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.activations.carried import Carried
from pruneport.compress.activations.memory import memory_bounded, room_on
from pruneport.compress.activations.synthetic import synthesise
from pruneport.compress.assessment import assess
from pruneport.compress.devices import CPU, find_device, in_full_precision, loaded_on, network_on, with_smaller_batches
from pruneport.compress.importance.sensitivity import relative_error
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.recover import recover
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source
from recovery_cases import stopped_and_resumed
from small_networks import same_state

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
SHAPE = (1, 8, 8)
DIGITS = SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT", input_shape=SHAPE)
TOLERANCE = 1e-3  # of scores, and of the norm of outputs: sums are made in another order


def calibration(shape: tuple[int, int, int] = SHAPE, count: int = 96) -> Calibration:
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 10
    return Calibration(
        batches=in_memory(inputs.split(32)),
        labels=tuple(labels.split(32)),
        classes=10,
        record=Calibrated(inputs="images", count=count),
        heldout=in_memory([torch.randn(32, *shape, generator=torch.Generator().manual_seed(2))]),
    )


@torch.inference_mode()
def output_of(network: nn.Module, inputs: Tensor) -> Tensor:
    output: Tensor = network(inputs)
    return output


@pytest.mark.parametrize("criterion", ["block-hessian", "activation", "taylor", "fisher", "l1"])
def test_scores_curves_and_solved_weights_are_those_of_the_cpu(criterion: str) -> None:
    dense, source = open_source(DIGITS)
    before = copy.deepcopy(dense)
    options = PruneOptions(flops=0.6, criterion=criterion, ranking="sensitivity", round_to=1)  # type: ignore[arg-type]
    inputs, found = calibration(), []
    for device in (CPU, CUDA):
        with in_full_precision():
            assessed = assess(dense, source, options, inputs, device=device)
            pruned = prune(dense, source, options, assessment=assessed)
            done = recover(
                "reconstruct",
                dense,
                pruned.network,
                pruned.plan.groups,
                inputs.batches,
                heldout=inputs.heldout,
                device=device,
            )
        found.append((assessed, pruned, done))
    (here, on_cpu, first), (there, on_cuda, second) = found
    for ours, theirs in zip(here.scores, there.scores, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=TOLERANCE, atol=TOLERANCE * float(np.max(ours)))
    for mine, other in zip(here.curves, there.curves, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            np.testing.assert_allclose(other.damage(mine.widths), mine.damage(mine.widths), rtol=0.02, atol=1e-9)
    assert [group.kept for group in on_cpu.plan.groups] == [group.kept for group in on_cuda.plan.groups]
    (heldout,) = (load() for load in inputs.heldout)
    assert isinstance(heldout, Tensor)
    wanted, got = output_of(on_cpu.network, heldout), output_of(on_cuda.network, heldout)
    assert (got - wanted).norm() < TOLERANCE * wanted.norm()
    assert second.heldout_error_after == pytest.approx(first.heldout_error_after, rel=0.01)
    assert {tensor.device for tensor in on_cuda.network.state_dict().values()} == {CPU}
    assert same_state(dense, before)


def test_a_network_of_torchvision_is_recovered_as_on_the_cpu() -> None:
    """Depthwise convolutions, wide layers, activations that lie in the GPU's memory from block to block."""
    spec = SourceOptions(source="torchvision:mobilenet_v2", input_shape=(3, 64, 64))
    torch.manual_seed(0)
    dense, source = open_source(spec)
    options = PruneOptions(flops=0.7, criterion="block-hessian", ranking="sensitivity")
    inputs, errors, networks = calibration((3, 64, 64), 64), [], []
    for device in (CPU, CUDA):
        with in_full_precision():
            assessed = assess(dense, source, options, inputs, device=device)
            if networks:  # of near scores another may win: the same filters, to compare what is solved
                assessed = replace(assessed, scores=errors[0], curves=errors[1])
            else:
                errors = [assessed.scores, assessed.curves]
            pruned = prune(dense, source, options, assessment=assessed)
            recover("data-free", dense, pruned.network, pruned.plan.groups, inputs.batches, device=device)
        networks.append(pruned.network)
    shown = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    wanted, ours, theirs = (output_of(network, shown) for network in (dense, *networks))
    assert relative_error([ours], [theirs]) < TOLERANCE
    assert relative_error([wanted], [theirs]) == pytest.approx(relative_error([wanted], [ours]), rel=0.02)


def mismatch(network: nn.Module, inputs: Tensor) -> float:
    """Squared distance of the means that BatchNorms see from those that they remember, summed."""
    misses: list[float] = []

    def note(norm: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        assert norm.running_mean is not None
        misses.append(float((given[0].mean((0, 2, 3)) - norm.running_mean).square().mean()))

    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(note)
    output_of(network, inputs)
    return sum(misses)


def test_synthetic_inputs_fit_as_well_as_those_of_the_cpu() -> None:
    dense, _ = open_source(DIGITS)
    fits = []
    for device in (CPU, CUDA):
        with in_full_precision():
            made = synthesise(dense, SHAPE, 16, 0, device=device)
        fits.append(mismatch(dense, torch.cat([load() for load in made.batches])))  # type: ignore[arg-type]
    assert fits[1] == pytest.approx(fits[0], rel=0.25)


def test_imitation_helps_and_follows_from_the_seed() -> None:
    dense, source = open_source(DIGITS)
    options = PruneOptions(flops=0.5, criterion="l1", ranking="uniform")
    shown = torch.randn(192, *SHAPE, generator=torch.Generator().manual_seed(5))
    made = []
    for _ in range(2):
        pruned = prune(dense, source, options)
        with in_full_precision():
            done = recover(
                "imitate",
                dense,
                pruned.network,
                pruned.plan.groups,
                in_memory(shown.split(32)),
                effort=Effort(steps=40),
                device=CUDA,
            )
        assert done.imitation is not None
        assert done.imitation.distance_after < done.imitation.distance_before
        made.append(pruned.network)
    assert same_state(*made)


def test_a_stopped_imitation_goes_on(tmp_path: Path) -> None:
    whole, resumed = stopped_and_resumed(CUDA, tmp_path / "state")
    assert same_state(whole, resumed)


def test_memory_that_a_batch_does_not_fit_is_met_by_smaller_ones() -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(CUDA)
    notes: list[str] = []

    def run(given: Calibration) -> list[int]:
        sizes = []
        for load in loaded_on(CUDA, given.batches):
            inputs = load()
            assert isinstance(inputs, Tensor)
            torch.empty(len(inputs) * (free // 24), dtype=torch.uint8, device=CUDA)  # 32 do not fit, 16 do
            sizes.append(len(inputs))
        return sizes

    sizes, _ = with_smaller_batches(run, calibration(), lambda event: notes.append(str(event)))
    assert sizes == [16] * 6
    assert any("holds no batch of 32" in note for note in notes)
    torch.cuda.empty_cache()


def test_the_memory_of_a_gpu_is_bounded() -> None:
    torch.cuda.empty_cache()
    with memory_bounded(1, find_device("auto")), memory_bounded(2, CUDA):
        assert room_on(CUDA) <= 2**29
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**31, dtype=torch.uint8, device=CUDA)
    torch.empty(2**31, dtype=torch.uint8, device=CUDA)
    torch.cuda.empty_cache()


def test_activations_stay_on_the_gpu_while_it_has_room() -> None:
    inputs = torch.randn(3, 1000, device=CUDA)
    carried = Carried(3)
    for index, row in enumerate(inputs):
        carried.put(index, row)
    assert not list(Path(carried._folder.name).iterdir())
    first = carried.get(0)
    assert first.device == CUDA
    first.zero_()
    assert torch.equal(carried.get(0), inputs[0])
    large = torch.ones(2**30, dtype=torch.uint8, device=CUDA)
    hog = torch.empty(torch.cuda.mem_get_info(CUDA)[0] - 2**32, dtype=torch.uint8, device=CUDA)
    carried.put(0, large)  # 3 GiB for all batches, of 4 that are free
    assert list(Path(carried._folder.name).iterdir())
    assert carried.get(0).device == CUDA
    carried.clear()
    del hog, large
    torch.cuda.empty_cache()


def test_names_of_gpus() -> None:
    assert find_device("auto").type == find_device("cuda").type == "cuda"
    assert find_device("cuda:0") == CUDA
    network = nn.Linear(2, 2)
    assert next(network_on(CUDA, network).parameters()).device == CUDA
    assert next(network.parameters()).device == CPU
