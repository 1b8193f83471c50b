"""Where a network is scored, measured and recovered: on the CPU, or on what torch calls an accelerator.

Nothing here is CUDA's alone, so that other makers' devices are not shut out. Tracing and the proof stay on the CPU:
they are a pass or two of one or two inputs, and the proof's tolerance is that of the CPU's arithmetic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches, Calibration, halved
from pruneport.compress.activations.memory import ran_out_of_memory, room_on
from pruneport.errors import InputError, PruningError
from pruneport.models.inputs import ExampleInputs, batch_of, changed, tensors_in
from pruneport.progress import Note, Progress

__all__ = [
    "CPU",
    "check_memory_bound",
    "find_device",
    "in_batches_that_fit",
    "in_full_precision",
    "in_tf32",
    "loaded_on",
    "network_on",
    "random_state_kept",
    "seed_device",
    "with_smaller_batches",
]

CPU = torch.device("cpu")
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


def find_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is an accelerator where torch sees one, else the CPU.

    Raises:
        InputError: torch knows no such device, or sees none.
    """
    seen = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return seen or CPU
    there = ["cpu"]
    if seen is not None:
        there += [f"{seen.type}:{index}" for index in range(torch.accelerator.device_count())]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in ("cpu:0", *there):
        raise InputError(
            f"`accelerator` is {name!r}; torch sees {', '.join(there)} here. Give one of these or auto, or install a "
            "build of torch and a driver that see others."
        )
    return device


def check_memory_bound(most_gib: float | None) -> None:
    """Raise an ``InputError`` where a bound of memory is none."""
    if most_gib is not None and not 0 < most_gib < math.inf:
        raise InputError(f"`memory` is {most_gib:g}; expected GiB above 0, such as 8.")


def seed_device(device: torch.device, seed: int) -> None:
    """Let what is drawn next on the CPU and on a device follow from a seed.

    ``torch.manual_seed`` would ask every kind of device, for a millisecond each time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)  # not of the current one alone


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give the generators of the CPU and of a device their state back at the end."""
    with torch.random.fork_rng(devices=[]):
        if device.type == "cpu":
            yield
            return
        module = torch.get_device_module(device)
        state = module.get_rng_state(device)
        try:
            yield
        finally:
            module.set_rng_state(state, device)


def network_on(device: torch.device, network: nn.Module) -> nn.Module:
    """A copy of the network on the device; the network itself where that is the CPU, where networks are kept."""
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


def loaded_on(device: torch.device, batches: Batches) -> Batches:
    """The batches, each put on the device when it is called for, where it stays while there is room."""
    return batches if device.type == "cpu" else [_Loaded(device, load, len(batches)) for load in batches]


class _Loaded:
    """One batch on a device: decoding images again takes longer there than a pass over them."""

    def __init__(self, device: torch.device, load: Callable[[], ExampleInputs], batches: int) -> None:
        self._device, self._load, self._batches = device, load, batches
        self._held: ExampleInputs | None = None

    def __call__(self) -> ExampleInputs:
        if self._held is not None:
            return changed(self._held, Tensor.clone)  # a network may write into its inputs
        loaded = changed(self._load(), lambda part: part.to(self._device))
        if room_on(self._device) > self._batches * sum(part.nbytes for part in tensors_in(loaded)):
            self._held = changed(loaded, Tensor.clone)
        return loaded


@contextmanager
def in_tf32() -> Iterator[None]:
    """Convolutions and matrix products of float32 in TF32 on a GPU, and the same every time: for training.

    A step of gradient descent does not miss the bits that are lost. On an H200 one of ResNet-50 took 30 ms, not 73.
    """
    with _arithmetic(tf32=True):
        yield


@contextmanager
def in_full_precision() -> Iterator[None]:
    """Convolutions and matrix products of float32 are that on a GPU, too, and the same every time.

    cuDNN takes TF32 by itself, and the process may have asked for less than float32 in matrix products, on the CPU too.
    """
    with _arithmetic(tf32=False):
        yield


@contextmanager
def _arithmetic(*, tf32: bool) -> Iterator[None]:
    """Of float32, in convolutions and matrix products, by algorithms that give the same every time."""
    try:
        before, _ = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it was set in torch's newer way, operator by operator, which the older one cannot say
        with _arithmetic_by_operator("tf32" if tf32 else "ieee"):
            yield
        return
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _arithmetic_by_operator(precision: str) -> Iterator[None]:
    """The same where the process has chosen the precision of single operators."""
    cudnn: Any = torch.backends.cudnn
    places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    flags = cudnn.benchmark, cudnn.deterministic
    try:
        for place in places:
            place.fp32_precision = precision
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = flags
        for place, each in zip(places, before, strict=True):
            place.fp32_precision = each


def with_smaller_batches(
    run: Callable[[Calibration], _Result], calibration: Calibration, progress: Progress
) -> tuple[_Result, Calibration]:
    """Run, and where the device's memory does not hold a batch, run again with batches of half the size.

    Returns:
        What ``run`` gives, and the calibration with the batches that it was given at last.

    Raises:
        PruningError: One input is too large.
    """
    return _until_it_fits(run, calibration, _largest_batch, lambda given, _: _halved(given), progress)


def in_batches_that_fit(run: Callable[[int], _Result], size: int, progress: Progress) -> _Result:
    """Run with batches of a size, and where the device's memory does not hold one, again with half of it.

    Raises:
        PruningError: One input is too large.
    """
    return _until_it_fits(run, size, int, lambda _, half: half, progress)[0]


def _until_it_fits(
    run: Callable[[_Given], _Result],
    given: _Given,
    size_of: Callable[[_Given], int],
    with_size: Callable[[_Given, int], _Given],
    progress: Progress,
) -> tuple[_Result, _Given]:
    """Run with what is given, and while the device's memory does not hold a batch of it, again with batches of half."""
    while True:
        try:
            return run(given), given
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            size = size_of(given)
            if size == 1:
                raise PruningError(
                    "the accelerator's memory does not hold the network with one input. Free some of it, give more "
                    "`memory` where that is bounded, or choose `accelerator=cpu`."
                ) from error
        # What is held for nothing can be given back now that the error is gone, which held what was computed.
        half = -(-size // 2)
        progress(Note(f"the accelerator's memory holds no batch of {size}: going on with {half}"))
        if torch.accelerator.is_available():
            torch.accelerator.memory.empty_cache()
        given = with_size(given, half)


def _largest_batch(calibration: Calibration) -> int:
    return max(batch_of(load()) for load in calibration.batches)


def _halved(calibration: Calibration) -> Calibration:
    """The same inputs in batches of half the size."""
    labels = calibration.labels
    return replace(
        calibration,
        batches=halved(calibration.batches),
        labels=None if labels is None else tuple(part for given in labels for part in _halves(given)),
        heldout=halved(calibration.heldout),
    )


def _halves(labels: Tensor) -> list[Tensor]:
    """Labels as their inputs are divided by ``halved``."""
    half = -(-len(labels) // 2)
    return [part for part in (labels[:half], labels[half:]) if len(part)]
