"""The proof of a pruning: removing channels must do what zeroing them does.

A consumer that no longer has an input and one whose weights for that input are zero compute the same, and so do
products of queries and keys. So the pruned network is compared with the dense one in which every parameter of a
removed channel is zero, and in which whatever averages over channels (LayerNorm, GroupNorm, softmax, standardised
weights) averages over the kept ones alone. Where a residual branch was dropped, the addition at its end adds zeros
there. A wrong coupling shows here as a difference, whatever the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.graph.branches import branches_changed
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.tracing.dataflow import TracedBranch
from pruneport.compress.hooks import hooks_restored, running
from pruneport.compress.resize.layers import zero_channels
from pruneport.compress.surgery.apply import positions_kept
from pruneport.compress.surgery.kept_tracer import KeptTracer
from pruneport.compress.surgery.plan import GroupPlan
from pruneport.errors import PruningError
from pruneport.models.inputs import ExampleInputs, changed, run_on
from pruneport.models.outputs import tensor_leaves

__all__ = ["ForwardError", "OutputError", "check_against_masked", "masked_outputs"]

_TOLERANCE = 1e-5  # rounding of networks that are right stays below it, in float64 at least


def check_against_masked(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[GroupPlan],
    example: ExampleInputs,
    coupling: Coupling,
    lost: Iterable[int] = (),
    dropped: Sequence[TracedBranch] = (),
) -> float | None:
    """Compare ``pruned`` with the masked dense network on ``example``.

    Args:
        dense: The original network.
        pruned: The pruned one.
        groups: What was removed.
        example: Inputs.
        coupling: What is known of the dense network's channels.
        lost: The units that were removed.
        dropped: The branches that were dropped.

    Returns:
        The largest difference of an output, relative to the largest masked output. Those of the layers whose channels
        leave the network count too, and so do their inputs: what is made of them (classes, boxes that passed a
        threshold, zeros of an untrained output layer) may hide a difference. None where all are zero,
            which proves nothing.

    Raises:
        ForwardError: The pruned network does not run.
        OutputError: Its outputs have other shapes or values than the masked dense network's.
    """
    lost = frozenset(lost)
    with running(pruned) as stack, torch.no_grad():
        try:
            actual = _outputs(pruned, groups, example)
        except Exception as error:
            raise ForwardError(tuple(stack), error) from error
    with torch.no_grad():
        unmasked = _outputs(dense, groups, example)
    expected = masked_outputs(dense, groups, example, coupling, lost, dropped=dropped)
    filled = _spoilt(expected, unmasked)
    if filled:
        expected = masked_outputs(dense, groups, example, coupling, lost, filled, dropped)
    found = _largest_error(actual, expected, unmasked)
    shape_change = _shape_change(actual, expected, unmasked)
    if shape_change or not (found is None or found <= _TOLERANCE) or not _same_values(actual, expected):
        # Some untrained networks amplify rounding, on which hangs which of equal scores comes first, and how many boxes
        # pass a threshold: look more closely.
        finer = changed(example, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        with torch.no_grad():
            actual = _outputs(copy.deepcopy(pruned).double(), groups, finer)
        expected = masked_outputs(copy.deepcopy(dense).double(), groups, finer, coupling, lost, filled, dropped)
        found = _largest_error(actual, expected, unmasked)
        if shape_change := _shape_change(actual, expected, unmasked):
            raise OutputError(shape_change)
        if not (found is None or found <= _TOLERANCE):
            raise OutputError(f"changes the outputs by {found:.2e} of their size beyond what zeroing them does")
        if not _same_values(actual, expected):
            raise OutputError("changes outputs that are whole numbers, such as classes")
    return found


def _shape_change(actual: Sequence[Tensor], expected: Sequence[Tensor], unmasked: Sequence[Tensor]) -> str:
    """Say where the pruned network makes other outputs, or outputs of other shapes, than the masked one."""
    if not len(actual) == len(expected) == len(unmasked):
        return f"makes {len(actual)} outputs of {len(unmasked)}"
    for ours, masked in zip(actual, expected, strict=True):
        if ours.shape != masked.shape:
            return f"changes the shape of an output from {tuple(masked.shape)} to {tuple(ours.shape)}"
    return ""


def _spoilt(expected: Sequence[Tensor], unmasked: Sequence[Tensor]) -> bool:
    """Whether zeros made values that are no numbers, as by a division by the largest weight of a channel."""
    pairs = [(masked, whole) for masked, whole in zip(expected, unmasked, strict=False) if masked.is_floating_point()]
    return any(not masked.isfinite().all() and bool(whole.isfinite().all()) for masked, whole in pairs)


def _largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor], unmasked: Sequence[Tensor]) -> float | None:
    """Largest difference of a real output, relative to its largest entry; None where there is nothing to compare."""
    errors = []
    for ours, masked, whole in zip(actual, expected, unmasked, strict=False):
        if not masked.is_floating_point() or ours.shape != masked.shape or not masked.numel():
            continue
        if whole.numel() and not whole.isfinite().any():
            continue
        finite = masked[masked.isfinite()].abs()
        largest = finite.max().item() if finite.numel() else 0
        apart = torch.where(ours == masked, 0, ours - masked).abs().max().item()
        if largest > 0 or apart != 0:
            errors.append(apart / largest if largest else float("inf") if apart > 0 else float("nan"))
    if any(error != error for error in errors):
        return float("nan")
    return max(errors, default=None)


def _same_values(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether all outputs that are whole numbers or truth values are the same."""
    return all(
        ours.is_floating_point() or torch.equal(ours, masked) for ours, masked in zip(actual, expected, strict=False)
    )


