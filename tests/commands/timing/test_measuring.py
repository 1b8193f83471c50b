"""The verb that writes a table, and what ship makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruneport.bench.latency.table import read_table
from pruneport.cli import main

DIGITS = "pruneport:digits_resnet"
QUICK = ("--criterion", "l1", "--ranking", "uniform", "--recover", "none", "--parity-batches", "1", "--batches", "2")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "new" / "table.json"
    assert main(["latency", DIGITS, "--threads", "1", "--repeats", "10", "--out", str(path)]) == 0
    return path


def test_a_table_says_where_it_holds(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = read_table(table)
    assert (content.place.provider, content.place.threads, content.place.batch) == ("cpu", 1, 1)
    assert (content.clock, content.source) == ("thread-cpu", DIGITS)
    assert len(content.timings) == 24
    assert len({entry.kept for entry in content.timings}) > 3
    assert all(entry.low <= entry.share <= entry.high for entry in content.timings)
    assert set(content.varied) == {"blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"}
    before = table.read_bytes()
    assert main(["latency", DIGITS, "--out", str(table)]) == 2
    assert "choose another --out, or give --overwrite" in capsys.readouterr().err.replace("\n", " ")
    assert table.read_bytes() == before


@pytest.mark.slow
def test_ship_meets_the_target_of_a_table_and_times_the_finished_file(table: Path, tmp_path: Path) -> None:
    source = ("ship", DIGITS, "--weights", "DEFAULT", "--latency", "0.7", "--latency-table", str(table))
    arguments = [*source, *QUICK, "--threads", "1", "--no-dry-export", "--out", str(tmp_path / "bundle")]
    assert main(arguments) == 0
    plan = json.loads((tmp_path / "bundle/plan.json").read_text())
    bench = json.loads((tmp_path / "bundle/bench.json").read_text())
    reached = plan["latency"]
    assert reached["rounds"][reached["chosen"]]["measured"] is not None
    assert [entry["batch"] for entry in bench["batches"]] == [1, 2], "the target's batch size is timed, too"
    assert "keep 70.0 % of the latency" in (tmp_path / "bundle/README.md").read_text().replace("\u00a0", " ")


def test_a_table_of_another_device_only_predicts(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(table.read_text())
    content["place"]["device"] = "a far processor"
    (tmp_path / "far.json").write_text(json.dumps(content))
    source = ("compress", DIGITS, "--weights", "DEFAULT", "--latency", "0.7", "--criterion", "l1", "--recover", "none")
    table_there = ("--ranking", "uniform", "--latency-table", str(tmp_path / "far.json"))
    assert main([*source, *table_there, "--out", str(tmp_path / "bundle")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "predicted for cpu on a far processor" in said
    assert "latency, batch 1" in said
    assert "%, predicted" in said


@pytest.mark.parametrize("name", ["x.txt", "folder.json", "table"])
def test_a_table_goes_into_a_json_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.json").mkdir()
    assert main(["latency", DIGITS, "--threads", "1", "--overwrite", "--out", str(tmp_path / name)]) == 2
    assert "expected a file ending in .json" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / name).is_file()
