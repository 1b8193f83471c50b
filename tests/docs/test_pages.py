"""The manual agrees with the program: flags, messages, results; and nothing in it leads nowhere."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pruneport
from pruneport.commands.arguments.flags import VERBS, parse

_ROOT = Path(__file__).parents[2]
_DOCS = _ROOT / "docs"
_PACKAGE = Path(pruneport.__file__).parent


@pytest.fixture(scope="module")
def command_line() -> ModuleType:
    spec = importlib.util.spec_from_file_location("command_line", _DOCS / "command_line.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_flags_are_those_of_the_real_help(command_line: ModuleType) -> None:
    page = (_DOCS / "command-line.md").read_text(encoding="utf-8")
    assert page == command_line.written(page), "python docs/command_line.py writes the tables anew"


@pytest.mark.parametrize("command", VERBS)
def test_every_option_has_its_row(command: str, command_line: ModuleType) -> None:
    """The tables are read off the help's layout: nothing may be lost on the way."""
    rows = re.findall(r"^\| `--(?:no-)?([\w-]+)", command_line.tables(command), re.MULTILINE)
    options = {field.name.replace("_", "-") for field in fields(VERBS[command])} - {
        "source",
        "folder",
        "study",
        "repository",
    }
    assert sorted(rows) == sorted({*options, "json"})


def _modules() -> list[Path]:
    files = [Path(place, name) for place, _, names in os.walk(_PACKAGE, followlinks=True) for name in names]
    return sorted(file for file in files if file.suffix == ".py")


def _said(text: str) -> str:
    """A message without what depends on who shows it: flags and option names read alike."""
    return re.sub(
        r"\s+", " ", text.replace("--", "").translate(str.maketrans("_=", "- ", "`")).replace("'", "").replace('"', "")
    )


