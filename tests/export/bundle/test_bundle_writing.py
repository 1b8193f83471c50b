"""A bundle appears whole or not at all, and the disk is otherwise as it was."""

from __future__ import annotations

import contextlib
import json
import os
import pickletools
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pruneport.errors import OutputError, TargetError
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.export.bundle.weights import write_network
from pruneport.export.bundle.writing import check_output, new_bundle, update_bundle


def _write(staging: Path, error: BaseException | type[BaseException] | None = None) -> None:
    for name in ("a.txt", "plan.json"):
        (staging / name).write_text("new")
    if error is not None:
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, TargetError, OSError])
@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupted_block_leaves_nothing(
    error: type[BaseException], nested: bool, tmp_path: Path, listing: Any
) -> None:
    (tmp_path / "neighbour").mkdir()
    before = listing(tmp_path)
    folder = tmp_path / "not/there/yet/out" if nested else tmp_path / "out"
    with pytest.raises(OutputError if error is OSError else error), new_bundle(folder, False, "") as staging:
        _write(staging, error("stop"))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_overwriting_keeps_the_old_bundle_when_the_new_one_fails(
    error: type[BaseException], bundle: Path, listing: Any
) -> None:
    before = listing(bundle.parent)
    with pytest.raises(error), new_bundle(bundle, True, "") as staging:
        _write(staging, error)
    assert listing(bundle.parent) == before


def test_overwriting_replaces_the_whole_bundle(bundle: Path, listing: Any) -> None:
    (bundle / "stale.txt").write_text("old")
    with new_bundle(bundle, True, "pruneport ship x") as staging:
        (staging / "a.txt").write_text("new")
    assert set(listing(bundle)) == {"a.txt", "manifest.json"}
    assert os.listdir(bundle.parent) == ["bundle"]
    assert json.loads((bundle / "manifest.json").read_text())["commands"] == ["pruneport ship x"]


def test_overwriting_through_a_link_replaces_what_it_points_to(bundle: Path, listing: Any) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    with new_bundle(link, True, "") as staging:
        (staging / "a.txt").write_text("new")
    assert link.is_symlink()
    assert set(listing(bundle)) == {"a.txt", "manifest.json"}
    assert sorted(os.listdir(bundle.parent)) == ["bundle", "link"]


@pytest.mark.parametrize("step", [0, 1])
def test_a_failing_rename_puts_the_old_bundle_back(
    step: int, bundle: Path, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename, calls = listing(bundle.parent), os.rename, iter(range(9))

    def failing(*paths: Any) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt), new_bundle(bundle, True, "") as staging:
        _write(staging)
    assert listing(bundle.parent) == before


def test_an_empty_folder_becomes_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_bundle(tmp_path / "out", False, "") as staging:
        _write(staging)
    assert (tmp_path / "out/a.txt").is_file()


@pytest.mark.parametrize(
    ("out", "overwrite", "message"),
    [
        ("full", False, "is not empty; choose another folder, or replace it with `overwrite`"),
        ("full", True, "is not a bundle .no manifest.json.; `overwrite` replaces bundles only"),
        ("file", True, "is a file; expected a folder that does not exist yet"),
        ("file/below", False, "is not writable; choose a folder"),
        ("dangling", True, "is a file"),
        ("loop", False, "is a file"),
        ("long" * 99, False, "File name too long; choose another folder"),
        ("/proc/pruneport/out", False, r"/proc/pruneport/out cannot be written: .*proc.*\. Nothing was kept"),
    ],
)
def test_an_unusable_output_is_refused(out: str, overwrite: bool, message: str, tmp_path: Path, listing: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("keep me")
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=message), new_bundle(tmp_path / out, overwrite, "") as staging:
        _write(staging)
    assert listing(tmp_path) == before


def test_a_taken_output_is_refused_before_any_work(bundle: Path) -> None:
    with pytest.raises(OutputError, match="not empty"):
        check_output(bundle, overwrite=False)
    check_output(bundle, overwrite=True)


