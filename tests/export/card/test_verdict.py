"""The first sentence of card and report, and what they warn of."""

from __future__ import annotations

from typing import Any

import pytest

from pruneport.export.card.verdict import verdict, warnings_for


def _accuracy(dense: float, pruned: float, lost: int, won: int, images: int = 500) -> dict[str, Any]:
    counts = {"only_dense": lost, "only_pruned": won}
    return {
        "images": images,
        "folder": "x",
        "dense_torch": dense,
        "pruned_torch": pruned,
        "pruned_onnx": pruned,
    } | counts


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (_accuracy(0.86, 0.82, 22, 2), "4.0 points of top-1 lost on 500 images"),
        (_accuracy(0.86, 0.848, 10, 4), "1.2 points of top-1 lost on 500 images, which may be chance"),
        (_accuracy(0.86, 0.86, 4, 4), "no top-1 lost on 500 images, which may be chance"),
        (_accuracy(0.80, 0.86, 2, 32), "6.0 points of top-1 won on 500 images"),
    ],
)
def test_gain_and_loss_in_a_sentence(accuracy: Any, words: str, plan: Any, verify: Any, bench: Any) -> None:
    assert verdict(plan, verify | {"accuracy": accuracy}, bench) == f"1.71 times as fast at batch 1; {words}"
    assert warnings_for(plan, verify | {"accuracy": accuracy}, bench) == []


def test_what_was_not_measured_is_not_claimed(plan: Any, verify: Any, bench: Any) -> None:
    assert verdict(plan, None, None) == "Latency not measured; accuracy not measured"
    for speedup, words in (((1.01, 0.98, 1.04), "No clear speed-up"), ((0.5, 0.4, 0.6), "2.00 times as slow")):
        bench["batches"][0]["speedup"] |= dict(zip(("ratio", "low", "high"), speedup, strict=True))
        assert verdict(plan, None, bench) == f"{words} at batch 1; accuracy not measured"
    agreement = {"images": 40, "folder": "x", "top1": 0.925}
    known = verdict(plan, verify | {"accuracy": None, "agreement": agreement}, None)
    assert known == "Latency not measured; the dense network's first choice kept on 92.5 % of 40 images"
    plan["source"]["trained"] = False
    assert verdict(plan, verify, None).endswith("accuracy left out: architecture only")
    plan["source"]["trained"], plan["training"] = True, {"top1": 0.81, "test_images": 200}
    assert verdict(plan, verify, None).endswith("top-1 81.0 % on 200 test images after fine-tuning")


def test_ruined_accuracy_is_warned_of(plan: Any, verify: Any) -> None:
    (said,) = warnings_for(plan, verify, None)
    assert said == (
        "Accuracy fell by 34.8 points, from 92.0 % to 57.2 % on 250 images. What helps: calibration images "
        "(`calibration=FOLDER`), a higher `flops`, or training with pruneport finetune."
    )
    plan["calibration"] = {"inputs": "images", "count": 64, "skipped": []}
    plan["request"] |= {"target": "ratio", "value": 0.4}
    (said,) = warnings_for(plan, verify, None)
    assert "more calibration images (`calibration=FOLDER`), a smaller `ratio`" in said
    plan["training"] = {"top1": 0.9}  # of another task: the dense network is no measure
    assert warnings_for(plan, verify, None) == []


@pytest.mark.parametrize(("fall", "warned"), [(0.05, False), (0.052, True), (-0.3, False)])
def test_more_than_five_points_are_too_many(fall: float, warned: bool, plan: Any, verify: Any) -> None:
    verify["accuracy"] = _accuracy(0.7, 0.7 - fall, 300, 0)
    assert bool(warnings_for(plan, verify, None)) is warned


