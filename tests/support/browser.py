"""A page as Chromium lays it out."""

from __future__ import annotations

import json
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

__all__ = ["BROWSER", "browse", "layouts"]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_MEASURE = """
onload = () => {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument;
    page.querySelectorAll('details').forEach(element => element.open = true);
    const wide = [...page.querySelectorAll('*')].filter(element =>
      ['auto', 'scroll'].includes(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth);
    const right = Math.max(...[...page.querySelectorAll('td, th, dd, p, pre, svg')].map(element =>
      element.closest('thead, .drawing') ? 0 : element.getBoundingClientRect().right));
    const shown = [...page.querySelectorAll('svg')].filter(element => element.clientWidth).length;
    return {width: page.documentElement.clientWidth, scroll: page.documentElement.scrollWidth, right: right,
            wide: wide.map(element => element.outerHTML.slice(0, 80)), shown: shown};
  });
  document.body.textContent = JSON.stringify(found);
};
"""


def browse(page: Path, profile: Path, *flags: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, *_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=120, encoding="utf-8").stdout


def layouts(page: str, folder: Path) -> list[dict[str, Any]]:
    """How a page is laid out on screens of 320 to 1200 pixels.

    Each has its ``width`` and that of all there is to ``scroll``; the ``right`` end of what reaches furthest; ``wide``,
    the elements that are wider than their place; and how many drawings are ``shown``.
    """
    frames = "".join(f'<iframe width="{width}" height="900"></iframe>' for width in (320, 400, 700, 900, 1200))
    frames = frames.replace("></iframe>", f' srcdoc="{escape(page)}"></iframe>')
    host = folder / "host.html"
    host.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{frames}<script>{_MEASURE}</script></body>")
    document = browse(host, folder / "profile", "--dump-dom", "--window-size=1400,900")
    measured: list[dict[str, Any]] = json.loads(unescape(document[document.index("[{") : document.rindex("]") + 1]))
    return measured
