"""A network with removed channels zeroed, run so that averages over channels leave those out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.operators.table import LEAVES, operate
from pruneport.compress.graph.tracing.forward_sizes import ForwardSizes
from pruneport.compress.graph.tracing.tracer import Tracer
from pruneport.compress.resize.layer_types import LAYERS
from pruneport.compress.sizes.arguments import argument, operator_name

__all__ = ["KeptTracer"]


class KeptTracer(Tracer):  # type: ignore[no-untyped-call]
    """Runs a network whose averages over channels leave out those that were removed.

    Channels are followed as in the pass that found the coupling, and have the numbers that they had there.
    """

    def __init__(self, network: nn.Module, coupling: Coupling, lost: frozenset[int], filled: bool) -> None:
        super().__init__(
            network, operate, LAYERS, LEAVES, ForwardSizes, channel_ids=copy.deepcopy(coupling.channel_ids)
        )
        self._lost_units = torch.tensor(sorted(lost))
        self._filled = filled

    def compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The operation, on what was kept where it averages over channels."""
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
        for labels in self.labels_of(value):
            gone |= torch.isin(self.channel_ids.roots(labels.ids), self._lost_units)
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
        labels = self.labels_along(tensor, dim)
        if labels is None or labels.unwrapped:
            return None
        gone = torch.isin(self.channel_ids.roots(labels.line(dim).contiguous()), self._lost_units)
        return (~gone).nonzero()[:, 0] if gone.any() else None

    def _kept_inputs(self, layer: str, places: Tensor, dim: int) -> Tensor | None:
        """Places along a weight's dimension that read kept inputs, (n,); None where the layer loses no input."""
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
