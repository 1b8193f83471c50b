"""What a reader must know first: what was gained and lost in a sentence, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence

from pruneport.documents import Json
from pruneport.export.accuracy import ROUNDING
from pruneport.export.card.intervals import change_interval, change_p_value
from pruneport.export.card.precisions import precision_warnings
from pruneport.export.card.provenance import dense_onnx_cost, fine_tuned, reference_of
from pruneport.export.card.words import clean, milliseconds, percent, speedup_claim, surely_slower

__all__ = ["load_warnings", "maybe_chance", "points", "points_lost", "times_as_fast", "verdict", "warnings_for"]


_LEAST_FALL = 0.05  # of top-1; a smaller one is what compression costs
_LEAST_AGREEMENT = 0.9
_UNLIKELY = 0.05  # a change as large would be seen by chance less often, where nothing changed
_AGAIN = "Its figures are rough: time again on an idle machine (pruneport bench)."
_SLOWED = ("thermal_slowdown", "hardware_slowdown", "hardware_thermal_slowdown", "hardware_power_brake")
_HELPS = "What helps: a latency target (`latency=0.75`), which prunes by what was measured here."
_HELPS_ON_GPU = (
    "A GPU is slower at some widths than at others. What may help: wider multiples (`round_to=64`), another layout "
    "(`nhwc`), or a latency target (`latency=0.75`), which prunes by what was measured here."
)
_BUSY_SHARE = 0.4  # of the cores, or of the GPU, in use by others: on two cores, one other program


def verdict(plan: Json, verify: Json | None, bench: Json | None) -> str:
    """Say in one sentence what was gained and what was lost, as plain text."""
    parts = ["latency not measured"]
    if bench and bench["batches"]:
        first = min(bench["batches"], key=lambda entry: int(entry["batch"]))
        parts = [
            f"{times_as_fast(first)} at batch {first['batch']}{', on a busy machine' if load_warnings(bench) else ''}"
        ]
    accuracy, agreement = (verify or {}).get("accuracy"), (verify or {}).get("agreement")
    if not plan["source"]["trained"]:
        parts.append("accuracy left out: architecture only")
    elif training := fine_tuned(plan):
        parts.append(f"top-1 {percent(training['top1'])} on {training['test_images']} test images after fine-tuning")
    elif (fall := _fall(accuracy)) is not None and accuracy:
        parts.append(f"{points_lost(fall)} on {accuracy['images']} images{maybe_chance(accuracy)}")
        if (limit := (verify or {}).get("max_drop")) is not None:
            kept = 100 * fall <= limit + ROUNDING
            parts.append(f"{'within' if kept else 'beyond'} your limit of {points(limit)}")
    elif agreement:
        share = percent(agreement["top1"])
        parts.append(f"the dense network's first choice kept on {share} of {agreement['images']} images")
    else:
        parts.append("accuracy not measured")
    if _parity_warnings(verify):
        parts.append("nothing proved by comparing with torch")
    sentence = clean("; ".join(parts))
    return f"{sentence[0].upper()}{sentence[1:]}"


def warnings_for(plan: Json, verify: Json | None, bench: Json | None) -> list[str]:
    """Say what a reader must know before the file is used: console, model card and report show the same sentences.

    Args:
        plan: What ``plan.json`` holds.
        verify: What the verification found, or None where it was not run.
        bench: What ``bench.json`` holds, or None where latency was not measured.

    Returns:
        Sentences as plain text, none where there is nothing to warn of.
    """
    found = [
        *_dense_warnings(plan),
        *_accuracy_warnings(plan, verify),
        *_parity_warnings(verify),
        *precision_warnings(verify),
        *load_warnings(bench),
        *_slowed_warnings(bench),
        *_slower_warnings(bench),
    ]
    return [clean(sentence) for sentence in found]


def _dense_warnings(plan: Json) -> list[str]:
    """That dense is not the original."""
    if plan.get("dense_onnx") != "start":
        return []
    share = percent(dense_onnx_cost(plan)["macs"] / plan["dense"]["macs"])
    return [
        f"Dense stands here for the network that was compressed further, at {share} of the original's compute: the "
        "original's weights could not be had. Speed-up, accuracy and the table of before and after are against it."
    ]


def _accuracy_warnings(plan: Json, verify: Json | None) -> list[str]:
    """Of labelled images the fall counts, of others the agreement, and without either what was held out."""
    if fine_tuned(plan):
        return []  # the dense original is no measure of it
    accuracy, agreement = (verify or {}).get("accuracy"), (verify or {}).get("agreement")
    if (fall := _fall(accuracy)) is not None and accuracy:
        if fall <= _LEAST_FALL + 1e-9 or not (plan["source"]["trained"] or _surely_fell(accuracy)):
            return []
        before, after = percent(accuracy["dense_torch"]), percent(accuracy["dense_torch"] - fall)
        said = f"Accuracy fell by {100 * fall:.1f} points, from {before} to {after} on {accuracy['images']} images."
    else:
        trained_since = plan.get("training") is not None  # then what recovery measured holds no longer
        held_out = None if trained_since else (plan.get("recovery") or {}).get("heldout_agreement")
        share = agreement["top1"] if agreement else held_out
        if share is None or share >= _LEAST_AGREEMENT:
            return []
        where = f"{agreement['images']} images" if agreement else _held_out(plan)
        said = f"On only {percent(share)} of {where} the pruned network's first choice is the dense network's."
        if not agreement and plan["recovery"].get("reference") == "start":
            said = f"On only {percent(share)} of {where} the first choice is that of {reference_of(plan['recovery'])}."
    calibration = plan.get("calibration")
    images = "more calibration images" if calibration and calibration["inputs"] == "images" else "calibration images"
    target = "a smaller `ratio`" if plan["request"]["target"] == "ratio" else f"a higher `{plan['request']['target']}`"
    return [f"{said} What helps: {images} (`calibration=FOLDER`), {target}, or training with pruneport finetune."]


def _held_out(plan: Json) -> str:
    """The inputs that a recovery was measured on."""
    synthetic = (plan.get("calibration") or {}).get("inputs") == "synthetic"
    return (
        f"{plan['recovery']['heldout']} {'synthetic inputs' if synthetic else 'calibration images'} that were held out"
    )


def _parity_warnings(verify: Json | None) -> list[str]:
    """Outputs that parity says nothing of."""
    entries: Sequence[Json] = (verify or {}).get("parity") or ()
    constant = []
    for network in ("dense", "pruned"):
        own = [entry for entry in entries if entry["network"] == network]
        telling = [entry for entry in own if entry["batch"] > 1] or own  # one input alone has nothing to differ from
        if telling and all(entry.get("constant") for entry in telling):
            constant.append(network)
    if not constant:
        return []
    why = "outputs for different inputs differ by less than the tolerance, as those of weights that are all zero do"
    if any(entry.get("detections") for entry in entries):
        why = "detections are none, or the same in every input, as those of random weights are"
    return [
        f"The comparison of torch and ONNX Runtime proves nothing for the {' and the '.join(constant)} network: its "
        f"{why}. Give trained weights (`checkpoint=FILE` or `weights=NAME`) and verify again."
    ]


def load_warnings(bench: Json | None) -> list[str]:
    """Say that others used the machine when it was timed; nothing where they did not."""
    if not bench:
        return []
    device = bench["device"]
    share, cores = device.get("cpu_in_use_by_others"), device.get("available_cores")
    if share is None:  # written before that was measured
        load = device.get("load_average_1min")
        if load is None or not cores or load <= cores:
            return []
        return [f"The machine was busy before the timed rounds: a load of {load:.1f} on {cores} cores. {_AGAIN}"]
    meanwhile = [entry.get("device", {}).get("cpu_in_use_by_others") or 0.0 for entry in bench["batches"]]
    most, when = max((share, "before the timed rounds"), (max(meanwhile, default=0.0), "while it was timed"))
    busy = [f"{percent(most, 0)} of its processor"] if most >= _BUSY_SHARE else []
    if (gpu := device.get("gpu_in_use")) is not None and gpu >= _BUSY_SHARE:
        busy.append(f"{percent(gpu, 0)} of its GPU")
    if not busy:
        return []
    return [f"The machine was busy {when}: others used {' and '.join(busy)}. {_AGAIN}"]


def _slowed_warnings(bench: Json | None) -> list[str]:
    """That the GPU had to slow down: a power cap alone is how one runs at full load."""
    batches = bench["batches"] if bench else ()
    seen = {reason for entry in batches for reason in entry.get("device", {}).get("throttle_reasons") or ()}
    slowed = [reason.replace("_", " ") for reason in _SLOWED if reason in seen]
    return [f"The GPU lowered its clocks while it was timed ({', '.join(slowed)}). {_AGAIN}"] if slowed else []


def _slower_warnings(bench: Json | None) -> list[str]:
    """Where the pruned network is surely slower than the dense one in the same precision."""
    slower: dict[str, list[str]] = {}
    for entry in bench["batches"] if bench else ():
        for times in ({"precision": "fp32"} | entry, *entry.get("precisions", ())):
            if _is_slower(times):
                medians = [milliseconds(times[network]["p50_ms"]) for network in ("pruned", "dense")]
                found = f"{medians[0]} ms against {medians[1]} at batch {entry['batch']}"
                slower.setdefault(times["precision"], []).append(found)
    helps = _HELPS_ON_GPU if (bench or {}).get("provider", "cpu") != "cpu" else _HELPS
    return [
        f"In {precision} the pruned network is slower than the dense one: {', '.join(found)}. {helps}"
        for precision, found in slower.items()
    ]


def _is_slower(times: Json) -> bool:
    """Whether the pruned network is surely slower than the dense one, both in the precision of the times."""
    if times.get("speedup") is not None:
        return surely_slower(times["speedup"])
    return bool(times["pruned_speedup"]["high"] < times["dense_speedup"]["low"])  # over fp32 is all that files had


def _fall(accuracy: Json | None) -> float | None:
    """How much of top-1 was lost, as a share; None where one of the two is not known."""
    accuracy = accuracy or {}
    known = [accuracy[name] for name in ("pruned_onnx", "pruned_torch") if accuracy.get(name) is not None]
    dense = accuracy.get("dense_torch")
    return None if dense is None or not known else float(dense - known[0])


def _surely_fell(accuracy: Json) -> bool:
    """Whether even a network of whose weights nothing is known was trained, and lost by pruning what it had learnt."""
    interval = change_interval(accuracy)
    return interval is not None and interval.high < 0


def maybe_chance(accuracy: Json) -> str:
    """Say so where as many images may change by chance: the interval holds 0, or McNemar's test sees nothing."""
    interval, chance = change_interval(accuracy), change_p_value(accuracy)
    if interval is None or chance is None:
        return ""
    return ", which may be chance" if interval.low <= 0 <= interval.high or chance >= _UNLIKELY else ""


def points(count: float) -> str:
    """Return a number of points as text."""
    return f"{count:g} point{'' if count == 1 else 's'}"


def points_lost(fall: float) -> str:
    """Say how much of top-1, a share, was lost or won."""
    if abs(fall) < 0.0005:
        return "no top-1 lost"
    return f"{100 * abs(fall):.1f} points of top-1 {'lost' if fall > 0 else 'won'}"


def times_as_fast(entry: Json) -> str:
    """Return the speed-up as a multiple; a claim only where the whole interval lies on one side of 1."""
    return speedup_claim(entry["speedup"], " times as fast", " times as slow")
