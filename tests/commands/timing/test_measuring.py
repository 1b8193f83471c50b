"""The verb that writes a table, and what ship makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import pruneport
from pruneport.bench.options import LatencyOptions
from pruneport.bench.timings.table import read_table
from pruneport.cli import main
from pruneport.commands.timing import loop
from pruneport.commands.timing.asked import refuse_latency
from pruneport.compress.options import CompressOptions
from pruneport.errors import TargetError
from pruneport.export.bundle.bundle import open_bundle
from tests.support.quiet import skip_if_noisy

DIGITS = "pruneport:digits_resnet"
QUICK = ("--criterion", "l1", "--ranking", "uniform", "--recover", "none", "--parity-batches", "1", "--batches", "2")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "new" / "table.json"
    assert main(["latency", DIGITS, "--threads", "1", "--repeats", "10", "--out", str(path)]) == 0
    return path


@pytest.mark.slow
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
def test_ship_meets_the_target_of_a_table_and_times_the_finished_file(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("ship", DIGITS, "--weights", "DEFAULT", "--latency", "0.7", "--latency-table", str(table))
    arguments = [*source, *QUICK, "--threads", "1", "--no-dry-export", "--out", str(tmp_path / "bundle")]
    code, said = main(arguments), capsys.readouterr().err
    skip_if_noisy(code, said)
    assert code == 0, said
    plan = json.loads((tmp_path / "bundle/plan.json").read_text())
    bench = json.loads((tmp_path / "bundle/bench.json").read_text())
    reached = plan["latency"]
    assert reached["rounds"][reached["chosen"]]["measured"] is not None
    assert [entry["batch"] for entry in bench["batches"]] == [1, 2], "the target's batch size is timed, too"
    assert "keep 70.0 % of the latency" in (tmp_path / "bundle/README.md").read_text().replace("\u00a0", " ")


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.txt", "expected a file ending in .json"),
        ("folder.json", "is a folder; give a file"),
        ("table", "expected a file ending in .json"),
    ],
)
def test_a_table_goes_into_a_json_file(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.json").mkdir()
    assert main(["latency", DIGITS, "--threads", "1", "--overwrite", "--out", str(tmp_path / name)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / name).is_file()


@pytest.fixture(scope="module")
def slimmer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle at 0.8 of the compute."""
    path = tmp_path_factory.mktemp("slimmer") / "bundle"
    source = (DIGITS, "--weights", "DEFAULT", "--flops", "0.8", "--recover", "none")
    assert main(["compress", *source, "--criterion", "l1", "--ranking", "uniform", "--out", str(path)]) == 0
    return path


