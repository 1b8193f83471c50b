"""One layer to solve, and the rows of its equations, pass by pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pruneport.compress.activations.memory import room_on
from pruneport.compress.activations.replay import Replay
from pruneport.compress.activations.row_weights import RowWeights
from pruneport.compress.recovery.clipping import Clip, Scale, open_targets
from pruneport.compress.recovery.rows_seen import Given, Wanted, Watch

__all__ = ["Layer", "Passes"]

_LEAST_GAIN = 0.05  # of the median: a channel that its norm nearly silences is not fitted at any price
_PART = 1024  # rows
_MOST_BYTES = 2**30  # of a layer's rows that are held from pass to pass


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer to solve.

    Attributes:
        name: Of the layer.
        wanted: What the dense one gives.
        norm: The BatchNorm behind it, if there is one.
        clip: The activation behind it, if it clips.
        weights: Of the rows.
        extra: Whether it stands behind a dropped branch, with inputs that are all there.
        views: How often each input is shown: as it is, and mirrored.
    """

    name: str
    wanted: Wanted
    norm: Any
    clip: Clip | None
    weights: RowWeights
    extra: bool
    views: int

    @cached_property
    def gain(self) -> Tensor:
        """What the norm multiplies its channels by, kept away from zero; one without a norm."""
        if self.norm is None:
            return torch.ones(())
        gain = _gain(self.norm)
        least = _LEAST_GAIN * gain.abs().median().clamp_min(1e-6)
        return torch.where(gain.abs() < least, torch.where(gain < 0, -least, least), gain)

    @cached_property
    def scale(self) -> Scale:
        """What the norm does; channels that it nearly silences have no gain."""
        if self.norm is None:
            return Scale(self.gain, torch.zeros(()))
        gain = torch.where(_gain(self.norm) == self.gain, self.gain, 0)
        return Scale(gain, self.norm.bias.detach() - gain * self.norm.running_mean)


class _Row(NamedTuple):
    """The equations of one batch, and what is added to their left-hand sides in the pruned network."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    added: Tensor | None

    @property
    def bytes(self) -> int:
        """Held by the row."""
        return sum(side.nbytes for side in self if side is not None)

    def parts(self) -> Iterator[_Row]:
        """The same in parts that a processor's caches hold."""
        whole = range(0, len(self.inputs), _PART)
        sides = (itertools.repeat(None) if side is None else torch.split(side, _PART) for side in self)
        return (_Row(*part) for _, *part in zip(whole, *sides, strict=False))


@dataclass
class Passes:
    """The rows of a layer, batch by batch; after a pass: of how many inputs, and whether all ended in an addition.

    Where a layer is passed more than once, the rows are held, as far as there is room; else the network runs again.
    """

    ours: Replay
    layer: Layer
    images: int = 0
    summed: bool = True
    _held: list[_Row] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[_Row]:
        if self._held:
            yield from self._held
            return
        rows: list[_Row] = []
        room = min(_MOST_BYTES, room_on(self.ours.device)) if self.layer.clip is not None else 0
        for row in self._run():
            room -= row.bytes
            rows = [*rows, row] if room >= 0 else []
            yield row
        self._held = rows

    def _run(self) -> Iterator[_Row]:
        wanted = self.layer.wanted
        given = Given(wanted, summed=self.layer.extra or bool(wanted.added))
        self.images, self.summed = 0, True
        with Watch(self.ours.network, {self.layer.name: given}, self.ours.stop) as watch:
            for _ in self.ours.passes(len(wanted.rows)):
                rows, added = wanted.rows[given.batch], wanted.added.get(given.batch)
                targets = rows.targets
                self.summed = self.summed and given.summed
                if added is not None and given.added is not None:
                    targets = targets + (added - given.added) / self.layer.gain
                weights = self.layer.weights.of(self.layer.name, given.batch, rows.places)
                yield _Row(given.inputs, targets, weights, given.added)
                self.images += given.images
                watch.renew()

    def opened(self, clip: Clip, weight: Tensor, intercept: Tensor) -> Iterator[_Row]:
        """The rows in parts, with targets moved as ``open_targets`` says, by what these weights give."""
        for row in self:
            factors, offset = weight.to(row.inputs), intercept.to(row.inputs)
            for part in row.parts():
                outputs = torch.addmm(offset, part.inputs, factors)
                targets = open_targets(clip, self.layer.scale, part.targets, outputs, part.added)
                yield part._replace(targets=targets)


def _gain(norm: Any) -> Tensor:
    """Of a BatchNorm, (channels,)."""
    gain: Tensor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return gain
