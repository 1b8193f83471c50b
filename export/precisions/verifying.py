"""The fp16 and int8 files of one network, checked: valid, of this network, and compared with fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneport.compress.activations.calibration import Batches
from pruneport.errors import BundleError
from pruneport.export.bundle.bundle import onnx_name, plan_hash
from pruneport.export.cpu_session import fixed_batch, open_cpu_session, output_names
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.options import OnnxPrecision
from pruneport.export.parity import Parity, check_seeded, parity_of
from pruneport.export.precisions.comparison import (
    PART,
    InputsName,
    Part,
    Precision,
    calibration_parts,
    compare,
    image_parts,
)
from pruneport.export.precisions.float_layers import FloatLayers
from pruneport.export.precisions.half import half_tolerance
from pruneport.export.precisions.providers import INT8_FOR
from pruneport.export.precisions.weights_check import check_weights
from pruneport.models.images.images import ImageSet
from pruneport.models.inputs import InputShape, inputs_of
from pruneport.progress import Progress, silent

__all__ = ["PrecisionInputs", "VerifiedPrecisions", "verify_precisions"]

_SEEDED = 32  # inputs, where there are no others


@dataclass(frozen=True, kw_only=True)
class PrecisionInputs:
    """What precisions are compared on: images, else held-out calibration inputs, else seeded random ones."""

    images: ImageSet | None = None
    heldout: Batches = ()
    classified: bool = True
    """Whether the labels of the images are of the network's classes."""

    def parts(
        self, shape: InputShape, fixed: int | None, embedding: Embedding | None, progress: Progress
    ) -> tuple[InputsName, Iterator[Part]]:
        """What they are, and the inputs as ONNX files take them."""
        if self.images is not None:
            return "images", image_parts(self.images, fixed, embedding, progress)
        if self.heldout:
            return "held-out", calibration_parts(self.heldout, fixed, embedding)
        seeded = inputs_of(shape).drawn(_SEEDED, _SEEDED)
        return "seeded", calibration_parts([lambda: seeded], fixed, embedding)


@dataclass
class VerifiedPrecisions:
    """What was found: checks as name, outcome and detail."""

    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)
    records: list[Precision] = field(default_factory=list)


def verify_precisions(
    folder: Path,
    file: str,
    name: str,
    network: nn.Module | None,
    shape: InputShape,
    precisions: Sequence[OnnxPrecision],
    batches: tuple[int, ...],
    inputs: PrecisionInputs,
    embedding: Embedding | None = None,
    progress: Progress = silent,
) -> VerifiedPrecisions:
    """Check the files of a network beside its fp32 file, which was found to be what torch computes.

    Args:
        folder: Holds them.
        file: The fp32 file's name.
        name: ``dense`` or ``pruned``.
        network: In torch; None where it cannot be built, and then fp16 is compared with the fp32 file alone.
        shape: C, H, W of the network's images.
        precisions: Those that there are; fp32 among them.
        batches: Batch sizes of seeded inputs on which fp16 is compared with torch.
        inputs: On which all are compared with the fp32 file.
        embedding: What the files hold before the network.
        progress: Told what is being done.

    Raises:
        BundleError: A file belongs to another plan.
        ExportError: A file is not valid, or does not run.
    """
    found = VerifiedPrecisions()
    others = [precision for precision in precisions if precision != "fp32"]
    if not others:
        return found
    sessions: dict[OnnxPrecision, Any] = {"fp32": open_cpu_session(folder / file)}
    providers: dict[OnnxPrecision, str | None] = {}
    kept = FloatLayers()
    tolerance = half_tolerance(folder / file)
    for precision in others:
        path = folder / onnx_name(file, precision)
        progress(f"checking {path.name}")
        found.checks.append(("onnx.checker", True, check_onnx(path)))
        metadata = read_metadata(path)
        if metadata.get("plan_sha256") != plan_hash(folder):
            raise BundleError(f"{path} was exported for another plan ({metadata.get('plan_sha256')}); export it again.")
        sessions[precision] = session = open_cpu_session(path)
        if precision == "int8":
            providers[precision] = metadata.get(INT8_FOR)
            kept = FloatLayers.read(metadata)
            said, wrong = check_weights(path, folder / file)
            detail = f"{said}; others are {', '.join(wrong)}" if wrong else said
            found.checks.append(("int8 weights", not wrong, detail))
        elif network is not None:
            names = output_names(session)
            found.parity += check_seeded(
                name,
                network,
                session,
                shape,
                batches,
                names,
                embedding=embedding,
                precision="fp16",
                tolerance=tolerance,
            )
    fixed = fixed_batch(sessions["fp32"])
    kind, parts = inputs.parts(shape, fixed, embedding, progress)
    progress(f"comparing {name} {', '.join(others)} with fp32")
    records, half = compare(name, sessions, parts, kind, providers, tolerance, inputs.classified)
    records = [
        replace(entry, float_layers=kept.layers, float_reason=kept.reason) if entry.precision == "int8" else entry
        for entry in records
    ]
    found.records += records
    if "fp16" in others:
        found.parity.append(parity_of(name, half, kind, fixed or min(PART, records[0].count), "fp16", tolerance))
    found.checks += [
        (f"{entry.precision} outputs", False, f"{name}: {entry.fault}") for entry in records if entry.fault
    ]
    return found
