"""The closed loop on a small network, in ONNX Runtime; no figure is expected but that there is one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruneport
from pruneport.bench.latency.timer import TimedShare
from pruneport.bench.options import LatencyOptions
from pruneport.bench.timings.table import read_table
from pruneport.commands.timing import loop
from pruneport.commands.timing.asked import timed_in
from pruneport.compress.surgery.plan import parse_plan
from pruneport.errors import InputError, TargetError
from pruneport.export.options import ExportOptions
from pruneport.progress import Note
from small_networks import randomise_norms

QUICK: dict[str, Any] = {
    "input_shape": (3, 24, 24),
    "criterion": "l1",
    "ranking": "uniform",
    "recover": "none",
    "threads": 1,
    "repeats": 40,
}


class Chain(nn.Module):
    """Wide enough for a step of 16 to leave a choice."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 96, 64)
        pairs = itertools.pairwise(widths)
        layers = [(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs]
        self.body = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Chain()
    randomise_norms(network)
    return network.eval()


@pytest.fixture(scope="module")
def cache(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with timings of the network on this machine."""
    folder = tmp_path_factory.mktemp("cache")
    pruneport.prune(network, latency=0.7, latency_cache=folder, **QUICK)
    return folder


@pytest.mark.slow
def test_the_loop_ends_with_a_recorded_measurement(network: nn.Module, cache: Path) -> None:
    said: list[str] = []
    pruned = pruneport.prune(network, latency=0.6, latency_cache=cache, progress=said.append, **QUICK)
    reached = pruned.plan.latency
    assert reached is not None
    assert 1 <= len(reached.rounds) <= 3
    assert (reached.asked, reached.asked_ms, reached.batch, reached.clock) == (0.6, None, 1, "thread-cpu")
    for entry in reached.rounds:
        assert entry.measured is not None
        assert entry.low is not None
        assert entry.high is not None
        assert entry.low <= entry.measured <= entry.high
    assert pruned.plan.latency_kept == reached.rounds[reached.chosen].measured
    assert pruned.plan.latency_kept is not None
    assert 0 < pruned.plan.latency_kept < 1, "a network of half the width is faster, whatever the machine does"
    assert (pruned.plan.request.target, pruned.plan.request.value) == ("latency", 0.6)
    assert parse_plan(pruned.plan.to_json()).latency == reached
    assert "latency" not in json.loads(replace(pruned.plan, latency=None).to_json())
    assert [line for line in said if isinstance(line, Note) and "are used again" in line]
    widths = {group.name: group.kept_width for group in pruned.plan.groups}
    assert all(widths[name] % reached.step == 0 for name in ("body.0", "body.3"))


@pytest.mark.slow
def test_measured_damage_is_solved_for_within_the_latency(network: nn.Module, cache: Path) -> None:
    options = {**QUICK, "criterion": "auto", "ranking": "sensitivity"}
    inputs = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    pruned = pruneport.prune(network, latency=0.6, latency_cache=cache, calibration=inputs.split(16), **options)
    assert pruned.plan.latency is not None
    assert pruned.plan.latency.rounds[0].predicted <= 0.6 + 0.01
    assert pruned.plan.request.ranking == "sensitivity"


@pytest.mark.slow
def test_a_target_in_int8_is_met_by_files_in_int8(network: nn.Module, cache: Path, tmp_path: Path) -> None:
    pruned = pruneport.prune(network, latency=0.6, latency_precision="int8", latency_cache=tmp_path, **QUICK)
    reached = pruned.plan.latency
    assert reached is not None
    assert (reached.precision, ", int8" in reached.where) == ("int8", True)
    assert reached.rounds[reached.chosen].measured is not None
    assert parse_plan(pruned.plan.to_json()).latency == reached
    (table,) = tmp_path.glob("*.json")
    assert read_table(table).place.precision == "int8"
    assert table.name not in {path.name for path in cache.iterdir()}, "timings in fp32 have another key"


def test_the_target_counts_in_int8_where_int8_is_shipped() -> None:
    where = LatencyOptions()
    both = ExportOptions(precisions=("fp32", "int8"))
    assert timed_in(where, both).latency_precision == "int8"
    assert timed_in(where, ExportOptions()).latency_precision == "fp32"
    assert timed_in(replace(where, latency_precision="fp32"), both).latency_precision == "fp32"
    assert timed_in(replace(where, latency_table=Path("t.json")), both).latency_precision is None, "the table's"


@pytest.mark.slow
def test_milliseconds_are_a_share_of_what_dense_takes(network: nn.Module, cache: Path) -> None:
    dense_ms = read_table(next(cache.glob("*.json"))).dense_ms
    try:
        pruned = pruneport.prune(network, latency_ms=0.7 * dense_ms, latency_cache=cache, **QUICK)
    except TargetError as error:
        if "expected fewer milliseconds" in str(error):
            pytest.skip(f"the machine is over 1.4 times as fast as when dense took {dense_ms:.3g} ms: {error}")
        raise
    reached = pruned.plan.latency
    assert reached is not None
    assert reached.asked_ms == 0.7 * dense_ms
    assert 0.35 < reached.asked < 1
    with pytest.raises(TargetError, match=r"`latency_ms` is 1e\+06, and the dense network takes .* expected fewer"):
        pruneport.prune(network, latency_ms=1e6, latency_cache=cache, **QUICK)


@pytest.mark.slow
def test_a_target_out_of_reach_says_the_lowest_and_what_was_measured(network: nn.Module, cache: Path) -> None:
    with pytest.raises(
        TargetError, match=r"`latency=0\.01` cannot be reached: .* lowest is 0\.\d+ of dense, and 0\.\d+ was measured"
    ):
        pruneport.prune(network, latency=0.01, latency_cache=cache, **QUICK)


@pytest.mark.slow
def test_timings_that_cannot_be_read_are_made_again(network: nn.Module, cache: Path, tmp_path: Path) -> None:
    kept = next(cache.glob("*.json"))
    damaged = tmp_path / kept.name
    damaged.write_bytes(kept.read_bytes()[:500])
    said: list[str] = []
    pruned = pruneport.prune(network, latency=0.6, latency_cache=tmp_path, progress=said.append, **QUICK)
    assert pruned.plan.latency_kept is not None
    assert [line for line in said if isinstance(line, Note) and "cannot be read, and are made again" in line]
    assert read_table(damaged).network == read_table(kept).network
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def edited(cache: Path, folder: Path, **changes: Any) -> Path:
    """The kept table with other fields; those of its place by their names."""
    table = json.loads(next(cache.glob("*.json")).read_text())
    for name, value in changes.items():
        (table["place"] if name in table["place"] else table)[name] = value
    path = folder / "table.json"
    path.write_text(json.dumps(table))
    return path


def test_the_table_of_another_device_predicts_and_says_so(network: nn.Module, cache: Path, tmp_path: Path) -> None:
    path = edited(cache, tmp_path, device="a far processor")
    pruned = pruneport.prune(network, latency=0.6, latency_table=path, **QUICK)
    reached = pruned.plan.latency
    assert reached is not None
    assert len(reached.rounds) == 1
    assert reached.rounds[0].measured is pruned.plan.latency_kept is None
    assert abs(reached.rounds[0].predicted - 0.6) < 0.1
    assert "as predicted for cpu on a far processor" in (pruned.plan.note or "")
    assert "was not measured" in (pruned.plan.note or "")


@pytest.mark.slow
def test_a_table_of_this_device_closes_the_loop(network: nn.Module, cache: Path, tmp_path: Path) -> None:
    options = {**QUICK, "threads": None}  # the table says one
    pruned = pruneport.prune(network, latency=0.6, latency_table=edited(cache, tmp_path), **options)
    assert pruned.plan.latency_kept is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"network": "0" * 64}, {}, "has timings of another network"),
        ({"varied": ["body.0"]}, {}, r"was made without varying body\.3\. Make it with the same `scope`"),
        ({"onnxruntime": "1.0"}, {}, "is of this device, but of another version: .*ONNX Runtime 1.0"),
        ({}, {"latency_batch": 4}, r"batch 1, fp32, but `latency_batch` is 4"),
        ({"precision": "int8"}, {"latency_precision": "fp32"}, r"batch 1, int8, but `latency_precision` is fp32"),
        ({"precision": "int4"}, {}, "is not a table of latencies: .*precision"),
        ({"threads": 2}, {}, "2 threads, .* but `threads` is 1"),
        ({"format_version": 9}, {}, "has format 9; this pruneport reads format 1"),
        ({"dense_ms": -1}, {}, "is not a table of latencies: .*dense_ms"),
    ],
)
def test_tables_that_do_not_fit(
    changes: dict[str, Any], options: dict[str, Any], said: str, network: nn.Module, cache: Path, tmp_path: Path
) -> None:
    path = edited(cache, tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        pruneport.prune(network, latency=0.6, latency_table=path, **{**QUICK, **options})


@pytest.mark.slow
def test_a_timer_that_cannot_tell_asks_for_more(
    network: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    time: Callable[..., TimedShare] = loop.DenseTimer.time

    def noisy(timer: Any, path: Path, rounds: int) -> TimedShare:
        asked.append(rounds)
        return replace(time(timer, path, 2), share=0.6, low=0.5, high=0.7, rounds=rounds)

    monkeypatch.setattr(loop.DenseTimer, "time", noisy)
    with pytest.raises(
        TargetError, match=r"too noisy .* is 0\.600, with a 95 % interval from 0\.500 to 0\.700.*`repeats`"
    ):
        pruneport.prune(network, latency=0.6, latency_cache=cache, **QUICK)
    assert asked[-1] == 9 * asked[-3]


def test_a_timer_that_tells_less_than_it_should_is_believed_and_said(
    network: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time: Callable[..., TimedShare] = loop.DenseTimer.time

    def shaky(timer: Any, path: Path, rounds: int) -> TimedShare:
        return replace(time(timer, path, 2), share=0.6, low=0.58, high=0.62, rounds=rounds)

    monkeypatch.setattr(loop.DenseTimer, "time", shaky)
    pruned = pruneport.prune(network, latency=0.6, latency_cache=cache, **QUICK)
    assert pruned.plan.latency_kept == 0.6
    assert "measured 0.6000 (0.5800 to 0.6200)" in pruned.plan.note
    assert "the machine is too noisy to tell more" in pruned.plan.note
    assert "multiples" not in pruned.plan.note, "the target is met, as far as can be told"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latency": -0.1}, "`latency` is -0.1; expected a share of dense to keep between 0 and 1"),
        ({"latency": 60.0}, r"`latency` is 60; .* Did you mean 0\.6\?"),
        ({"latency_ms": -3.0}, "`latency_ms` is -3; expected milliseconds above 0"),
        ({"latency_ms": float("inf")}, "`latency_ms` is inf"),
        ({"latency": 0.5, "macs": 0.5}, "given: `macs` and `latency`"),
        ({"latency": 0.5, "latency_batch": 0}, "`latency_batch` is 0; expected at least 1"),
        (
            {"macs": 0.5, "latency_batch": 4},
            "`latency_batch` and `repeats` and `threads` without a latency as the target, which is `macs`: give",
        ),
        (
            {"latency": 0.5, "latency_precision": "int8", "provider": "cuda"},
            "`latency_precision` is int8, and `provider` is cuda: .* no int8 kernels",
        ),
        ({"latency": 0.5, "latency_precision": "bf16"}, "`latency_precision` is 'bf16'; expected one of fp32, fp16"),
        ({"latency": 0.5, "latency_precision": "fp16"}, "`latency_precision` is fp16, and `provider` is cpu, which"),
        ({"latency": 0.5, "repeats": 1}, "repeats must be at least 2"),
        ({"latency": 0.5, "latency_table": "nowhere.json"}, "nowhere.json does not exist"),
    ],
)
def test_targets_that_are_none(options: dict[str, Any], said: str, network: nn.Module) -> None:
    with pytest.raises(InputError, match=said):
        pruneport.prune(network, **{**QUICK, **options})


@pytest.mark.slow
def test_a_network_of_which_nothing_can_go_says_why(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"nothing can be pruned with these options:\n  body\.0 \(64\): kept by `keep`"
    ):
        pruneport.prune(network, latency=0.6, latency_cache=tmp_path / "cache", **{**QUICK, "keep": ("body.*",)})
    assert not list(tmp_path.iterdir())
