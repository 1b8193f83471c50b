"""The study that needs nothing but scikit-learn, as it is typed, and its report in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_STUDIES = Path(__file__).resolve().parents[2] / "bench" / "studies"


@pytest.mark.study
@pytest.mark.browser
def test_the_digits_study_and_its_report(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    done = run("transfer", _STUDIES / "digits.yaml", "--out", out, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["trials"]["done"] == summary["trials"]["wanted"] == 168
    (network,) = summary["networks"]
    assert network["tasks"] == ["pruneport:digits-inverted", "pruneport:digits-mirrored", "pruneport:digits-parity"]
    assert {law["scope"] for law in network["laws"] if "chosen" in law} == {"filters", "channels"}
    assert network["scopes"]
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is not None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        page = [browser, *flags, (out / "report.html").as_uri()]
        document = subprocess.run(page, capture_output=True, check=True, timeout=120, encoding="utf-8").stdout
        assert document.count("<svg") == 3
        assert "More than 20 % better at low budgets" in document
        assert "<script" not in document
    advised = run("transfer", "--advise", "--budget", "1e10", "--task", "pruneport:digits-parity", "--out", out)
    assert advised.code == 0, advised.err
    assert "of the MACs" in advised.out
