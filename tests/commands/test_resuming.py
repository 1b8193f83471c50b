"""A compression that imitates, stopped and given again: it goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pruneport.commands.arguments.flag_names import with_flags
from pruneport.compress.recovery import imitate
from pruneport.files import held
from tests.support.command_line import QUICK, read_json

_SOURCE = ("pruneport:digits_resnet", "--weights", "DEFAULT")
_STEPS = 20  # and three for each learning rate that is tried
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
    saves -= self.file.path.name == sys.argv[2] + ".imitation"
    if not saves:
        os.kill(os.getpid(), signal.SIGKILL)

Unfinished.save, imitate._SAVE_EVERY_S = save, 0
main(sys.argv[3:])
"""


def _given(digits: Path) -> tuple[object, ...]:
    return (*_SOURCE, "--calibration", digits, "--calibration-images", 64, *_SHORT)


def _killed_after(saves: int, name: str, *arguments: object) -> None:
    """Run a command until the imitation of the bundle of this name has been saved so many times."""
    given = [str(argument) for argument in (saves, name, *arguments)]
    done = subprocess.run([sys.executable, "-c", _KILLED_AFTER, *given], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()


def _same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def _without_time(folder: Path) -> dict[str, Any]:
    return read_json(folder / "plan.json") | {"created": None}


@pytest.mark.parametrize(
    "saves", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("images", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_one_goes_on_bit_for_bit(images: bool, saves: int, run: Any, digits: Path, tmp_path: Path) -> None:
    """While a learning rate is tried, between that and the training, and in it."""
    given = _given(digits) if images else (*_SOURCE, "--recover", "imitate", "--calibration-images", 32, *_SHORT)
    command = ("compress", *given, *_HALF, "--out")
    _killed_after(saves, "killed", *command, tmp_path / "killed")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["killed.imitation"]
    resumed = run(*command, tmp_path / "killed")
    assert resumed.code == 0, resumed.err
    assert "pruning as before, to go on with the imitation" in resumed.err
    assert "scoring filters" not in resumed.err
    assert run(*command, tmp_path / "whole").code == 0
    assert _same_weights(tmp_path / "killed", tmp_path / "whole")
    assert _without_time(tmp_path / "killed") == _without_time(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_one_whose_training_has_ended_only_writes(
    run: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def unfinished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unfinished") / "out"
    _killed_after(1, "out", "compress", *_given(digits), *_HALF, "--out", out)
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
    _killed_after(9, "killed", *command, tmp_path / "killed")
    resumed = run(*command, tmp_path / "killed")
    assert resumed.code == 0, resumed.err
    assert "scoring filters" not in resumed.err
    assert run(*command, tmp_path / "whole").code == 0
    assert _same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_point_of_a_sweep_goes_on(run: Any, digits: Path, tmp_path: Path) -> None:
    """The second, which was under way when the sweep was killed; the third is made as it would have been."""
    out = tmp_path / "points"
    command = ("sweep", *_given(digits), "--flops", 0.7, 0.6, 0.5, *QUICK, "--out", out)
    _killed_after(5, "flops-0.6", *command)
    assert [path.name for path in out.glob("*.imitation")] == ["flops-0.6.imitation"]
    done = run(*command)
    assert done.code == 0, done.err
    assert "flops 0.6: pruning as before, to go on with the imitation" in done.err
    assert "flops 0.5: pruning as before" not in done.err
    assert {path.name for path in out.iterdir()} == {"flops-0.7", "flops-0.6", "flops-0.5", "sweep.json", "report.html"}
    assert run("compress", *_given(digits), "--flops", 0.6, "--out", tmp_path / "alone").code == 0
    assert _same_weights(out / "flops-0.6", tmp_path / "alone")