def test_weights_that_nothing_is_known_of_are_warned_of_only_where_they_surely_lost(plan: Any, verify: Any) -> None:
    plan["source"]["trained"] = False  # a factory may load its own
    verify["accuracy"] = _accuracy(0.8, 0.2, 320, 20)
    assert len(warnings_for(plan, verify, None)) == 1
    verify["accuracy"] = _accuracy(0.15, 0.05, 5, 1, images=40)  # two guesses
    assert warnings_for(plan, verify, None) == []


def test_without_labels_the_agreement_counts(plan: Any, verify: Any) -> None:
    verify |= {"accuracy": None, "agreement": {"images": 40, "folder": "x", "top1": 0.875}}
    (said,) = warnings_for(plan, verify, None)
    assert said.startswith("On only 87.5 % of 40 images the pruned network's first choice is the dense network's.")
    verify["agreement"]["top1"] = 0.9
    assert warnings_for(plan, verify, None) == []


def test_compress_alone_is_judged_by_what_was_held_out(plan: Any, verify: Any) -> None:
    plan["recovery"] = {"name": "reconstruct", "images": 128, "error_before": 0.9, "error_after": 0.018}
    assert warnings_for(plan, None, None) == []  # a plan of an earlier version
    plan["recovery"] |= {"heldout_agreement": 0.44, "heldout": 16}
    (said,) = warnings_for(plan, None, None)
    assert said.startswith("On only 44.0 % of 16 calibration images that were held out the pruned network's first")
    plan["calibration"] = {"inputs": "synthetic", "count": 64, "skipped": []}
    (said,) = warnings_for(plan, None, None)
    assert "of 16 synthetic inputs that were held out" in said
    plan["recovery"]["heldout_agreement"] = 0.93
    assert warnings_for(plan, None, None) == []
    plan["recovery"]["heldout_agreement"] = 0.44
    verify["accuracy"] = _accuracy(0.86, 0.85, 10, 5)  # labels know better
    assert warnings_for(plan, verify, None) == []


def test_a_comparison_that_proves_nothing(plan: Any, verify: Any) -> None:
    verify["accuracy"] = None
    for entry in verify["parity"]:
        entry["constant"] = entry["batch"] > 1
    (said,) = warnings_for(plan, verify, None)
    assert said.startswith(
        "The comparison of torch and ONNX Runtime proves nothing for the dense and the pruned network: its outputs"
    )
    assert verdict(plan, verify, None).endswith("; nothing proved by comparing with torch")
    for entry in verify["parity"]:
        if entry["inputs"] == "images":
            entry["constant"] = False
    assert warnings_for(plan, verify, None) == []


def test_a_busy_machine(plan: Any, bench: Any) -> None:
    assert warnings_for(plan, None, bench) == []
    device = bench["device"]
    device |= {"load_average_1min": 9.5, "available_cores": 8}
    (said,) = warnings_for(plan, None, bench)  # written by an earlier version
    assert said.startswith("The machine was busy before the timed rounds: a load of 9.5 on 8 cores.")
    device["cpu_in_use_by_others"] = 0.03  # the load was our own
    assert warnings_for(plan, None, bench) == []
    device |= {"cpu_in_use_by_others": 0.5, "gpu_in_use": 0.98}
    (said,) = warnings_for(plan, None, bench)
    assert "others used 50 % of its processor and 98 % of its GPU. Its figures are rough" in said
    assert verdict(plan, None, bench).startswith("1.71 times as fast at batch 1, on a busy machine; ")


def test_a_gpu_that_slowed_down(plan: Any, bench: Any) -> None:
    bench["batches"][0]["device"] = {"throttle_reasons": ["power_cap", "application_clocks"]}
    assert warnings_for(plan, None, bench) == [], "that is how GPUs run at full load"
    bench["batches"][0]["device"] = {"throttle_reasons": ["power_cap", "thermal_slowdown"]}
    bench["batches"][-1]["device"] = {"throttle_reasons": None}
    (said,) = warnings_for(plan, None, bench)
    assert said.startswith("The GPU lowered its clocks while it was timed (thermal slowdown). Its figures are rough")


