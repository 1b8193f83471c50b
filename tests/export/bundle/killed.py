"""A script: a job on copies of a bundle, killed before its first change to the disk, before its second, and so on.

``python killed.py BUNDLE FOLDER``; FOLDER/JOB/STEP is what each of them leaves, the last one what a whole job does.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.bundle.writing import new_bundle, update_bundle

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
OUTDATED = ("verify.json", "bench.json", "report.html")


def kill_before(step: int) -> None:
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def update(folder: Path) -> None:
    with update_bundle(open_bundle(folder), "update", OUTDATED) as staging:
        for name in ("bench.json", "model.onnx", "dense.onnx"):
            (staging / name).write_text("new")


def replace(folder: Path) -> None:
    with new_bundle(folder, True, "replace") as staging:
        shutil.copy2(folder / "plan.json", staging)
        shutil.copy2(folder / "weights.safetensors", staging)
        (staging / "model.onnx").write_text("new")


def make(folder: Path) -> None:
    with new_bundle(folder.parent / "not/there/out", False, "make") as staging:
        shutil.copy2(folder / "plan.json", staging)
        shutil.copy2(folder / "weights.safetensors", staging)


def reopen(folder: Path) -> None:
    open_bundle(folder)


def run(job: Callable[[Path], None], before: Path, states: Path) -> list[Path]:
    """Every state that the job can leave; ``before`` and they are folders around a bundle."""
    for step in range(1, 200):
        state = states / f"{step:03}"
        shutil.copytree(before, state)
        child = os.fork()
        if child == 0:
            kill_before(step)
            job(state / "bundle")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return sorted(states.iterdir())
    raise AssertionError("the job does not end")


if __name__ == "__main__":
    bundle, root = Path(sys.argv[1]), Path(sys.argv[2])
    before = root / "before"
    before.mkdir()
    shutil.copytree(bundle, before / "bundle")
    with update_bundle(open_bundle(before / "bundle"), "before") as staging:
        for name in ("model.onnx", "README.md", *OUTDATED):
            (staging / name).write_text("old")
    states = run(update, before, root / "update")
    run(replace, before, root / "replace")
    run(make, before, root / "make")
    moving = [state for state in states if (state / "bundle/.unfinished-update/undo").is_dir()]
    run(reopen, moving[len(moving) // 2], root / "reopen")
