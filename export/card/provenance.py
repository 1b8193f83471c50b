"""How a network was made, in words: the lines of card and report on source, target, calibration and recovery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from pruneport.compress.group_records import Cost
from pruneport.documents import Json
from pruneport.export.card.words import clean, percent, shorten
from pruneport.models.preparation.resolve import describe
from pruneport.models.record import Preprocessing

__all__ = [
    "dense_onnx_cost",
    "fine_tuned",
    "fine_tuned_before",
    "provenance",
    "recovery_figures",
    "reference_of",
    "share_kept",
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


def provenance(plan: Json) -> list[tuple[str, str]]:
    """Return how the network was made as pairs of name and plain text."""
    source, request = plan["source"], plan["request"]
    weights = "as the source builds them" + ("" if source["trained"] else f", seed {source['seed']}")
    if live := source.get("live"):
        weights = f"of a network in memory; sha256 of its state {live['state_sha256']}"
    elif source["checkpoint"]:
        file = PurePath(source["checkpoint"]).name  # where it lay here is nobody else's business
        weights = f"{file}, sha256 {source['checkpoint_sha256'] or 'not recorded'}"
    elif source["weights"]:
        weights = source["weights"]
    most = percent(request["max_pruning_ratio"])
    arguments = ", ".join(f"{key}={value}" for key, value in source["model_args"].items())
    achieved = (
        f"{percent(share_kept(plan, 'flops'), 2)} of the MACs, "
        f"{percent(share_kept(plan, 'params'), 2)} of the parameters{_latency(plan.get('latency'))}"
    )
    pairs = [
        ("Source", source["spec"]),
        ("Model arguments", arguments),
        ("Weights", weights),
        ("Input, C × H × W", " × ".join(str(size) for size in source["input_shape"] or ())),
        ("Inputs", _inputs(source.get("inputs"))),
        ("Preprocessing", _preprocessing(plan)),
        ("Classes", _class_names(source.get("class_names", ()))),
        *((f"Step {number}", text) for number, text in enumerate(_earlier(plan), start=1)),
        ("Asked", _asked(request)),
        ("Achieved", achieved),
        ("Dropped residual branches", ", ".join(branch["name"] for branch in plan.get("branches") or ())),
        ("Note", plan["note"] or ""),
        ("Surgery", _SURGERY.format(plan["masked_error"]) if plan.get("masked_error") is not None else ""),
        ("Calibration", _calibration(plan)),
        ("Recovery", _recovery(plan.get("recovery"))),
        ("Fine-tuning", _training(plan)),
        ("Criterion", _WORDS.get(request["criterion"], request["criterion"])),
        ("Scope", _WORDS.get(request["scope"], request["scope"])),
        ("Ranking", _WORDS.get(request["ranking"], request["ranking"])),
        ("Widths", f"multiples of {request['round_to']}, at most {most} removed from a group"),
        ("Left dense on request", ", ".join(request["keep"])),
        ("Made", plan["created"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in plan["libraries"].items())),
    ]
    return [(name, clean(text)) for name, text in pairs if text]


def _inputs(takes: Json | None) -> str:
    """Names, types and sizes of what a network takes that is no image, or nothing."""
    if not takes:
        return ""
    listed = []
    for tensor in takes["tensors"]:
        sizes = ["B"] * tensor["batched"] + [str(size) for size in tensor["shape"]]
        known = "" if tensor["low"] is None else f", {tensor['low']:g} to {tensor['high']:g}"
        listed.append(f"{tensor['name']}: {tensor['dtype']}, {' × '.join(sizes) or 'a single number'}{known}")
    return "; ".join(listed)


def _asked(request: Json) -> str:
    """The target."""
    share = percent(request["value"])
    targets = {
        "flops": f"keep {share} of the compute",
        "params": f"keep {share} of the parameters",
        "ratio": f"remove {share} of the filters",
        "latency": f"keep {share} of the latency",
    }
    return targets.get(request["target"], f"{request['target']} {share}") if request["value"] < 1 else "nothing removed"


def _earlier(plan: Json) -> Iterator[str]:
    """What was done before, the oldest first, where the network was compressed further."""
    for step in plan.get("earlier", ()):
        done = [
            f"asked: {_asked(step['request'])}",
            f"{percent(share_kept({**plan, 'pruned': step['pruned']}, 'flops'), 2)} of the MACs left",
            f"recovery: {_recovery(step.get('recovery')).partition('. ')[0]}",
            *([f"fine-tuning: {trained}"] if (trained := _training(step)) else []),
        ]
        yield "; ".join(done)


def _calibration(plan: Json) -> str:
    """Which inputs were used, or nothing."""
    if not (used := plan.get("calibration")):
        return ""
    given = "inputs" if plan["source"].get("inputs") else "images"
    kind = given if used["inputs"] == "images" else "synthetic inputs that match the BatchNorm statistics"
    skipped = f"; left out as unreadable: {', '.join(used['skipped'])}" if used["skipped"] else ""
    return f"{used['count']} {kind}{skipped}"


def fine_tuned(plan: Json) -> Json | None:
    """What our fine-tuning recorded; None where there was none, or where somebody else's code trained the network."""
    training = plan.get("training")
    return training if isinstance(training, dict) else None


