"""The study that needs nothing but scikit-learn, as it is typed, and its report in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruneport.bench.transfer.options import StudyOptions
from pruneport.bench.transfer.store import Finished, open_store
from pruneport.bench.transfer.study import Trial, identity
from pruneport.compress.finetune.state import Event

_TENTH = ("--kept", "1", "0.5", "--budgets", "1e9", "3e9", "--seeds", "0")  # of the grid; all of it takes minutes
_STUDIES = Path(__file__).resolve().parents[2] / "bench" / "studies"


@pytest.mark.browser
@pytest.mark.slow
def test_the_digits_study_and_its_report(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    done = run("transfer", _STUDIES / "digits.yaml", *_TENTH, "--out", out, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["trials"]["done"] == summary["trials"]["wanted"] == 18
    (network,) = summary["networks"]
    assert network["tasks"] == ["pruneport:digits-inverted", "pruneport:digits-mirrored", "pruneport:digits-parity"]
    assert {law["scope"] for law in network["laws"] if "chosen" in law} == {"filters", "channels"}
    assert network["scopes"]
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is not None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        page = [browser, *flags, (out / "report.html").as_uri()]
        document = subprocess.run(page, capture_output=True, check=True, timeout=120, encoding="utf-8").stdout
        assert document.count("<svg") == 6  # each plot wide and narrow
        assert "More than 20 % better at low budgets" in document
        assert "<script" not in document
    advised = run("transfer", "--advise", "--budget", "1e10", "--task", "pruneport:digits-parity", "--out", out)
    assert advised.code == 0, advised.err
    assert "of the MACs" in advised.out


def _finished(kept: float, budget: float, error: float) -> Finished:
    scope, recipe = ("dense", "none") if kept == 1 else ("filters", "auto/auto/auto")
    trial = Trial(network="net", task="birds", kept=kept, scope=scope, recipe=recipe, budget=budget, seed=0)
    event = Event(step=1, flops=budget, error=error, loss=1.0, macs=10, seconds=1.0)
    return Finished(trial=trial, events=(event,), wall_s=60.0, host="here")


def test_failed_trials_are_reported_and_counted(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = _finished(1.0, 1e10, 0.5)
    failed = replace(_finished(0.5, 1e10, 0.5), events=(), error="RuntimeError: out of memory")
    monkeypatch.setattr("pruneport.commands.transferring.run_study", lambda *_: [done, failed])
    grid = ("--networks", "net", "--tasks", "birds", "--kept", 1, 0.5, "--budgets", "1e10", "--seeds", 0)
    (tmp_path / "out").mkdir()
    ran = run("transfer", *grid, "--out", tmp_path / "out")
    assert ran.code == 1
    assert "check failed: 1 of 2 trials failed, the first with: RuntimeError: out of memory" in ran.err
    assert str(tmp_path / "out" / "report.html") in ran.err
    assert "1 trials failed" in (tmp_path / "out" / "report.html").read_text()
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["trials"]["failed"]
    assert entry["error"] == "RuntimeError: out of memory"


def test_advice_on_a_task_of_ones_own(run: Any, tmp_path: Path) -> None:
    asked = ("transfer", "--advise", "--out", tmp_path, "--budget")
    with open_store(tmp_path, identity(StudyOptions())) as store:
        store.add(_finished(1.0, 1e10, 0.5))
        assert "only the dense network has results for net" in run(*asked, "1e10").err
        store.add(_finished(0.5, 1e10, 0.25))
        above, below = run(*asked, "3e10"), run(*asked, "1e9")
        for budget, dense, half in ((3e10, 0.4, 0.2), (1e11, 0.3, 0.18), (3e11, 0.2, 0.16)):
            store.add(_finished(1.0, budget, dense))
            store.add(_finished(0.5, budget, half))
        law, plain = run(*asked, "2e10"), json.loads(run(*asked, "2e10", "--json").out)
    assert above.code == 0, above.err
    assert "keep 50% of the MACs" in above.out
    assert "The best measured with 1e+10 FLOPs, the nearest budget run at or below it. No law: a law needs" in above.out
    assert "25.0%" in above.out
    assert "the smallest budget run, which is above it" in below.out
    assert "not checked on another task" in law.out
    assert "measured with 1e+10 FLOPs" in law.out
    assert plain["advice"]["measured"]["errors"] == {"0.5": 0.25, "1": 0.5}


@pytest.mark.slow
@pytest.mark.wheel
def test_a_study_that_has_not_ended_is_reported(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_store(out, identity(StudyOptions())) as store:  # held open, as by the study that runs
        said = run("transfer", "--report", "--out", out).err.splitlines()
        assert said[0] == "loading torch"
        assert said[1].startswith("error: nothing of this study has run in")
        for kept, error in ((1.0, 0.5), (0.5, 0.25)):
            store.add(_finished(kept, 1e10, error))
        done = run("transfer", "--report", "--out", out, "--json")
        assert done.code == 0, done.err
        grid = ("--networks", "net", "--tasks", "birds", "--kept", 1, 0.5, "--budgets", "1e10", "1e11", "--seeds", 0)
        of_four = run("transfer", "--report", *grid, "--out", out, "--json")
        other = run("transfer", "--report", *grid, "--seeds", 7, "--out", out)
    summary = json.loads(done.out)
    assert (summary["trials"]["done"], summary["trials"]["wanted"]) == (2, 2)
    (network,) = summary["networks"]
    assert {way["kept"]: way["points"][0]["error"] for way in network["stream"]} == {1.0: 0.5, 0.5: 0.25}
    assert "50 %" in (out / "report.html").read_text()
    assert (json.loads(of_four.out)["trials"]["done"], json.loads(of_four.out)["trials"]["wanted"]) == (2, 4)
    assert other.code == 2
