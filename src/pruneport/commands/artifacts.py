"""What the verbs put into a bundle: ONNX files, card, report and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.bench.options import ProviderName
from pruneport.bench.report.report import render_report
from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.surgery.plan import Plan
from pruneport.export.bundle.bundle import CARD, DENSE_ONNX, MODEL_ONNX, REPORT
from pruneport.export.bundle.weights import write_preprocessor
from pruneport.export.card.card import model_card
from pruneport.export.onnx.capture import listed
from pruneport.export.onnx.exporter import export_network, fitted_options
from pruneport.export.onnx.form import ANY_BATCH, InputSizes
from pruneport.export.onnx.onnx_network import OnnxNetwork
from pruneport.export.options import ExportOptions
from pruneport.export.parity import check_other_batches
from pruneport.export.precisions.half import check_half
from pruneport.export.precisions.writing import write_precisions
from pruneport.models.preparation.huggingface import preparation_metadata
from pruneport.models.record import Source
from pruneport.progress import Note, Progress

__all__ = ["Exported", "export_dense", "write_card", "write_json", "write_onnx_files", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network as ONNX in memory: in fp32, and in fp16 where that was asked for; int8 is made from the fp32 file."""

    fp32: OnnxNetwork
    fp16: OnnxNetwork | None


def export_dense(dense: nn.Module, source: Source, options: ExportOptions, progress: Progress) -> Exported:
    """Export the dense network, in memory, and say what is left out of the ONNX file.

    Raises:
        ExportError: torch cannot export it, or not for any batch, size, opset or precision that was asked for.
        InputError: It refuses the input shape, the names do not fit its outputs, or the preprocessing cannot be
            embedded.
    """
    progress(f"exporting {DENSE_ONNX}")
    run_once(dense, source.takes)
    fitted = fitted_options(dense, source.takes, options)
    if fitted != options:
        height, width = source.image_shape[1:]
        progress(
            Note(
                f"the network finds boxes, another number in every image: its ONNX files take one image of {height} x "
                f"{width} at a time; for N at a time, give `batch_size_fixed=N`"
            )
        )
    exported = export_network(dense, source.takes, fitted, source.preprocessing)
    check_other_batches(dense, exported, source.takes)
    if exported.left_out:
        left_out = listed(exported.left_out)
        progress(Note(f"what the network returns besides tensors is not in its ONNX file: {left_out}"))
    return Exported(fp32=exported, fp16=_in_half("dense", dense, source, fitted, progress))


def _in_half(
    name: str, network: nn.Module, source: Source, options: ExportOptions, progress: Progress
) -> OnnxNetwork | None:
    """The network in fp16, where that was asked for."""
    if "fp16" not in options.precisions:
        return None
    progress(f"exporting the {name} network in fp16")
    batch = options.batch_size_fixed or 1
    check_half(name, network, [source.takes.drawn(batch, 0)])
    return export_network(network, source.takes, options, source.preprocessing, "fp16")


def write_onnx_files(
    folder: Path,
    plan_sha256: str,
    plan: Plan,
    networks: tuple[nn.Module, nn.Module],
    dense: Exported,
    provider: ProviderName,
    calibration: Calibration | None,
    progress: Progress,
    max_drop: float | None = None,
) -> None:
    """Export the pruned network as the dense one was, and write both, with source, plan hash, cost and versions.

    preprocessor.json is written with them: what is embedded in the files is not to be done outside.

    Args:
        folder: Where to.
        plan_sha256: Of the plan that they are of.
        plan: The plan.
        networks: The dense and the pruned one.
        dense: The dense one, exported.
        provider: That int8 is made for.
        calibration: Inputs to calibrate int8 with.
        progress: Told what is being done.
        max_drop: The most points of top-1 that int8 may lose against fp32, on the calibration inputs.

    Raises:
        ExportError: The pruned network cannot be exported, or not in a precision that was asked for.
    """
    progress(f"exporting {MODEL_ONNX}")
    source, options, embedding = plan.source, dense.fp32.options, dense.fp32.embedding
    smaller = Exported(
        fp32=export_network(networks[1], source.takes, options, source.preprocessing),
        fp16=_in_half("pruned", networks[1], source, options, progress),
    )
    outside = embedding.left_outside if embedding else {}
    write_preprocessor(folder, source, **outside)
    for name, file, network, exported, cost in (
        ("dense", DENSE_ONNX, networks[0], dense, plan.dense_onnx_cost),
        ("pruned", MODEL_ONNX, networks[1], smaller, plan.pruned),
    ):
        metadata = {
            "source": source.spec,
            "plan_sha256": plan_sha256,
            "macs": str(cost.macs),
            "params": str(cost.params),
            "pruneport": plan.libraries["pruneport"],
            "torch": str(torch.__version__),
            **preparation_metadata(source, **outside),
        }
        exported.fp32.save(folder / file, metadata)
        write_precisions(
            folder,
            file,
            name,
            network,
            exported.fp32,
            exported.fp16,
            metadata,
            provider,
            calibration,
            progress,
            max_drop,
        )


def write_card(
    folder: Path,
    plan: Plan,
    verify: dict[str, Any] | None = None,
    bench: dict[str, Any] | None = None,
    sizes: InputSizes = ANY_BATCH,
) -> None:
    """Write the bundle's README.md; ``sizes`` says which inputs the ONNX files take."""
    (folder / CARD).write_text(model_card(json.loads(plan.to_json()), verify, bench, sizes), encoding="utf-8")


def write_report(
    folder: Path, plan: Plan, verify: dict[str, Any] | None, bench: dict[str, Any], sizes: InputSizes
) -> None:
    """Write the bundle's report.html; ``sizes`` says which inputs the ONNX files take."""
    (folder / REPORT).write_text(render_report(json.loads(plan.to_json()), verify, bench, sizes), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
