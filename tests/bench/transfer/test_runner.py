"""A study from its file to its report: killed, resumed, spread over Ray, refused where it must be."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruneport.bench.transfer.executors import Outcome, run_local
from pruneport.bench.transfer.options import StudyOptions
from pruneport.bench.transfer.runner import run_study
from pruneport.bench.transfer.store import FILE, Finished, open_store
from pruneport.bench.transfer.study import Trial, identity, trials
from pruneport.bench.transfer.trial import _task, preparations, prepare
from pruneport.compress.finetune.state import Event
from pruneport.errors import ImageFolderError, InputError, InUseError, OutputError, StoreError
from pruneport.export.bundle.bundle import open_bundle
from pruneport.models.digits.tasks import write_digits_task

_STUDY = StudyOptions(
    networks=("pruneport:digits_resnet@DEFAULT",),
    tasks=("pruneport:digits-parity", "pruneport:digits-mirrored"),
    kept=(1.0, 0.5),
    budgets=(3e9, 1e10),
    seeds=(0,),
    recipes=("l1/uniform/none",),
    mean=(0.5,),
    std=(0.5,),
    augment="crop",
    optimizer="sgd",
    evaluations=1,
    test_images=200,
    jobs=1,
)
_TRIAL = Trial(network="n", task="t", kept=1.0, scope="dense", recipe="none", budget=1e9, seed=0)
_EVENT = Event(step=1, flops=1e9, error=0.5, loss=1.0, macs=10, seconds=0.1)
_SCRIPT = """
import sys, pickle
from pathlib import Path
from pruneport.bench.transfer.runner import run_study
if __name__ == "__main__":
    run_study(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
"""


def _finished(trial: Trial = _TRIAL) -> Finished:
    return Finished(trial=trial, events=(_EVENT, replace(_EVENT, step=2)), wall_s=1.0, host="here")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was killed half way, and then run to its end."""
    import pickle

    place = tmp_path_factory.mktemp("study")
    (place / "options").write_bytes(pickle.dumps(_STUDY))
    (place / "script.py").write_text(_SCRIPT)
    command = [sys.executable, place / "script.py", place / "options", place / "out"]
    with subprocess.Popen(command) as process:
        while _count(place / "out") < 3 and process.poll() is None:
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert workers
    assert psutil.wait_procs(workers, timeout=30)[1] == []  # none of them goes on
    (place / "before").write_text(str(_count(place / "out")))
    run_study(_STUDY, place / "out")
    return place


def _count(folder: Path) -> int:
    if not (folder / FILE).is_file():
        return 0
    try:
        with sqlite3.connect(folder / FILE) as connection:
            (count,) = connection.execute("SELECT count(*) FROM trials").fetchone()
        connection.close()
    except sqlite3.OperationalError:  # not laid out yet
        return 0
    return int(count)


@pytest.mark.slow
def test_a_killed_study_loses_the_trial_in_hand(study: Path) -> None:
    kept = int((study / "before").read_text())
    assert 3 <= kept < 8
    with open_store(study / "out", None) as store:
        found = store.finished()
    assert [done.trial for done in found] == trials(_STUDY)  # none twice, none lost, cheap ones first
    assert all(done.events and done.error is None for done in found)
    for done in found:
        assert done.events[-1].flops <= done.trial.budget
        assert 0 <= done.events[-1].error <= 1
    dearest = [done.events[-1].error for done in found if done.trial.budget == 1e10 and "parity" in done.trial.task]
    assert max(dearest) < 0.4  # of two classes


@pytest.mark.slow
def test_the_second_time_nothing_is_done(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.bench.transfer.runner.run_local", None)
    said: list[str] = []
    assert len(run_study(_STUDY, study / "out", said.append)) == 8
    assert said == []


def _kill_first_worker(stop: threading.Event, killed: list[int]) -> None:
    """Kill the first process in which Ray runs a trial."""
    while not stop.is_set() and not killed:
        for process in psutil.Process().children(recursive=True):
            try:
                if process.name().startswith("ray::_timed"):
                    process.kill()
                    killed.append(process.pid)
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_ray_worker_loses_nothing(study: Path, tmp_path: Path) -> None:
    two = replace(_STUDY, kept=(0.5,), budgets=(3e9,), executor="ray", memory=0.5)
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=_kill_first_worker, args=(stop, killed))
    killer.start()
    try:
        found = run_study(two, tmp_path / "ray")
    finally:
        stop.set()
        killer.join()
    assert killed
    with open_store(study / "out", None) as store:
        same = {other.trial: other.events for other in store.finished()}
    assert len(found) == 2
    for done in found:  # on another number of threads, so not bit for bit
        ((one, other),) = zip(done.events, same[done.trial], strict=True)
        assert (one.step, one.flops, one.macs) == (other.step, other.flops, other.macs)
        assert one.loss == pytest.approx(other.loss, rel=1e-3)


def _dies_once(marker: Path) -> str:
    """A worker that is killed in its first attempt."""
    if not marker.exists():
        marker.write_text("was here")
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def _always_dies(name: str) -> str:
    if name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    todo = [tmp_path / name for name in ("a", "b", "c")]
    found = {outcome.todo: outcome.result for outcome in run_local(_dies_once, todo, 2)}
    assert found == {path: path.name for path in todo}


def test_work_that_kills_every_worker_is_given_up() -> None:
    outcomes = {outcome.todo: outcome for outcome in run_local(_always_dies, ["good", "bad"], 1)}
    assert outcomes["good"].result == "good"
    assert outcomes["bad"].error == "its process was killed, three times over"


def _runs_out_of_memory(name: str) -> str:
    if name == "bad":
        raise RuntimeError("out of memory")
    return name


def test_what_nobody_expected_costs_one_trial() -> None:
    outcomes = {outcome.todo: outcome for outcome in run_local(_runs_out_of_memory, ["bad", "good"], 1)}
    assert outcomes["good"].result == "good"
    assert outcomes["bad"].error == "RuntimeError: out of memory"


def _digits_folder(task: str) -> Path:
    folder = _task(task, _STUDY, (1, 8, 8), None).train.folder
    assert folder.is_dir()
    return folder


def test_digits_tasks_leave_no_files() -> None:
    (outcome,) = run_local(_digits_folder, ["pruneport:digits-parity"], 1)
    assert outcome.error is None
    assert not outcome.result.parent.exists()


def test_every_checkpoint_and_every_setting_has_a_bundle_of_its_own(tmp_path: Path) -> None:
    def bundles(options: StudyOptions) -> set[Path]:
        return {item.bundle(kept) for item in preparations(options, tmp_path) for kept in item.kept}

    two = replace(_STUDY, networks=("torchvision:resnet18=a/net.pth", "torchvision:resnet18=b/net.pth"))
    assert len(bundles(two)) == 4  # dense and pruned
    assert bundles(two).isdisjoint(bundles(replace(two, round_to=4)))
    assert bundles(two).isdisjoint(bundles(replace(two, calibration=tmp_path)))
    assert bundles(two) == bundles(replace(two, batch_size=8, seeds=(7,)))


def test_networks_are_pruned_with_as_many_images_as_were_asked_for(tmp_path: Path) -> None:
    write_digits_task("parity", tmp_path / "images")
    options = replace(
        _STUDY, recipes=("l1/uniform/bn",), calibration=tmp_path / "images" / "train", calibration_images=20
    )
    pruned = preparations(options, tmp_path)[0]
    prepare(pruned, options)
    calibrated = open_bundle(pruned.bundle(0.5)).plan.calibration
    assert calibrated is not None
    assert calibrated.count == 20


def test_a_store_of_another_study(tmp_path: Path) -> None:
    with open_store(tmp_path, identity(_STUDY)) as store:
        store.add(_finished())
    grown = replace(_STUDY, seeds=(0, 1), budgets=(1e9,), jobs=7)
    with open_store(tmp_path, identity(grown)) as store:
        assert store.finished() == [_finished()]
    with (
        pytest.raises(StoreError, match=r"another study, .*: batch_size \(32, now 8\)"),
        open_store(tmp_path, identity(replace(_STUDY, batch_size=8))),
    ):
        pass


def test_settings_under_which_nothing_worked_bind_nobody(tmp_path: Path) -> None:
    other = replace(_STUDY, round_to=4)
    with open_store(tmp_path, identity(_STUDY)) as store:
        store.add(replace(_finished(), events=(), error="a step costs more than the budget"))
    with open_store(tmp_path, identity(other)) as store:
        assert store.finished() == []
        store.add(_finished())
    with pytest.raises(StoreError, match=r"round_to \(4, now 8\)"), open_store(tmp_path, identity(_STUDY)):
        pass


def test_only_the_store_is_called_the_store(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="elsewhere"), open_store(tmp_path, identity(_STUDY)):
        raise PermissionError("elsewhere")
    (tmp_path / "taken").write_text("no folder")
    with (
        pytest.raises(OutputError, match=r"`out` .*taken cannot be written"),
        open_store(tmp_path / "taken", identity(_STUDY)),
    ):
        pass


def test_two_processes_on_one_store(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, identity(_STUDY)),
        pytest.raises(InUseError, match=rf"another process \(pid {os.getpid()} on .*\) is at work on .*; try again"),
        open_store(tmp_path, identity(_STUDY)),
    ):
        pass
    with open_store(tmp_path, identity(_STUDY)):  # free again
        pass


