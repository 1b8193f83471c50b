"""What no operation shows while channels are traced: the sizes that forwards give and ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.graph.tracing.trace import Product
from pruneport.compress.graph.tracing.tracer import Tracer
from pruneport.compress.sizes.elementwise_counts import elementwise_macs
from pruneport.compress.sizes.size_calls import SIZE_CALLS, SizeCall
from pruneport.compress.sizes.size_trace import AskedSize, SizeTracer
from pruneport.compress.sizes.traced_sizes import QueriedSize

__all__ = ["ForwardSizes"]


class ForwardSizes(SizeTracer):
    """Notes what no operation shows: the sizes that forwards give and ask for, and attentions that take their scale
    from their own width.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__(tracer.network, tracer.layers, self._line, self._fixed)
        self._tracer = tracer

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(function, types, args, kwargs)
        if macs := elementwise_macs(function, args, kwargs or {}, output):
            self._note_counted(macs, output)
        return output

    def _note_used(self, call: SizeCall, name: str, number: str, args: Any, kwargs: Any, output: Any) -> None:
        super()._note_used(call, name, number, args, kwargs, output)
        if call is SIZE_CALLS[nn.functional.scaled_dot_product_attention] and kwargs.get("scale") is None:
            self._note_scaled(QueriedSize(name, number, 0), args[1] if len(args) > 1 else kwargs["key"])

    def _note_scaled(self, leaf: QueriedSize, key: Tensor) -> None:
        """An attention takes its scale from its own width: the keys' weights make up for it, where each entry is one
        row of them, and else the dense network's scale is given in the call.
        """
        tracer, labels = self._tracer, self._tracer.labels_along(key, -1)
        line = self._line(key, -1)
        if labels is not None and labels.unwrapped:
            tracer.notes.unprunable(labels.compact(), f"the keys of {tracer.here} are an unwrapped parameter")
        elif labels is not None and len(torch.unique(labels.compact())) == labels.compact().numel():
            tracer.notes.scaled_key(labels.rows(key.ndim - 1))
        elif line is not None:
            self.asked[leaf] = AskedSize(key.shape[-1], line)
            self.numbers.append(leaf)

    def _note_counted(self, macs: int, output: Tensor) -> None:
        """Note the multiply-accumulates of a product that no layer makes, and the channels that they grow with."""
        tracer = self._tracer
        if not isinstance(tracer.modules[tracer.place], tracer.layers):
            lines = [line for dim in range(output.ndim) if (line := self._line(output, dim)) is not None]
            tracer.add_product(Product(macs, tuple(lines[:2])))

    def _line(self, tensor: Tensor, dim: int) -> Tensor | None:
        labels = self._tracer.labels_along(tensor, dim) if tensor.ndim and tensor.numel() else None
        varies = labels is not None and not labels.unwrapped and self._tracer.varies(labels) == (dim % tensor.ndim,)
        return labels.line(dim) if labels is not None and varies else None

    def _fixed(self, tensor: Tensor, dim: int) -> bool:
        known = [labels for labels in self._tracer.labels_of(tensor) if not labels.unwrapped]
        fixed = all(dim not in self._tracer.varies(labels) for labels in known)
        return bool(known) and tensor.stride(dim) != 0 and fixed

    def _follow(self, output: Tensor, dim: int, line: Tensor) -> None:
        if self._tracer.labels_along(output, dim) is None:
            self._tracer.give_line(output, dim, line)
