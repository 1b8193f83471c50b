"""What was timed as an object, and as the file that earlier versions wrote."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pruneport.bench.latency.records import Measured

_EARLIER = Path(__file__).parents[2] / "data" / "earlier" / "shipped" / "bench.json"


def test_a_file_read_and_written_again_is_the_same() -> None:
    text = _EARLIER.read_text()
    measured = msgspec.convert(json.loads(text), Measured)
    assert measured.batches[0].dense.p50_ms > 0
    assert json.dumps(measured.to_dict(), indent=1) + "\n" == text
