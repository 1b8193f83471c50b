"""What must hold of a pruned stranger: each check yields a line for every fault that it finds."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.compress.assessment import Assessment
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import InputError, TargetError
from pruneport.export.bundle.weights import same_bits
from pruneport.models.record import Source

from .oracle import Removed, expected_outputs
from .registry import Stranger
from .returned import kind_of, leaves, relative_error, run

__all__ = [
    "changes", "inputs_of", "is_right", "options_of", "same_outputs", "source_of", "wrong_at_other_targets",
    "wrong_costs", "wrong_outputs", "wrong_reasons", "wrong_rebuild", "wrong_widths",
]  # fmt: skip

_TOLERANCE = 1e-6  # of the largest output, in float64; scaled keys are stored in float32, to 6e-8
_COUNTED = 0.005


def source_of(stranger: Stranger) -> Source:
    return Source(spec=f"strangers:{stranger.name}", model_args={}, seed=0, input_shape=stranger.shape)


def options_of(stranger: Stranger, **target: float) -> PruneOptions:
    fixed = {"criterion": "l1", "ranking": "uniform", "round_to": 1}
    return PruneOptions(**{**fixed, **target, **stranger.options})


def inputs_of(stranger: Stranger) -> Tensor:
    return torch.randn(stranger.batch, *stranger.shape, generator=torch.Generator().manual_seed(1))


def is_right(stranger: Stranger, error: InputError) -> bool:
    return bool(stranger.must.may_refuse and re.search(stranger.must.may_refuse, str(error), re.IGNORECASE))


def wrong_at_other_targets(stranger: Stranger, dense: nn.Module, assessment: Assessment) -> Iterator[str]:
    """At 0.6 of the MACs costs must be right, too; where 0.15 of the filters are left, any wrong scale shows."""
    targets: tuple[dict[str, float], ...] = ({"flops": 0.6}, {"ratio": 0.85})
    for target in targets:
        try:
            pruned = prune(dense, source_of(stranger), options_of(stranger, **target), assessment=assessment)
        except InputError as error:
            unreachable = isinstance(error, TargetError) and "cannot be reached" in str(error)
            faults = [] if unreachable or is_right(stranger, error) else [f"{type(error).__name__}: {error}"]
        else:
            faults = [*wrong_outputs(stranger, dense, pruned)]
            if "flops" in target:
                faults += [*wrong_costs(stranger, assessment, pruned), *missed(stranger, pruned.plan)]
        yield from (f"at {target}: {fault}" for fault in faults)


def missed(stranger: Stranger, plan: Plan) -> Iterator[str]:
    """The counted share is what was asked for, or the plan says why it is not."""
    share = plan.pruned.macs / plan.dense.macs
    if not stranger.by_values and abs(share - plan.request.value) > 0.015 and not plan.note:
        yield f"{share:.3f} are left, and the plan does not say why"


def wrong_widths(stranger: Stranger, dense: nn.Module, pruned: Pruned) -> Iterator[str]:
    for name in stranger.must.prunes:
        before, after = width_of(dense, name), width_of(pruned.network, name)
        if not after < before:
            yield f"{name} must shrink and has {after} of {before}"
    for name in stranger.must.keeps:
        before, after = width_of(dense, name), width_of(pruned.network, name)
        if after != before:
            yield f"{name} must keep its {before} and has {after}"


def width_of(network: nn.Module, name: str) -> int:
    """Outputs of a layer; rows of the first parameter of other modules; entries of an unwrapped parameter."""
    owner, _, attribute = name.rpartition(".")
    part: Any = getattr(network.get_submodule(owner), attribute)
    if isinstance(part, Tensor):
        return part.numel()
    if isinstance(part, nn.modules.conv._ConvNd):
        return part.weight.shape[0] if not part.transposed else part.weight.shape[1] * part.groups
    first = next(part.parameters())
    return len(first)


def removed_by(plan: Plan) -> Iterator[Removed]:
    for group in plan.groups:
        if group.kept is not None:
            gone = sorted(set(range(group.width)) - set(group.kept))
            for member in group.members if gone else ():
                yield member.module, member.axis, member.size, member.positions[gone].ravel().tolist()


def wrong_outputs(stranger: Stranger, dense: nn.Module, pruned: Pruned) -> Iterator[str]:
    if pruned.plan.masked_error is None:
        yield "the plan has no figure of the proof"
    inputs = inputs_of(stranger)
    before = leaves(run(dense, inputs))
    try:
        after = leaves(run(pruned.network, inputs))
    except RuntimeError as error:
        notes = stranger.must.or_notes
        if not notes or notes not in (pruned.plan.note or ""):
            yield f"the pruned network fails on other inputs: {error}" + (
                f", and no note names {notes}" if notes else ""
            )
        return
    ours = leaves(run(copy.deepcopy(pruned.network).double(), inputs.double()))
    theirs = leaves(run(lambda x: expected_outputs(dense, removed_by(pruned.plan), x), inputs))
    if {path: kind_of(leaf) for path, leaf in before} != {path: kind_of(leaf) for path, leaf in after}:
        yield "the outputs' structure differs from the dense network's"
        return
    for (path, one), (_, other) in zip(before, after, strict=True):
        if isinstance(one, Tensor) and not stranger.by_values and one.shape != other.shape:
            yield f"output {path} has shape {tuple(other.shape)}, the dense network's {tuple(one.shape)}"
    if [path for path, _ in ours] != [path for path, _ in theirs]:
        yield "the outputs' structure differs from the masked dense network's"
        return
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        if not isinstance(one, Tensor):
            if one != other:
                yield f"output {path} is {one!r}, the masked dense network's {other!r}"
        elif one.shape != other.shape:
            yield f"output {path} has shape {tuple(one.shape)}, the masked dense network's {tuple(other.shape)}"
        elif bool(other.isnan().any()):
            yield f"output {path} holds entries of removed channels"
        elif (error := relative_error(one, other)) > _TOLERANCE:
            yield f"output {path} differs from the masked dense network's by {error:.2e}"


def changes(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Iterator[str]:
    """What pruning did to the dense network, which must be as it was."""
    for key, value in before.items():
        if not torch.equal(now[key].nan_to_num(0), value.nan_to_num(0)):
            yield f"{key} of the dense network was changed"


def wrong_costs(stranger: Stranger, assessment: Assessment, pruned: Pruned) -> Iterator[str]:
    kept = np.array([group.kept_width for group in pruned.plan.groups], dtype=np.float64)
    macs, params = count_macs(pruned.network, stranger), sum(part.numel() for part in pruned.network.parameters())
    for what, predicted, said, counted in (
        ("MACs", assessment.cost.macs(kept), pruned.plan.pruned.macs, macs),
        ("parameters", assessment.cost.params(kept), pruned.plan.pruned.params, params),
    ):
        if said != counted:
            yield f"the plan says {said} {what}, counted are {counted}"
        if not stranger.by_values and abs(predicted - counted) > _COUNTED * counted:
            yield f"predicted {predicted:.0f} {what}, counted {counted} ({predicted / counted - 1:+.1%})"


def count_macs(network: nn.Module, stranger: Stranger) -> int:
    """By fvcore, which leaves out fused attention: here it is its two products."""

    def attention(inputs: list[Any], outputs: list[Any]) -> int:
        query, key, value = (list(item.type().sizes()) for item in inputs[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis  # calls torch.jit.script, which torch calls deprecated

        counted = copy.deepcopy(network)
        analysis = FlopCountAnalysis(Tensors(counted), torch.zeros(1, *stranger.shape)).unsupported_ops_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
        return int(analysis.uncalled_modules_warnings(False).total())


class Tensors(nn.Module):
    """The tensors alone of what a network returns: a tracer takes nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for _, leaf in leaves(self.network(x)) if isinstance(leaf, Tensor))


