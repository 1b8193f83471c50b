"""The headline, the table of dense against pruned, and how the file is run: for the README.md and the HTML report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from pruneport.documents import Json
from pruneport.export.card.intervals import Interval, change_interval, change_p_value, share_interval
from pruneport.export.card.provenance import dense_onnx_cost, fine_tuned, share_kept
from pruneport.export.card.words import clean, milliseconds, p_value, percent, speedup_claim
from pruneport.export.onnx.embedding import sizes_in_file
from pruneport.export.onnx.form import ANY_BATCH, InputSizes
from pruneport.export.options import EmbeddedName
from pruneport.models.record import LIBRARIES
from pruneport.units import scaled

__all__ = [
    "Comparison",
    "comparisons",
    "device_name",
    "embedding_note",
    "finds_boxes",
    "headline",
    "onnx_example",
    "own_code",
]


_FASTER = "× faster", "× slower"
_OWN_CODE = (
    "Building this network runs code that is no library's: where you trust it, "
    "pass your factory as factory=, or trust_source=True."
)
_LIVE = "It was made from a network in memory: pass one of its class, or a function that builds it, as factory=."


def own_code(plan: Json) -> str:
    """What else loading in torch takes, where that runs code of no library."""
    if plan["source"].get("live"):
        return _LIVE
    return "" if str(plan["source"]["spec"]).partition(":")[0] in LIBRARIES else _OWN_CODE


class Comparison(NamedTuple):
    """One line of the before/after table, ready to print."""

    label: str
    dense: str
    pruned: str
    change: str


def headline(plan: Json, verify: Json | None, bench: Json | None) -> str:
    """Say in one sentence what was done and what it brought, as plain text."""
    macs_kept = share_kept(plan, "flops")
    parts = []
    if bench and bench["batches"]:
        first = min(bench["batches"], key=lambda entry: int(entry["batch"]))
        device = device_name(bench)
        against = dense_onnx_cost(plan)["macs"] / plan["dense"]["macs"]
        parts.append(
            f"{speedup_claim(first['speedup'], *_FASTER)} at batch {first['batch']}"
            + (f" on {device}" if device else "")
            + (f" (against {percent(against, 0)} of its compute)" if plan.get("dense_onnx") == "start" else "")
        )
    else:
        parts.append("latency not measured")
    if not plan["source"]["trained"]:
        parts.append("architecture only")
    elif training := fine_tuned(plan):
        parts.append(f"fine-tuned on {training['task']} to top-1 {percent(training['top1'])}")
    elif accuracy := (verify or {}).get("accuracy"):
        known = [accuracy.get(name) for name in ("pruned_onnx", "pruned_torch") if accuracy.get(name) is not None]
        if known and accuracy.get("dense_torch") is not None:
            parts.append(f"top-1 {percent(accuracy['dense_torch'])} → {percent(known[0])}")
    return clean(f"{plan['source']['spec']} at {percent(macs_kept, 0)} of its compute: {', '.join(parts)}")


def device_name(bench: Json) -> str:
    """Return the name of the processor or GPU that was timed, or nothing where it is not described."""
    described = bench["device"].get("cpu" if bench["provider"] == "cpu" else "gpu")
    if isinstance(described, Mapping):
        described = described.get("name")
    return clean(re.sub(r"\((R|TM|r|tm)\)", "", str(described))) if described else ""


def comparisons(plan: Json, verify: Json | None, bench: Json | None) -> list[Comparison]:
    """Return the before/after table: cost, file size, latency and accuracy, as far as each is known."""
    dense, pruned = dense_onnx_cost(plan), plan["pruned"]
    rows = [
        _cost("Compute, MACs", dense["macs"], pruned["macs"]),
        _cost("Compute, FLOPs (2 × MACs)", 2 * dense["macs"], 2 * pruned["macs"]),
        _cost("Parameters", dense["params"], pruned["params"]),
    ]
    files = (verify or {}).get("files") or {}
    if "dense.onnx" in files and "model.onnx" in files:
        before, after = (files[name] + files.get(f"{name}.data", 0) for name in ("dense.onnx", "model.onnx"))
        rows.append(_cost("ONNX file", before, after, unit="B"))
    for entry in bench["batches"] if bench else ():
        before, after = (f"{milliseconds(entry[network]['p50_ms'])} ms" for network in ("dense", "pruned"))
        rows.append(
            Comparison(f"Latency p50, batch {entry['batch']}", before, after, speedup_claim(entry["speedup"], *_FASTER))
        )
    accuracy: Json = ((verify or {}).get("accuracy") or {}) if plan["source"]["trained"] else {}
    for name, runtime in (("pruned_torch", "torch"), ("pruned_onnx", "pruned in ONNX Runtime")):
        top1, dense_top1 = accuracy.get(name), accuracy.get("dense_torch")
        if top1 is not None:
            change = "" if dense_top1 is None else _signed(top1 - dense_top1, "points")
            if name == "pruned_onnx" and (interval := change_interval(accuracy)) is not None:
                chance = change_p_value(accuracy)
                change += f" ({_ends(interval)}{'' if chance is None else f'; {p_value(chance)}'})"
            images = accuracy["images"]
            dense_text = "" if dense_top1 is None else _top1(dense_top1, images)
            rows.append(Comparison(f"Top-1 accuracy, {runtime}", dense_text, _top1(top1, images), change))
    if not accuracy and (training := fine_tuned(plan)):
        top1 = _top1(training["top1"], training["test_images"])
        rows.append(Comparison("Top-1 accuracy, torch, after fine-tuning", "", top1, ""))
    return rows


def embedding_note(embedded: EmbeddedName | None) -> str:
    """Return what to do, and not to do, before ONNX files that normalise images themselves, or nothing."""
    if embedded is None:
        return ""
    pixels = "in uint8, from 0 to 255" if embedded == "uint8-nhwc" else "in float32, from 0 to 1"
    dimensions = "(B, H, W, C)" if embedded == "uint8-nhwc" else "(B, C, H, W)"
    return (
        f"The ONNX files take images {dimensions} {pixels}, and normalise them themselves: resize and crop before, and "
        "do not normalise. The network in torch takes normalised inputs, as plan.json says."
    )


def finds_boxes(verify: Json | None) -> bool:
    """Whether the network was seen to be a detector."""
    return any(entry.get("detections") for entry in (verify or {}).get("parity") or ())


def onnx_example(plan: Json, form: InputSizes = ANY_BATCH, verify: Json | None = None) -> str:
    """Return the Python lines that run ``model.onnx`` on one input of the right shape, or on its one batch size."""
    source = plan["source"]
    if takes := source.get("inputs"):
        tensors = [_numpy_input(tensor, form.batch or 1) for tensor in takes["tensors"]]
        given = [
            "given = {",
            *(f"    {json.dumps(name)}: {array}," for name, array in tensors),
            "}  # yours, as the network was made for",
        ]
        run = "outputs = session.run(None, given)"
    else:
        channels, height, width = (int(size) for size in source["input_shape"])
        shape = ", ".join(map(str, sizes_in_file(form.embedded, (channels, height, width))))
        kind = "uint8" if form.embedded == "uint8-nhwc" else "float32"
        ready = "prepared as in training" if form.embedded is None else "resized and cropped, not normalised"
        given = [
            f"images = np.zeros(({form.batch or 1}, {shape}), dtype=np.{kind})  # yours, {ready}",
            "name = session.get_inputs()[0].name",
        ]
        kinds = "boxes (two corners), scores and labels" if finds_boxes(verify) else "of a classifier one: its scores"
        run = f"outputs = session.run(None, {{name: images}})  # {kinds}"
    return "\n".join(
        (
            "import numpy as np",
            "import onnxruntime as ort",
            'session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
            *given,
            run,
            "for output, values in zip(session.get_outputs(), outputs):",
            "    print(output.name, values.shape)",
        )
    )


def _numpy_input(tensor: Json, batch: int) -> tuple[str, str]:
    """The name of an input, and Python that makes one of its type and size: zeros, or its lowest value."""
    sizes = ", ".join(str(int(size)) for size in ([batch] * tensor["batched"] + list(tensor["shape"])))
    low = tensor["low"] if tensor["low"] is not None and not tensor["low"] <= 0 <= tensor["high"] else 0
    tuple_of = f"({sizes}{',' * (',' not in sizes and bool(sizes))})"
    return tensor["name"], f"np.full({tuple_of}, {low!r}, dtype={json.dumps(tensor['dtype'])})"


def _top1(share: float, images: int) -> str:
    """Return an accuracy with its 95 % interval."""
    return f"{percent(share)} ({_ends(share_interval(round(share * images), images))})"


def _ends(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}".replace("-", "−")


def _cost(label: str, dense: float, pruned: float, unit: str = "") -> Comparison:
    change = _signed(pruned / dense - 1, "%") if dense else ""
    return Comparison(label, scaled(dense, unit), scaled(pruned, unit), change)


def _signed(share: float, unit: str) -> str:
    return f"{100 * share:+.1f} {unit}".replace("-", "−")
