"""A compression that imitates, stopped and given again: it goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pruneport.cli import main
from pruneport.commands.arguments.flag_names import with_flags
from pruneport.compress.recovery import imitate
from pruneport.compress.recovery.imitation_state import ImitationState, Unfinished
from pruneport.files import held
from tests.support.command_line import QUICK, read_json
from tests.support.slow_values import each_quick

_SOURCE = ("pruneport:digits_resnet", "--weights", "DEFAULT")
_STEPS = 80  # after 24 that try two learning rates; the state that is kept is of later steps
_SHORT = ("--criterion", "l1", "--ranking", "uniform", "--recovery-steps", _STEPS)
_HALF = ("--flops", 0.5)
_KILLED_AFTER = """
import os, signal, sys
from pruneport.cli import main
from pruneport.compress.recovery import imitate
from pruneport.compress.recovery.imitation_state import Unfinished

saves, write = int(sys.argv[1]), Unfinished.save

def save(self, imitation):
    global saves
    write(self, imitation)
    saves -= 1
    if not saves:
        os.kill(os.getpid(), signal.SIGKILL)

Unfinished.save, imitate._SAVE_EVERY_S = save, 0
main(sys.argv[2:])
"""


def _given(digits: Path) -> tuple[object, ...]:
    return (*_SOURCE, "--calibration", digits, "--calibration-images", 64, *_SHORT)


def _killed_after(saves: int, *arguments: object) -> None:
    """Run a command in a process of its own, which is killed once it has saved so many times."""
    given = [str(argument) for argument in (saves, *arguments)]
    done = subprocess.run([sys.executable, "-c", _KILLED_AFTER, *given], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()


@contextmanager
def _stopped_after(saves: int) -> Iterator[None]:
    """The same in this process, as with Ctrl-C."""
    write = Unfinished.save

    def save(self: Unfinished, imitation: ImitationState) -> None:
        nonlocal saves
        write(self, imitation)
        saves -= 1
        if not saves:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Unfinished, "save", save)
        patched.setattr(imitate, "_SAVE_EVERY_S", 0)
        yield


def _check_same(one: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    plans = [read_json(folder / "plan.json") | {"created": None} for folder in (one, other)]
    assert plans[0] == plans[1]


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a compression that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main([str(argument) for argument in ("compress", *_given(digits), *_HALF, "--out", out)]) == 0
    return out


@pytest.mark.parametrize("saves", each_quick([40, 14, 24], 3))
def test_one_that_was_stopped_goes_on_bit_for_bit(
    saves: int, run: Any, digits: Path, whole: Path, tmp_path: Path
) -> None:
    """In the training, while a learning rate is tried, and between the two."""
    command = ("compress", *_given(digits), *_HALF, "--out", tmp_path / "out")
    if saves == 40:
        _killed_after(saves, *command)
    else:
        with _stopped_after(saves):
            assert run(*command).code == 130
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["out.imitation"]
    resumed = run(*command)
    assert resumed.code == 0, resumed.err
    assert "pruning as before, to go on with the imitation" in resumed.err
    assert "scoring filters" not in resumed.err
    assert "solving layer" not in resumed.err
    _check_same(tmp_path / "out", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_so_it_does_without_images(run: Any, tmp_path: Path) -> None:
    command = ("compress", *_SOURCE, *_HALF, "--recover", "imitate", "--calibration-images", 32, *_SHORT, "--out")
    with _stopped_after(40):
        assert run(*command, tmp_path / "stopped").code == 130
    for name in ("stopped", "whole"):
        assert run(*command, tmp_path / name).code == 0
    _check_same(tmp_path / "stopped", tmp_path / "whole")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_one_whose_training_has_ended_only_writes(
    run: Any, digits: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compress", *_given(digits), *_HALF)
    with monkeypatch.context() as patched:
        patched.setattr("pruneport.commands.compressing.write_card", _interrupted)
        done = run(*command, "--out", tmp_path / "out")
    assert done.code == 130
    assert "interrupted; what was done is kept" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.imitation"]
    with monkeypatch.context() as patched:
        patched.setattr(imitate._Imitation, "_step", _interrupted)
        done = run(*command, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert read_json(tmp_path / "out" / "plan.json")["recovery"]["imitation"]["steps"] > 5
    _check_same(tmp_path / "out", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def unfinished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unfinished") / "out"
    with _stopped_after(1):
        assert main([str(argument) for argument in ("compress", *_given(digits), *_HALF, "--out", out)]) == 130
    return out.with_name("out.imitation")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--seed", 1), "`seed` (0, now 1)"),
        (("--calibration-images", 48), "`calibration_images` (64, now 48)"),
        (("--criterion", "l2"), "`criterion` (l1, now l2)"),
    ],
)
def test_another_one_does_not_go_on_with_it(
    more: tuple[object, ...], named: str, run: Any, digits: Path, unfinished: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copyfile(unfinished, tmp_path / "out.imitation"))
    done = run("compress", *_given(digits), *_HALF, *more, "--out", tmp_path / "out")
    assert done.code == 2
    assert f"{file} is the state of a compression with other settings: {with_flags(named)}." in done.err
    assert "Give those again to go on, delete the file to start anew, or choose another --out." in done.err
    assert [*tmp_path.iterdir()] == [file]


def test_a_damaged_state_is_named(run: Any, digits: Path, unfinished: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.imitation"
    file.write_bytes(unfinished.read_bytes()[:5000])
    done = run("compress", *_given(digits), *_HALF, "--out", tmp_path / "out")
    assert done.code == 2
    assert f"{file} is not the state of a compression (" in done.err
    assert "delete it to start anew" in done.err


def test_two_towards_one_bundle_are_refused(run: Any, digits: Path, tmp_path: Path) -> None:
    with held(tmp_path / ".out.imitation.lock", tmp_path / "out"):
        done = run("compress", *_given(digits), *_HALF, "--out", tmp_path / "out")
    assert done.code == 2
    assert f"another process (pid {os.getpid()} on " in done.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_bundle_that_is_compressed_further_goes_on(run: Any, digits: Path, bundle: Path, tmp_path: Path) -> None:
    asked = ("--flops", 0.4, "--calibration", digits, "--calibration-images", 64, "--recovery-steps", _STEPS)
    command = ("ship", bundle, *asked, *QUICK, "--out")
    with _stopped_after(40):
        assert run(*command, tmp_path / "stopped").code == 130
    resumed = run(*command, tmp_path / "stopped")
    assert resumed.code == 0, resumed.err
    assert "scoring filters" not in resumed.err
    assert run("compress", bundle, *asked, "--out", tmp_path / "whole").code == 0
    _check_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_point_of_a_sweep_goes_on(run: Any, digits: Path, tmp_path: Path) -> None:
    """The first, which was under way when the sweep was stopped; for the second the network is then assessed."""
    out = tmp_path / "points"
    command = ("sweep", *_given(digits), "--flops", 0.7, 0.6, *QUICK, "--out", out)
    with _stopped_after(40):
        assert run(*command).code == 130
    assert [path.name for path in out.glob("*.imitation")] == ["flops-0.7.imitation"]
    done = run(*command)
    assert done.code == 0, done.err
    assert "flops 0.7: pruning as before, to go on with the imitation" in done.err
    assert "flops 0.6: choosing widths" in done.err
    assert {path.name for path in out.iterdir()} == {"flops-0.7", "flops-0.6", "sweep.json", "report.html"}
    assert run("compress", *_given(digits), "--flops", 0.7, "--out", tmp_path / "alone").code == 0
    _check_same(out / "flops-0.7", tmp_path / "alone")
