"""Writes the tables of flags in docs/command-line.md from the real ``pruneport COMMAND --help``.

``python docs/command_line.py`` writes them anew; a test fails where they are out of date.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from unittest import mock

from pruneport.commands.arguments.flags import VERBS, parse

PAGE = Path(__file__).parent / "command-line.md"
_TABLES = re.compile(r"(<!-- flags of (\w+) -->\n).*?(<!-- end of flags -->)", re.DOTALL)


def help_text(command: str) -> str:
    """What ``pruneport COMMAND --help`` prints on a wide terminal, but not so wide that it makes two columns."""
    printed = io.StringIO()
    wide = {"COLUMNS": "129", "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict("os.environ", wide), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse(command, ["--help"])
    return printed.getvalue()


def tables(command: str) -> str:
    """One Markdown table for each group of the command's flags."""
    lines = ["", f"Example: `{re.search(r'^Example: (.*)$', help_text(command), re.MULTILINE)[1].strip()}`", ""]  # type: ignore[index]
    for title, rows in _groups(help_text(command)).items():
        if title != "options":
            lines += [f"**{title.removesuffix(' options').capitalize().replace('Gpu', 'GPU')}**", ""]
            lines += ["| flag | what it does |", "|---|---|"]
            lines += [f"| {_code(flag)} | {_plain(text)} |" for flag, text in rows] + [""]
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with all its tables as they must be."""
    missing = set(VERBS) - {found[2] for found in _TABLES.finditer(page)}
    if missing:
        raise ValueError(f"{PAGE} has no place for the flags of {', '.join(sorted(missing))}")
    return _TABLES.sub(lambda found: found[1] + tables(found[2]) + found[3], page)


def _groups(text: str) -> dict[str, list[tuple[str, str]]]:
    """Title of each box of the help -> its flags, each with its text."""
    groups: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    lines = text.splitlines()
    for line, below in itertools.pairwise([*lines, ""]):
        if re.fullmatch(r" -+ *", below):
            rows = groups.setdefault(line.strip(), [])
        elif groups and line.startswith("  ") and line.strip():
            flag, _, explained = line.strip().partition("  ")
            if line[2] != " ":
                rows.append((flag, explained.strip()))
            else:  # goes on from the line before
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
    return groups


def _code(flag: str) -> str:
    spaced = flag.replace(",", ", ") if "{" in flag else flag  # so that it can break between choices
    return "`" + spaced.replace("|", "\\|") + "`"


def _plain(text: str) -> str:
    """Without the words that say nothing, and so that Markdown changes nothing."""
    text = re.sub(r" \(default: (True|False|None|)\s*\)", "", text)
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