@torch.no_grad()  # in inference mode compound operations would not be seen one by one
def masked_outputs(
    dense: nn.Module,
    groups: Sequence[GroupPlan],
    example: ExampleInputs,
    coupling: Coupling | None = None,
    lost: frozenset[int] = frozenset(),
    filled: bool = False,
    dropped: Sequence[TracedBranch] = (),
) -> list[Tensor]:
    """Outputs of ``dense`` with zeros in all parameters of removed channels; ``dense`` itself is not changed.

    Args:
        dense: The original network.
        groups: What was removed.
        example: Inputs.
        coupling: With it, averages over channels are taken over the kept ones.
        lost: The units that were removed.
        filled: Whether what is computed of removed units alone is zero where it is no number.
        dropped: Branches of which zeros are added.
    """
    masked = _untied(dense)
    kept = [(member, group.kept) for group in groups if group.kept for member in group.members]
    for name, axes in positions_kept(kept).items():
        zero_channels(masked, name, axes)
    with branches_changed(masked, dropped, lambda _, computed: torch.zeros_like(computed)):
        if coupling is None or not (filled or coupling.normalised_over & lost):
            return _outputs(masked, groups, example)
        return _outputs(masked, groups, example, KeptTracer(masked, coupling, lost, filled).run)


def _outputs(
    network: nn.Module,
    groups: Sequence[GroupPlan],
    example: ExampleInputs,
    run: Callable[[ExampleInputs], Any] | None = None,
) -> list[Tensor]:
    """What the network returns, then what its output layers compute, and what they read where that is whole."""
    ends = [member for group in groups if group.role == "output" for member in group.members]
    layers = {member.module for member in ends if member.axis != "in"}
    narrower = {m.module for group in groups if group.kept is not None for m in group.members if m.axis == "in"}
    seen: list[Tensor] = []

    def see(name: str) -> Callable[..., None]:
        whole = name not in narrower
        return lambda _, inputs, output: seen.extend(tensor_leaves([output, list(inputs) if whole else []]))

    with hooks_restored(network):
        for name, module in network.named_modules():
            if name in layers:
                module.register_forward_hook(see(name))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a forward that draws numbers
            given = changed(example, Tensor.clone)  # a forward may write into it
            returned = tensor_leaves(run(given) if run else run_on(network, given))
    return [*returned, *seen]


class ForwardError(PruningError):
    """The pruned network's forward raised.

    Attributes:
        stack: The modules that were running, outermost first.
        cause: What it raised, in a line; the exception's type where it says nothing.
    """

    def __init__(self, stack: tuple[str, ...], error: Exception) -> None:
        self.stack = stack
        self.cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        super().__init__(
            f"the pruned network does not run: in {stack[-1] or 'the network itself'}: {self.cause}. Its forward "
            "relies on a width that was pruned; leave the layers it names dense with `keep=PATTERN`."
        )


class OutputError(PruningError):
    """The pruned network runs, and its outputs are not the masked dense network's.

    Attributes:
        change: What removing the filters does, in a clause.
    """

    def __init__(self, change: str) -> None:
        self.change = change
        super().__init__(
            f"removing the chosen filters {change} (allowed {_TOLERANCE:g}): the network couples its layers in a way "
            "that is not understood. Leave the unusual layers dense with `keep=PATTERN`."
        )


def _untied(network: nn.Module) -> nn.Module:
    """A copy in which no two layers share a parameter, since each is pruned on its own."""
    copied, seen = copy.deepcopy(network), set()
    for module in copied.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
            seen.add(parameter)
    return copied
