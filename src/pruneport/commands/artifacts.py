"""What the verbs put into a bundle: ONNX files, card, report and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.bench.report.report import render_report
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.surgery.plan import Plan
from pruneport.export.bundle.bundle import CARD, DENSE_ONNX, MODEL_ONNX, REPORT
from pruneport.export.bundle.weights import write_preprocessor
from pruneport.export.card.card import model_card
from pruneport.export.onnx.capture import listed
from pruneport.export.onnx.exporter import OnnxNetwork, export_network, fitted_options
from pruneport.export.onnx.form import ANY_BATCH, InputSizes
from pruneport.export.options import ExportOptions
from pruneport.export.parity import check_other_batches
from pruneport.models.preparation.huggingface import preparation_metadata
from pruneport.models.record import Source
from pruneport.progress import Note, Progress

__all__ = ["export_dense", "write_card", "write_json", "write_onnx_pair", "write_report"]


def export_dense(dense: nn.Module, source: Source, options: ExportOptions, progress: Progress) -> OnnxNetwork:
    """Export the dense network, in memory, and say what is left out of the ONNX file.

    Raises:
        ExportError: torch cannot export it, or not for any batch, size or opset that was asked for.
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
    return exported


def write_onnx_pair(
    folder: Path, plan_sha256: str, plan: Plan, dense: OnnxNetwork, pruned: nn.Module, progress: Progress
) -> None:
    """Export the pruned network as the dense one was, and write both, with source, plan hash, cost and versions.

    preprocessor.json is written with them: what is embedded in the files is not to be done outside.
    """
    progress(f"exporting {MODEL_ONNX}")
    source = plan.source
    smaller = export_network(pruned, source.takes, dense.options, source.preprocessing)
    outside = dense.embedding.left_outside if dense.embedding else {}
    write_preprocessor(folder, source, **outside)
    for name, network, cost in ((DENSE_ONNX, dense, plan.dense_onnx_cost), (MODEL_ONNX, smaller, plan.pruned)):
        metadata = {
            "source": source.spec,
            "plan_sha256": plan_sha256,
            "macs": str(cost.macs),
            "params": str(cost.params),
            "pruneport": plan.libraries["pruneport"],
            "torch": str(torch.__version__),
            **preparation_metadata(source, **outside),
        }
        network.save(folder / name, metadata)


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
