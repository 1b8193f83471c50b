"""Devices: their names, batches that shrink, and a whole compression on one that is pretended."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_device import DEVICE, PretendedDevice
from torch import Tensor, nn

from pruneport.compress import devices
from pruneport.compress.activations import memory, synthetic
from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.activations.memory import memory_bounded, room_on
from pruneport.compress.activations.synthetic import synthesise
from pruneport.compress.assessment import assess
from pruneport.compress.calibration_inputs import calibration_inputs
from pruneport.compress.devices import (
    CPU,
    find_device,
    in_batches_that_fit,
    in_full_precision,
    in_tf32,
    loaded_on,
    with_smaller_batches,
)
from pruneport.compress.options import CompressOptions, PruneOptions
from pruneport.compress.pipeline import check_inputs, prepare
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.recover import recover
from pruneport.errors import InputError, PruningError
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source
from recovery_cases import stopped_and_resumed
from small_networks import same_state
from tests.support.slow_values import each_quick

SHAPE = (1, 8, 8)
SOURCE = SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT", input_shape=SHAPE)


def calibration(count: int = 48, size: int = 24) -> Calibration:
    inputs = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 10
    return Calibration(
        batches=in_memory(inputs.split(size)),
        labels=tuple(labels.split(size)),
        classes=10,
        record=Calibrated(inputs="images", count=count),
        heldout=in_memory([inputs[:16] * 0.9]),
    )


@pytest.mark.parametrize("elsewhere", each_quick([DEVICE, torch.device("mps")], 2))
@pytest.mark.parametrize(
    "criterion",
    each_quick(["block-hessian", "activation", "taylor", "fisher", "l1"], 5),
)
def test_whatever_is_computed_on_a_device_meets_nothing_of_the_cpu(criterion: str, elsewhere: torch.device) -> None:
    """And it is what the CPU computes, also where there is no float64; the networks that were given stay."""
    dense, source = open_source(SOURCE)
    before = copy.deepcopy(dense)
    options = PruneOptions(flops=0.6, criterion=criterion, ranking="sensitivity")  # type: ignore[arg-type]
    inputs = calibration()
    found = []
    for device in (CPU, elsewhere):
        pretended = PretendedDevice(elsewhere)
        with pretended:
            assessed = assess(dense, source, options, inputs, device=device)
        counts = [pretended.count]
        pruned = prune(dense, source, options, assessment=assessed)
        pretended = PretendedDevice(elsewhere)
        with pretended:
            groups, batches = pruned.plan.groups, inputs.batches
            done = recover("reconstruct", dense, pruned.network, groups, batches, heldout=inputs.heldout, device=device)
            assert not any(map(pretended.holds, [*dense.parameters(), *pruned.network.parameters()]))
        counts.append(pretended.count)
        assert all(count > 100 for count in counts) == (device != CPU)
        found.append((pruned, done))
    (on_cpu, first), (on_device, second) = found
    assert [group.kept for group in on_cpu.plan.groups] == [group.kept for group in on_device.plan.groups]
    assert same_state(on_cpu.network, on_device.network)
    assert first == second
    assert same_state(dense, before)


class _Generators:
    """Stands in for torch.cuda where there is none: the state of its generators is a number."""

    def __init__(self) -> None:
        self.seeds, self.state = [0], torch.tensor(7)

    def is_available(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        raise AssertionError("of the current device, which may be another")

    def manual_seed_all(self, seed: int) -> None:
        self.seeds.append(seed)
        self.state = torch.tensor(seed)

    def get_rng_state(self, device: torch.device) -> Tensor:
        return self.state

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.state = state


@pytest.mark.slow
def test_imitation_trains_on_a_device_that_fabric_does_not_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second GPU, or one of another maker: the networks are there already, and drop-outs follow from the seed."""
    generators = _Generators()
    monkeypatch.setattr(torch, "get_device_module", lambda device: generators)
    dense, source = open_source(SOURCE)
    inputs, found = calibration(64, 32), []
    for device in (CPU, DEVICE):
        pruned = prune(dense, source, PruneOptions(flops=0.6, criterion="l1", ranking="uniform"))
        pretended = PretendedDevice()
        with pretended:
            groups, effort = pruned.plan.groups, Effort(steps=2)
            recover("imitate", dense, pruned.network, groups, inputs.batches, effort=effort, device=device)
        assert (pretended.count > 100) == (device == DEVICE)
        found.append(pruned.network)
    ours, theirs = (network.state_dict().values() for network in found)
    for one, other in zip(ours, theirs, strict=True):  # on the CPU the optimizer's step is another kernel
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(set(generators.seeds)) > 2
    assert generators.state == 7, "what others draw there goes on as if nothing had been"


