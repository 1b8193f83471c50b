"""Replay: run a network from its middle, so that solving it layer by layer costs a few passes, not hundreds.

Activations are carried from cut to cut (see ``cuts``), batch by batch, in memory while there is room, else in files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.carried import Carried
from pruneport.compress.activations.cuts import Blank, replaced, zeros_like
from pruneport.models.inputs import ExampleInputs, changed, run_on

__all__ = ["Replay", "Stopped"]


class Stopped(Exception):
    """Raised by a hook to end a forward pass early."""


class Replay:
    """One network, and the frontier up to which its activations are stored.

    Args:
        network: In eval mode; its weights may change behind the frontier, not before it.
        cuts: From ``find_cuts``, of this network or of the dense one with the same modules.
        batches: The inputs.
    """

    def __init__(self, network: nn.Module, cuts: Sequence[str], batches: Batches) -> None:
        self.network = network
        self._cuts = list(cuts)
        self._batches = batches
        self._inputs: list[ExampleInputs | None] = [None] * len(batches)
        self._shapes: list[dict[str, torch.Size]] = [{} for _ in batches]
        self._frontier = -1
        self._blank = Blank()
        self._carried = Carried(len(batches))
        self._ahead: tuple[int, Carried] | None = None
        self._unfinished: Carried | None = None  # of what is being kept ahead
        self._running = 0  # batch
        self._handles: list[Any] = []  # while a cut's output is being kept
        self._awaited = False  # whether a cut's output is still to come in the running pass

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        self._keep_no_more()  # where an error came between two passes
        self._carried.clear()
        self._forget_ahead()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((tensor.device for tensor in self.network.parameters()), torch.device("cpu"))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def runs(self, names: Sequence[str], sizes: Sequence[int], most: int) -> list[list[int]]:
        """Divide modules, in order of execution, into those that are seen in the same passes; as indices.

        Args:
            names: Modules. A run ends where the frontier moves on.
            sizes: Bytes that are held of each until its run is over.
            most: Bytes; a run ends where the next module's would be more.
        """
        runs: list[list[int]] = []
        frontier, held = self._frontier, 0
        for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
            held += size
            if not runs or self._place(name) > frontier or held > most:
                runs.append([])
                held = size
            frontier = max(frontier, self._place(name))
            runs[-1].append(index)
        return runs

    def passes(
        self, limit: int | None = None, *, ahead: str = "", seen: Callable[[], bool] = lambda: True
    ) -> Iterator[Any]:
        """Run the batches, or only the first ``limit``, from the frontier on, and yield what the network returns.

        Hooks on the network see what happens; where one stops the pass, None is yielded.

        Args:
            limit: Batches.
            ahead: A module for which ``advance`` will be called next: what it needs is kept on the way, so that it
                runs nothing. No weight before that module may change meanwhile, and all passes must be made.
            seen: With ``ahead``: whether the running pass has shown the hooks all they want; it goes on until then.
        """
        target = self._place(ahead) if ahead else -1
        if target <= self._frontier:
            yield from self._run(limit)
            return
        self._forget_ahead()
        self._unfinished = kept = Carried(len(self))
        with self._keeping(target, kept, seen):
            yield from self._run()
        self._ahead, self._unfinished = (target, kept), None

    def stop(self) -> None:
        """End the running pass, called by a hook that needs no more of it; unless something is still to be kept."""
        if not self._awaited:
            raise Stopped

    def advance(self, before: str) -> None:
        """Move the frontier to the last cut that ends before the module ``before`` starts."""
        target = self._place(before)
        if self._ahead is not None and self._frontier < self._ahead[0] <= target:
            self._carried.clear()
            self._frontier, self._carried = self._ahead
            self._ahead = None
        if self._frontier < target:
            self._forget_ahead()
            self._move(target)

    def _place(self, before: str) -> int:
        """Index of the last cut that ends before a module starts."""
        return next((i for i, cut in enumerate(self._cuts) if f"{before}.".startswith(f"{cut}.")), 0) - 1

    def _forget_ahead(self) -> None:
        for kept in (self._unfinished, self._ahead and self._ahead[1]):
            if kept is not None:
                kept.clear()
        self._ahead = self._unfinished = None

    def _move(self, target: int) -> None:
        """Carry every batch to a cut, and keep what is there in the place of what was."""
        with self._keeping(target, self._carried, lambda: True):
            for _ in self._run():
                pass
        self._frontier = target

    @contextmanager
    def _keeping(self, target: int, kept: Carried, seen: Callable[[], bool]) -> Iterator[None]:
        """Keep the output of a cut in every pass, and the shapes of those on the way; then stop it, if all is seen."""

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            kept.put(self._running, output)
            self._awaited = False
            if seen():
                raise Stopped

        def measure(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                self._shapes[self._running][name] = output.shape

            return hook

        self._handles = [
            self.network.get_submodule(name).register_forward_hook(measure(name))
            for name in self._cuts[self._frontier + 1 : target + 1]
        ]
        self._handles.append(self.network.get_submodule(self._cuts[target]).register_forward_hook(keep))
        try:
            yield
        finally:
            self._keep_no_more()

    def _keep_no_more(self) -> None:
        self._awaited = False
        while self._handles:
            self._handles.pop().remove()

    def _run(self, limit: int | None = None) -> Iterator[Any]:
        """Run batches from the frontier on."""
        for index in range(len(self._batches))[:limit]:
            output = None
            self._running, self._awaited = index, bool(self._handles)
            stand_ins = replaced(self.network, self._stand_ins(index))
            with torch.inference_mode(), stand_ins, contextlib.suppress(Stopped):
                output = run_on(self.network, self._input(index))
            yield output

    def _input(self, index: int) -> ExampleInputs:
        """The batch, or a blank one in which nothing is changed that is still read."""
        known = self._inputs[index]
        if self._frontier >= 0 and known is not None:
            return changed(known, Tensor.clone)  # the network may write into it
        loaded = self._batches[index]()
        self._inputs[index] = zeros_like(loaded)
        return loaded

    def _stand_ins(self, index: int) -> dict[str, Tensor]:
        """What takes the place of the outputs of all modules up to the last cut."""
        if self._frontier < 0:
            return {}
        stored = self._carried.get(index)
        earlier = {name: self._shapes[index][name] for name in self._cuts[: self._frontier]}
        return self._blank.tensors(earlier, stored.device) | {self._cuts[self._frontier]: stored}
