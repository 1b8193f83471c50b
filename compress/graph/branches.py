"""Residual branches that may be dropped as a whole, and the network as if they added something else."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.tracing.dataflow import TracedBranch, is_sum
from pruneport.compress.hooks import running
from pruneport.compress.sizes.arguments import operator_name

__all__ = ["Branch", "branches_changed", "droppable_branches"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """A residual branch f of x + f(x) that may be dropped.

    Attributes:
        name: The addition's module, and the branch's largest where several branches end there.
        traced: What the trace found.
        groups: Indices of the groups that live in the branch alone, in order; at least one.
    """

    name: str
    traced: TracedBranch
    groups: tuple[int, ...]

    def holds(self, name: str) -> bool:
        """Whether a module or parameter goes with the branch."""
        return name in self.traced.parameters or any(f"{name}.".startswith(f"{one}.") for one in self.traced.modules)


def droppable_branches(
    network: nn.Module, groups: Sequence[Group], traced: Sequence[TracedBranch], keep: Sequence[str] = ()
) -> tuple[Branch, ...]:
    """The branches that have groups of their own, and of which no pattern in ``keep`` names a part.

    Args:
        network: The dense network.
        groups: Its groups.
        traced: The residual branches of its trace.
        keep: Shell patterns of modules.
    """
    crowded = Counter(branch.addition for branch in traced)
    found = []
    for branch in traced:
        name = branch.addition
        if crowded[name] > 1:
            largest = max(branch.modules, key=lambda module: _size(network.get_submodule(module)))
            name = f"{name}: {largest.removeprefix(f'{name}.')}"
        candidate = Branch(name=name or "the network", traced=branch, groups=())
        inside = tuple(
            index
            for index, group in enumerate(groups)
            if group.role != "output" and all(candidate.holds(member.module) for member in group.members)
        )
        parts = [part for part, _ in network.named_modules() if candidate.holds(part)]
        kept = any(fnmatch.filter(parts, pattern) for pattern in keep)
        if inside and not kept:
            found.append(Branch(name=candidate.name, traced=branch, groups=inside))
    return tuple(found)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def branches_changed(
    network: nn.Module, branches: Sequence[TracedBranch], change: Callable[[TracedBranch, Tensor], Tensor]
) -> Iterator[None]:
    """Let the additions at the end of branches add something else than the branch has computed.

    Args:
        network: The dense network, or one of the same forward.
        branches: Whose additions.
        change: What is added in the place of what the branch computed.
    """
    by_place = {(branch.addition, branch.call): branch for branch in branches}
    if not by_place:
        yield
        return
    with running(network) as stack:
        mode = _Additions(stack, by_place, change)
        handle = network.register_forward_pre_hook(lambda *_: mode.calls.clear())
        try:
            with mode:
                yield
        finally:
            handle.remove()


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Changes the operands of some additions, which are counted by the module in whose forward they stand."""

    def __init__(
        self,
        stack: Sequence[str],
        branches: Mapping[tuple[str, int], TracedBranch],
        change: Callable[[TracedBranch, Tensor], Tensor],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self._stack, self._branches, self._change = stack, branches, change

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch's compiler is told to leave the mode alone, for which torch imports it: that takes seconds."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator_name(function)
        if is_sum(name, args):
            place = self._stack[-1]
            branch = self._branches.get((place, self.calls[place]))
            self.calls[place] += 1
            if branch is not None:
                given = args[branch.operand]
                changed = self._change(branch, given)
                if name.endswith("_") and branch.operand == 0:  # what is written to is the branch's own tensor
                    changed = given.copy_(changed)
                args = (changed, args[1], *args[2:]) if branch.operand == 0 else (args[0], changed, *args[2:])
        return function(*args, **(kwargs or {}))
