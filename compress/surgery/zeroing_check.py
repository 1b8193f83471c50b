"""The proof of a pruning: removing channels must do what zeroing them does.

A consumer that no longer has an input and one whose weights for that input are zero compute the same, and so do
products of queries and keys. So the pruned network is compared with the dense one in which every parameter of a
removed channel is zero, and in which whatever averages over channels (LayerNorm, GroupNorm, softmax, standardised
weights) averages over the kept ones alone. A wrong coupling shows here as a difference, whatever the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.op_table import LEAVES, operate
from pruneport.compress.graph.tracer import Tracer
from pruneport.compress.hooks import hooks_restored, running
from pruneport.compress.resize.layers import LAYERS, zero_channels
from pruneport.compress.sizes.arguments import argument, operator_name
from pruneport.compress.surgery.plan import GroupPlan, positions_kept
from pruneport.errors import PruningError
from pruneport.models.outputs import tensor_leaves

__all__ = ["ForwardError", "OutputError", "check_against_masked", "masked_outputs"]

_TOLERANCE = 1e-5  # rounding of networks that are right stays below it, in float64 at least


def check_against_masked(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[GroupPlan],
    example: Tensor,
    coupling: Coupling,
    lost: Iterable[int] = (),
) -> float | None:
    """Compare ``pruned`` with the masked dense network on ``example`` (B, C, H, W).

    Args:
        dense: The original network.
        pruned: The pruned one.
        groups: What was removed.
        example: Inputs.
        coupling: What is known of the dense network's channels.
        lost: The units that were removed.

    Returns:
        The largest difference of an output, relative to the largest masked output. Those of the layers whose channels
        leave the network count too, and so do their inputs: what is made of them (classes, boxes that passed a
        threshold, zeros of an untrained head) may hide a difference. None where all are zero, which proves nothing.

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
    expected = masked_outputs(dense, groups, example, coupling, lost)
    filled = _spoilt(expected, unmasked)
    if filled:
        expected = masked_outputs(dense, groups, example, coupling, lost, filled)
    _check_shapes(actual, expected, unmasked)
    found = _largest_error(actual, expected, unmasked)
    if not (found is None or found <= _TOLERANCE) or not _same_values(actual, expected):
        # Some untrained networks amplify rounding, and equal scores change places: look more closely.
        finer = example.double()
        with torch.no_grad():
            actual = _outputs(copy.deepcopy(pruned).double(), groups, finer)
        expected = masked_outputs(copy.deepcopy(dense).double(), groups, finer, coupling, lost, filled)
        found = _largest_error(actual, expected, unmasked)
        if not (found is None or found <= _TOLERANCE):
            raise OutputError(f"changes the outputs by {found:.2e} of their size beyond what zeroing them does")
        if not _same_values(actual, expected):
            raise OutputError("changes outputs that are whole numbers, such as classes")
    return found


def _check_shapes(actual: Sequence[Tensor], expected: Sequence[Tensor], unmasked: Sequence[Tensor]) -> None:
    if not len(actual) == len(expected) == len(unmasked):
        raise OutputError(f"makes {len(actual)} outputs of {len(unmasked)}")
    for ours, masked, whole in zip(actual, expected, unmasked, strict=True):
        if ours.shape != masked.shape or (masked.shape == whole.shape != ours.shape):
            raise OutputError(f"changes the shape of an output from {tuple(masked.shape)} to {tuple(ours.shape)}")


def _spoilt(expected: Sequence[Tensor], unmasked: Sequence[Tensor]) -> bool:
    """Whether zeros made values that are no numbers, as by a division by the largest weight of a channel."""
    pairs = [(masked, whole) for masked, whole in zip(expected, unmasked, strict=False) if masked.is_floating_point()]
    return any(not masked.isfinite().all() and bool(whole.isfinite().all()) for masked, whole in pairs)


def _largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor], unmasked: Sequence[Tensor]) -> float | None:
    errors = []
    for ours, masked, whole in zip(actual, expected, unmasked, strict=True):
        if not masked.is_floating_point() or ours.shape != masked.shape or not whole.isfinite().any():
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
    return all(
        ours.is_floating_point() or torch.equal(ours, masked) for ours, masked in zip(actual, expected, strict=True)
    )


