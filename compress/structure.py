"""What is known of a network before its units are scored: its groups, what they cost, and what must stay dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneport.compress.allocation.cost import Cost, count_macs_by_module, run_once
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.allocation.target import why_dense
from pruneport.compress.graph.branches import Branch, droppable_branches
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.dependency.channel_graph import ChannelGraph, dependency_graph
from pruneport.compress.graph.groups import Group
from pruneport.compress.options import PruneOptions
from pruneport.errors import ModelError, TargetError
from pruneport.models.inputs import ExampleInputs
from pruneport.models.outputs import FLOAT32, tensor_leaves
from pruneport.models.record import Source
from pruneport.progress import Progress, silent

__all__ = [
    "Structure",
    "check_keep",
    "example_inputs",
    "find_structure",
    "reasons_with",
    "refuse_compiled",
    "refuse_random",
]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What one traced pass and the options say of the groups, one entry a group.

    Attributes:
        options: As they were given; in an ``Assessment``, with the criterion and the ranking that were used.
        graph: The dependency graph.
        cost: What any choice of widths costs.
        reasons: Why the group is left dense whatever the target, or an empty string.
        branches: The residual branches that may be dropped.
    """

    options: PruneOptions
    graph: ChannelGraph
    cost: CostModel
    reasons: list[str]
    branches: tuple[Branch, ...] = ()

    @property
    def coupling(self) -> Coupling:
        """How the network's channels hang together."""
        return self.graph.coupling

    @property
    def groups(self) -> list[Group]:
        """The coupled groups."""
        return self.graph.groups


def find_structure(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    progress: Progress = silent,
    original: Cost | None = None,
) -> Structure:
    """Trace the network, and say what its groups cost, why some are left dense, and what may be dropped.

    Args:
        network: The dense network in eval mode; it is only read and run.
        source: Where it came from; gives the inputs.
        options: Scope, widths, depth and what to keep.
        progress: Told what is being done.
        original: As in ``assess``.

    Raises:
        ModelError: The network refuses the input, or parts of it are compiled.
        PruningError: Its dependencies cannot be traced.
        TargetError: A pattern in ``keep`` matches nothing.
    """
    refuse_compiled(network)
    progress("counting multiply-accumulates")
    macs = count_macs_by_module(network, source.takes)
    progress("finding coupled groups")
    graph = dependency_graph(network, example_inputs(source, 1), attention=options.attention)
    reasons = _dense_reasons(network, graph.groups, options)
    traced = graph.coupling.branches if options.depth == "auto" else ()
    branches = droppable_branches(network, graph.groups, traced, options.keep)
    cost = CostModel(network, graph.groups, macs, graph.coupling, original, branches)
    return Structure(options=options, graph=graph, cost=cost, reasons=reasons, branches=branches)


def example_inputs(source: Source, batch: int) -> ExampleInputs:
    """Random inputs, the same each time."""
    return source.takes.drawn(batch, source.seed)


def reasons_with(network: nn.Module, structure: Structure, options: PruneOptions) -> list[str]:
    """Why each group would be left dense with other options; what was found by trying still holds."""
    before = _dense_reasons(network, structure.groups, structure.options)
    now = _dense_reasons(network, structure.groups, options)
    return [
        tried if tried != first else reason for first, tried, reason in zip(before, structure.reasons, now, strict=True)
    ]


def _dense_reasons(network: nn.Module, groups: Sequence[Group], options: PruneOptions) -> list[str]:
    """Why each group is left dense, or an empty string; every pattern to keep must match a module."""
    check_keep(network, options.keep)
    return [why_dense(group, options, _kept_by(group, options.keep)) for group in groups]


def check_keep(network: nn.Module, patterns: Sequence[str]) -> None:
    """Raise a ``TargetError`` where a pattern to keep matches no module."""
    names = [name for name, _ in network.named_modules() if name]
    if unmatched := [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]:
        shown = ", ".join(names[:6])
        raise TargetError(
            f"`keep` {', '.join(unmatched)} matches no module; names look like {shown}, … (shell patterns, "
            "such as 'layer4.*'). `pruneport inspect` lists them."
        )


def _kept_by(group: Group, patterns: Sequence[str]) -> str | None:
    """The first pattern that one of the group's layers matches."""
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(member.module, pattern) for member in group.members):
            return pattern
    return None


def refuse_compiled(network: nn.Module) -> None:
    """Refuse what torch.compile and torch.jit have made: it cannot be shrunk, and shows no tracer what it does.

    Raises:
        ModelError: Names it.
    """
    found = [name for name, module in network.named_modules() if _is_compiled(module)]
    parts = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if "" in found:
        parts = ["the network itself"]
    if parts:
        raise ModelError(
            f"compiled modules cannot be pruned: {', '.join(parts[:10])}. Give the network as it is before "
            "torch.compile, torch.jit.script and torch.jit.trace, and compile the pruned one."
        )


def refuse_random(network: nn.Module, source: Source) -> None:
    """Refuse a network that gives other outputs when it is run again on the same inputs: nothing of it can be proved.

    Whole numbers, such as the class that was found, may differ: noise may decide them that the scores do not show.

    Raises:
        ModelError: It is one, or it refuses the input.
    """
    first, second = (  # drawn twice, since a forward may write into its input, or return what it keeps
        [leaf.clone() for leaf in tensor_leaves(run_once(network, source.takes, example_inputs(source, 1)))]
        for _ in range(2)
    )
    if all(map(_same, first, second)) and len(first) == len(second):
        return
    active = [name for name, module in network.named_modules() if name and module.training]
    hint = f" These modules are in training mode: {', '.join(active[:10])}." if active else ""
    raise ModelError(
        "the network gives other outputs when it is run again on the same inputs: its forward draws random numbers, or "
        f"keeps what it computed before. Nothing can be proved of such a network.{hint} Take the noise out of its "
        "forward in eval mode: dropout with training=self.training, torch.rand under if self.training, or drawn "
        "from a generator that the forward seeds each time."
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ by no more than the order of sums does."""
    if one.shape != other.shape:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return True
    one, other = one.nan_to_num(), other.nan_to_num()
    reach = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=FLOAT32.allowed(reach))


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules  # torch.compile's
