"""What tests of the command line give and read: quick timings, the embedded network, JSON files, wrapped messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUICK = ("--repeats", "2", "--warmup", "1", "--batches", "1")
DIGITS = ("pruneport:digits_resnet", "--weights", "DEFAULT", "--flops", "0.5", "--recover", "none")


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def one_line(text: str) -> str:
    """Text as it was before the console wrapped it."""
    return " ".join(text.split())