@torch.no_grad()  # in inference mode compound operations would not be seen one by one
def masked_outputs(
    dense: nn.Module,
    groups: Sequence[GroupPlan],
    example: Tensor,
    coupling: Coupling | None = None,
    lost: frozenset[int] = frozenset(),
    filled: bool = False,
) -> list[Tensor]:
    """Outputs of ``dense`` with zeros in all parameters of removed channels; ``dense`` itself is not changed.

    Args:
        dense: The original network.
        groups: What was removed.
        example: Inputs.
        coupling: With it, averages over channels are taken over the kept ones.
        lost: The units that were removed.
        filled: Whether what is computed of removed units alone is zero where it is no number.
    """
    masked = _untied(dense)
    kept = [(member, group.kept) for group in groups if group.kept is not None for member in group.members]
    for name, axes in positions_kept(kept).items():
        zero_channels(masked, name, axes)
    if coupling is None or not (filled or coupling.normalised_over & lost):
        return _outputs(masked, groups, example)
    return _outputs(masked, groups, example, _KeptTracer(masked, coupling, lost, filled).run)


def _outputs(
    network: nn.Module, groups: Sequence[GroupPlan], example: Tensor, run: Callable[[Tensor], Any] | None = None
) -> list[Tensor]:
    """What the network returns, then what its output layers compute, and what they read where that is whole."""
    ends = [member for group in groups if group.scope == "output" for member in group.members]
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
            returned = tensor_leaves((run or network)(example))
    return [*returned, *seen]


class _KeptTracer(Tracer):  # type: ignore[no-untyped-call]
    """Runs a network whose averages over channels leave out those that were removed.

    Channels are followed as in the pass that found the coupling, and have the numbers that they had there.
    """

    def __init__(self, network: nn.Module, coupling: Coupling, lost: frozenset[int], filled: bool) -> None:
        super().__init__(network, operate, LAYERS, LEAVES, channel_ids=copy.deepcopy(coupling.channel_ids))
        self._lost_units = torch.tensor(sorted(lost))
        self._filled = filled

    def compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        if self._filled and not self.silent and all(made.alias_info is None for made in function._schema.returns):
            args, kwargs = tree_map(self._with_zeros, (args, kwargs))
        handler = None if self.silent else _AVERAGES.get(operator_name(function))
        if handler is None:
            return self._without_lost_weights(function, args, kwargs)
        for dim in handler(function, args, kwargs):
            kept = self._kept_along(args[0], dim)
            if kept is not None:
                return self._of_kept(function, args, kwargs, dim, kept)
        return function(*args, **kwargs)

    def _with_zeros(self, value: Any) -> Any:
        """Zeros where a tensor's entries of removed units are no numbers."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.isfinite().all():
            return value
        gone = torch.zeros_like(value, dtype=torch.bool)
        for entry in self.labels_of(value):
            gone |= torch.isin(self.channel_ids.roots(entry.labels), self._lost_units)
        view = self.weight_view(value)
        for axis in ("out", "channels"):
            if view is not None and (view.layer, axis) in self.channel_ids.offsets:
                units = torch.from_numpy(self.channel_ids.of((view.layer, axis)))
                gone |= torch.isin(units[view.outputs - 1], self._lost_units) & (view.outputs > 0)
        return value.masked_fill(gone & ~value.isfinite(), 0)

    def _kept_along(self, tensor: Tensor, dim: int) -> Tensor | None:
        """The places along a dimension that were not removed, (n,); None where none were."""
        view = self.weight_view(tensor)
        if view is not None:
            return self._kept_inputs(view.layer, view.inputs, dim)
        entry = self.labels_along(tensor, dim)
        if entry is None or entry.unwrapped:
            return None
        gone = torch.isin(self.channel_ids.roots(entry.line(dim).contiguous()), self._lost_units)
        return (~gone).nonzero()[:, 0] if gone.any() else None

    def _kept_inputs(self, layer: str, places: Tensor, dim: int) -> Tensor | None:
        if (layer, "in") not in self.channel_ids.offsets:
            return None
        line = places.movedim(dim, 0).reshape(places.shape[dim], -1)[:, 0]
        if bool((line == line[0]).all()):  # the inputs do not lie along it
            return None
        if getattr(self.modules[layer], "groups", 1) > 1:  # whole channel groups go, with their outputs
            return None
        units = torch.from_numpy(self.channel_ids.of((layer, "in")))
        if not line.all() or int(line.max()) > len(units):
            return None
        gone = torch.isin(units[line - 1], self._lost_units)
        return (~gone).nonzero()[:, 0] if gone.any() else None

    def _of_kept(self, function: Any, args: Any, kwargs: Any, dim: int, kept: Tensor) -> Any:
        """The operation on the kept places; where its outputs have the dimension, the others are zero.

        Whole numbers that it returns are places among the kept ones, and become those among all.
        """
        size = args[0].shape[dim]
        chosen = _on_kept(function, args, kwargs, dim, kept)
        output = function(*chosen, **kwargs)

        def widened(part: Any) -> Any:
            if isinstance(part, Tensor) and part.dtype == torch.long:
                return kept[part]
            if not isinstance(part, Tensor) or part.ndim != args[0].ndim or part.shape[dim] != len(kept):
                return part
            shape = [size if d == dim else length for d, length in enumerate(part.shape)]
            return part.new_zeros(shape).index_copy_(dim, kept, part)

        return type(output)(map(widened, output)) if isinstance(output, tuple) else widened(output)

    def _without_lost_weights(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A layer whose weight was computed anew has none for removed inputs."""
        if not self.silent and operator_name(function) == "convolution":
            view = self.weight_view(args[1])
            if view is not None and not view.moved:
                kept = self._kept_inputs(view.layer, view.inputs, 1)
                if kept is not None:
                    mask = args[1].new_zeros(args[1].shape[1])
                    mask[kept] = 1
                    args = (args[0], args[1] * mask[:, None, None], *args[2:])
        return function(*args, **kwargs)


