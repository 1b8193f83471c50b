"""The sentences and figures that the bundle's README.md and the HTML report share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from pruneport.compress.records import Cost
from pruneport.documents import Json
from pruneport.export.card.intervals import Interval, change_interval, share_interval
from pruneport.models.preparation.resolve import describe
from pruneport.models.record import LIBRARIES, Preprocessing
from pruneport.units import scaled

__all__ = [
    "OWN_CODE",
    "Comparison",
    "clean",
    "comparisons",
    "device_name",
    "headline",
    "milliseconds",
    "onnx_example",
    "percent",
    "provenance",
    "recovery_figures",
    "runs_own_code",
    "shorten",
]


_WORDS = {
    "l1": "L1 magnitude of the weights",
    "l2": "L2 magnitude of the weights",
    "lamp": "LAMP: squared magnitude over that of all larger channels",
    "fpgm": "FPGM: distance to the layer's other filters",
    "bn-scale": "size of the BatchNorm scales",
    "synflow": "SynFlow: share of the flow through positive weights",
    "random": "random scores",
    "activation": "mean activation on the calibration inputs",
    "block-hessian": "block Hessian: what the consumers' outputs lose once their other weights have made up for it",
    "taylor": "Taylor: squared first-order change of the loss",
    "snip": "SNIP: weight times gradient of the loss",
    "grasp": "GraSP: effect on the gradient flow",
    "fisher": "diagonal Fisher information times squared weight",
    "filters": "filters inside blocks; residual streams and the representation keep their width",
    "channels": "residual streams too; the representation keeps its width",
    "uniform": "the same share of every group",
    "global": "filters compete across groups",
    "isomorphic": "filters compete across groups of the same structure",
    "sensitivity": "the least summed damage, measured group by group, that meets the target",
}
_SURGERY = "outputs equal the dense network's with the removed channels zeroed, within {:.1e} of their size"
OWN_CODE = (
    "Building this network runs code that is no library's: where you trust it, "
    "pass your factory as factory=, or trust_source=True."
)


def runs_own_code(plan: Json) -> bool:
    """Whether loading in torch runs code that belongs to the source and to no library."""
    return str(plan["source"]["spec"]).partition(":")[0] not in LIBRARIES


class Comparison(NamedTuple):
    """One line of the before/after table, ready to print."""

    label: str
    dense: str
    pruned: str
    change: str


def clean(text: object) -> str:
    """Return one printable line: whitespace runs become a space, control and direction characters U+FFFD."""
    line = " ".join(str(text).split())
    return "".join("\ufffd" if unicodedata.category(char).startswith("C") else char for char in line)


def shorten(name: object, chars: int) -> str:
    """Return a long name cut in its middle: its ends tell where in the network it is."""
    text, half = clean(name), chars // 2
    return text if len(text) <= chars else f"{text[: half - 1]}…{text[-half:]}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share of one as per cent, ``0.5 -> '50.0 %'``."""
    return f"{100 * share:.{digits}f} %"


