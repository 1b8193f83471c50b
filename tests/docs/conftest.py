"""What the pages take for granted: folders of small images, a bundle, and the modules that a page defines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruneport.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that pages call ``half``."""
    folder = tmp_path_factory.mktemp("half") / "half"
    source = ("pruneport:digits_resnet", "--weights", "DEFAULT", "--flops", "0.5", "--criterion", "l1")
    quick = ("--recover", "none", "--ranking", "uniform", "--repeats", "3", "--warmup", "1", "--batches", "1")
    assert main(["ship", *source, *quick, "--parity-batches", "1", "--no-dry-export", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def place(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, but for what pages name: photos/, some-photos/, birds/ and half/."""
    write_images(tmp_path / "photos", classes=5, each=8, size=40, channels=3)
    write_images(tmp_path / "some-photos", classes=1, each=4, size=40, channels=3)
    for part in ("train", "test"):
        write_images(tmp_path / "birds" / part, classes=2, each=4, size=8, channels=1)
    shutil.copytree(half, tmp_path / "half")
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write_images(folder: Path, *, classes: int, each: int, size: int, channels: int) -> None:
    """FOLDER/CLASS/NUMBER.png, random."""
    generator = np.random.default_rng(0)
    shape = (size, size, 3) if channels == 3 else (size, size)
    for kind in range(classes):
        (folder / f"class{kind}").mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{kind}" / f"{number}.png")
