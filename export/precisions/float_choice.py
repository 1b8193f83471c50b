"""Which layers of an int8 file stay in float: those that the user names, and where int8 loses too much the costliest.

A layer is what one module computes: its nodes, and those behind them that only move or clip its results. What a layer
costs is measured by quantising it alone: the error of the network's output. Errors of several layers add nearly as
those of independent noise do, so the worst ones are left in float, as few as hold the limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import onnx
from torch import Tensor

from pruneport.compress.activations.calibration import Calibration
from pruneport.export.bundle.bundle import DATA
from pruneport.export.cpu_session import fixed_batch, open_cpu_session
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.precisions.comparison import Part, Precision, calibration_parts, compare
from pruneport.export.precisions.float_layers import FloatLayers, counted_layers, matching
from pruneport.export.precisions.providers import Int8Provider
from pruneport.export.precisions.quantiser import MOVES, Ranges, known_operators, quantised
from pruneport.models.outputs import Tolerance
from pruneport.progress import Progress, Step, silent

__all__ = ["FloatChooser", "layers_of"]

_RANKED_ON = 16  # inputs on which the error of each layer is measured
_BY_HAND = "named in `float_layers`"


class _Loss(NamedTuple):
    """What a precision loses against fp32 on the calibration inputs: points, and what they are of."""

    points: float
    of: str


@dataclass(frozen=True, kw_only=True)
class FloatChooser:
    """Chooses the layers that stay in float.

    Attributes:
        provider: That int8 is for.
        patterns: Shell patterns of layers that the user names.
        max_drop: The most points of top-1 that int8 may lose against fp32; default: any.
        calibration: Inputs that the choice is made on, and on no others.
        embedding: What the file holds before the network.
        progress: Told how far it is.
    """

    provider: Int8Provider
    patterns: tuple[str, ...] = ()
    max_drop: float | None = None
    calibration: Calibration
    embedding: Embedding | None = None
    progress: Progress = field(default=silent, compare=False)

    def __call__(self, source: Path, ranges: Ranges) -> FloatLayers:
        """The layers, of which those that the user named come first.

        Raises:
            ExportError: A file does not run.
        """
        layers = layers_of(source, self.provider)
        named = matching(layers, self.patterns)
        chosen = FloatLayers(layers=tuple(named), nodes=_nodes(layers, named), reason=f"They were {_BY_HAND}.")
        if not named:
            chosen = FloatLayers()
        if self.max_drop is None:
            return chosen
        with tempfile.TemporaryDirectory() as folder:
            trial = _Trial(self, source, ranges, Path(folder) / "trial.onnx")
            before = trial.loss(chosen.nodes)
            if before is None or before.points <= self.max_drop:
                return chosen
            ranking = self._ranking(trial, {name: nodes for name, nodes in layers.items() if name not in named})
            count, after = self._fewest(trial, before, layers, named, ranking)
        names = [*named, *ranking[:count]]
        also = f"; {len(named)} of them {'was' if len(named) == 1 else 'were'} {_BY_HAND}" if named else ""
        record = self.calibration.record
        inputs = "calibration images" if record.inputs == "images" else f"{record.inputs} calibration inputs"
        return FloatLayers(
            layers=tuple(names),
            nodes=_nodes(layers, names),
            reason=(
                f"With all others in int8, {before.points:.1f} points of {before.of} were lost on {record.count} "
                f"{inputs}; with the costliest {counted_layers(count)} in float {after.points:.1f} are, "
                f"of {self.max_drop:g} allowed{also}."
            ),
        )

    def _ranking(self, trial: _Trial, layers: Mapping[str, Sequence[str]]) -> list[str]:
        """Layers by the error of the output where each alone is quantised, the largest first."""
        errors = {}
        for number, (name, nodes) in enumerate(layers.items()):
            self.progress(
                Step(f"measuring what int8 of layer {number + 1} of {len(layers)} costs", number, len(layers))
            )
            errors[name] = trial.error(nodes)
        return sorted(errors, key=lambda name: -errors[name])

    def _fewest(
        self,
        trial: _Trial,
        before: _Loss,
        layers: Mapping[str, Sequence[str]],
        named: Sequence[str],
        ranking: Sequence[str],
    ) -> tuple[int, _Loss]:
        """How many of the worst layers must stay in float: their number is doubled until they do, then halved back."""
        limit = self.max_drop
        assert limit is not None
        fails, holds = 0, 1
        after = _Loss(0.0, before.of)
        while holds < len(ranking):
            loss = self._tried(trial, layers, named, ranking[:holds])
            if loss.points <= limit:
                after = loss
                break
            fails, holds = holds, 2 * holds
        holds = min(holds, len(ranking))
        while holds - fails > 1:
            middle = (fails + holds) // 2
            loss = self._tried(trial, layers, named, ranking[:middle])
            if loss.points <= limit:
                holds, after = middle, loss
            else:
                fails = middle
        return holds, after

    def _tried(
        self, trial: _Trial, layers: Mapping[str, Sequence[str]], named: Sequence[str], worst: Sequence[str]
    ) -> _Loss:
        self.progress(f"trying int8 with {len(worst)} layers in float")
        loss = trial.loss(_nodes(layers, [*named, *worst]))
        assert loss is not None
        return loss


class _Trial:
    """int8 forms of one file, tried on the calibration inputs."""

    def __init__(self, chooser: FloatChooser, source: Path, ranges: Ranges, path: Path) -> None:
        self._chooser, self._source, self._ranges, self._path = chooser, source, ranges, path
        self._exact = open_cpu_session(source)
        self._fixed = fixed_batch(self._exact)
        calibration = chooser.calibration
        sizes = {output.shape[1] for output in self._exact.get_outputs() if len(output.shape) == 2}
        self._labels: Sequence[Tensor] | None = calibration.labels if calibration.classes in sizes else None

    def loss(self, floats: Collection[str]) -> _Loss | None:
        """Points that are lost with these nodes in float; None where the output is no scores."""
        found, exact = self._compared(self._parts(), floats=floats)
        if found.top1 is not None and exact.top1 is not None:
            return _Loss(100 * (exact.top1 - found.top1), "top-1")
        return None if found.agreement is None else _Loss(100 * (1 - found.agreement), "agreement with fp32")

    def error(self, nodes: Collection[str]) -> float:
        """The output's error where these nodes alone are quantised; where it is not finite, more than any."""
        found, _ = self._compared(_first(self._parts(_RANKED_ON), _RANKED_ON), only=nodes)
        return float("inf") if found.fault or found.output_error is None else found.output_error

    def _parts(self, size: int | None = None) -> Iterator[Part]:
        """The calibration inputs, in parts of a size where the file takes any."""
        chooser = self._chooser
        return calibration_parts(chooser.calibration.batches, self._fixed or size, chooser.embedding, self._labels)

    def _compared(
        self, parts: Iterator[Part], *, floats: Collection[str] = (), only: Collection[str] = ()
    ) -> tuple[Precision, Precision]:
        """What a form gives, and fp32, on the same inputs."""
        model = quantised(self._source, self._ranges, self._chooser.provider, floats=floats, only=only)
        outside = self._source.with_name(self._source.name + DATA).is_file()
        onnx.save(model, str(self._path), save_as_external_data=outside, location=self._path.name + DATA)
        sessions = {"fp32": self._exact, "int8": open_cpu_session(self._path)}
        exactly = Tolerance(atol=0, rtol=0)  # for fp16, of which there is none
        (exact, found), _ = compare("pruned", sessions, parts, "held-out", {}, exactly)  # type: ignore[arg-type]
        return found, exact


def layers_of(source: Path, provider: Int8Provider) -> dict[str, list[str]]:
    """The layers that int8 is made of, in the graph's order: the names of their nodes.

    Args:
        source: An fp32 file, whose nodes are named after the network's modules.
        provider: That int8 is for.
    """
    known = {*known_operators(provider)}
    layers: dict[str, list[str]] = {}
    makers: dict[str, str] = {}
    for node in read_onnx(source).graph.node:
        layer = None
        if node.op_type in MOVES:
            layer = next((makers[value] for value in node.input if value in makers), None)
        elif node.op_type in known:
            layer = _module_of(node.name)
        if layer is not None:
            layers.setdefault(layer, []).append(node.name)
            makers |= dict.fromkeys(node.output, layer)
    return layers


def _module_of(node: str) -> str:
    """The module in a node's name; the name itself where there is none."""
    return node.rpartition("/")[0] or node


def _nodes(layers: Mapping[str, Sequence[str]], names: Collection[str]) -> tuple[str, ...]:
    return tuple(node for name in names for node in layers[name])


def _first(parts: Iterator[Part], count: int) -> Iterator[Part]:
    """Parts until there are so many inputs."""
    for part in parts:
        yield part
        count -= part[1]
        if count <= 0:
            return
