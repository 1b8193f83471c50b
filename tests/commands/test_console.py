"""What names from outside do to the terminal: nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from pruneport.commands.terminal.console import SafeConsole
from pruneport.commands.terminal.display import Display
from pruneport.progress import Stage
from pruneport.text import can_be_shown, escaped

NAME = "a\x1b[31mred\x1b]0;title\x9b2J\udcff\u202eend [bold] [/x]"
SHOWN = "a\\x1b[31mred\\x1b]0;title\\x9b2J\\udcff\\u202eend [bold] [/x]"


def test_text_is_escaped() -> None:
    assert escaped(NAME) == SHOWN
    assert escaped("two\nlines", keep="\n") == "two\nlines"
    assert not can_be_shown(NAME)
    assert can_be_shown("Käse 日本 👩\u200d🚀 [bold]")


@pytest.mark.parametrize("terminal", [True, False])
def test_every_way_onto_the_console(terminal: bool) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = SafeConsole(file=file, force_terminal=terminal, width=300, color_system="truecolor" if terminal else None)
    table = Table("name")
    table.add_row(Text(NAME))
    console.print(table)
    console.print(NAME, markup=False, soft_wrap=True)
    console.print(Text.assemble((NAME, "bold")))
    with Display(console, NAME) as display:
        display(NAME)
        display(Stage(NAME))
        display(NAME)
    file.seek(0)
    text = file.read()
    assert text.count(SHOWN) >= 5
    for part in ("\x1b[31m", "\x1b]0", "\x9b", "\udcff", "\u202e"):
        assert part not in text
    assert ("\x1b[1m" in text) is terminal  # its own styles stay


def test_the_name_of_an_image_that_cannot_be_read(run: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    name = os.fsencode(tmp_path) + b"/images/x\xff\x1b[31m[bold][x].png"
    Path(os.fsdecode(name)).write_bytes(b"no image")
    given = ("--flops", "0.5", "--out", tmp_path / "out", "--calibration", tmp_path / "images")
    code, out, err = run("compress", "pruneport:digits_resnet", *given)
    assert (code, out) == (2, "")
    assert "/x\\udcff\\x1b[31m[bold][x].png cannot be read" in err
    assert "\x1b" not in err
