"""The table of precisions: every figure in its place, nothing where there is fp32 alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from pruneport.bench.report.report import render_report
from pruneport.export.card.card import model_card
from pruneport.export.card.precisions import precision_columns, precision_notes, precision_rows
from pruneport.export.card.verdict import warnings_for
from pruneport.export.records import read_verified


@pytest.fixture
def found(verify: Any, bench: Any) -> tuple[Any, Any]:
    """What verify.json and bench.json say of fp16 and int8."""
    verify["precisions"] = [
        {
            "network": network,
            "precision": precision,
            "provider": "cpu" if precision == "int8" else None,
            "inputs": "images",
            "count": 200,
            "agreement": agreement,
            "output_error": 0.0 if precision == "fp32" else 0.0123,
            "top1": 0.8,
            "fault": "",
        }
        for network in ("dense", "pruned")
        for precision, agreement in (("fp32", 1.0), ("fp16", 0.999), ("int8", 0.91))
    ]
    verify["files"] |= {"dense.int8.onnx": 3_500_000, "model.int8.onnx": 2_000_000, "model.int8.onnx.data": 500_000}
    for entry in bench["batches"]:
        int8 = {name: copy.deepcopy(entry[name]) for name in ("dense", "pruned")}
        for timing in int8.values():
            timing["p50_ms"] = entry["dense"]["p50_ms"] / 4
        speedup = entry["speedup"]
        entry["precisions"] = [{"precision": "int8", **int8, "dense_speedup": speedup, "pruned_speedup": speedup}]
    return verify, bench


def test_rows_are_dense_and_pruned_and_columns_precisions(found: tuple[Any, Any]) -> None:
    assert precision_columns(*found) == ("fp32", "fp16", "int8")
    rows = {row.label: row.cells for row in precision_rows(*found)}
    assert rows["Top-1 accuracy, dense"] == ("80.0 %",) * 3
    assert rows["Agreement with fp32, pruned"] == ("", "99.9 %", "91.0 %")
    assert rows["Output error, dense"] == ("", "0.012", "0.012")
    assert rows["File, pruned"][1:] == ("", "2.50 MB")
    batch = found[1]["batches"][0]["batch"]
    cells = rows[f"p50 at batch {batch}, pruned"]
    assert (cells[1], cells[2][-7:]) == ("", "(4.00×)")
    assert "(1.00×)" in rows[f"p50 at batch {batch}, dense"][0]
    assert not [label for label in (row.label for row in precision_rows(*found, trained=False)) if "Top-1" in label]


def test_where_there_is_fp32_alone_there_is_no_table(plan: Any, verify: Any, bench: Any) -> None:
    assert precision_columns(verify, bench) == ()
    assert precision_rows(verify, bench) == precision_rows(None, None) == precision_notes(verify, bench) == []
    assert "## Precisions" not in model_card(plan, verify, bench)


def test_the_card_has_it_with_what_must_be_known(plan: Any, found: tuple[Any, Any]) -> None:
    card = model_card(plan, *found).replace("\\", "")
    assert "| Agreement with fp32, pruned |  | 99.9 % | 91.0 % |" in card
    assert "on 200 images" in card
    assert "int8 is made for ONNX Runtime's provider cpu, and for no other." in card
    assert ("as a rule makes it slower than fp32" in card) == (found[1]["provider"] == "cpu")


def test_too_little_agreement_is_a_warning_but_not_on_random_inputs(plan: Any, found: tuple[Any, Any]) -> None:
    verify, bench = found
    before = warnings_for(plan, verify, bench)
    verify["precisions"][-1]["agreement"] = 0.85
    (new,) = [sentence for sentence in warnings_for(plan, verify, bench) if sentence not in before]
    assert new.startswith("In int8 the pruned network's first choice is that of fp32 on only 85.0 % of 200 images.")
    verify["precisions"][-1]["inputs"] = "seeded"
    assert warnings_for(plan, verify, bench) == before
    json.dumps(verify)


@pytest.mark.slow
def test_layers_in_float_are_named_with_the_reason(plan: Any, found: tuple[Any, Any]) -> None:
    verify, bench = found
    assert "in float:" not in " ".join(precision_notes(verify, bench))
    int8 = verify["precisions"][2]
    assert (int8["network"], int8["precision"]) == ("dense", "int8")
    int8 |= {"float_layers": ["stem\u202e", "head"], "float_reason": "Too much was lost."}
    assert read_verified(json.dumps(verify).encode(), "verify.json", "")["precisions"][2]["float_layers"]
    said = "int8 of the dense network has 2 layers in float: stem\ufffd, head. Too much was lost."
    assert said in precision_notes(verify, bench)
    assert said in model_card(plan, verify, bench)
    assert said in render_report(plan, verify, bench)


@pytest.mark.parametrize(("limit", "warned"), [(None, False), (3.0, False), (2.0, True)])
def test_int8_that_loses_more_than_was_allowed_is_a_warning(
    plan: Any, found: tuple[Any, Any], limit: float | None, warned: bool
) -> None:
    verify, bench = found
    int8 = [record for record in verify["precisions"] if record["precision"] == "int8"]
    int8[1]["top1"] = 0.775
    verify["max_drop"] = limit
    said = [line for line in warnings_for(plan, verify, bench) if "against fp32" in line]
    assert [line[:72] for line in said] == [
        "In int8 the pruned network loses 2.5 points of top-1 against fp32, and 2"
    ] * warned
