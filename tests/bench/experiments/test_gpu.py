"""The table of a GPU, tried on the CPU with a tiny network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gpu_stand_ins import GpuRuntime
from pruneport.bench.experiments import gpu
from pruneport.bench.experiments.networks import gpu as gpu_networks
from pruneport.bench.experiments.networks.gpu import files_of, write_networks
from pruneport.bench.options import BenchOptions
from pruneport.compress.options import PruneOptions

pytestmark = pytest.mark.slow  # the networks' files take ten seconds to make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the networks' files where ``--out rows.json`` looks for them; one share is out of reach."""
    folder = tmp_path_factory.mktemp("gpu")
    options = PruneOptions(flops=0.5, criterion="l1", ranking="uniform", scope="channels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_networks, "_SEARCHES", 2)
        write_networks("digits", [0.6, 0.01], ["fp32"], folder / "rows-networks" / "digits-channels-8", options)
    return folder


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> list[dict[str, object]]:
    given = ["gpu", "--networks", "digits", "--out", str(folder / "rows.json"), "--repeats", "2", *words]
    monkeypatch.setattr(sys, "argv", [*given, "--worker", "--provider", "cpu", "--precisions", "fp32"])
    gpu.main()
    return gpu._rows(folder / "rows.json")


def test_rows_are_written_one_by_one_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = ("--end", "1e12", "--batches")
    (row,) = _run(monkeypatch, folder, *far, "1")
    one, two = _run(monkeypatch, folder, *far, "1", "2")
    assert one == row, "it is not timed again"
    assert (two["batch"], two["precision"], two["cuda_graph"]) == (2, "fp32", False)
    networks = two["networks"]
    assert isinstance(networks, dict)
    assert set(networks) >= {"dense", "pruneport 0.6", "torch-pruning 0.6"}
    ours = networks["pruneport 0.6"]
    assert 0.5 < ours["macs_kept"] <= 0.6
    assert set(ours) >= {"p50_ms", "speedup over dense", "speedup over torch-pruning", "share of the reduction"}
    assert "pruneport 0.01" in two["left_out"]  # type: ignore[operator]
    assert _run(monkeypatch, folder, "--end", "0", "--batches", "3") == [one, two], "no time is left"


def test_a_row_that_failed_is_tried_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows-networks").symlink_to(folder / "rows-networks")
    runtime = GpuRuntime.installed(monkeypatch)
    runtime.fails = "device lost"
    (row,) = _run(monkeypatch, tmp_path, "--end", "1e12", "--batches", "1")
    assert "device lost" in str(row["failed"])
    runtime.fails = ""
    (row,) = _run(monkeypatch, tmp_path, "--end", "1e12", "--batches", "1")
    assert "failed" not in row
    json.dumps(row)


def test_rows_of_other_options_are_timed_again_where_that_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows-networks").symlink_to(folder / "rows-networks")
    words = ("--end", "1e12", "--batches", "1", "--shares", "0.6", "0.01")
    (first,) = _run(monkeypatch, tmp_path, *words)
    assert _run(monkeypatch, tmp_path, *words, "--again") == [first]
    assert gpu._is_stale(first, BenchOptions(), [0.6, 0.3])  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "provider_options", lambda *_: {"use_tf32": "1"})
    assert _run(monkeypatch, tmp_path, *words) == [first]
    (second,) = _run(monkeypatch, tmp_path, *words, "--again")
    assert second["networks"] != first["networks"]


def test_the_options_of_rows_that_were_measured_are_known() -> None:
    """Of the table, only rows in fp16 that were timed without tensor cores for convolutions are out of date."""
    rows = json.loads((Path(gpu.__file__).parents[1] / "results" / "gpu.json").read_text(encoding="utf-8"))["rows"]
    stale = set()
    for row in rows:
        switches = {name: row["recipe"][name] for name in ("nhwc", "fuse_conv_bias")}
        switches |= {"tf32": row["precision"] == "tf32", "cuda_graph": row["cuda_graph"]}
        options = BenchOptions(provider=row["provider"], **switches)
        if gpu._is_stale(row, options, []):
            stale.add((row["network"], row["precision"]))
    assert stale == {("vit_b_16", "fp16"), ("convnext_tiny", "fp16")}


def test_files_are_written_once(folder: Path) -> None:
    place = folder / "rows-networks" / "digits-channels-8"
    entries = {entry.name: entry for entry in files_of(place)}
    assert entries["dense"].macs_kept == 1
    assert entries["pruneport 0.01"].failed is not None
    times = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    options = PruneOptions(flops=0.5, criterion="l1", ranking="uniform", scope="channels")
    write_networks("digits", [0.6, 0.01], ["fp32"], place, options)
    assert times == {path: path.stat().st_mtime_ns for path in place.iterdir()}