PLAIN = ("--criterion", "l1", "--ranking", "uniform", "--recover", "none", "--threads", "1")
LONGER = ("--latency-batch", "32")  # longer runs are timed more surely


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where timings of networks of other widths than the bundle's are kept: all tests ask for the same."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.slow
def test_a_bundle_goes_on_to_a_share_of_its_originals_latency(
    slimmer: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = (*LONGER, "--latency-cache", str(kept))
    out = tmp_path / "faster"
    code = main(["compress", str(slimmer), "--latency", "0.6", *PLAIN, *where, "--out", str(out)])
    shown = capsys.readouterr()
    skip_if_noisy(code, shown.err)
    assert code == 0, shown.err
    said = " ".join((shown.out + shown.err).split())
    taken = re.search(r"what was compressed before takes (0\.\d+|1\.\d+) of the latency of its original", said)
    assert taken is not None
    plan = json.loads((out / "plan.json").read_text())
    reached = plan["latency"]
    assert (reached["asked"], plan["request"]["target"], len(plan["earlier"])) == (0.6, "latency", 1)
    best = reached["rounds"][reached["chosen"]]
    assert best["measured"] < float(taken[1]), "shares are of the original, of which the bundle takes less already"


@pytest.mark.slow
def test_a_sweep_of_a_bundle_goes_to_shares_of_its_originals_latency(
    slimmer: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plan = tmp_path / "sweep", json.loads((slimmer / "plan.json").read_text())
    timing = ("--repeats", "10", "--warmup", "1", "--batches", "1", "--parity-batches", "1")
    where = (*LONGER, "--latency-cache", str(kept))
    code = main(["sweep", str(slimmer), "--latency", "0.8", "0.65", *PLAIN, *where, *timing, "--out", str(out)])
    said = capsys.readouterr().err
    skip_if_noisy(code, said)
    assert code == 0, said
    record = json.loads((out / "sweep.json").read_text())
    assert [(point["target"], point["value"]) for point in record["points"]] == [("latency", 0.8), ("latency", 0.65)]
    for point in record["points"]:
        made = json.loads((out / point["name"] / "plan.json").read_text())
        assert made["latency"]["asked"] == point["value"]
        assert all(entry["measured"] is not None for entry in made["latency"]["rounds"])
        assert [step["pruned"] for step in made["earlier"]] == [plan["pruned"]]
        assert point["figures"]["dense"]["macs"] == made["dense"]["macs"] == plan["dense"]["macs"], "the original's"
        bench = json.loads((out / point["name"] / "bench.json").read_text())
        assert [entry["batch"] for entry in bench["batches"]] == [1, 32], "the target's batch size is timed, too"


@pytest.mark.slow
def test_a_loaded_network_goes_on_to_a_share_of_its_originals_latency(
    slimmer: Path, kept: Path, tmp_path: Path
) -> None:
    pruned = pruneport.prune(
        pruneport.load(slimmer),
        like=slimmer,
        latency=0.6,
        latency_batch=32,
        latency_cache=kept,
        threads=1,
        criterion="l1",
        ranking="uniform",
        recover="none",
    )
    reached = pruned.plan.latency
    assert reached is not None
    assert (reached.asked, reached.batch, len(pruned.plan.earlier)) == (0.6, 32, 1)
    assert pruned.plan.latency_kept == reached.rounds[reached.chosen].measured is not None
    assert pruned.plan.macs_kept < open_bundle(slimmer).plan.macs_kept
    pruned.save(tmp_path / "faster")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(pruneport.load(tmp_path / "faster")(x), pruned.network(x))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["compress", "ship", "sweep"])
def test_no_table_is_of_a_bundles_network(
    verb: str, slimmer: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (verb, str(slimmer), "--latency", "0.5", "--latency-table", str(table), "--recover", "none")
    assert main([*asked, "--out", str(tmp_path / "no")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"error: --latency-table is of a dense network, and {slimmer} is compressed further" in said
    assert "exporting" not in said
    assert main(["latency", str(slimmer), "--out", str(tmp_path / "table.json")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"error: {slimmer} is a bundle, and a table is of a dense network: give the source that it was" in said
    assert list(tmp_path.iterdir()) == []


def test_widths_that_cannot_be_are_met_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (("--max-pruning-ratio", "1.5"), ("--round-to", "0")):
        assert main(["latency", DIGITS, *wrong, "--out", str(tmp_path / "table.json")]) == 2
        said = capsys.readouterr().err
        assert f"error: {wrong[0]} is {wrong[1]}; expected" in said
        assert "building" not in said


def test_a_bundle_without_its_original_or_as_fast_already_is_refused() -> None:
    with pytest.raises(TargetError, match="the dense network of b cannot be had; say with `checkpoint`"):
        refuse_latency("latency", LatencyOptions(), "b", None)
    refuse_latency("flops", LatencyOptions(), "b", None)
    with pytest.raises(TargetError, match=r"takes 7 ms, 0\.700 of its original's latency, already; give less"):
        loop._share_asked(CompressOptions(latency=0.8), 10.0, 0.7)
    assert loop._share_asked(CompressOptions(latency_ms=6.0), 10.0, 0.7) == 0.6


@pytest.mark.parametrize("verb", ["compress", "ship", "sweep"])
def test_a_table_without_branches_is_refused_before_anything_is_measured(
    verb: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ("--latency", "0.7", "--depth", "auto", "--latency-table", str(table))
    given = (verb, DIGITS, "--weights", "DEFAULT", *target)
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "was made without varying depth of blocks" in shown
    assert "Make it with the same --scope, --prune-representation, --attention, --depth and --keep" in shown
    assert "building pruneport:digits_resnet" in shown
    assert not any(stage in shown for stage in ("exporting", "gathering", "scoring", "measuring"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, missing = tmp_path / "folder", tmp_path / "missing.json"
    folder.mkdir()
    for path, fault in ((folder, "is a folder"), (missing, "does not exist")):
        given = ("compress", DIGITS, "--latency", "0.7", "--latency-table", str(path))
        assert main([*given, "--out", str(tmp_path / "out")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"--latency-table: {path} {fault}; expected a table of latencies, a file that pruneport latency" in said
