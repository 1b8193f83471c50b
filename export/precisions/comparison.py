"""fp16 and int8 against fp32: the same network's ONNX files on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pruneport.arrays import AnyArray
from pruneport.compress.activations.calibration import Batches
from pruneport.export.compared import Compared
from pruneport.export.cpu_session import filled, output_names, run_onnx
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.options import OnnxPrecision
from pruneport.export.precisions.calibration_reader import as_taken
from pruneport.models.images.images import ImageSet
from pruneport.models.inputs import tensors_in
from pruneport.models.outputs import Outputs, Tolerance
from pruneport.progress import Progress, Step, silent

__all__ = ["PART", "InputsName", "Part", "Precision", "calibration_parts", "compare", "image_parts"]

PART = 32  # inputs at a time
InputsName = Literal["images", "held-out", "seeded"]
Part = tuple[Tensor, int, AnyArray | None]
"""What the files take, how many of it count (the rest fills a fixed batch), and the labels of these, if any."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One network in one precision, beside the same network in fp32.

    Attributes:
        network: ``dense`` or ``pruned``.
        precision: Of the ONNX file.
        provider: That an int8 file is made for.
        inputs: ``images``, ``held-out`` calibration inputs, or ``seeded`` random ones.
        count: How many.
        agreement: Share of them whose largest score is the one that fp32 has; None where the main output is no scores.
        output_error: Mean squared difference of the main output from fp32's, over the variance of fp32's; None where it
            is not finite, or the output is none of floating point.
        top1: Share of labelled images that are right; None where there were none.
        fault: What is wrong with the outputs, whatever the precision; empty where nothing is.
        float_layers: Layers of an int8 file that stay in float.
        float_reason: Why they do, as a sentence.
    """

    network: str
    precision: OnnxPrecision
    provider: str | None = None
    inputs: InputsName
    count: int
    agreement: float | None
    output_error: float | None
    top1: float | None = None
    fault: str = ""
    float_layers: tuple[str, ...] = ()
    float_reason: str = ""


@dataclass
class _Seen:
    """What the files' outputs came to so far."""

    count: int = 0
    same: int = 0
    right: int = 0
    squares: float = 0.0
    scores: bool = True
    faults: dict[str, None] = field(default_factory=dict)

    def add(self, ours: AnyArray, theirs: AnyArray, labels: AnyArray | None) -> None:
        """Take in the main outputs of a part, (B, ...), in a precision and in fp32."""
        self.count += len(ours)
        if ours.shape != theirs.shape:
            self.faults[f"its main output is {ours.shape}, in fp32 {theirs.shape}"] = None
            return
        if theirs.dtype.kind == "f":
            finite = np.isfinite(theirs)
            if not np.isfinite(ours[finite]).all():
                self.faults["it gives numbers that are not finite where fp32 gives finite ones"] = None
            self.squares += float(np.square(ours[finite].astype(np.float64) - theirs[finite]).sum())
        self.scores &= theirs.ndim == 2 and theirs.shape[1] > 1
        if self.scores:
            choices = ours.argmax(1)
            self.same += int((choices == theirs.argmax(1)).sum())
            self.right += 0 if labels is None else int((choices == labels).sum())


@dataclass
class _Spread:
    """Sums for the variance of fp32's main output."""

    entries: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, theirs: AnyArray) -> None:
        """Take in the finite entries of a part."""
        if theirs.dtype.kind == "f":
            finite = theirs[np.isfinite(theirs)].astype(np.float64)
            self.entries += finite.size
            self.total += float(finite.sum())
            self.squares += float(np.square(finite).sum())

    def relative(self, squares: float) -> float | None:
        """A sum of squared differences over the variance."""
        if not self.entries or not np.isfinite(squares):
            return None
        variance = self.squares / self.entries - (self.total / self.entries) ** 2
        return squares / self.entries / max(variance, 1e-30)


