"""Which operation read what which other one made, and the residual branches that this shows: x + f(x)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Dataflow", "TracedBranch", "is_sum"]


@dataclass(frozen=True, kw_only=True)
class TracedBranch:
    """What an addition adds to a tensor, where it was computed from that tensor alone and nothing else reads it.

    Attributes:
        addition: The module in whose forward the addition stands.
        call: Which of its additions of tensors of one shape, from 0.
        operand: Which operand of the addition is the branch.
        channel_dim: Dimension of the sum along which its channels lie; None where that is not one alone.
        modules: The outermost modules that run in the branch and nowhere else, in order, and how many values each
            returns: 0 for a tensor, else the length of its tuple.
        parameters: Parameters of other modules that are read in the branch alone.
    """

    addition: str
    call: int
    operand: int
    channel_dim: int | None
    modules: Mapping[str, int]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """One operation: what it reads, and where it runs.

    Attributes:
        reads: Steps that made its inputs.
        parameters: Names of the network's parameters among them.
        stack: The modules that were running, outermost first.
        live: Whether it depends on the network's inputs.
        given: Whether it reads one of them.
    """

    reads: frozenset[int]
    parameters: tuple[str, ...]
    stack: tuple[str, ...]
    live: bool
    given: bool


@dataclass(frozen=True)
class _Sum:
    """An addition of two tensors of one shape: its step, the steps that made the operands, and where it stands."""

    step: int
    operands: tuple[int, int]
    call: int
    channel_dim: int | None


class Dataflow:
    """Notes every operation of one forward pass of a network."""

    def __init__(self, network: nn.Module) -> None:
        self._parameters = {id(tensor): name for name, tensor in network.named_parameters()}
        self._inputs: dict[int, Tensor] = {}
        self._steps: list[_Step] = []
        self._made: Any = WeakTensorKeyDictionary()
        self._written: dict[int, int] = {}
        self._sums: list[_Sum] = []
        self._calls: dict[str, int] = defaultdict(int)
        self._returned: dict[str, int | None] = {}
        self._shown: set[int] = set()

    def started(self, inputs: Sequence[Tensor]) -> None:
        """The network is run on these."""
        self._inputs = {id(tensor): tensor for tensor in inputs}

    def returned(self, name: str, output: Any) -> None:
        """A module has ended."""
        count: int | None = 0 if isinstance(output, Tensor) else None
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            count = len(output)
        self._returned[name] = count if self._returned.get(name, count) == count else None

    def finished(self, outputs: Sequence[Tensor]) -> None:
        """The network has returned these."""
        self._shown = {self._maker(tensor) for tensor in outputs}

    def note(
        self,
        name: str,
        args: Sequence[Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        stack: Sequence[str],
        channel_dim: int | None,
    ) -> None:
        """An operation has run.

        Args:
            name: Of the operator; one that ends in ``_`` changes its first argument.
            args: As they were given.
            inputs: All tensors among its arguments.
            outputs: All tensors that it returned.
            stack: The modules that were running.
            channel_dim: Dimension of the output along which channels lie, where that is one alone.
        """
        makers = [self._maker(tensor) for tensor in inputs]
        named = [self._parameters.get(id(tensor)) for tensor in inputs]
        reads = frozenset(maker for maker in makers if maker >= 0)
        given = any(maker < 0 and id(tensor) in self._inputs for maker, tensor in zip(makers, inputs, strict=True))
        step = len(self._steps)
        live = given or any(self._steps[read].live for read in reads)
        parameters = tuple(name for name in named if name is not None)
        self._steps.append(_Step(reads, parameters, tuple(stack), live, given))
        if is_sum(name, args):
            place = stack[-1]
            self._sums.append(_Sum(step, (makers[0], makers[1]), self._calls[place], channel_dim))
            self._calls[place] += 1
        for tensor in outputs:
            self._made[tensor] = step
            if name.endswith("_"):
                self._written[_storage(tensor)] = step

    def branches(self) -> tuple[TracedBranch, ...]:
        """The residual branches, in order; of two that lie in each other, the inner one."""
        readers: dict[int, set[int]] = defaultdict(set)
        for number, step in enumerate(self._steps):
            for read in step.reads:
                readers[read].add(number)
        inside = self._steps_by_module()
        found = [branch for one in self._sums for branch in self._branches_at(one, readers, inside)]
        taken: set[int] = set()
        chosen = []
        for steps, branch in sorted(found, key=lambda pair: len(pair[0])):
            if not taken & steps:
                taken |= steps
                chosen.append((min(steps), branch))
        return tuple(branch for _, branch in sorted(chosen, key=lambda pair: pair[0]))

    def _branches_at(
        self, addition: _Sum, readers: Mapping[int, set[int]], inside: Mapping[str, set[int]]
    ) -> Iterator[tuple[set[int], TracedBranch]]:
        """The operand that is computed from the other alone, if one is."""
        for operand in (0, 1):
            steps = self._between(addition.operands[1 - operand], addition.operands[operand])
            steps |= self._dangling(steps, addition.step, readers)
            if not steps or steps & self._shown or any(not readers[step] <= steps | {addition.step} for step in steps):
                continue
            whole = [name for name, ran in inside.items() if name and self._runs_within(ran, steps, readers)]
            outermost = [name for name in whole if not any(name.startswith(f"{other}.") for other in whole)]
            outermost.sort(key=lambda name: min(inside[name]))
            covered: set[int] = set().union(*(inside[name] for name in outermost))
            bare = {name for step in steps - covered for name in self._steps[step].parameters}
            readers_of_bare = {n for n, step in enumerate(self._steps) if bare.intersection(step.parameters)}
            counts = {name: count for name in outermost if (count := self._returned.get(name)) is not None}
            if not counts or len(counts) < len(outermost) or not readers_of_bare <= steps:
                continue
            yield (
                steps,
                TracedBranch(
                    addition=self._steps[addition.step].stack[-1],
                    call=addition.call,
                    operand=operand,
                    channel_dim=addition.channel_dim,
                    modules=counts,
                    parameters=tuple(sorted(bare)),
                ),
            )

    def _between(self, start: int, end: int) -> set[int]:
        """The steps that lead from one to another, which is computed from it alone; else none."""
        if not 0 <= start < end:
            return set()
        steps, pending, reached = set[int](), [end], False
        while pending:
            step = pending.pop()
            if step == start:
                reached = True
            elif step < start:
                if self._steps[step].live:
                    return set()
            elif step not in steps:
                steps.add(step)
                if self._steps[step].given:
                    return set()
                pending.extend(self._steps[step].reads)
        return steps if reached else set()

    def _dangling(self, steps: set[int], end: int, readers: Mapping[int, set[int]]) -> set[int]:
        """Steps that only read others of a branch, and that nothing reads in the end."""
        found: set[int] = set()
        pending = [reader for step in steps for reader in readers[step]]
        while pending:
            step = pending.pop()
            if step != end and step not in steps and step not in found:
                found.add(step)
                pending.extend(readers[step])
        if found & self._shown or any(self._mixes(step, steps | found) for step in found):
            return set()
        return found

    def _runs_within(self, ran: set[int], steps: set[int], readers: Mapping[int, set[int]]) -> bool:
        """Whether a module that ran these steps runs in a branch alone; others may be what depends on no inputs."""
        others = ran - steps
        return bool(ran & steps) and all(not self._steps[step].live and readers[step] <= ran for step in others)

    def _mixes(self, step: int, steps: set[int]) -> bool:
        """Whether it reads what depends on the network's inputs and is none of the steps."""
        return any(self._steps[read].live for read in self._steps[step].reads - steps)

    def _steps_by_module(self) -> dict[str, set[int]]:
        """The steps that ran while a module did."""
        inside: dict[str, set[int]] = defaultdict(set)
        for number, step in enumerate(self._steps):
            for name in step.stack:
                inside[name].add(number)
        return inside

    def _maker(self, tensor: Tensor) -> int:
        """The step that gave a tensor its values; -1 for none.

        Memory that is free is used again, so what was once written there counts only for tensors that are older.
        """
        made: int = self._made.get(tensor, -1)
        written: int = self._written.get(_storage(tensor), -1)
        return max(made, written) if made >= 0 else -1


def is_sum(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation adds two tensors of one shape."""
    if name.removesuffix("_") != "add" or len(args) < 2 or not all(isinstance(one, Tensor) for one in args[:2]):
        return False
    return bool(args[0].shape == args[1].shape and args[0].ndim > 1)


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
