"""Options are named as Python does in the rooms, and as flags to whoever types them."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pruneport
from pruneport.commands import InspectConfig, configs, inspect
from pruneport.commands.arguments.flag_names import with_flags
from pruneport.commands.terminal.display import Display
from pruneport.errors import TargetError
from pruneport.progress import Note, Stage, Step
from pruneport.text import OPTION

_PACKAGE = Path(pruneport.__file__).parent
_ROOMS = ("models", "compress", "export", "bench")
_TYPED_ONLY = {
    "flag_names.py",
    "flags.py",
    "flag_groups.py",
    "flag_values.py",
    "slips.py",
    "tables.py",
    "parts.py",
}  # of commands: nobody else reads what they say
_ALLOWED = (  # other programs' flags, a style's name, and one command to be typed as it stands
    "pip install --upgrade",
    "ray start --head",
    "var(--plot-",
    "pruneport compress … --flops 0.5 --out half",
)
# What plan.json holds, named in its errors.
_FILES = {"plan", "start", "run", "positions", "libraries", "recovery", "inputs", "earlier", "dense_onnx"}


def _sources() -> Iterator[Path]:
    """The rooms' files and templates, and those of the commands that a Python caller calls."""
    for room in (*_ROOMS, "commands"):
        for place, _, names in os.walk(_PACKAGE / room):
            for path in (Path(place, name) for name in sorted(names)):
                typed = room == "commands" and path.name in _TYPED_ONLY
                script = path.parts[-2:] == ("digits", "train.py")  # a program with flags of its own
                measures_us = "experiments" in path.relative_to(_PACKAGE).parts
                if path.suffix in (".py", ".jinja") and not (typed or script or measures_us):
                    yield path


def _strings(path: Path) -> Iterator[str]:
    """All strings, docstrings too; of formatted ones the parts that are fixed, with … for the others."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jinja":
        yield text
        return
    tree = ast.parse(text)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def _flags_in(text: str) -> list[str]:
    for phrase in _ALLOWED:
        text = text.replace(phrase, "")
    return re.findall(r"(?<![\w-])--(?:[a-z][a-z-]*|…)", text)


def test_no_message_of_the_rooms_names_a_flag() -> None:
    named = [(path.name, flag) for path in _sources() for text in _strings(path) for flag in _flags_in(text)]
    assert named == []


def test_every_option_that_a_message_names_is_one() -> None:
    """A slip of the pen would be shown as it is, with its backticks."""
    options = {field.name for name in configs.__all__ for field in fields(getattr(configs, name))}
    options |= {"macs", "example_inputs", "like"}  # of the functions of ``pruneport`` itself
    found = [
        (path.name, option["name"])
        for path in _sources()
        for text in _strings(path)
        for option in OPTION.finditer(re.sub(r":\w+:`[^`]+`", "", text))  # references in docstrings
    ]
    assert len(found) > 100
    assert [(file, name) for file, name in found if name not in options | _FILES] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a smaller `round_to` than 8", "a smaller --round-to than 8"),
        ("`criterion=l1` `recover=none`.", "--criterion l1 --recover none."),
        ("`out` a b/`plan.json` `run` ``keep``", "--out a b/`plan.json` `run` ``keep``"),
        ("`source` and `folder` have no flag", "`source` and `folder` have no flag"),
        ("`trust_source=True` `dry_export=False`", "--trust-source --no-dry-export"),
        ("an earlier plan: outside --scope filters", "an earlier plan: outside --scope filters"),
    ],
)
def test_names_become_flags(text: str, shown: str) -> None:
    assert with_flags(text) == shown


def test_a_python_caller_reads_what_he_wrote() -> None:
    with pytest.raises(TargetError, match=r"^`round_to` is 0; expected"):
        inspect(InspectConfig(source="pruneport:digits_resnet", round_to=0))


def test_who_typed_it_reads_flags(run: Any) -> None:
    done = run("inspect", "pruneport:digits_resnet", "--round-to", 0)
    assert done.err.splitlines()[-1].startswith("error: --round-to is 0; expected")


@pytest.mark.parametrize("line", [Stage, Note, str, lambda text: Step(text, 1, 2)])
def test_progress_shows_flags(line: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    with Display(Console(), "first") as display:
        display(line("give `batch_size_fixed=1`"))
    assert "give --batch-size-fixed 1" in capsys.readouterr().out
