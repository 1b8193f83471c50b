"""Every code block of the README and the manual, run as far as it can be without a network, a GPU or an hour.

Blocks of a page share one folder and one namespace, in order.

- ``python`` is executed; with a ``title`` it is a file of the reader's, and written.
- ``sh``: every ``pruneport`` command is read by the real parser, and runs where ``<!-- run -->`` stands before the
  block; make's targets, extras and scripts must be there.
- ``yaml`` with a ``title`` is a study, and read as one.
- ``diff`` with a ``title`` is a change to pruneport: the page's Python runs on a copy so changed, in another process.
- ``text`` is what a program prints.

What cannot run stands behind ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pruneport
from pruneport.cli import main
from pruneport.commands.arguments.flags import parse
from pruneport.commands.transferring import read_study

_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", _ROOT / "CONTRIBUTING.md", *sorted((_ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"(?:^ *<!-- (?P<comment>(?:run|not run\b).*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\S*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class _Block:
    language: str
    title: str
    code: str
    comment: str
    line: int

    @property
    def left_out(self) -> bool:
        return self.comment.startswith("not run")


def _blocks(page: Path) -> list[_Block]:
    text = page.read_text(encoding="utf-8")
    return [
        _Block(
            language=found["language"],
            title=found["title"] or "",
            code=re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            comment=found["comment"] or "",
            line=text[: found.start("code")].count("\n") + 1,
        )
        for found in _FENCE.finditer(text)
    ]


def _commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_block_is_of_a_known_kind_and_what_is_left_out_says_why() -> None:
    for page in _PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = _blocks(page)
        assert 2 * len(blocks) == len(re.findall(r"^ *```", text, re.MULTILINE)), page.name
        for block in blocks:
            assert block.language in {"python", "sh", "yaml", "diff", "text"}, (page.name, block.line)
            if block.left_out:
                assert re.match(r"not run: \w+ \w+", block.comment), (page.name, block.line)


def test_most_blocks_run() -> None:
    python = [block for page in _PAGES for block in _blocks(page) if block.language == "python"]
    assert len(python) >= 15
    assert sum(block.left_out for block in python) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("page", _PAGES, ids=[page.name for page in _PAGES])
def test_code_blocks(page: Path, place: Path) -> None:
    blocks = [block for block in _blocks(page) if not block.left_out]
    for block in blocks:
        if block.title and block.language != "diff":
            (place / block.title).write_text(block.code, encoding="utf-8")
    changes = [block for block in blocks if block.language == "diff"]
    if changes:
        _run_on_a_changed_copy(changes, blocks, place)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")  # so that a traceback has the line
            if not block.title and not changes:
                exec(code, namespace)
        elif block.language == "yaml":
            parse("transfer", [block.title], read_study(Path(block.title)))
        elif block.language == "sh":
            for words in _commands(block.code):
                _check_command(words, run=block.comment == "run")


def _check_command(words: list[str], *, run: bool) -> None:
    program, arguments = Path(words[0]).name, words[1:]
    if program == "pruneport":
        study = arguments[0] == "transfer" and not arguments[1].startswith("-")
        parse(arguments[0], arguments[1:], read_study(Path(arguments[1])) if study else None)
        if run:
            assert main(arguments) == 0
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets)
    elif program == "pip":
        project = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras = [extra for word in arguments for extra in re.findall(r"^\.\[([\w,]+)\]$", word)]
        assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for part in extras for name in part.split(","))
        assert extras or arguments[0] == "install"
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None, words
    elif program == "python":
        assert (_ROOT / arguments[0]).is_file(), words
    else:
        assert program == "py-spy", words


def _run_on_a_changed_copy(changes: list[_Block], blocks: list[_Block], place: Path) -> None:
    """Run a page's Python with pruneport changed as its diffs say."""
    copy = place / "changed/pruneport"
    ignored = shutil.ignore_patterns("__pycache__", "results", "experiments")
    shutil.copytree(Path(pruneport.__file__).parent, copy, ignore=ignored)
    for change in changes:
        file = copy / change.title
        file.write_text(_changed(file.read_text(encoding="utf-8"), change), encoding="utf-8")
    script = place / "page.py"
    parts = [block.code for block in blocks if block.language == "python" and not block.title]
    script.write_text("\n".join(parts), encoding="utf-8")
    search = os.pathsep.join([str(copy.parent), str(place)])
    where = os.environ | {"PYTHONPATH": search}
    done = subprocess.run([sys.executable, "-B", script], cwd=place, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _changed(text: str, change: _Block) -> str:
    """The text with a diff's new lines; its other lines must stand there in one place."""
    lines = change.code.splitlines()
    assert all(line[:1] in ("+", " ") for line in lines), change.title
    before = "".join(line[1:] + "\n" for line in lines if line.startswith(" "))
    after = "".join(line[1:] + "\n" for line in lines)
    assert text.count(before) == 1, f"{change.title} has {text.count(before)} places of:\n{before}"
    return text.replace(before, after)
