"""The package as installed: what is public, what it carries, and where it comes from."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import os
import re
from pathlib import Path

import pytest

import pruneport

_ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("pruneport", "py.typed"),
        ("pruneport.models.digits", "digits_resnet.safetensors"),
        ("pruneport.bench.report", "report.css"),
        ("pruneport.bench.report", "report.html.jinja"),
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