def fine_tuned_before(plan: Json) -> bool:
    """Whether our fine-tuning trained the network before it was compressed further."""
    return any(fine_tuned(step) is not None for step in plan.get("earlier", ()))


def reference_of(done: Json) -> str:
    """Whose outputs a recovery was measured against."""
    return "the network that was compressed further" if done.get("reference") == "start" else "the dense network"


def _training(plan: Json) -> str:
    """How the network was fine-tuned, or nothing."""
    if plan.get("training") == "outside":
        return "outside pruneport, by other code, after all that is said of recovery"
    done = fine_tuned(plan)
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
    if not (done := fine_tuned(plan)):
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
        "imitate": "weights solved by least squares, then trained to imitate the dense network's features,",
    }
    return f"{words.get(done['name'], done['name'])} on {done['images']} unlabelled inputs. {recovery_figures(done)}"


def recovery_figures(done: Json) -> str:
    """Say what a recovery brought: first on inputs that were held out, then on those that it was fitted to."""
    recovered = done["name"] != "none"

    def both(before: str, after: str) -> str:
        return f"{after} (before recovery {before})" if recovered else after

    theirs = "that network's" if done.get("reference") == "start" else "the dense outputs'"
    in_sample = both(f"{done['error_before']:.3g}", f"{done['error_after']:.3g}")
    if not done.get("heldout"):
        return (
            "On held-out inputs it was not measured, which takes 32 calibration inputs at least. In-sample, which says "
            f"nothing of other inputs: output error {in_sample} of {theirs} variance.{_imitation(done)}"
        )
    error = both(f"{done['heldout_error_before']:.3g}", f"{done['heldout_error_after']:.3g}")
    agreement = ""
    if done["heldout_agreement"] is not None:
        shares = both(percent(done["heldout_agreement_before"]), percent(done["heldout_agreement"]))
        agreement = f", same top-1 as {reference_of(done)} {shares}"
    return (
        f"On {done['heldout']} held-out inputs, which no score, choice or solve has seen: output error {error} of "
        f"{theirs} variance{agreement}. In-sample, on the calibration inputs themselves: {in_sample}."
        f"{_imitation(done)}"
    )


def _imitation(done: Json) -> str:
    """What an imitation did, after a space, or nothing."""
    did = done.get("imitation")
    if not did:
        return ""
    ended = {
        "steps": "",
        "time": ", ended by its time",
        "no gain": ", ended since more brought no gain",
        "diverged": ", ended by a loss that is no number",
    }
    steps = f"{did['steps']} of {did['planned']} steps at learning rate {did['learning_rate']:g}{ended[did['stopped']]}"
    where = f"on {did['tuning']} inputs that were set aside to choose by"
    if did["kept"] == "reconstruction":
        return f" Imitation brought nothing {where}, so the reconstructed weights were kept ({steps})."
    change = f"{did['distance_before']:.3g} to {did['distance_after']:.3g}"
    return f" Imitation brought the distance from the dense features from {change} {where} ({steps})."


def dense_onnx_cost(plan: Json) -> Json:
    """What the network costs that latency and accuracy are compared with."""
    cost: Json = plan["earlier"][-1]["pruned"] if plan.get("dense_onnx") == "start" else plan["dense"]
    return cost


def _latency(reached: Json | None) -> str:
    """What of the dense latency is left, and how that is known; empty where it was not the target."""
    if not reached:
        return ""
    best = reached["rounds"][reached["chosen"]]
    share, how = (best["predicted"], "predicted") if best["measured"] is None else (best["measured"], "measured")
    return f", {percent(share, 1)} of the latency, {how} ({reached['where']})"


def share_kept(plan: Json, target: str) -> float:
    """What is left of the dense network's cost, for a target ``flops`` or ``params``."""
    return Cost(**plan["pruned"]).share_of(Cost(**plan["dense"]), target)
