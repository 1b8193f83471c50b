"""Whatever step a process is killed at: the next open finds a whole bundle, old or new, and leaves nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pruneport.errors import BundleError, OutputError
from pruneport.export.bundle.bundle import check_hashes, is_bundle, open_bundle
from pruneport.export.bundle.weights import rebuild
from pruneport.export.bundle.writing import check_output, new_bundle, update_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the script forks")


@pytest.fixture(scope="session")
def killed(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``killed.py`` leaves: JOB/STEP/bundle."""
    root = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, Path(__file__).with_name("killed.py"), digits.folder, root], check=True)
    return root


def _states(job: Path) -> list[Path]:
    return sorted(job.iterdir())


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write(folder: Path) -> None:
    with update_bundle(open_bundle(folder), "again") as staging:
        (staging / "bench.json").write_text("again")


@pytest.mark.parametrize(
    ("job", "old"),
    [("update", 9), pytest.param("replace", 9, marks=[pytest.mark.slow, pytest.mark.wheel]), ("reopen", 9)],
)
def test_a_killed_write_leaves_the_old_bundle_or_the_new_one(job: str, old: int, killed: Path, tmp_path: Path) -> None:
    before, whole = _content(killed / "before/bundle"), _content(_states(killed / job)[-1] / "bundle")
    assert len(before) == old
    seen = []
    for state in _states(killed / job):
        parent = Path(shutil.copytree(state, tmp_path / state.name))
        bundle = open_bundle(parent / "bundle")
        assert check_hashes(bundle) == f"{len(bundle.files)} files match the manifest"
        assert os.listdir(parent) == ["bundle"], state  # nothing beside it, nothing hidden in it
        content = _content(parent / "bundle")
        assert set(content) == {*bundle.files, "manifest.json"}, state
        created = {"manifest.json": b""}
        seen.append(content == before)
        assert seen[-1] or (content | created) == (whole | created), state
        _write(parent / "bundle")
        assert not list(parent.rglob(".*"))
    assert seen == sorted(seen, reverse=True)  # never the old one again once the new one has been seen
    assert (job == "reopen") == all(seen)
    assert len(seen) > 15


@pytest.mark.parametrize("job", ["update", "replace"])
def test_the_next_write_alone_tidies_up(job: str, killed: Path, tmp_path: Path) -> None:
    for state in _states(killed / job):
        folder = Path(shutil.copytree(state, tmp_path / state.name)) / "bundle"
        with new_bundle(folder, True, "") as staging:
            (staging / "a.txt").write_text("new")
        assert {str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*")} == {
            "bundle",
            "bundle/a.txt",
            "bundle/manifest.json",
        }, state


def test_a_bundle_that_was_being_made_is_made_anew(killed: Path, tmp_path: Path) -> None:
    seen = []
    for state in _states(killed / "make"):
        out = Path(shutil.copytree(state, tmp_path / state.name)) / "not/there/out"
        seen.append(is_bundle(out))
        if seen[-1]:
            assert check_hashes(open_bundle(out))
        else:
            check_output(out, overwrite=False)
            with new_bundle(out, False, "") as staging:
                (staging / "a.txt").write_text("new")
        assert os.listdir(out.parent) == ["out"], state
    assert seen == sorted(seen)
    assert seen.count(False) > 5
    assert seen[-1]


def test_what_earlier_versions_left_goes_with_the_next_write(bundle: Path) -> None:
    for left in (bundle / ".partial-abcd1234", bundle.parent / ".bundle.partial-abcd_234"):
        left.mkdir()
        (left / "model.onnx").write_text("half")
    (bundle.parent / ".bundle.partial-b.unfinished").mkdir()  # another bundle's
    _write(bundle)
    with new_bundle(bundle, True, "") as staging:
        (staging / "a.txt").write_text("new")
    assert sorted(os.listdir(bundle.parent)) == [".bundle.partial-b.unfinished", "bundle"]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Take all write bits away; the super-user, whom they do not bind, is nobody for the block."""
    import filelock  # noqa: F401  nobody may not be allowed to read the modules

    paths = (folder, *folder.rglob("*"))
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    is_super_user = os.geteuid() == 0
    if is_super_user:
        os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(PermissionError):
            (folder / "x").touch()
        yield
    finally:
        if is_super_user:
            os.setresuid(0, 0, 0)
        for path in paths:
            path.chmod(0o755)


def test_a_read_only_bundle_opens(public: Path, same: Any, digits: Any) -> None:
    folder = Path(shutil.copytree(digits.folder, public / "bundle"))
    with _read_only(public):
        opened = open_bundle(folder)
        assert check_hashes(opened) == "3 files match the manifest"
        assert same(rebuild(opened), digits.pruned.network, (1, 8, 8))
        with pytest.raises(OutputError, match=r"cannot be written: .*Permission denied.* Nothing was kept"):
            _write(folder)
        with pytest.raises(OutputError, match="write-protected"):
            check_output(folder, overwrite=True)


def test_a_read_only_bundle_opens_where_a_process_was_killed(killed: Path, public: Path) -> None:
    """Its plan and weights are whole; files that were being moved are not used, and the message says what helps."""
    states = [Path(shutil.copytree(state, public / state.name)) / "bundle" for state in _states(killed / "update")]
    faults = []
    with _read_only(public):
        for folder in states:
            opened = open_bundle(folder)
            with suppress(BundleError):
                check_hashes(opened)
                continue
            with pytest.raises(BundleError, match="make the folder writable and open it once more") as caught:
                check_hashes(opened)
            faults.append(str(caught.value))
    assert len(faults) > 3
    for folder in states:
        assert check_hashes(open_bundle(folder))


def test_what_lies_in_a_strangers_bundle_leads_nowhere_else(bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("old", "added"):
        (home / "undo" / name).mkdir(parents=True)
        (home / "undo" / name / "mine.txt").write_text("mine")
    before = sorted(home.rglob("*"))
    work = bundle / ".unfinished-update"
    work.symlink_to(home)
    (bundle / ".lock").symlink_to(home / "made")
    assert check_hashes(open_bundle(bundle))
    (bundle / ".lock").unlink()
    assert check_hashes(open_bundle(bundle))
    assert not work.is_symlink()
    (work / "undo").mkdir(parents=True)
    (work / "undo" / "old").symlink_to(home / "undo" / "old")
    (work / "undo" / "added").mkdir()
    (work / "undo" / "added" / "mine.txt").touch()
    (bundle / "mine.txt").write_text("mine")
    assert check_hashes(open_bundle(bundle))
    assert not work.exists()
    assert (bundle / "mine.txt").is_file()
    assert sorted(home.rglob("*")) == before
