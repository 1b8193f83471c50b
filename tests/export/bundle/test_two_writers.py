"""Two processes that write one bundle: the second one is told so, and neither loses what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from pruneport.cli import main
from pruneport.errors import BundleError, InUseError
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.export.bundle.writing import check_output, new_bundle, update_bundle
from tests.support.slow_values import each_quick

_OTHER = """
import sys
from pathlib import Path
from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.bundle.writing import new_bundle, update_bundle
how, folder = sys.argv[1], Path(sys.argv[2])
writing = update_bundle(open_bundle(folder), how) if how == "update" else new_bundle(folder, how == "replace", how)
with writing as staging:
    (staging / "model.onnx").write_text("theirs")
    print("ready", flush=True)
    sys.stdin.readline()
"""

Other = Callable[[str, Path], AbstractContextManager[int]]


@pytest.fixture
def other() -> Other:
    """Another process that is in the middle of writing; it ends well with the block."""

    @contextmanager
    def start(how: str, folder: Path) -> Iterator[int]:
        command = [sys.executable, "-c", _OTHER, how, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
            process.stdin.close()
            assert process.wait() == 0

    return start


def _update(folder: Path) -> None:
    with update_bundle(open_bundle(folder), "ours") as staging:
        (staging / "bench.json").write_text("ours")


@pytest.mark.slow
def test_a_second_update_is_refused_and_the_first_ends_well(bundle: Path, other: Other) -> None:
    ours = open_bundle(bundle)
    with other("update", bundle) as pid:
        assert check_hashes(open_bundle(bundle))  # and what the other one has in hand stays
        with pytest.raises(InUseError, match=rf"another process \(pid {pid} on .*\) is at work on .*bundle; try again"):
            _update(bundle)
        with pytest.raises(InUseError):
            check_output(bundle, overwrite=True)
    assert (bundle / "model.onnx").read_bytes() == b"theirs"
    with (
        pytest.raises(BundleError, match="was changed by another process meanwhile; nothing was kept"),
        update_bundle(ours, "ours"),
    ):
        pass
    _update(bundle)
    assert check_hashes(open_bundle(bundle)) == "5 files match the manifest"
    assert json.loads((bundle / "manifest.json").read_text())["commands"] == ["pruneport compress", "update", "ours"]
    assert not list(bundle.parent.rglob(".*"))


@pytest.mark.parametrize("how", each_quick(["make", "replace"], 2, pytest.mark.wheel))
def test_a_second_process_that_makes_the_same_bundle_is_refused(
    how: str, bundle: Path, other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bundle if how == "replace" else bundle.parent / "new/out"
    with other(how, out) as pid:
        with pytest.raises(InUseError, match=f"pid {pid} "), new_bundle(out, True, ""):
            pass
        if how == "replace":  # nor is it changed while it is replaced
            with pytest.raises(InUseError, match=f"pid {pid} "):
                _update(out)
        source = ("pruneport:digits_resnet", "--weights", "DEFAULT")
        assert main(["compress", *source, "--flops", "0.5", "--out", str(out), "--overwrite"]) == 2
        assert f"error: another process (pid {pid} on " in capsys.readouterr().err
    assert (out / "model.onnx").read_bytes() == b"theirs"
    assert not list(bundle.parent.rglob(".*"))