def compare(
    network: str,
    sessions: Mapping[OnnxPrecision, Any],
    parts: Iterator[Part],
    inputs: InputsName,
    providers: Mapping[OnnxPrecision, str | None],
    tolerance: Tolerance,
    classified: bool = True,
) -> tuple[list[Precision], Compared]:
    """Run a network's files on the same inputs.

    Args:
        network: ``dense`` or ``pruned``.
        sessions: One a precision; fp32 first.
        parts: The inputs.
        inputs: What they are, for the record.
        providers: That an int8 file is made for.
        tolerance: Of fp16's outputs.
        classified: Whether labels are of the network's classes.

    Returns:
        A record for each precision, fp32 too; and fp16 compared with fp32, with nothing in it where there is no fp16.
    """
    seen = {precision: _Seen() for precision in sessions}
    spread, labelled = _Spread(), False
    names = output_names(sessions["fp32"])
    half = Compared(tolerance)
    for given, count, labels in parts:
        outputs = {precision: run_onnx(session, given) for precision, session in sessions.items()}
        theirs = _named(names, outputs["fp32"])
        place = list(theirs.tensors).index(theirs.main)
        wanted = outputs["fp32"][place][:count]
        spread.add(wanted)
        labelled |= labels is not None
        for precision, values in outputs.items():
            if len(values) != len(theirs.tensors):
                seen[precision].faults[f"it has {len(values)} outputs, fp32 {len(theirs.tensors)}"] = None
            else:
                seen[precision].add(values[place][:count], wanted, labels)
        if "fp16" in outputs:
            _add_floats(half, theirs, outputs["fp16"])
    return [
        Precision(
            network=network,
            precision=precision,
            provider=providers.get(precision),
            inputs=inputs,
            count=found.count,
            agreement=found.same / found.count if found.scores and found.count else None,
            output_error=spread.relative(found.squares),
            top1=found.right / found.count if labelled and classified and found.scores and found.count else None,
            fault="; ".join(found.faults),
        )
        for precision, found in seen.items()
    ], half


def image_parts(
    images: ImageSet, fixed: int | None, embedding: Embedding | None, progress: Progress = silent
) -> Iterator[Part]:
    """Images as the files take them, in the folder's order."""
    done = 0
    for pixels, labels in images.pixel_batches(fixed or PART):
        progress(Step(f"running image {done + 1} of {len(images)} in every precision", done, len(images)))
        done += len(pixels)
        full = filled(pixels, fixed)
        taken = images.normalised_batch(full) if embedding is None else embedding.images_of(full)
        yield taken, len(pixels), None if labels is None else labels.numpy()


def calibration_parts(
    batches: Batches, fixed: int | None, embedding: Embedding | None, labels: Sequence[Tensor] | None = None
) -> Iterator[Part]:
    """Calibration inputs as the files take them, with the labels (B,) of each batch where there are any."""
    for number, load in enumerate(batches):
        done = 0
        for part in torch.split(tensors_in(load())[0], fixed or PART):
            right = None if labels is None else labels[number][done : done + len(part)].numpy()
            done += len(part)
            yield as_taken(filled(part, fixed), embedding), len(part), right


def _add_floats(compared: Compared, theirs: Outputs, ours: Sequence[AnyArray]) -> None:
    """Compare outputs of floating point; what else there is, such as a class, is for the agreement to count."""
    floats = {name: tensor for name, tensor in theirs.tensors.items() if tensor.is_floating_point()}
    places = [place for place, name in enumerate(theirs.tensors) if name in floats and place < len(ours)]
    compared.add(Outputs(floats, {}), [ours[place] for place in places], lambda: iter(()))


def _named(names: Sequence[str] | None, outputs: Sequence[AnyArray]) -> Outputs:
    tensors = {
        name: torch.from_numpy(np.asarray(output))
        for name, output in zip(names or map(str, range(len(outputs))), outputs, strict=True)
    }
    return Outputs(tensors, {})