@pytest.mark.slow
def test_a_stopped_imitation_goes_on_on_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: _Generators())
    pretended = PretendedDevice()
    with pretended:
        whole, resumed = stopped_and_resumed(DEVICE, tmp_path / "state")
    assert pretended.count > 100
    assert same_state(whole, resumed)


def test_synthetic_inputs_come_back_from_a_device() -> None:
    dense, _ = open_source(SOURCE)
    here = synthesise(dense, SHAPE, 8, 0)
    pretended = PretendedDevice()
    with pretended:
        there = synthesise(dense, SHAPE, 8, 0, device=DEVICE)
        made = [load() for load in there.batches]
    assert pretended.count > 100
    assert not any(map(pretended.holds, made))
    assert all(torch.equal(load(), part) for load, part in zip(here.batches, made, strict=True))


@pytest.mark.parametrize("name", ["abacus", "xpu", "cuda:97"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str, tmp_path: Path) -> None:
    dense, source = open_source(SOURCE)
    with pytest.raises(InputError, match=rf"`accelerator` is '{name}'; torch sees cpu.* here\."):
        check_inputs(CompressOptions(flops=0.5, accelerator=name), dense, source)


def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    seen = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert find_device("auto") == (seen or CPU)
    assert find_device("cpu") == CPU


class _Small(nn.Module):
    """Memory for three inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > 3:
            raise torch.OutOfMemoryError
        return inputs


def test_batches_shrink_until_memory_holds_them() -> None:
    said: list[str] = []
    network = _Small()

    def run(given: Calibration) -> list[Tensor]:
        return [network(load()) for load in given.batches]

    parts, used = with_smaller_batches(run, calibration(17, 9), said.append)
    assert [len(part) for part in parts] == [3, 2, 2, 2, 2, 2, 2, 2]
    assert torch.equal(torch.cat(parts), torch.cat([load() for load in calibration(17, 9).batches]))
    assert used.labels is not None
    assert torch.equal(torch.cat(used.labels), torch.arange(17) % 10)
    assert [len(part) for part in used.labels] == [3, 2, 2, 2, 2, 2, 2, 2]
    assert said == [
        "the accelerator's memory holds no batch of 9: going on with 5",
        "the accelerator's memory holds no batch of 5: going on with 3",
    ]
    with pytest.raises(PruningError, match="with one input"):
        with_smaller_batches(lambda _: network(torch.zeros(9)), calibration(2, 1), said.append)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            False,
        ),
        (MemoryError("out of memory"), False),
    ],
)
def test_all_words_for_too_little_memory_are_known(error: Exception, is_memory: bool) -> None:
    """The CPU's is none of them: a network that lies there is recovered in place, and could not be begun anew."""
    fails = [error]

    def run(size: int) -> int:
        if fails:
            raise fails.pop()
        return size

    if is_memory:
        assert in_batches_that_fit(run, 8, lambda _: None) == 4
    else:
        with pytest.raises(type(error)) as raised:
            in_batches_that_fit(run, 8, lambda _: None)
        assert raised.value is error


class _Allocator:
    """Stands in for torch.cuda and torch.accelerator where there is none: 16 GiB, of which 12 are free."""

    def __init__(self) -> None:
        self.fraction, self.allocated = 1.0, 2 * 2**30

    def get_per_process_memory_fraction(self, index: int | None) -> float:
        assert not isinstance(index, torch.device), "torch.cuda refuses one without an index, as auto finds"
        return self.fraction

    def set_per_process_memory_fraction(self, fraction: float, index: int | None) -> None:
        assert not isinstance(index, torch.device)
        self.fraction = fraction

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_device_module", lambda device: self)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (12 * 2**30, 16 * 2**30))
        monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda device: self.allocated)


