"""Progress: numbered stages, counts and the time left; on a real terminal, in a log, and for any callable."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pruneport.commands import CompressConfig, compress
from pruneport.commands.terminal import display
from pruneport.commands.terminal.display import Display, spoken
from pruneport.progress import Note, Stage, Step, numbered

_SHIP = ("ship", "pruneport:digits_resnet", "--weights", "DEFAULT", "--flops", "0.5", "--recover", "none")
_QUICK = ("--repeats", "3", "--warmup", "1", "--batches", "1", "--parity-batches", "1")

_TIME = r"(?:\d[\d.]* s|\d+ min \d+ s)"  # as long as it takes where other work runs beside it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes when a test says so."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def _on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run the command line on a terminal of its own; return its exit code and what it wrote there."""
    leader, follower = os.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    command = [sys.executable, "-m", "pruneport.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # Linux' way to say that the other end is closed
                break
            if not part:
                break
            written += part
    os.close(leader)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


@pytest.mark.slow
def test_a_terminal_keeps_finished_stages_with_their_times(tmp_path: Path) -> None:
    code, screen = _on_a_terminal(*_SHIP, *_QUICK, "--out", tmp_path / "out")
    assert code == 0, screen
    kept = re.findall(rf"✓ (?:\[(\d+)/11\] )?([^\r\n]+?)  ({_TIME})", screen)
    assert [number for number, _, _ in kept] == ["", *(str(number) for number in range(1, 12))]
    assert [text for _, text, _ in kept[:5]] == [
        "loading torch",
        "building pruneport:digits_resnet",
        "exporting the dense network",
        "gathering calibration inputs",
        "scoring filters and groups",
    ]
    table = screen[screen.rindex("share") :]
    assert re.search(rf"\[10/11\] timing +{_TIME} +\d+%", table)
    assert re.search(rf"\nall +{_TIME}", table.replace("\r", ""))
    timing = screen[screen.index("[10/11] timing") : screen.index("✓ [10/11] timing")]
    assert "3 timed rounds" in timing
    assert not re.search("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", timing)  # nothing is redrawn beside the timed rounds


@pytest.mark.slow
def test_a_failure_marks_its_stage_on_a_terminal(tmp_path: Path) -> None:
    limit = ("--max-pruning-ratio", "0.1")  # the target is out of reach
    code, screen = _on_a_terminal("compress", *_SHIP[1:], *limit, "--out", tmp_path / "out")
    assert code == 2
    assert re.search(r"✗ \[4/6\] choosing widths and removing filters", screen)
    assert "nothing can be pruned" in screen
    assert "share" not in screen


def test_something_is_said_before_anything_slow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os\nos.write(2, b'torch is imported\\n')\nos._exit(1)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "pruneport.cli", "inspect", "torchvision:resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stderr.splitlines() == ["loading torch", "torch is imported"]


@pytest.mark.slow
def test_a_log_has_plain_lines_and_a_table(run: Any, tmp_path: Path) -> None:
    done = run(*_SHIP, *_QUICK, "--out", tmp_path / "out", "--json")
    assert done.code == 0
    assert "\x1b" not in done.err
    assert "✓" not in done.err
    lines = done.err.splitlines()
    assert lines[:2] == ["loading torch", "[1/11] building pruneport:digits_resnet"]
    assert lines[lines.index("[2/11] exporting the dense network") + 1] == "exporting dense.onnx"
    assert lines[lines.index("[8/11] exporting to ONNX") + 1] == "exporting model.onnx"
    assert lines.count("exporting dense.onnx") == 1
    assert lines.index("exporting dense.onnx") < lines.index("finding coupled groups")
    assert re.fullmatch(r"\[11/11\] writing the report +[\d.]+ s +\d+%", lines[-2])
    assert re.fullmatch(r"all +[\d.]+ s *", lines[-1])


@pytest.mark.slow
def test_any_callable_sees_the_text(tmp_path: Path) -> None:
    said: list[str] = []
    source = "pruneport:digits_resnet"
    compress(CompressConfig(source=source, weights="DEFAULT", flops=0.5, out=tmp_path / "out"), said.append)
    stages = [line for line in said if isinstance(line, Stage)]
    assert [(stage.number, stage.total) for stage in stages] == [(number, 6) for number in range(1, 7)]
    steps = [line for line in said if isinstance(line, Step)]
    assert {"measuring group 1 of 3: blocks.0.conv1", "making synthetic inputs, batch 1 of 9"} <= set(steps)
    assert all(0 <= step.done < step.total for step in steps)
    assert all(type(line) in (str, Stage, Step, Note) for line in said)


def test_stages_are_numbered_in_turn() -> None:
    said: list[Any] = []
    progress = numbered(said.append, 2)
    for line in (Stage("one"), "a", Step("b", 0, 2), Stage("two", still=True), Stage("more than were announced")):
        progress(line)
    stages = [(line, line.number, line.total, line.still) for line in said if isinstance(line, Stage)]
    assert stages == [("one", 1, 2, False), ("two", 2, 2, True), ("more than were announced", 3, 3, False)]
    assert said[1:3] == ["a", "b"]
    assert said[2].total == 2


def _log(clock: list[float], lines: list[tuple[float, str]]) -> list[str]:
    out = io.StringIO()
    with Display(Console(file=out, width=80), "begin") as shown:
        for at, line in lines:
            clock[0] = at
            shown(line)
    return out.getvalue().splitlines()


def test_the_time_left_of_a_counted_stage(clock: list[float]) -> None:
    counted = [(0.0, Stage("solving", number=1, total=1)), *((4.0 * n, Step(f"layer {n}", n, 10)) for n in range(4))]
    lines = _log(clock, [*counted, (13.0, Note("left as it is"))])
    assert lines[:6] == [
        "begin",
        "[1/1] solving",
        "layer 0",
        "layer 1",
        "layer 2 (about 32 s left)",
        "layer 3 (about 28 s left)",
    ]
    assert lines[6] == "left as it is"
    assert re.fullmatch(r"\[1/1\] solving +13 s +100%", lines[-2])


def test_a_count_that_goes_on_from_before_is_not_taken_for_fast(clock: list[float]) -> None:
    shares = [(10.0 * n, Step("training", 0.5 + 0.01 * n, 1)) for n in range(3)]  # resumed half way
    assert _log(clock, [(0.0, Stage("training")), *shares])[4] == "training (about 8 min 0 s left)"
    known = [(0.0, Step("a", 1, 9)), (60.0, Step("b; about 3 min left", 2, 9, left_s=180.0))]
    assert "b; about 3 min left" in _log(clock, known)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 0 s"), (252, "4 min 12 s"), (7500, "2 h 5 min")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
