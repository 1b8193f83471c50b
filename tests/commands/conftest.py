"""The command line called in this process, and one shipped bundle to copy and damage."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pruneport.cli import main

QUICK = ("--repeats", "3", "--warmup", "1", "--batches", "1")
SOURCE = ("pruneport:digits_resnet", "--weights", "DEFAULT", "--flops", "0.5", "--recover", "none")


class Ran(NamedTuple):
    """What a run of the command line left."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # tyro's own way out
            code = int(stop.code or 0)
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture(autouse=True)
def _no_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Users' modules are imported in this process: forget them, and write no bytecode beside them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("users_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "bundle"
    assert main(["ship", *SOURCE, *QUICK, "--parity-batches", "1", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def rehash() -> Callable[..., None]:
    """Make the manifest agree with the files, as a forger would."""

    def write(folder: Path, **changes: Any) -> None:
        manifest = json.loads((folder / "manifest.json").read_text()) | changes
        for name in manifest["files"]:
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return write


@pytest.fixture(scope="session")
def listing() -> Callable[[Path], dict[str, Any]]:
    """Everything below a folder, hidden files too."""

    def entry(path: Path) -> Any:
        stat = path.lstat()
        return oct(stat.st_mode), stat.st_size, stat.st_mtime_ns if path.is_file() else 0

    return lambda folder: {str(path.relative_to(folder)): entry(path) for path in sorted(folder.rglob("*"))}