def test_the_memory_of_a_device_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = _Allocator()
    allocator.installed(monkeypatch)
    assert room_on(DEVICE) == 6 * 2**30
    with memory_bounded(4, DEVICE):
        assert allocator.fraction == 0.25, "torch's allocator refuses more"
        assert room_on(DEVICE) == 2**30
        allocator.allocated = 5 * 2**30
        assert room_on(DEVICE) == 0
        with memory_bounded(99, DEVICE):
            assert allocator.fraction == 0.25, "what bounds it already holds"
            assert room_on(DEVICE) == 0
    assert allocator.fraction == 1
    with memory_bounded(None, DEVICE):
        assert allocator.fraction == 1
    assert room_on(DEVICE) == 6 * 2**30


@pytest.mark.slow
def test_the_bound_reaches_everything_that_runs_on_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic inputs, sensitivities and recovery."""
    monkeypatch.setattr(synthetic, "_STEPS_SMALL", 1)
    bounds: list[float] = []
    dense, source = open_source(SOURCE)

    def look(network: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > 2:  # fewer are traced, or show what comes out
            bounds.append(memory._MOST.get())

    dense.register_forward_pre_hook(look)
    options = CompressOptions(flops=0.6, calibration_images=32, memory=3.5)
    ready = prepare(options, dense, source)
    scored = len(bounds)
    ready.prune_to(options)
    assert len(bounds) > scored > 1
    assert set(bounds) == {3.5 * 2**30}
    assert memory._MOST.get() == math.inf


@pytest.mark.parametrize("gib", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_that_is_none_is_refused(gib: float) -> None:
    dense, source = open_source(SOURCE)
    with pytest.raises(InputError, match=r"`memory` is .*; expected GiB above 0, such as 8\."):
        check_inputs(CompressOptions(flops=0.5, memory=gib), dense, source)


class _Crowded(nn.Module):
    """The digits network, on a device whose memory holds so many inputs."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.network, self.seen = most, open_source(SOURCE)[0], 0

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError
        self.seen = max(self.seen, len(inputs))
        outputs: Tensor = self.network(inputs)
        return outputs


def test_synthetic_inputs_are_made_in_batches_that_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_STEPS_SMALL", 2)
    said: list[str] = []
    network, source = _Crowded(10).eval(), open_source(SOURCE)[1]
    options = CompressOptions(flops=0.5, calibration_images=24)
    made = calibration_inputs(options, network, source, lambda event: said.append(str(event)))
    assert network.seen <= 10
    assert made.record.count == 24 * 4
    assert sum(len(load()) for load in made.batches) == 24 * 4
    assert "the accelerator's memory holds no batch of 32: going on with 16" in said


@pytest.mark.parametrize(("room", "loads"), [(0.0, 3), (1e9, 1)])
def test_inputs_stay_on_a_device_that_has_room(room: float, loads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "room_on", lambda device: room)
    inputs, calls = torch.randn(2, 3), []

    def load() -> Tensor:
        calls.append(1)
        return inputs.clone()

    with PretendedDevice() as pretended:
        (again,) = loaded_on(DEVICE, [load])
        for _ in range(3):
            given = again()
            assert isinstance(given, Tensor)
            assert pretended.holds(given)
            assert torch.equal(given.cpu(), inputs)
            given.zero_()  # as a network may
    assert len(calls) == loads


def test_arithmetic_is_that_of_before_when_it_was_another_for_a_while() -> None:
    def now() -> tuple[str, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic

    start = now()
    torch.set_float32_matmul_precision("medium")  # as a training loop may: on the CPU that is bfloat16
    try:
        before = now()
        with in_full_precision():
            assert now() == ("highest", False, True)
            with in_tf32():
                assert now() == ("high", True, True)
            assert now() == ("highest", False, True)
        assert now() == before
    finally:
        torch.set_float32_matmul_precision(start[0])


_BY_OPERATOR = """
import torch
from pruneport.compress.devices import in_full_precision, in_tf32

def now():
    backends = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.deterministic

torch.backends.fp32_precision = "tf32"
torch.backends.cuda.matmul.fp32_precision = "ieee"
before = now()
with in_full_precision():
    assert now() == ("ieee", "ieee", True), now()
    with in_tf32():
        assert now() == ("tf32", "tf32", True), now()
    assert now() == ("ieee", "ieee", True), now()
assert now() == before, now()
"""


@pytest.mark.slow
def test_arithmetic_that_was_chosen_operator_by_operator_comes_back() -> None:
    """In a process of its own: torch does not go back from its newer way to the older one."""
    subprocess.run([sys.executable, "-c", _BY_OPERATOR], check=True)
