"""Files of rows that were timed, each of one place."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from pruneport.bench.experiments.networks.timed import add_place, place_of, read_rows, write_rows
from pruneport.bench.options import LatencyOptions
from pruneport.errors import InputError


def test_rows_of_two_places_are_kept_apart(tmp_path: Path) -> None:
    out, cpu = tmp_path / "rows.json", LatencyOptions()
    assert read_rows(out, cpu) == []
    write_rows(out, [{"target": 0.5}], cpu)
    content = json.loads(out.read_text())
    assert content["device"]["cpu"]
    assert read_rows(out, LatencyOptions(threads=2)) == [{"target": 0.5}]
    del content["place"]  # as earlier files have none
    out.write_text(json.dumps(content))
    assert read_rows(out, cpu) == [{"target": 0.5}]
    for other in (LatencyOptions(provider="cuda"), LatencyOptions(latency_precision="fp16")):
        with pytest.raises(InputError, match=r"rows\.json has rows that were timed on .*; give another file"):
            read_rows(out, other)


def test_flags_say_where(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_place(parser)
    where = place_of(parser.parse_args(["--cache", str(tmp_path)]), 4)
    assert (where.provider, where.latency_batch, where.latency_precision, where.threads) == ("cpu", 4, "fp32", 1)