def milliseconds(value: float) -> str:
    """Return a latency in ms with two decimals, three below 1 ms."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def headline(plan: Json, verify: Json | None, bench: Json | None) -> str:
    """Say in one sentence what was done and what it brought, as plain text."""
    macs_kept = _share_kept(plan, "flops")
    parts = []
    if bench and bench["batches"]:
        first = min(bench["batches"], key=lambda entry: int(entry["batch"]))
        device = device_name(bench)
        parts.append(f"{_speedup(first)} at batch {first['batch']}" + (f" on {device}" if device else ""))
    else:
        parts.append("latency not measured")
    if not plan["source"]["trained"]:
        parts.append("architecture only")
    elif training := plan.get("training"):
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
    dense, pruned = plan["dense"], plan["pruned"]
    rows = [
        _cost("Compute, MACs", dense["macs"], pruned["macs"]),
        _cost("Compute, FLOPs (2 × MACs)", 2 * dense["macs"], 2 * pruned["macs"]),
        _cost("Parameters", dense["params"], pruned["params"]),
    ]
    files = (verify or {}).get("files") or {}
    if "dense.onnx" in files and "model.onnx" in files:
        rows.append(_cost("ONNX file", files["dense.onnx"], files["model.onnx"], unit="B"))
    for entry in bench["batches"] if bench else ():
        before, after = (f"{milliseconds(entry[network]['p50_ms'])} ms" for network in ("dense", "pruned"))
        rows.append(Comparison(f"Latency p50, batch {entry['batch']}", before, after, _speedup(entry)))
    accuracy: Json = ((verify or {}).get("accuracy") or {}) if plan["source"]["trained"] else {}
    for name, runtime in (("pruned_torch", "torch"), ("pruned_onnx", "pruned in ONNX Runtime")):
        top1, dense_top1 = accuracy.get(name), accuracy.get("dense_torch")
        if top1 is not None:
            change = "" if dense_top1 is None else _signed(top1 - dense_top1, "points")
            if name == "pruned_onnx" and (interval := change_interval(accuracy)) is not None:
                change += f" ({_ends(interval)})"
            images = accuracy["images"]
            dense_text = "" if dense_top1 is None else _top1(dense_top1, images)
            rows.append(Comparison(f"Top-1 accuracy, {runtime}", dense_text, _top1(top1, images), change))
    if not accuracy and (training := plan.get("training")):
        top1 = _top1(training["top1"], training["test_images"])
        rows.append(Comparison("Top-1 accuracy, torch, after fine-tuning", "", top1, ""))
    return rows


def provenance(plan: Json) -> list[tuple[str, str]]:
    """Return how the network was made as pairs of name and plain text."""
    source, request = plan["source"], plan["request"]
    weights = "as the source builds them" + ("" if source["trained"] else f", seed {source['seed']}")
    if source["checkpoint"]:
        file = PurePath(source["checkpoint"]).name  # where it lay here is nobody else's business
        weights = f"{file}, sha256 {source['checkpoint_sha256'] or 'not recorded'}"
    elif source["weights"]:
        weights = source["weights"]
    most = percent(request["max_pruning_ratio"])
    arguments = ", ".join(f"{key}={value}" for key, value in source["model_args"].items())
    share = percent(request["value"])
    targets = {
        "flops": f"keep {share} of the compute",
        "params": f"keep {share} of the parameters",
        "ratio": f"remove {share} of the filters",
    }
    asked = (
        targets.get(request["target"], f"{request['target']} {share}") if request["value"] < 1 else "nothing removed"
    )
    achieved = (
        f"{percent(_share_kept(plan, 'flops'), 2)} of the MACs, "
        f"{percent(_share_kept(plan, 'params'), 2)} of the parameters"
    )
    pairs = [
        ("Source", source["spec"]),
        ("Model arguments", arguments),
        ("Weights", weights),
        ("Input, C × H × W", " × ".join(str(size) for size in source["input_shape"])),
        ("Preprocessing", _preprocessing(plan)),
        ("Classes", _class_names(source.get("class_names", ()))),
        ("Asked", asked),
        ("Achieved", achieved),
        ("Note", plan["note"] or ""),
        ("Surgery", _SURGERY.format(plan["masked_error"]) if plan.get("masked_error") is not None else ""),
        ("Calibration", _calibration(plan.get("calibration"))),
        ("Recovery", _recovery(plan.get("recovery"))),
        ("Fine-tuning", _training(plan.get("training"))),
        ("Criterion", _WORDS.get(request["criterion"], request["criterion"])),
        ("Scope", _WORDS.get(request["scope"], request["scope"])),
        ("Ranking", _WORDS.get(request["ranking"], request["ranking"])),
        ("Widths", f"multiples of {request['round_to']}, at most {most} removed from a group"),
        ("Left dense on request", ", ".join(request["keep"])),
        ("Made", plan["created"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in plan["libraries"].items())),
    ]
    return [(name, clean(text)) for name, text in pairs if text]


def onnx_example(plan: Json, batch: int | None = None) -> str:
    """Return the Python lines that run ``model.onnx`` on one input of the right shape, or on its one batch size."""
    shape = ", ".join(str(int(size)) for size in plan["source"]["input_shape"])
    return (
        "import numpy as np\n"
        "import onnxruntime as ort\n"
        'session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        f"images = np.zeros(({batch or 1}, {shape}), dtype=np.float32)  # yours, prepared as in training\n"
        'outputs = session.run(None, {"input": images})  # a classifier has one output, its scores\n'
        "for output, values in zip(session.get_outputs(), outputs):\n"
        "    print(output.name, values.shape)"
    )


def _share_kept(plan: Json, target: str) -> float:
    """What is left of the dense network's cost, for a target ``flops`` or ``params``."""
    return Cost(**plan["pruned"]).share_of(Cost(**plan["dense"]), target)


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


