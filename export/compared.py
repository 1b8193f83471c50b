"""Outputs of two runtimes compared: names, shapes, floating point within a tolerance, whole numbers exactly.

Detections are matched instead, whose number and order hang on rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pruneport.arrays import AnyArray
from pruneport.export.detections import Detections, MatchedDetections, Matching
from pruneport.models.outputs import Outputs, Tolerance, detections_in

__all__ = ["Compared"]

Nearby = Callable[[], Iterator[Outputs]]
_UNDECIDED = 0.01  # most of an output's entries that may be undecided; one may be, of however few
_LISTED = 6


@dataclass
class _Output:
    """One output over all batches."""

    entries: int = 0
    exact: bool = False
    error: float = 0.0
    scale: float = 0.0
    wrong: int = 0
    undecided: int = 0
    rows: int = 0
    low: AnyArray | None = None
    high: AnyArray | None = None

    def see(self, rows: AnyArray) -> None:
        """Widen the range that each entry of the output (B, ...) has over the inputs."""
        if not len(rows):
            return
        low, high = rows.min(0), rows.max(0)
        if self.low is not None and self.high is not None and self.low.shape == low.shape:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
        self.rows, self.low, self.high = self.rows + len(rows), low, high

    @property
    def spread(self) -> float:
        """How far the outputs of different inputs lie apart at most; of one input alone, its values."""
        if self.low is None or self.high is None or not self.low.size:
            return 0.0
        low, high = np.ravel(self.low), np.ravel(self.high)
        if self.rows == 1:
            low, high = low.min(keepdims=True), high.max(keepdims=True)
        return float((high[high != low] - low[high != low]).max(initial=0))


class Compared:
    """Comparison of torch's outputs with another runtime's, batch by batch.

    Values that are equal agree, infinite ones too. Outputs of whole numbers must be equal: but for entries where torch
    itself gives the other runtime's value for inputs that differ at the level of rounding, such as a class of two that
    score the same. At most a hundredth of an output's entries may be such.

    Args:
        tolerance: Of floating point outputs.
        names: Of the other runtime's outputs, in order; None where they have none of their own, and come in torch's.
    """

    def __init__(self, tolerance: Tolerance, names: Sequence[str] | None = None) -> None:
        self._tolerance = tolerance
        self._names = names
        self._outputs: dict[str, _Output] = {}
        self._faults: dict[str, None] = {}  # in order, each once
        self._rows = self._same_rows = 0
        self._matching: Matching | None = None

    def add(self, theirs: Outputs, ours: Sequence[AnyArray], nearby: Nearby) -> dict[str, AnyArray]:
        """Compare one batch.

        Args:
            theirs: torch's outputs, by name.
            ours: The other runtime's, in its order.
            nearby: Gives torch's outputs for inputs that are nearly the same; called where whole numbers differ.

        Returns:
            The other runtime's outputs by name; nothing where their names are others.
        """
        tensors = theirs.tensors
        names = list(tensors) if self._names is None else list(self._names)
        if set(names) != set(tensors) or len(names) != len(ours):
            found = f"{len(ours)} outputs" if self._names is None else ", ".join(names)
            self._fail(f"torch returns {', '.join(tensors)}, the ONNX file {found}")
            return {}
        by_name = dict(zip(names, ours, strict=True))
        matched = self._match(theirs, by_name, nearby)
        for name, tensor in tensors.items():
            if name in matched:
                continue
            wanted, returned = tensor.detach().numpy(), by_name[name]
            if wanted.shape != returned.shape or wanted.dtype.kind != returned.dtype.kind:
                self._fail(
                    f"{name} is {wanted.dtype} {_sizes(wanted)} in torch, {returned.dtype} {_sizes(returned)} in ONNX "
                    "Runtime"
                )
                continue
            output = self._outputs.setdefault(name, _Output())
            output.entries += wanted.size
            output.see(np.atleast_1d(wanted).astype(np.float64))
            if wanted.dtype.kind == "f":
                _add_floats(output, wanted, returned)
                if name == theirs.main and wanted.ndim == 2 and wanted.size:
                    self._rows += len(wanted)
                    self._same_rows += int((wanted.argmax(1) == returned.argmax(1)).sum())
            else:
                output.exact = True
                _add_exact(output, wanted, returned, _arrays(nearby, name))
        return by_name

    @property
    def max_abs_error(self) -> float | None:
        """Largest difference of a floating point output; None where an output could not be compared, or is infinite."""
        return self._largest([output.error for output in self._outputs.values()])

    @property
    def max_rel_error(self) -> float | None:
        """The same, each output's divided by its largest value."""
        return self._largest([output.error / max(output.scale, 1e-30) for output in self._outputs.values()])

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows of the main output (B, classes) whose largest entry is the same."""
        return self._same_rows / self._rows if self._rows else None

    @property
    def undecided(self) -> int:
        """Entries of whole numbers that differ, where torch gives both."""
        matching = self._matching.undecided if self._matching else 0
        return matching + sum(output.undecided for output in self._outputs.values())

    @property
    def constant(self) -> bool:
        """Whether all outputs are the same whatever is given, within the tolerance: then any file would agree."""
        if self._matching is not None and not self._matching.constant:
            return False
        return bool(self._outputs or self._matching) and all(
            output.spread <= (0 if output.exact else self._allowed(output)) for output in self._outputs.values()
        )

    @property
    def detections(self) -> MatchedDetections | None:
        """What became of the detections; None of a network that returns none."""
        return self._matching.record() if self._matching else None

    def faults(self) -> list[str]:
        """What is wrong, by name of the output; empty where everything agrees."""
        faults = [*self._faults, *(self._matching.faults() if self._matching else ())]
        for name, output in self._outputs.items():
            allowed = self._allowed(output)
            if not output.exact and not output.error <= allowed:
                faults.append(f"{name} differs by {output.error:.2e}, allowed {allowed:.2e}")
            if output.wrong:
                faults.append(f"{name} differs in {output.wrong} of {output.entries} whole numbers")
            if output.undecided > max(1, _UNDECIDED * output.entries):
                faults.append(
                    f"{name} differs in {output.undecided} of {output.entries} whole numbers where torch itself gives "
                    "several values, which is too many to say that they agree"
                )
        return faults[:_LISTED] + ([f"and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else [])

    def _match(self, theirs: Outputs, ours: Mapping[str, AnyArray], nearby: Nearby) -> set[str]:
        """Match the detections among the outputs, and return the names of these."""
        matched: set[str] = set()
        for names in detections_in(theirs.tensors):
            found = Detections(*(ours[name] for name in names))
            if found.boxes.shape != (len(found.scores), 4) or found.labels.shape != found.scores.shape:
                continue  # compared as any output, which names what differs
            if self._matching is None:
                self._matching = Matching(self._tolerance)
            self._matching.add(_detections(theirs, names), found, partial(_detections_near, nearby, names))
            matched |= set(names)
        return matched

    def _allowed(self, output: _Output) -> float:
        return self._tolerance.allowed(output.scale)

    def _fail(self, fault: str) -> None:
        self._faults[fault] = None

    def _largest(self, values: Sequence[float]) -> float | None:
        return max(values) if values and not self._faults and np.isfinite(values).all() else None


def _add_floats(output: _Output, wanted: AnyArray, found: AnyArray) -> None:
    """Take the largest difference of real numbers, and the largest of them."""
    exact = wanted.astype(np.float64)
    differs = exact != found  # what is not a number never agrees
    error = np.abs(exact[differs] - found[differs]).max(initial=0)
    output.error = float(np.maximum(output.error, error))  # of which one that is not a number stays so
    output.scale = max(output.scale, float(np.abs(exact[np.isfinite(exact)]).max(initial=0)))


def _add_exact(output: _Output, wanted: AnyArray, found: AnyArray, nearby: Iterator[AnyArray]) -> None:
    """Count whole numbers that differ; those that also differ on nearby inputs are undecided."""
    differs = wanted != found
    if not differs.any():
        return
    also = np.zeros_like(differs)
    for near in nearby:
        if near.shape == found.shape:
            also |= near == found
    output.undecided += int((differs & also).sum())
    output.wrong += int((differs & ~also).sum())


def _detections(outputs: Outputs, names: Sequence[str]) -> Detections:
    return Detections(*(outputs.tensors[name].detach().numpy() for name in names))


def _detections_near(nearby: Nearby, names: Sequence[str]) -> Iterator[Detections]:
    for outputs in nearby():
        yield _detections(outputs, names)


def _arrays(nearby: Nearby, name: str) -> Iterator[AnyArray]:
    for outputs in nearby():
        if name in outputs.tensors:
            yield outputs.tensors[name].detach().numpy()


def _sizes(array: AnyArray) -> str:
    return "x".join(str(size) for size in array.shape) or "single"