def test_a_store_of_a_newer_format_or_none(tmp_path: Path) -> None:
    with open_store(tmp_path, identity(_STUDY)):
        pass
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE study SET value = '2' WHERE key = 'format_version'")
    connection.close()
    with pytest.raises(StoreError, match="has format 2"), open_store(tmp_path, identity(_STUDY)):
        pass
    with pytest.raises(StoreError, match="there is no study at"), open_store(tmp_path / "none", None):
        pass
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / FILE).write_text("remember the milk, and much more that is no database at all")
    with pytest.raises(StoreError, match="is not a study's store"), open_store(tmp_path / "text", identity(_STUDY)):
        pass


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    with open_store(tmp_path, identity(_STUDY)) as store:
        store.add(_finished())
        connection: sqlite3.Connection = store._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        large = replace(_finished(replace(_TRIAL, seed=1)), host="x" * 100_000)
        with pytest.raises(OutputError, match=r"cannot be written \(database or disk is full\)"):
            store.add(large)
        assert store.finished() == [_finished()]


def test_a_failed_trial_is_tried_again(tmp_path: Path) -> None:
    failed = replace(_finished(), events=(), error="the budget is below one step")
    with open_store(tmp_path, identity(_STUDY)) as store:
        store.add(failed)
        assert store.missing([_TRIAL]) == [_TRIAL]
        store.add(_finished())
        assert store.missing([_TRIAL]) == []
        assert store.finished() == [_finished()]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"networks": ()}, "the study has no networks"),
        ({"kept": (0.5, 1.5)}, "`kept` is 1.5"),
        ({"recipes": ("l1/none",)}, r"`recipes` has 'l1/none'; expected CRITERION/RANKING/RECOVERY"),
        ({"budgets": (0.0,)}, "`budgets` has 0"),
        ({"budgets": (1e10, float("inf"))}, "`budgets` has inf; expected a finite number"),
        ({"memory": 0.0}, "`memory` is 0; expected GiB above 0"),
        ({"mean": (0.5, 0.5, 0.5)}, "`mean` has 3 numbers; expected 1, as the input has channels"),
        ({"seeds": (1, 1)}, "`seeds` names something twice"),
        ({"tasks": ("nowhere",)}, "no task folder nowhere"),
        ({"calibration": Path("nowhere")}, "no calibration folder nowhere"),
        ({"calibration_images": 0}, "`calibration_images` is 0; expected at least 1"),
        ({"tasks": ("pruneport:digits-upside",)}, "there are pruneport:digits-parity"),
        ({"budgets": (1e3,)}, r"a step of 32 images costs .* more than the smallest budget, 1.00e\+03"),
        ({"networks": ("torchvision:resnet5O",)}, "torchvision:resnet5O cannot be prepared: .*did you mean"),
    ],
)
def test_wrong_studies(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"(?i){said}"):
        run_study(replace(_STUDY, **wrong), tmp_path)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Prepare networks in this process, and train none; the trials that would have been."""
    ran: list[Trial] = []

    def run(work: Any, todo: Any, workers: int) -> Any:
        return (Outcome(item, work(item), None, 0.1, "here") for item in todo)

    def train(trial: Trial, options: StudyOptions, folder: Path) -> list[Event]:
        ran.append(trial)
        return [_EVENT]

    monkeypatch.setattr("pruneport.bench.transfer.runner.run_local", run)
    monkeypatch.setattr("pruneport.bench.transfer.runner.run_trial", train)
    return ran


def _break(task: Path, how: str) -> None:
    if how == "one class":
        for split in ("train", "test"):
            shutil.rmtree(task / split / "odd")
    elif how == "an empty split":
        for image in (task / "test").rglob("*.png"):
            image.unlink()
    elif how == "other classes":
        (task / "test" / "odd").rename(task / "test" / "strange")
    else:
        next((task / "train").rglob("*.png")).write_bytes(b"no image")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("one class", "has one class, even"),
        ("an empty split", "test; expected files ending in"),
        ("other classes", r"differ \(odd, strange in one only\)"),
        ("an unreadable image", r"cannot be read \("),
    ],
)
def test_a_bad_task_is_met_before_any_work(how: str, said: str, here: list[Trial], tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_digits_task("parity", tmp_path / name)
        _break(tmp_path / name, how)
    tasks = (str(tmp_path / "first"), "pruneport:digits-parity", str(tmp_path / "second"))
    with pytest.raises(ImageFolderError, match=f"(?s)first.*{said}.*second.*{said}"):
        run_study(replace(_STUDY, tasks=tasks), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_run_is_not_needed_again(here: list[Trial], tmp_path: Path) -> None:
    """A network and a task that are gone, with all their trials done, hold nothing up."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "net.pth").touch()
    old = f"pruneport:digits_resnet={tmp_path / 'net.pth'}"
    study = replace(_STUDY, networks=(*_STUDY.networks, old), tasks=(*_STUDY.tasks, str(tmp_path / "gone")))
    wanted = trials(study)
    left = [trial for trial in wanted if trial.network != old and trial.task in _STUDY.tasks]
    with open_store(tmp_path / "out", identity(study)) as store:
        for trial in wanted:
            if trial not in left:
                store.add(_finished(trial))
    assert len(run_study(study, tmp_path / "out")) == len(wanted)
    assert here == left
    assert len(list((tmp_path / "out" / "networks").iterdir())) == 2  # dense and pruned, of one network
