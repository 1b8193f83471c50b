"""The coupling of a network: channel ids that one pass (see ``tracer``) joined, as units and their positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.arrays import IntArray
from pruneport.compress.graph.coupling import CountedSize, Coupling, Key
from pruneport.compress.graph.operators.table import LEAVES, operate
from pruneport.compress.graph.tracing.channel_ids import ChannelIds, varying_dimensions
from pruneport.compress.graph.tracing.forward_sizes import ForwardSizes
from pruneport.compress.graph.tracing.trace import Trace
from pruneport.compress.graph.tracing.tracer import Tracer
from pruneport.compress.resize.layer_types import LAYERS
from pruneport.compress.resize.layers import unwrapped_tensor
from pruneport.compress.sizes.traced_sizes import QueriedSize
from pruneport.errors import PruningError
from pruneport.models.inputs import ExampleInputs, run_on

__all__ = ["find_coupling"]


def find_coupling(
    network: nn.Module,
    example: ExampleInputs,
    whole_attention_heads: bool = False,
    whole_channel_groups: bool = True,
    forward: Callable[[nn.Module, ExampleInputs], Any] | None = None,
) -> Coupling:
    """Run the network once on ``example`` and follow its channels; nothing is changed.

    Args:
        network: In eval mode.
        example: Its input (B, C, H, W), or its inputs.
        whole_attention_heads: Whether attention heads go as a whole, or lose width.
        whole_channel_groups: Whether narrow channel groups of a convolution go as a whole; else each loses as many.
        forward: Runs the network on the example, where it is not just called.

    Raises:
        PruningError: The network does not run.
    """
    tracer = Tracer(network, operate, LAYERS, LEAVES, ForwardSizes, whole_attention_heads, whole_channel_groups)
    try:
        trace = tracer.trace(example, forward or run_on)
    except Exception as error:
        raise PruningError(
            f"the network's channels cannot be followed: {type(error).__name__}: {error} (in "
            f"{tracer.place or 'the network itself'})."
        ) from error
    elements = trace.channel_ids
    if not trace.found_output and elements.offsets:
        raise PruningError(
            "no output of the network can be traced back to its layers, so that nothing tells which channels leave it: "
            "its forward returns something else, or goes through NumPy. Give a network whose outputs are computed in "
            "torch from its input."
        )
    _join_ties(network, elements)
    unprunable = [*trace.unprunable, *_scattered_parameters(network, elements)]
    units, sizes = _units(elements, network)
    return Coupling(
        units=units,
        sizes=sizes,
        added=_roots(elements, trace.added),
        normalised_over=_roots(elements, [*trace.normalised_over, *_inputs(elements, trace.standardised)]),
        output=_roots(elements, trace.output),
        unprunable={
            unit: reason
            for labels, reason in reversed(unprunable)
            for unit in torch.unique(elements.roots(labels)).tolist()
        },
        order={name: place for place, name in enumerate(trace.calls)},
        representation=_roots(elements, trace.representation),
        used_sizes=tuple(
            CountedSize(
                leaf=QueriedSize(used.module, used.call, used.slot),
                value=used.value,
                expression=used.expression,
                units=_units_along(elements, used.line),
                start=used.start,
                stop=used.stop,
            )
            for used in trace.used_sizes
        ),
        asked_sizes={
            leaf: CountedSize(
                leaf=leaf,
                value=asked.value,
                expression=leaf,
                units=_units_along(elements, asked.line),
                start=0,
                stop=len(asked.line),
            )
            for leaf, asked in trace.asked_sizes.items()
        },
        numbers=trace.numbers,
        compared=trace.compared,
        counted=tuple((module, name, _units_along(elements, line)) for module, name, line in trace.counted),
        attention_heads=_roots(elements, trace.attention_heads),
        products=tuple(
            (product.macs, tuple(tuple(elements.roots(line).tolist()) for line in product.lines), product.layer)
            for product in trace.products
            if product.lines
        ),
        applied_along={name: tuple(elements.roots(line).tolist()) for name, line in trace.applied_along.items()},
        scaled_keys=tuple(_places(elements, _with_biases(rows, trace.biases)) for rows in trace.scaled_keys),
        channel_ids=elements,
        branches=trace.branches,
        idle=_idle(network, trace),
        whole_channel_groups=whole_channel_groups,
    )


def _idle(network: nn.Module, trace: Trace) -> tuple[str, ...]:
    """Layers that neither ran nor lent their parameters to others."""
    ran = {*trace.calls, *(name for name, _ in trace.channel_ids.offsets)}
    return tuple(name for name, module in network.named_modules() if isinstance(module, LAYERS) and name not in ran)


def _units_along(elements: ChannelIds, line: Tensor) -> tuple[int, ...]:
    return tuple(elements.roots(line).tolist())


def _inputs(elements: ChannelIds, layers: Iterable[str]) -> list[Tensor]:
    keys = [(name, "in") for name in layers]
    return [torch.from_numpy(elements.of(key)) for key in keys if key in elements.offsets]


def _roots(elements: ChannelIds, labels: Iterable[Tensor]) -> frozenset[int]:
    """The units of all labelled entries."""
    units: set[int] = set()
    for part in labels:
        units.update(torch.unique(elements.roots(part)).tolist())
    return frozenset(units - {0})


def _with_biases(rows: Tensor, biases: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat(
        [rows.flatten(), *(bias[torch.isin(line.contiguous(), rows.contiguous())].flatten() for line, bias in biases)]
    )


def _places(elements: ChannelIds, labels: Tensor) -> dict[int, tuple[tuple[Key, int], ...]]:
    """For each unit of a key the places of its channels on their axes."""
    places_of: dict[int, set[tuple[Key, int]]] = defaultdict(set)
    for element in torch.unique(labels).tolist():
        if element:
            key = elements.key_of(element)
            places_of[int(elements.roots(torch.tensor(element)))].add((key, element - elements.offsets[key]))
    return {unit: tuple(sorted(places)) for unit, places in places_of.items()}


def _join_ties(network: nn.Module, elements: ChannelIds) -> None:
    """Layers that share a weight keep the same positions, so that it stays one."""
    first: dict[int, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight") if isinstance(module, LAYERS) else None
        owner = name if weight is None else first.setdefault(id(weight), name)
        for axis in ("in", "out", "channels") if owner != name else ():
            keys = [(owner, axis), (name, axis)]
            if all(key in elements.offsets for key in keys) and len({elements.sizes[key] for key in keys}) == 1:
                elements.join(*(elements.register(key, elements.sizes[key]) for key in keys))


def _scattered_parameters(network: nn.Module, elements: ChannelIds) -> Iterator[tuple[Tensor, str]]:
    """Unwrapped parameters whose entries do not follow one of their dimensions, which cannot shrink; and why."""
    of_layers = {unit for key in elements.offsets if key[1] != "flat" for unit in elements.of(key).tolist()}
    for name, axis in [key for key in elements.offsets if key[1] == "flat"]:
        if of_layers.isdisjoint(elements.of((name, axis)).tolist()):
            continue
        roots = elements.of((name, axis)).reshape(unwrapped_tensor(network, name).shape)
        if _dimension(roots) is None:
            yield torch.from_numpy(roots[roots != 0]), f"the entries of {name} do not follow one of its dimensions"


def _dimension(roots: IntArray) -> int | None:
    """The dimension along which the unit changes, if it is one alone."""
    varying = varying_dimensions(torch.from_numpy(roots))
    return varying[0] if len(varying) == 1 else None


def _units(elements: ChannelIds, network: nn.Module) -> tuple[dict[int, dict[Key, list[int]]], dict[Key, int]]:
    """Every unit that can be removed: its positions by layer and axis; and the size of every axis."""
    units: dict[int, dict[Key, list[int]]] = defaultdict(dict)
    sizes: dict[Key, int] = {}
    flat: list[Key] = []
    for key in elements.offsets:
        if key[1] == "flat":
            flat.append(key)
            continue
        sizes[key] = elements.sizes[key]
        for position, unit in enumerate(elements.of(key).tolist()):
            units[unit].setdefault(key, []).append(position)
    for name, _ in flat:
        roots = elements.of((name, "flat")).reshape(unwrapped_tensor(network, name).shape)
        dim = _dimension(roots)
        if dim is None:
            continue
        line = np.moveaxis(roots, dim, 0).reshape(roots.shape[dim], -1)[:, 0]
        key = (name, f"dim{dim}")
        for position, unit in enumerate(line.tolist()):
            if unit in units:
                sizes[key] = roots.shape[dim]
                units[unit].setdefault(key, []).append(position)
    made = {
        unit: axes
        for unit, axes in units.items()
        if any(axis != "in" and not axis.startswith("dim") for _, axis in axes)
    }
    return made, sizes