def _last_dims(function: Any, args: Any, kwargs: Any) -> list[int]:
    over = args[1]
    return [args[0].ndim - 1] if len(over) == 1 else []


def _channel_dim(function: Any, args: Any, kwargs: Any) -> list[int]:
    return [1]


def _reduced_dims(function: Any, args: Any, kwargs: Any) -> list[int]:
    dims = argument(function, args, kwargs, "dim")
    listed = range(args[0].ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [dim % max(1, args[0].ndim) for dim in listed] if args[0].ndim else []


def _listed_dims(function: Any, args: Any, kwargs: Any) -> list[int]:
    """Those that are reduced, unless it is all of them at once."""
    dim = argument(function, args, kwargs, "dim")
    return [] if dim is None else [dim % max(1, args[0].ndim)]


def _measured_dims(function: Any, args: Any, kwargs: Any) -> list[int]:
    """Those that a BatchNorm which measures its statistics averages over; one that remembers them averages nothing."""
    measures = argument(function, args, kwargs, "training", True)
    return [dim for dim in range(args[0].ndim) if dim != 1] if measures else []


_AVERAGES: dict[str, Callable[[Any, Any, Any], list[int]]] = {
    "native_layer_norm": _last_dims,
    "_fused_rms_norm": _last_dims,
    "native_group_norm": _channel_dim,
    "native_batch_norm": _measured_dims,
    "_native_batch_norm_legit": _measured_dims,
    **dict.fromkeys(("_softmax", "_log_softmax", "softmax", "logsumexp"), _reduced_dims),
    **dict.fromkeys(("argmax", "argmin"), _listed_dims),
    **dict.fromkeys(("mean", "var", "std", "var_mean", "amax", "amin", "max", "min", "prod"), _reduced_dims),
}
"""Operations that average over channels, and the dimensions that they do it along."""


def _on_kept(function: Any, args: Any, kwargs: Any, dim: int, kept: Tensor) -> tuple[Any, ...]:
    """The arguments with the kept places of the first, and what belongs to them of the others."""
    source = args[0].index_select(dim, kept)
    name = operator_name(function)
    if name in ("native_layer_norm", "_fused_rms_norm"):
        tables = [None if table is None else table[kept] for table in args[2:] if isinstance(table, Tensor | None)]
        return (source, [len(kept)], *tables, *args[2 + len(tables) :])
    if name == "native_group_norm":
        weight, bias, batch, _, places, groups, eps = args[1:8]
        weight, bias = (None if table is None else table[kept] for table in (weight, bias))
        return (source, weight, bias, batch, len(kept), places, groups, eps)
    return (source, *args[1:])


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