def test_an_update_adds_and_replaces_files(bundle: Path) -> None:
    opened = open_bundle(bundle)
    with update_bundle(opened, "pruneport bench") as staging:
        (staging / "bench.json").write_text("1")
    with update_bundle(open_bundle(bundle), "pruneport bench again") as staging:
        (staging / "bench.json").write_text("2")
    reopened = open_bundle(bundle)
    assert set(reopened.files) == {*opened.files, "bench.json"}
    assert check_hashes(reopened) == "4 files match the manifest"
    assert reopened.path("bench.json").read_text() == "2"
    assert json.loads((bundle / "manifest.json").read_text())["commands"][-1] == "pruneport bench again"
    assert not list(bundle.glob(".*"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_interrupted_update_changes_nothing(error: type[BaseException], bundle: Path, listing: Any) -> None:
    before = listing(bundle)
    with pytest.raises(OutputError if error is OSError else error), update_bundle(open_bundle(bundle), "") as staging:
        _write(staging, error)
    assert listing(bundle) == before


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("links", [True, False])
def test_a_half_moved_update_is_taken_back(
    step: int, links: bool, bundle: Path, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace, calls = listing(bundle), os.replace, iter(range(9))

    def failing(*paths: Any) -> None:
        if next(calls) == step:
            raise OSError("the disk fell out")
        replace(*paths)

    def no_links(*paths: Any) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "replace", failing)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    opened, outdated = open_bundle(bundle), ("weights.safetensors", "never.there")
    with pytest.raises(OutputError, match="fell out"), update_bundle(opened, "", outdated) as staging:
        _write(staging)
    assert listing(bundle) == before


def test_an_update_takes_outdated_files_away(bundle: Path) -> None:
    with update_bundle(open_bundle(bundle), "") as staging:
        for name in ("verify.json", "bench.json"):
            (staging / name).write_text("old")
    (bundle / "report.html").write_text("left by a run that was killed")
    with update_bundle(open_bundle(bundle), "", ("verify.json", "bench.json", "report.html")) as staging:
        (staging / "bench.json").write_text("new")
    reopened = open_bundle(bundle)
    assert check_hashes(reopened) == "4 files match the manifest"
    assert reopened.path("bench.json").read_text() == "new"
    assert {path.name for path in bundle.iterdir()} == {*reopened.files, "manifest.json"}


_FILES = {"plan.json", "weights.safetensors", "preprocessor.json", "manifest.json"}
_KILLED = """
import sys, time
from pathlib import Path
from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.bundle.writing import new_bundle, update_bundle
with new_bundle(Path(sys.argv[1]), False, "") as made, update_bundle(open_bundle(Path(sys.argv[2])), "") as more:
    for folder in (made, more):
        (folder / "plan.json").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_half_bundle(bundle: Path, listing: Any) -> None:
    out, before = bundle.parent / "out", listing(bundle)
    with subprocess.Popen([sys.executable, "-c", _KILLED, out, bundle], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert check_hashes(open_bundle(bundle)) == "3 files match the manifest"
    assert listing(bundle) == before
    with new_bundle(out, False, "") as staging:  # the leftovers are in nobody's way
        _write(staging)
    assert sorted(os.listdir(bundle.parent)) == ["bundle", "out"]


_LIMITED = """
import resource, signal, sys
from pruneport.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
out, bundle = sys.argv[1:]
for limit, arguments in (
    (100_000, ["compress", "pruneport:digits_resnet", "--flops", "0.5", "--recover", "none", "--out", out]),
    (400_000, ["export", bundle]),
):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    print(main(arguments), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file size limits")
def test_a_file_size_limit_leaves_the_disk_as_it_was(bundle: Path, listing: Any) -> None:
    before = listing(bundle.parent)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, bundle.parent / "new/out", bundle], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("2\n2\n", 0), done.stderr
    assert done.stderr.count("the disk is full, or the file size limit is reached") == 2
    assert "Traceback" not in done.stderr
    assert listing(bundle.parent) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_left_as_it_was(small_disk: Path, digits: Any, listing: Any) -> None:
    with new_bundle(small_disk / "out", False, "") as staging:
        write_network(staging, digits.pruned.network, digits.pruned.plan)
    before = listing(small_disk)
    with pytest.raises(OutputError, match="the disk is full"), new_bundle(small_disk / "two", False, "") as staging:
        write_network(staging, digits.pruned.network, digits.pruned.plan)
    assert listing(small_disk) == before
    opened = open_bundle(small_disk / "out")
    with pytest.raises(OutputError, match="the disk is full"), update_bundle(opened, "") as staging:
        (staging / "report.html").write_bytes(b"x" * 300_000)
    assert listing(small_disk) == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_get_ordinary_permissions(mask: int, digits: Any, tmp_path: Path) -> None:
    previous = os.umask(mask)
    try:
        with new_bundle(tmp_path / "out", False, "") as staging:
            write_network(staging, digits.pruned.network, digits.pruned.plan)
    finally:
        os.umask(previous)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(_FILES, 0o666 & ~mask)


def test_no_pickle_is_inside(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == _FILES
    for path in bundle.iterdir():
        content = path.read_bytes()
        assert not zipfile.is_zipfile(path), path.name
        with contextlib.suppress(ValueError):
            for opcode, _, _ in pickletools.genops(content):
                assert opcode.name != "STOP", f"{path.name} is a pickle"
