"""The README's picture is what a browser shows of a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pruneport.bench.experiments.picture import photograph
from pruneport.bench.report.report import render_report

_DATA = Path(__file__).parents[2] / "data"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), reason="no browser")
def test_a_picture_of_a_report(tmp_path: Path) -> None:
    plan, verify, bench = (
        json.loads((_DATA / f"sample_{name}.json").read_text(encoding="utf-8")) for name in ("plan", "verify", "bench")
    )
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_report(plan, verify, bench), encoding="utf-8")
    photograph(page, picture)
    with Image.open(picture) as image:
        assert image.size == (900, 2300)
        assert image.convert("RGB").getpixel((890, 10)) == (0xFC, 0xFC, 0xFB)  # the light scheme, and no scrollbar


def test_without_a_browser_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no browser on the path"):
        photograph(tmp_path / "report.html", tmp_path / "report.png")
