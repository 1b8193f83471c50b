"""What one traced forward pass found, in channel ids: noted by the handlers, then frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneport.compress.graph.tracing.channel_ids import ChannelIds
from pruneport.compress.graph.tracing.dataflow import TracedBranch
from pruneport.compress.sizes.size_trace import AskedSize, UsedSize
from pruneport.compress.sizes.traced_sizes import Expression, QueriedSize

__all__ = ["Notes", "Product", "Trace"]


@dataclass(frozen=True, eq=False)
class Product:
    """Multiply-accumulates that are not simply a layer's, and the channels along the sizes that they grow with.

    Attributes:
        macs: How many.
        lines: Channel ids (size,) along one or two dimensions.
        layer: The layer among whose own they are counted, or "".
    """

    macs: int
    lines: tuple[Tensor, ...]
    layer: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What one forward pass found; tensors hold channel ids, of which 0 is none.

    Attributes:
        channel_ids: The ids met, and how they are joined.
        calls: Names of modules in the order in which their calls end.
        output: Ids of channels that leave the network, as they are or behind operations that lost their labels.
        representation: Ids of channels that are summed over on the way out, as the inputs of an output layer are.
        found_output: Whether any output was traced back to a layer.
        added: Ids whose channels pass an addition of two tensors.
        normalised_over: Ids that are averaged over: there, removing differs from zeroing.
        unprunable: Ids that cannot be removed, and why, in the order of discovery.
        counted: Attributes of layers that count the channels along a line: (module, attribute, line).
        attention_heads: Ids along dimensions whose units are whole attention heads.
        products: Multiply-accumulates that are no layer's alone.
        standardised: Layers whose weight is normalised over its inputs.
        applied_along: Layers that are applied along other channels than those they read, and the ids of these.
        biases: Ids along a dimension (size,), and those of unwrapped parameters that are added there (size, n).
        scaled_keys: Keys (width, n) of attentions whose scale is that of their own width.
        used_sizes: Sizes that forwards give to functions.
        asked_sizes: Sizes that forwards ask for.
        numbers: Expressions of sizes that forwards compute real numbers from.
        compared: Pairs of such expressions that a forward found equal.
        branches: The residual branches.
    """

    channel_ids: ChannelIds
    calls: tuple[str, ...]
    output: tuple[Tensor, ...]
    representation: tuple[Tensor, ...]
    found_output: bool
    added: tuple[Tensor, ...]
    normalised_over: tuple[Tensor, ...]
    unprunable: tuple[tuple[Tensor, str], ...]
    counted: tuple[tuple[str, str, Tensor], ...]
    attention_heads: tuple[Tensor, ...]
    products: tuple[Product, ...]
    standardised: frozenset[str]
    applied_along: Mapping[str, Tensor]
    biases: tuple[tuple[Tensor, Tensor], ...]
    scaled_keys: tuple[Tensor, ...]
    used_sizes: tuple[UsedSize, ...]
    asked_sizes: Mapping[QueriedSize, AskedSize]
    numbers: tuple[Expression, ...]
    compared: tuple[tuple[Expression, Expression], ...]
    branches: tuple[TracedBranch, ...]


class Notes:
    """What handlers note of a pass while it runs; ``Trace`` says what each is."""

    def __init__(self) -> None:
        self._added: list[Tensor] = []
        self._normalised_over: list[Tensor] = []
        self._unprunable: list[tuple[Tensor, str]] = []
        self._counted: list[tuple[str, str, Tensor]] = []
        self._attention_heads: list[Tensor] = []
        self._products: list[Product] = []
        self._standardised: set[str] = set()
        self._applied_along: dict[str, Tensor] = {}
        self._biases: list[tuple[Tensor, Tensor]] = []
        self._scaled_keys: list[Tensor] = []

    def added(self, labels: Tensor) -> None:
        """These channels pass an addition of two tensors."""
        self._added.append(labels)

    def normalised_over(self, labels: Tensor) -> None:
        """These channels are averaged over."""
        self._normalised_over.append(labels)

    def unprunable(self, labels: Tensor, reason: str) -> None:
        """No unit with one of these channels can be removed."""
        self._unprunable.append((torch.unique(labels[labels != 0]), reason))

    def counted(self, module: str, attribute: str, line: Tensor) -> None:
        """An attribute of a layer counts the channels along a line."""
        self._counted.append((module, attribute, line))

    def attention_heads(self, line: Tensor) -> None:
        """The units along a line are whole attention heads."""
        self._attention_heads.append(line)

    def product(self, product: Product) -> None:
        """Multiply-accumulates that are no layer's alone."""
        self._products.append(product)

    def standardised(self, layer: str) -> None:
        """The layer's weight is normalised over its inputs."""
        self._standardised.add(layer)

    def applied_along(self, layer: str, line: Tensor) -> None:
        """The layer is applied along these channels, which its cost grows with."""
        self._applied_along[layer] = line

    def bias(self, line: Tensor, rows: Tensor) -> None:
        """An unwrapped parameter (size, n) is added to the channels along a line (size,)."""
        self._biases.append((line, rows))

    def scaled_key(self, rows: Tensor) -> None:
        """An attention takes its scale from the width of these keys (width, n)."""
        self._scaled_keys.append(rows)

    def known_attention_heads(self) -> Tensor:
        """The ids of all whole attention heads so far."""
        return torch.cat([torch.empty(0, dtype=torch.long), *self._attention_heads])

    def freeze(self, **rest: Any) -> Trace:
        """All of it, with what the tracer alone knows."""
        return Trace(
            added=tuple(self._added),
            normalised_over=tuple(self._normalised_over),
            unprunable=tuple(self._unprunable),
            counted=tuple(self._counted),
            attention_heads=tuple(self._attention_heads),
            products=tuple(self._products),
            standardised=frozenset(self._standardised),
            applied_along=dict(self._applied_along),
            biases=tuple(self._biases),
            scaled_keys=tuple(self._scaled_keys),
            **rest,
        )