def _messages() -> list[str]:
    """All strings in the program, with … for what is filled in."""
    found = []
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(_said(node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append(_said("".join(map(str, parts))))
    return found


def test_every_message_in_troubleshooting_is_one_of_the_programs() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (_DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    messages = "\n".join(_messages())
    strange = [row for row in rows if not re.search(".{0,80}?".join(map(re.escape, _said(row).split("…"))), messages)]
    assert len(rows) > 50
    assert strange == []


def test_the_zoo_is_the_one_that_was_measured() -> None:
    lines = (_ROOT / "bench/results/zoo.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    every = Counter((row["network"].partition(":")[0], row["family"]) for row in rows)
    sound = Counter((row["network"].partition(":")[0], row["family"]) for row in rows if row["outcome"] == "ok")
    page = (_DOCS / "supported-networks.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (timm|torchvision) \| (\S+) \| (\d+) \| (\d+) \|", page, re.MULTILINE)
    assert {(library, family): (int(n), int(ok)) for library, family, n, ok in shown} == {
        key: (count, sound[key]) for key, count in every.items()
    }
    assert f"{sum(sound.values())} of {sum(every.values())} networks" in page


@pytest.mark.parametrize(("name", "count"), [("docs/accuracy.md", 19), ("README.md", 6)])
def test_accuracies_are_those_that_were_measured(name: str, count: int) -> None:
    rows = json.loads((_ROOT / "bench/results/accuracy.json").read_text(encoding="utf-8"))["rows"]
    assert rows
    page = (_ROOT / name).read_text(encoding="utf-8")
    table = re.findall(r"^\| ((?:CIFAR|ResNet-50|Mobile|Efficient)[^|]*) \| ([\d.]+) \|(.*)\|$", page, re.MULTILINE)
    assert len(table) == count
    names = {"CIFAR-10 ResNet-20": "resnet20", "CIFAR-10 ResNet-56": "resnet56"}
    for network, kept, cells in table:
        alike = [row for row in rows if _plain(row["network"]) == _plain(names.get(network, network))]
        near = [row for row in alike if abs(row["macs_kept"] - float(kept)) < 0.01]
        shares = ("top1", "dense_top1", "top1_low", "top1_high")
        known = [100 * row[key] for row in near for key in shares if key in row]
        known += [row["input_count"] for row in near]
        for cell in re.findall(r"[\d.]+", cells):
            assert min(abs(float(cell) - value) for value in known) < 0.0501, (network, kept, cell)


def test_latencies_on_a_gpu_are_those_that_were_measured() -> None:
    """Every cell of the table: times as fast as dense, in brackets torch-pruning's, share of the reduction in MACs."""
    rows = json.loads((_ROOT / "bench/results/gpu.json").read_text(encoding="utf-8"))["rows"]
    measured = {_timed_as(row): row["networks"] for row in rows}
    assert len(measured) == len(rows), "two rows with the same key"
    page = (_DOCS / "latency.md").read_text(encoding="utf-8").split("### What a GPU makes of it")[1].split("\n#")[0]
    table = re.findall(r"^\| (\S+), (\w+)(?: `([^`]+)`)? \| (\d+) \| ([\d.]+) \|(.*)\|$", page, re.MULTILINE)
    assert len(table) == len([row for row in rows if row["cuda_graph"]])
    for network, precision, option, batch, dense_ms, cells in table:
        networks = measured[_plain(network), precision.lower(), option, int(batch), True]
        assert f"{networks['dense']['p50_ms']:#.3g}" == dense_ms, (network, precision)
        for share, cell in zip(("0.75", "0.5", "0.25"), cells.split("|"), strict=True):
            assert cell.strip() == _gpu_cell(networks, share), (network, precision, option, batch, share)


def _timed_as(row: dict[str, Any]) -> tuple[object, ...]:
    """What tells a row from all others, as the table names it."""
    recipe, names = row["recipe"], {"vit_b_16": "vitb16", "convnext_tiny": "convnextt"}
    given = {"--nhwc": recipe["nhwc"], f"--round-to {recipe['round_to']}": recipe["round_to"] != 8}
    options = " ".join(option for option, differs in given.items() if differs)
    network = names.get(row["network"], _plain(row["network"]))
    return network, row["precision"], options, row["batch"], row["cuda_graph"]


def _gpu_cell(networks: dict[str, Any], share: str) -> str:
    if (ours := networks.get(f"pruneport {share}")) is None:
        return "–"
    uniform = networks.get(f"torch-pruning {share}")
    beside = f" ({uniform['speedup over dense']['ratio']:.2f})" if uniform else ""
    return f"{ours['speedup over dense']['ratio']:.2f}{beside}, {100 * ours['share of the reduction']:.0f} %"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|v1$", "", name.lower())


def test_commands_that_wait_for_a_gpu_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its minutes is lost to a flag that a script no longer has."""

    class Parsed(Exception):
        pass

    def parsed(parser: argparse.ArgumentParser) -> None:
        _, unknown = parser.parse_known_args()
        assert not unknown
        raise Parsed

    page = (_DOCS / "latency.md").read_text(encoding="utf-8").split("### What waits for a GPU")[1].split("\n#")[0]
    commands = re.findall(r"`((?:M\.|pruneport )[^`]+)`", page)
    assert len(commands) > 10
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    for program, *words in map(shlex.split, commands):
        if program == "pruneport":
            parse(words[0], words[1:])
            continue
        script = importlib.import_module(f"pruneport.bench.experiments.{program.removeprefix('M.')}")
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(Parsed):
            script.main()


def test_links_in_the_readme_lead_somewhere() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (_ROOT / name).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (_ROOT / target).exists(), (name, target)


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "docs/extending.md"])
def test_what_pages_name_in_the_code_is_there(name: str) -> None:
    """Names in backticks: of Python they stand in the code or the page's own blocks; of files they are files."""
    text = (_ROOT / name).read_text(encoding="utf-8")
    code = "\n".join(
        [path.read_text(encoding="utf-8") for path in _modules()] + re.findall(r"```.*?```", text, re.DOTALL)
    )
    known = set(re.findall(r"[\w-]+", code))
    files = {f"src/pruneport/{path.relative_to(_PACKAGE)}" for path in _modules()} | {
        path.name for path in _ROOT.iterdir()
    }
    strange = []
    for said in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.fullmatch(r"[\w/]+(\.\w+|/)", said) and ("/" in said or said.endswith((".py", ".md"))):
            strange += [] if any(f"/{said.rstrip('/')}/" in f"/{file}/" for file in files) else [said]
        elif re.fullmatch(r"[a-zA-Z_][\w.]*", said):
            strange += [said for part in said.split(".") if part not in known]
    assert strange == []


def test_the_change_log_is_tidy() -> None:
    lines = (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []
    for release in re.split(r"^## ", "\n".join(lines), flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (\w+)$", release, re.MULTILINE)
        assert headings == [kind for kind in ("Added", "Changed", "Fixed") if kind in headings]
        entries = [" ".join(entry.split()) for entry in re.split(r"^- ", release, flags=re.MULTILINE)[1:]]
        assert len(set(entries)) == len(entries)
        assert not re.search(r"^(- |  ).*\n\n- ", release, re.MULTILINE), "one list a heading"


def test_the_readme_is_short() -> None:
    assert len((_ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_page_stands_in_the_manuals_contents() -> None:
    contents = (_ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in sorted(_DOCS.glob("*.md")) if f": {page.name}" not in contents] == []