def test_a_machine_that_got_busy_while_it_was_timed(plan: Any, bench: Any) -> None:
    bench["device"] |= {"cpu_in_use_by_others": 0.1, "available_cores": 8}
    bench["batches"][0]["device"] = {"cpu_in_use_by_others": None}  # too short to tell
    assert warnings_for(plan, None, bench) == []
    bench["batches"][-1]["device"] = {"cpu_in_use_by_others": 0.75}
    (said,) = warnings_for(plan, None, bench)
    assert said.startswith("The machine was busy while it was timed: others used 75 % of its processor.")
    assert verdict(plan, None, bench).startswith("1.71 times as fast at batch 1, on a busy machine; ")


@pytest.mark.parametrize(
    ("limit", "words"), [(4, "within your limit of 4 points"), (1, "beyond your limit of 1 point")]
)
def test_a_limit_is_said_to_be_held_or_not(limit: float, words: str, plan: Any, verify: Any, bench: Any) -> None:
    verify |= {"accuracy": _accuracy(0.86, 0.82, 22, 2), "max_drop": limit}
    assert verdict(plan, verify, bench).endswith(f"4.0 points of top-1 lost on 500 images; {words}")


def test_a_pruned_network_that_is_slower_than_dense_in_its_own_precision_is_named(plan: Any, bench: Any) -> None:
    """As fp16 was on an H200 without tensor cores, at widths that are multiples of 8: 2.7 ms against 0.7."""
    entry = bench["batches"][0]
    slow = {"ratio": 0.8, "low": 0.79, "high": 0.81, "confidence": 0.95}
    fast = {"ratio": 3.0, "low": 2.9, "high": 3.1, "confidence": 0.95}
    times = {"dense": entry["dense"] | {"p50_ms": 0.7}, "pruned": entry["pruned"] | {"p50_ms": 2.7}}
    entry["precisions"] = [{"precision": "fp16", **times, "dense_speedup": fast, "pruned_speedup": slow}]
    bench["provider"] = "cuda"
    (said,) = warnings_for(plan, None, bench)
    assert said.startswith("In fp16 the pruned network is slower than the dense one: 2.70 ms against 0.700 at batch 1.")
    assert "`round_to=64`" in said
    bench["provider"] = "cpu"
    assert "`round_to" not in warnings_for(plan, None, bench)[0]
    entry["precisions"][0]["pruned_speedup"] = fast | {"high": 3.3}
    assert warnings_for(plan, None, bench) == []
    entry["speedup"] |= slow
    assert warnings_for(plan, None, bench)[0].startswith("In fp32 the pruned network is slower")


@pytest.mark.parametrize(
    ("high", "slower"),
    [(0.959, True), (0.999, True), (1.0, False), (1.04, False)],
    ids=["as a ResNet-50 in fp16 on a GPU", "barely", "at one", "beyond one"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_slower_is_said_wherever_the_whole_interval_says_so(
    precision: str, high: float, slower: bool, plan: Any, bench: Any
) -> None:
    entry, found = bench["batches"][0], {"ratio": 0.957, "low": 0.955, "high": high, "confidence": 0.95}
    wide = {"ratio": 2.0, "low": 1.0, "high": 3.0, "confidence": 0.95}  # of two precisions: says nothing of one
    times = {name: entry[name] for name in ("dense", "pruned")}
    entry["precisions"] = [
        {"precision": "fp16", **times, "dense_speedup": wide, "pruned_speedup": wide, "speedup": entry["speedup"]}
    ]
    (entry if precision == "fp32" else entry["precisions"][0])["speedup"] = found
    said = warnings_for(plan, None, bench)
    assert [sentence.partition(" the pruned network is slower")[0] for sentence in said] == [f"In {precision}"] * slower
    if precision == "fp32":
        assert ("1.04 times as slow" in verdict(plan, None, bench)) == slower
