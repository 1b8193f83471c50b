"""The package as installed: what is public, what it carries, and where it comes from."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import os
import re
from pathlib import Path

import pytest

import pruneport
from pruneport.cli import main

_ROOT = Path(__file__).parents[1]


def _modules(folder: Path) -> set[str]:
    """Names of all modules below a package, but the experiments; rooms of the checkout are links."""
    files = [Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
    parts = [file.relative_to(folder.parent).with_suffix("").parts for file in files if file.suffix == ".py"]
    names = {".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts}
    return {name for name in names if not name.startswith("pruneport.bench.experiments")}


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("pruneport", "py.typed"),
        ("pruneport.models.digits", "digits_resnet.safetensors"),
        ("pruneport.bench.report", "report.css"),
        ("pruneport.bench.report", "report.html.jinja"),
        ("pruneport.bench.report", "sweep.html.jinja"),
        ("pruneport.bench.report", "transfer.html.jinja"),
    ],
)
def test_the_package_carries_its_data_files(package: str, file: str) -> None:
    assert importlib.resources.files(package).joinpath(file).is_file()


@pytest.mark.skipif("PRUNEPORT_EXPECT_WHEEL" not in os.environ, reason="the checkout is installed in place")
def test_the_wheel_is_what_is_tested_and_has_no_experiments() -> None:
    assert not Path(pruneport.__file__).is_relative_to(_ROOT / "src")
    assert importlib.util.find_spec("pruneport.bench.report") is not None
    assert importlib.util.find_spec("pruneport.bench.experiments") is None


def test_every_module_is_there_and_imports() -> None:
    names = _modules(Path(pruneport.__file__).parent)
    assert names == _modules(_ROOT / "src/pruneport")
    assert len(names) > 100
    for name in sorted(names):
        importlib.import_module(name)


def test_the_command_is_the_command_line() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="pruneport")
    assert command.load() is main


def test_version_is_in_the_changelog() -> None:
    changelog = (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{importlib.metadata.version('pruneport')}]" in changelog


def test_constraints_pin_every_dependency_and_name_no_host() -> None:
    lines = (_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    assert [line for line in lines if not re.match(r"[a-z0-9._-]+==\S+", line)] == []
    pinned = {line.partition("==")[0] for line in lines}
    project = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.findall(r'^  "([a-z0-9-]+)[\[>]', project, re.MULTILINE)
    assert set(wanted) - pinned - {"pruneport"} == set()
