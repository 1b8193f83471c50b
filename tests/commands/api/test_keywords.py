"""Keyword arguments are the fields of the configurations, no more and no fewer, with the same types."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from pruneport.bench.options import BenchOptions
from pruneport.commands import FinetuneConfig, InspectConfig, ShipConfig, SweepConfig
from pruneport.commands.api import keywords
from pruneport.commands.configs import MemoryOptions
from pruneport.export.options import ExportOptions, ParityOptions

_TARGET = {"flops", "params", "ratio", "latency", "latency_ms"}


@pytest.mark.parametrize(
    ("kind", "options", "apart"),
    [
        (keywords.MemoryKeywords, MemoryOptions, _TARGET | {"calibration"}),
        (keywords.ParityKeywords, ParityOptions, {"images"}),
        (keywords.BenchKeywords, BenchOptions, set()),
        (keywords.ExportKeywords, ExportOptions, set()),
        (keywords.ShipKeywords, ShipConfig, _TARGET | {"source", "out"}),
        (keywords.InspectKeywords, InspectConfig, {"source", "input_shape"}),
        (keywords.FinetuneKeywords, FinetuneConfig, _TARGET | {"source", "task", "out"}),
        (keywords.SweepKeywords, SweepConfig, _TARGET | {"source", "out", "max_drop", "min_speedup"}),
    ],
)
def test_they_are_the_fields(kind: Any, options: Any, apart: set[str]) -> None:
    hints, theirs = typing.get_type_hints(kind), typing.get_type_hints(options)
    assert hints.keys() == {field.name for field in dataclasses.fields(options)} - apart
    for name, hint in hints.items():
        plain = {"Sequence": "tuple", "str | os.PathLike": "Path"}
        if not any(wide in str(hint) for wide in plain) and name != "criterion":  # which take more than the field
            assert hint == theirs[name], name


def test_lists_and_names_become_what_the_fields_hold() -> None:
    made = keywords.options_from(ShipConfig, "ship", {"source": "a:b", "out": "x", "batches": [1, 2], "keep": "fc"})
    assert (str(made.out), made.batches, made.keep) == ("x", (1, 2), ("fc",))
    hash(made)