def _speedup(entry: Json) -> str:
    """Call it faster or slower only where the whole interval lies on one side of 1."""
    ratio, low, high = (float(entry["speedup"][key]) for key in ("ratio", "low", "high"))
    if low > 1:
        return f"{ratio:.2f}× faster"
    if high < 1:
        return f"{1 / ratio:.2f}× slower"
    return "no clear speed-up"


def _calibration(used: Json | None) -> str:
    """Which inputs were used, or nothing."""
    if not used:
        return ""
    kind = "images" if used["inputs"] == "images" else "synthetic inputs that match the BatchNorm statistics"
    skipped = f"; left out as unreadable: {', '.join(used['skipped'])}" if used["skipped"] else ""
    return f"{used['count']} {kind}{skipped}"


def _training(done: Json | None) -> str:
    """How the network was fine-tuned, or nothing."""
    if not done:
        return ""
    return (
        f"{done['steps']} steps on {done['images']} images of {done['task']} ({len(done['classes'])} classes), "
        f"{done['flops']:.3g} training FLOPs; top-1 {percent(done['top1'])} on its {done['test_images']} test images"
    )


def _preprocessing(plan: Json) -> str:
    """How images become inputs, or nothing; earlier versions recorded it of trainings alone."""
    if known := plan["source"].get("preprocessing"):
        return describe(Preprocessing(**known), plan["source"]["input_shape"])
    if not (done := plan.get("training")):
        return ""
    known = {name: done[name] for name in ("resize", "mean", "std")} | {"interpolation": "bilinear"}
    return describe(Preprocessing(**known, origin="as in the training"), plan["source"]["input_shape"])


def _class_names(names: Sequence[str]) -> str:
    """How many there are, and the first and the last, or nothing."""
    return f"{len(names)}, from {shorten(names[0], 40)} to {shorten(names[-1], 40)}" if names else ""


def _recovery(done: Json | None) -> str:
    """What was done after pruning, and what it brought."""
    if not done:
        return "none: plain pruning"
    words = {
        "none": "none: plain pruning, measured",
        "bn": "BatchNorm statistics measured anew",
        "reconstruct": "weights solved by least squares",
        "data-free": "weights solved by least squares without images",
    }
    return f"{words.get(done['name'], done['name'])} on {done['images']} unlabelled inputs. {recovery_figures(done)}"


def recovery_figures(done: Json) -> str:
    """Say what a recovery brought: first on inputs that were held out, then on those that it was fitted to."""
    recovered = done["name"] != "none"

    def both(before: str, after: str) -> str:
        return f"{after} (before recovery {before})" if recovered else after

    in_sample = both(f"{done['error_before']:.3g}", f"{done['error_after']:.3g}")
    if not done.get("heldout"):
        return (
            "On held-out inputs it was not measured, which takes 32 calibration inputs at least. In-sample, which says "
            f"nothing of other inputs: output error {in_sample} of the dense outputs' variance."
        )
    error = both(f"{done['heldout_error_before']:.3g}", f"{done['heldout_error_after']:.3g}")
    agreement = ""
    if done["heldout_agreement"] is not None:
        shares = both(percent(done["heldout_agreement_before"]), percent(done["heldout_agreement"]))
        agreement = f", same top-1 as the dense network {shares}"
    return (
        f"On {done['heldout']} held-out inputs, which no score, choice or solve has seen: output error {error} of the "
        f"dense outputs' variance{agreement}. In-sample, on the calibration inputs themselves: {in_sample}."
    )