def wrong_reasons(plan: Plan) -> Iterator[str]:
    """Whatever stays dense has a reason, in words that name their places."""
    for group in plan.groups:
        if group.kept is None and not group.reason:
            yield f"{group.name} stays dense without a reason"
        if re.search(r"^ |''|^(calls|multiplies|mixes|combines|writes|asks)\b| of  ?relies", group.reason):
            yield f"the reason of {group.name} names no module: {group.reason!r}"


def wrong_rebuild(stranger: Stranger, pruned: Pruned) -> Iterator[str]:
    """The plan, as JSON, and the weights make the same network again."""
    plan = parse_plan(pruned.plan.to_json())
    weights = {name: tensor.detach().clone() for name, tensor in pruned.network.state_dict().items()}
    again = rebuild_network(plan, weights, stranger.build)
    if not same_bits(again, pruned.network):
        yield "the rebuilt network holds other tensors"
    if not same_outputs(again, pruned.network, inputs_of(stranger)):
        yield "the rebuilt network computes something else"


def same_outputs(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    try:
        theirs = leaves(run(other, inputs))
    except RuntimeError:  # noted elsewhere
        return True
    ours = leaves(run(one, inputs))
    return all(
        a == b and torch.equal(x, y) if isinstance(x, Tensor) else (a, x) == (b, y)
        for (a, x), (b, y) in zip(ours, theirs, strict=True)
    )
