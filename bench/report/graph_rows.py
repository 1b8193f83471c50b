"""Rows of a drawing: one for each block of the network, and lanes for the groups that go on from row to row."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pruneport.bench.report.graph_content import DrawnLayer

__all__ = ["Lane", "Row", "find_chains", "find_lanes", "find_rows"]

_MOST_ROWS = 80
_KEPT_AT_ENDS = 2  # rows of a run that stay when it is folded, at its start; one stays at its end
_DEEPEST = 12  # modules around a layer that are looked at
_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Layers of one block that run one after the other; or, with ``folded``, what stands for rows that are left out.

    Attributes:
        block: Name of the module that holds the layers, or an empty string for the network itself.
        layers: In the order in which they run.
        folded: Says which rows are left out, and that they are as those around them.
    """

    block: str
    layers: tuple[DrawnLayer, ...] = ()
    folded: str = ""

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that its layers read and make, each once."""
        return tuple(dict.fromkeys(group for layer in self.layers for group in (*layer.reads, *layer.makes)))

    @property
    def made(self) -> frozenset[int]:
        """The groups whose channels come from this row."""
        return frozenset(group for layer in self.layers if layer.reads != layer.makes for group in layer.makes)

    def shown_name(self, layer: DrawnLayer) -> str:
        """A layer's name inside the block."""
        return layer.name.removeprefix(f"{self.block}.") if self.block else layer.name


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A group that several rows share, drawn as a line.

    Attributes:
        group: Its number.
        place: The line's place, from the left.
        rows: Those that the line has dots in.
    """

    group: int
    place: int
    rows: tuple[int, ...]


def find_rows(layers: Sequence[DrawnLayer], most: int = _MOST_ROWS) -> list[Row]:
    """Put layers that follow each other in the same block into one row; fold runs of rows where there are too many.

    Args:
        layers: In the order in which they run.
        most: Rows that are drawn; beyond, runs of blocks with the same layers are folded, and then the end is.
    """
    blocks = _blocks([layer.name for layer in layers])
    rows = [
        Row(block=block, layers=tuple(run))
        for block, run in itertools.groupby(layers, key=lambda layer: blocks[layer.name])
    ]
    if len(rows) <= most:
        return rows
    folded = list(_fold(rows))
    if len(folded) > most:
        left = len(folded) - most
        folded = [*folded[: most - 1], Row(block="", folded=f"{left} more rows are not drawn"), folded[-1]]
    return folded


def find_lanes(rows: Sequence[Row]) -> list[Lane]:
    """A line for each group that more than one row has, in the leftmost place that is free from its first row on."""
    touched: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for group in row.groups:
            touched[group].append(index)
    shared = [(found, group) for group, found in touched.items() if len(found) > 1]
    lanes, ends = [], list[int]()
    for found, group in sorted(shared, key=lambda entry: (entry[0][0], -entry[0][-1], entry[1])):
        place = next((place for place, end in enumerate(ends) if end < found[0]), len(ends))
        ends[place:] = [found[-1], *ends[place + 1 :]]
        lanes.append(Lane(group=group, place=place, rows=tuple(found)))
    return lanes


def find_chains(row: Row) -> list[list[DrawnLayer | tuple[int, ...]]]:
    """A row's layers, and between them the groups that one makes and the next reads.

    A chain ends where a layer reads something else than what the one before it made. Groups stand before the layer that
    reads them: a norm follows the layer that made its channels.
    """
    chains: list[list[DrawnLayer | tuple[int, ...]]] = [[]]
    current: tuple[int, ...] = ()
    shown = True
    for layer in row.layers:
        goes_on = bool(layer.reads) and layer.reads == current
        if not shown and (not goes_on or layer.reads != layer.makes):
            chains[-1].append(current)
            shown = True
        if not goes_on:
            chains.append([layer.reads] if layer.reads else [])
            shown = True
        chains[-1].append(layer)
        if layer.reads != layer.makes:
            shown = not layer.makes
        current = layer.makes
    if not shown:
        chains[-1].append(current)
    return [chain for chain in chains if chain]


def _fold(rows: Sequence[Row]) -> Iterator[Row]:
    """Of each run of blocks with the same layers, the first ones and the last."""
    for names, run in itertools.groupby(rows, key=lambda row: tuple(map(row.shown_name, row.layers))):
        alike = list(run)
        if len(alike) <= _KEPT_AT_ENDS + 2 or not names:
            yield from alike
            continue
        left = alike[_KEPT_AT_ENDS:-1]
        yield from alike[:_KEPT_AT_ENDS]
        ends = f"{left[0].block or left[0].layers[0].name} to {left[-1].block or left[-1].layers[0].name}"
        yield Row(block="", folded=f"{len(left)} blocks with the same layers are folded: {ends}")
        yield alike[-1]


def _blocks(names: Sequence[str]) -> dict[str, str]:
    """The block of each layer: the smallest module around it that is one of several alike, or directly below these.

    Blocks are told by their names: ``layer1.0`` and ``layer1.1`` have the same number of a series, and layers with the
    same names inside. A module that holds such a series is no block itself.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    children: dict[str, dict[str, None]] = defaultdict(dict)
    for name in names:
        parts = _parts(name)
        for end in range(len(parts)):
            module = ".".join(parts[:end])
            inside[module].add(".".join(parts[end:]))
            children[module][".".join(parts[: end + 1])] = None
    opened = {""}
    for module in sorted(children, key=len):  # a module comes before those inside it
        if module and _holds_series(list(children[module]), inside) and module.rpartition(".")[0] in opened:
            opened.add(module)
    found = {}
    for name in names:
        parts = _parts(name)
        ways = [".".join(parts[:end]) for end in range(len(parts))]
        within = [way for way in ways if way in opened]
        deepest = within[-1]
        found[name] = next((way for way in ways if len(way) > len(deepest)), deepest)
    return found


def _parts(name: str) -> list[str]:
    *modules, layer = name.split(".", _DEEPEST)
    return [*modules, layer.replace(".", "/")]


def _holds_series(children: Sequence[str], inside: dict[str, set[str]]) -> bool:
    """Whether two of the children are a series: numbered, with more than a layer and a norm, and alike inside."""
    series: dict[str, list[set[str]]] = defaultdict(list)
    for child in children:
        numbered = _NUMBERED.fullmatch(child)
        if numbered and len(inside[child]) > 2:
            series[numbered[1]].append(inside[child])
    return any(
        one <= other or other <= one for alike in series.values() for one, other in itertools.pairwise(alike)
    ) or any(_holds_series_below(child, inside) for child in children)


def _holds_series_below(child: str, inside: dict[str, set[str]]) -> bool:
    """Whether the names below a child show a series themselves, one level down."""
    below: dict[str, set[str]] = defaultdict(set)
    for name in inside.get(child, ()):
        first, _, rest = name.partition(".")
        if rest:
            below[f"{child}.{first}"].add(rest)
    return bool(below) and _holds_series(list(below), below)
