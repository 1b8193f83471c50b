"""Keyword arguments are the fields of the configurations, no more and no fewer, with the same types."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import numpy as np
import pytest
import torch

from pruneport.bench.options import BenchOptions
from pruneport.commands import FinetuneConfig, InspectConfig, ShipConfig, SweepConfig
from pruneport.commands.api import keywords
from pruneport.commands.api.configured import options_from
from pruneport.commands.configs import MemoryOptions
from pruneport.errors import InputError
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
    made = options_from(ShipConfig, "ship", {"source": "a:b", "out": "x", "batches": [1, 2], "keep": "fc"})
    assert (str(made.out), made.batches, made.keep) == ("x", (1, 2), ("fc",))
    hash(made)


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    given = {"source": "a:b", "flops": np.float32(0.5), "round_to": np.int64(8), "batches": np.arange(1, 3)}
    made = options_from(ShipConfig, "ship", {**given, "confidence": torch.tensor(0.5), "out": "x", "mean": 0.5})
    assert (made.flops, made.round_to, made.batches, made.confidence, made.mean) == (0.5, 8, (1, 2), 0.5, (0.5,))
    assert {type(made.flops), type(made.round_to), type(made.batches[0])} == {float, int}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("flops", "half", "`flops` is 'half'; expected a number"),
        ("flops", True, "`flops` is True; expected a number"),
        ("round_to", 2.5, r"`round_to` is 2\.5; expected a whole number"),
        ("max_pruning_ratio", "0.5", r"`max_pruning_ratio` is '0\.5'; expected a number"),
        ("batches", [1, "2"], "`batches` is '2'; expected a whole number"),
        ("mean", ["a"], "`mean` is 'a'; expected a number"),
        ("criterion", 5, "`criterion` is 5; expected one of auto, l1"),
        ("threads", [2], r"`threads` is \[2\]; expected a whole number"),
    ],
)
def test_what_is_no_number_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        options_from(ShipConfig, "ship", {"source": "a:b", "out": "x", name: value})
