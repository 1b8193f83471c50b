"""Locks between processes, and files that are replaced whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pruneport.errors import InUseError, OutputError
from pruneport.files import check_file, check_free, held, made_folder, replacing, write_whole

_COUNTING = """
import sys
from pathlib import Path
from pruneport.errors import InUseError
from pruneport.files import held
folder = Path(sys.argv[1])
for _ in range(100):
    try:
        with held(folder / "lock", folder):
            count = int((folder / "count").read_text())
            (folder / "count").write_text(str(count + 1))
    except InUseError:  # busy all the while
        pass
    else:
        print(end="x")
"""


def test_a_lock_is_held_by_one_at_a_time_although_its_file_comes_and_goes(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", _COUNTING, str(tmp_path)]
    counting = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = "".join(process.communicate()[0] for process in counting)
    assert [process.returncode for process in counting] == [0] * 4
    assert int((tmp_path / "count").read_text()) == len(said) > 100
    assert os.listdir(tmp_path) == ["count"]


@pytest.mark.parametrize("left", ["", "12345", f"pid {2**22 + 1} on elsewhere", "\x1b[2J" * 9])
def test_a_lock_file_that_nobody_holds_is_taken_over(left: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(left)
    check_free(tmp_path / "lock", tmp_path)
    (tmp_path / "lock").write_text(left)
    with held(tmp_path / "lock", tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"pid {os.getpid()} on ")
        (tmp_path / "lock").write_text(left)
        with pytest.raises(
            InUseError, match=r"another process \(pid (unknown|\d+ on elsewhere)\) is at work on .*; try"
        ):
            check_free(tmp_path / "lock", tmp_path)
    assert not os.listdir(tmp_path)


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="lock"), held(tmp_path / "lock", tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_lock_in_no_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(OSError, match=folder.name), held(folder / "lock", tmp_path):
            pass
        check_free(folder / "lock", tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def _write_half(staging: Path, error: type[BaseException]) -> None:
    staging.write_text("half")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_is_replaced_whole_or_not_at_all(error: type[BaseException], tmp_path: Path) -> None:
    write_whole(tmp_path / "x", "old")
    with pytest.raises(error), replacing(tmp_path / "x") as staging:
        _write_half(staging, error)
    assert (tmp_path / "x").read_text() == "old"
    write_whole(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


_WRITING = """
import sys
from pathlib import Path
from pruneport.files import write_whole
for _ in range(50):
    write_whole(Path(sys.argv[1]), sys.argv[2] * 100_000)
"""


def test_two_processes_that_write_one_file(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", _WRITING, str(tmp_path / "x"), letter] for letter in "ab"]
    writing = [subprocess.Popen(command) for command in commands]
    seen = set()
    while any(process.poll() is None for process in writing):
        if (tmp_path / "x").exists():
            seen.add((tmp_path / "x").read_text())
    assert [process.returncode for process in writing] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), made_folder(tmp_path / "a/b"):
        raise KeyError
    assert not os.listdir(tmp_path)
    with made_folder(tmp_path / "a/b"):
        (tmp_path / "a/b/c").touch()
    assert (tmp_path / "a/b/c").is_file()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has a folder in which nobody can make files")
def test_a_lock_that_cannot_be_made_is_no_other_process() -> None:
    with pytest.raises(OSError, match="/proc/"), held(Path("/proc/.out.lock"), Path("/proc/out")):
        pass


def test_a_file_that_cannot_be_written_is_refused_before_there_is_one(tmp_path: Path) -> None:
    check_file(tmp_path / "curves.svg", "plot", (".svg",))
    check_file(tmp_path / "new" / "deep" / "table.json", "out", (".json",), new_folder=True)
    (tmp_path / "file").touch()
    (tmp_path / "folder.svg").mkdir()
    for name, said, new_folder in (
        ("curves.jpg", r"`plot` .*curves\.jpg: expected a file ending in \.svg", False),
        ("gone/curves.svg", "there is no folder .*gone; make it first", False),
        ("folder.svg", "is a folder; give a file", False),
        ("file/curves.svg", "nothing can be written there: .*give another place", True),
        ("file/deep/curves.svg", "nothing can be written there: .*give another place", True),
        ("a\0b.svg", "nothing can be written there: embedded null byte; give another place", False),
    ):
        with pytest.raises(OutputError, match=said):
            check_file(tmp_path / name, "plot", (".svg",), new_folder=new_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.svg"]
