"""One forward pass of a small network under the tracer, and what it found in names that a test can spell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.graph.operators.table import LEAVES, operate
from pruneport.compress.graph.tracing.forward_sizes import ForwardSizes
from pruneport.compress.graph.tracing.trace import Trace
from pruneport.compress.graph.tracing.tracer import Tracer
from pruneport.compress.resize.layer_types import LAYERS
from small_networks import Net, conv

Follow = Callable[..., "Followed"]


class Followed:
    """A traced pass. Channels are named by their layer and position: ``a2``, ``b.in0``, ``table.flat3``.

    Attributes:
        tracer: The tracer, whose labels of tensors still stand.
        trace: What it found.
        output: What the network returned.
    """

    def __init__(self, network: nn.Module, example: Tensor, whole_heads: bool = False) -> None:
        self.tracer = Tracer(network.eval(), operate, LAYERS, LEAVES, ForwardSizes, whole_heads)
        caught: list[Any] = []
        handle = network.register_forward_hook(lambda module, inputs, output: caught.append(output))
        self.trace: Trace = self.tracer.trace(example)
        handle.remove()
        (self.output,) = caught

    def name(self, channel: int) -> str:
        """The name of a channel id; "" of none."""
        if not channel:
            return ""
        layer, axis = self.trace.channel_ids.key_of(channel)
        place = channel - self.trace.channel_ids.offsets[layer, axis]
        return f"{layer}{place}" if axis in ("out", "channels") else f"{layer}.{axis}{place}"

    def along(self, dim: int, output: Tensor | None = None) -> list[str] | None:
        """The channels along a dimension of the output; None where it has none there."""
        tensor = self.output if output is None else output
        labels = self.tracer.labels_along(tensor, dim)
        return None if labels is None else [self.name(channel) for channel in labels.line(dim).tolist()]

    def names(self, *parts: Tensor) -> set[str]:
        """The names of all channels in ids of any shape."""
        return {self.name(channel) for part in parts for channel in torch.unique(part).tolist() if channel}

    @property
    def joined(self) -> list[set[str]]:
        """Channels that go together, where they are several."""
        units: dict[int, set[str]] = defaultdict(set)
        ids = self.trace.channel_ids
        for key, start in ids.offsets.items():
            for place, unit in enumerate(ids.of(key).tolist()):
                units[unit].add(self.name(start + place))
        return [unit for unit in units.values() if len(unit) > 1]

    @property
    def unprunable(self) -> dict[str, str]:
        """Why a channel cannot be removed, of each that cannot: the first reason."""
        return {name: reason for part, reason in reversed(self.trace.unprunable) for name in sorted(self.names(part))}

    @property
    def hidden(self) -> set[str]:
        """Channels that the output depends on while none of its entries shows it."""
        return self.names(*(part for kind in (True, False) for part in self.tracer.ids_lost(self.output, kind)))


@pytest.fixture
def follow() -> Follow:
    """Follow a forward function over layers given by name; ``a`` and ``b`` are convolutions, 4 wide."""

    def start(forward: Callable[..., Any], shape: tuple[int, ...] = (2, 3, 8, 8), **parts: Any) -> Followed:
        whole_heads = parts.pop("whole_heads", False)
        layers = {"a": conv(3, 4), "b": conv(3, 4)} | parts
        return Followed(Net(forward, **layers), torch.randn(shape), whole_heads)

    return start
