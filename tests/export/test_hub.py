"""Bundles on the hub: the real client against a server on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pruneport
from pruneport.errors import BundleError, HubError, InUseError, OutputError
from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.hub import fetch_bundle
from pruneport.export.hub_upload import find_target, push_bundle
from pruneport.files import held

NAME = "hf-hub:me/half"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _push(folder: Path, name: str = "me/half", private: bool = False) -> Any:
    return push_bundle(open_bundle(folder), find_target(name, private))


def _copies(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "HF_ASSETS_CACHE"


def test_a_bundle_goes_up_and_comes_back_bit_for_bit(digits: Any, bundle: Path, hub: Any, same: Any) -> None:
    (bundle / "notes.txt").write_text("mine")
    (bundle / ".secret").write_text("mine")
    done = _push(bundle)
    names = {"plan.json", "weights.safetensors", "preprocessor.json", "manifest.json"}
    assert set(done.files) == names
    assert set(hub.uploaded) == names  # and nothing that is not in the manifest
    assert set(hub.repos["me/half"].files) == {*names, ".gitattributes"}
    assert not hub.repos["me/half"].private
    assert same(pruneport.load(NAME), digits.pruned.network, (1, 8, 8))
    there = open_bundle(fetch_bundle(NAME).folder)
    assert {path.name: path.read_bytes() for path in there.folder.iterdir()} == {
        name: (bundle / name).read_bytes() for name in names
    }


def test_a_copy_is_fetched_once_for_each_commit(bundle: Path, hub: Any, rehash: Any, tmp_path: Path) -> None:
    first = _push(bundle).repository
    folder = fetch_bundle(NAME).folder
    hub.asked.clear()
    assert fetch_bundle(NAME).folder == folder
    assert [path for _, path in hub.asked] == ["/api/models/me/half/revision/main"] or [
        path for _, path in hub.asked
    ] == ["/api/models/me/half"]
    hub.asked.clear()
    assert fetch_bundle(str(first)).folder == folder
    assert hub.asked == []  # a commit never changes
    rehash(bundle, commands=["another"])
    second = _push(bundle).repository
    assert second.revision != first.revision
    assert fetch_bundle(NAME).folder != folder
    assert fetch_bundle(f"{NAME}@{first.revision}").folder == folder


def test_what_an_earlier_bundle_has_more_is_removed_and_files_of_others_stay(
    bundle: Path, hub: Any, rehash: Any
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "bench.json").write_text("{}")
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"files": {**manifest["files"], "bench.json": {}}}))
    rehash(bundle)
    _push(bundle)
    hub.put("me/half", {**hub.repos["me/half"].files, "photo.png": b"theirs"})
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    _push(bundle)
    assert "bench.json" not in hub.repos["me/half"].files
    assert hub.repos["me/half"].files["photo.png"] == b"theirs"


def test_a_private_repository_is_made_and_read_with_the_token_only(
    bundle: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = find_target("me/half", True)
    assert target.private
    push_bundle(open_bundle(bundle), target)
    assert hub.repos["me/half"].private
    fetch_bundle(NAME)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no such repository, or it is private") as caught:
        fetch_bundle(NAME)
    assert "On this machine there is hf-hub:me/half@" in str(caught.value)


_Change = Callable[[dict[str, bytes]], Any]


def _with(name: str, content: bytes) -> _Change:
    return lambda files: files.update({name: content})


def _in_manifest(**entries: Any) -> _Change:
    def change(files: dict[str, bytes]) -> None:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] |= {name.replace("__", "."): entry for name, entry in entries.items()}
        files["manifest.json"] = json.dumps(manifest).encode()

    return change


def _flipped(name: str) -> _Change:
    def change(files: dict[str, bytes]) -> None:
        content = bytearray(files[name])
        content[len(content) // 2] ^= 1
        files[name] = bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flipped("weights.safetensors"), "weights.safetensors was changed"),
        (_flipped("plan.json"), "plan.json was changed"),
        (_with("plan.json", b"{}"), "plan.json has 2 bytes in place of"),
        (lambda files: files.pop("plan.json"), "plan.json is missing"),
        (lambda files: files.pop("manifest.json"), "is not a bundle: the repository has no manifest.json"),
        (_with("manifest.json", b"[]"), "is not a manifest"),
        (_in_manifest(**{"../evil": {"sha256": "0" * 64, "bytes": 1}}), "which lies outside the bundle; do not use it"),
        (_in_manifest(model__onnx={"sha256": "0" * 64, "bytes": 1}), "model.onnx is missing"),
        (_in_manifest(manifest__json={"sha256": "0" * 64, "bytes": 1}), "manifest.json has"),
    ],
)
def test_what_is_no_sound_bundle_is_named_and_leaves_nothing(
    change: _Change, message: str, bundle: Path, hub: Any, tmp_path: Path
) -> None:
    files = _files(bundle)
    change(files)
    hub.put("me/half", files)
    with pytest.raises(BundleError) as caught:
        fetch_bundle(NAME)
    assert message in str(caught.value)
    assert NAME in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not _copies(tmp_path).exists()


def test_only_files_of_the_manifest_are_fetched(bundle: Path, hub: Any) -> None:
    hub.put("me/half", {**_files(bundle), "run_me.py": b"raise SystemExit", "sub/plan.json": b"{}"})
    folder = fetch_bundle(NAME).folder
    names = {"plan.json", "weights.safetensors", "preprocessor.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert not [path for _, path in hub.asked if "run_me" in path or "sub" in path]


def test_a_manifest_too_large_is_not_fetched(bundle: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.export.hub.MOST_BYTES", 100)
    hub.put("me/half", _files(bundle))
    with pytest.raises(BundleError, match=r"its manifest.json has more than 100 bytes"):
        fetch_bundle(NAME)
    assert not [path for method, path in hub.asked if "resolve" in path]


def test_a_server_that_sends_something_else_than_it_says(bundle: Path, hub: Any, tmp_path: Path) -> None:
    hub.put("me/half", _files(bundle))
    hub.sending = lambda name, content: content[:-1] + b"!" if name == "weights.safetensors" else content
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        fetch_bundle(NAME)
    assert not _copies(tmp_path).exists()


def test_a_download_that_breaks_off_leaves_nothing(
    bundle: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # it tries five times
    hub.put("me/half", _files(bundle))
    hub.sending = lambda name, content: None if name == "weights.safetensors" else content
    with pytest.raises(HubError, match="the hub cannot be reached"):
        fetch_bundle(NAME)
    assert not _copies(tmp_path).exists()
    hub.sending = lambda name, content: content
    fetch_bundle(NAME)


def test_ctrl_c_while_fetching_leaves_nothing(bundle: Path, hub: Any, tmp_path: Path) -> None:
    hub.put("me/half", _files(bundle))

    def interrupt(line: str) -> None:
        if "weights" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_bundle(NAME, interrupt)
    assert not _copies(tmp_path).exists()


def test_a_damaged_copy_is_fetched_again(bundle: Path, hub: Any) -> None:
    hub.put("me/half", _files(bundle))
    folder = fetch_bundle(NAME).folder
    (folder / "plan.json").write_text("{}")
    lines: list[str] = []
    assert (fetch_bundle(NAME, lines.append).folder / "plan.json").read_bytes() == (bundle / "plan.json").read_bytes()
    assert lines[0].startswith("fetched again: ")


def test_a_copy_that_another_process_makes(bundle: Path, hub: Any, tmp_path: Path) -> None:
    sha = hub.put("me/half", _files(bundle))
    place = _copies(tmp_path) / "pruneport/bundles/me--half"
    place.mkdir(parents=True)
    with held(place / f".{sha}.lock", place), pytest.raises(InUseError, match="is at work on"):
        fetch_bundle(NAME)


def test_a_copy_that_cannot_be_written(bundle: Path, hub: Any, tmp_path: Path) -> None:
    hub.put("me/half", _files(bundle))
    _copies(tmp_path).parent.mkdir()
    _copies(tmp_path).write_text("a file")
    with pytest.raises(OutputError, match=r"the copy of hf-hub:me/half@\w+ is not kept: .* HF_ASSETS_CACHE says where"):
        fetch_bundle(NAME)


_NO_NAMES = (
    *("half", "me/", "/half", "me/half/more", "me/ha lf", "me/../half", "me/half--x", "me/half@", "me/half@a..b"),
    *("me/.x", "https://me/half", "me/half\x1b[31m", "m" * 60 + "/" + "h" * 60, "me/half.git", ""),
)


@pytest.mark.parametrize("name", _NO_NAMES)
def test_names_that_are_none(name: str, hub: Any) -> None:
    for act in (lambda: fetch_bundle(f"hf-hub:{name}"), lambda: find_target(name, False)):
        with pytest.raises(HubError, match="is no repository; expected owner/name"):
            act()
    assert hub.asked == []


def test_what_the_hub_refuses_is_named(bundle: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        HubError, match="there is no such repository, or it is private; check the name, and log in with"
    ):
        fetch_bundle("hf-hub:me/nothing")
    hub.put("me/half", _files(bundle))
    with pytest.raises(HubError, match="has no such revision"):
        fetch_bundle(f"{NAME}@v2")
    with pytest.raises(HubError, match="has no such revision"):
        fetch_bundle(f"{NAME}@{'0' * 40}")
    hub.put("me/gated", _files(bundle), gated=True)
    with pytest.raises(HubError, match="lets in only whom they know"):
        fetch_bundle("hf-hub:me/gated")
    with pytest.raises(HubError, match=r"does not allow it \(403: "):
        _push(bundle, "others/half")
    with pytest.raises(HubError, match="uploaded to the branch main; leave out @v1"):
        find_target("me/half@v1", False)
    with pytest.raises(HubError, match="is public; leave out `private`"):
        find_target("me/half", True)
    hub.put("me/model", {".gitattributes": b"", "README.md": b"", "model.safetensors": b""})
    with pytest.raises(HubError, match=r"holds other files \(model.safetensors\) and no bundle"):
        find_target("me/model", False)
    assert not _copies(tmp_path).exists()
    assert hub.uploaded == []


def test_a_commit_in_between_is_noticed(bundle: Path, hub: Any) -> None:
    hub.put("me/half", {".gitattributes": b""})
    target = find_target("me/half", False)
    hub.put("me/half", {".gitattributes": b"", "README.md": b"# Mine"})
    with pytest.raises(HubError, match="the repository was changed meanwhile; nothing was written"):
        push_bundle(open_bundle(bundle), target)


def test_files_that_a_gitignore_there_leaves_out(bundle: Path, hub: Any) -> None:
    hub.put("me/half", {".gitattributes": b""}, ignored=("weights.safetensors",))
    with pytest.raises(HubError, match=r"was uploaded without weights.safetensors: a .gitignore there"):
        _push(bundle)


def test_a_damaged_bundle_is_not_uploaded(bundle: Path, hub: Any) -> None:
    opened, target = open_bundle(bundle), find_target("me/half", False)
    (bundle / "weights.safetensors").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        push_bundle(opened, target)
    assert "me/half" not in hub.repos


def test_without_a_token_nothing_is_asked(bundle: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        HubError, match="there is no token for the hub, which uploading takes; log in with: hf auth login"
    ):
        find_target("me/half", False)
    assert hub.asked == []


@pytest.mark.parametrize("token", ["hf_" + "x" * 34, "secretive", "hf_" + "y" * 10 + "\x07" + "z" * 10])
def test_a_token_is_in_no_message(token: str, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError) as caught:
        find_target("me/half", False)
    error: BaseException | None = caught.value
    while error is not None:
        assert token not in str(error)
        assert token.encode("unicode_escape").decode() not in str(error)
        error = None if error.__suppress_context__ and error.__cause__ is None else error.__cause__
    with pytest.raises(HubError) as caught:
        find_target(f"https://me:{'hf_' + 'x' * 34}@hub/me/half", False)
    assert "hf_xxx" not in str(caught.value)


def test_no_network(bundle: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = _push(bundle).repository
    fetch_bundle(NAME)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(HubError, match=r"the hub cannot be reached \(ConnectError: .*check network, proxy") as caught:
        fetch_bundle(NAME)
    assert f"On this machine there is {pushed}, which opens without the hub." in str(caught.value)
    pruneport.load(str(pushed))
    with pytest.raises(HubError, match="the hub cannot be reached"):
        _push(bundle)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        fetch_bundle("hf-hub:me/other")


def test_a_server_that_is_no_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hub_server._Handler._api", lambda self, *_: self._send(200, b"<html>Log in to the hotel</html>")
    )
    with pytest.raises(HubError, match="this is not how a hub answers"):
        fetch_bundle(NAME)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        HubError, match=r"is not installed; install it with the extra hub: pip install 'pruneport\[hub\]'"
    ):
        fetch_bundle(NAME)
    with pytest.raises(HubError, match="install it with the extra hub"):
        find_target("me/half", False)


_KILLED = """
import sys
from pruneport.export.hub import fetch_bundle
print(fetch_bundle("hf-hub:me/half").folder)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_fetching_leaves_nothing_that_is_taken_for_a_bundle(
    bundle: Path, hub: Any, tmp_path: Path
) -> None:
    sha = hub.put("me/half", _files(bundle))
    place = _copies(tmp_path) / "pruneport/bundles/me--half"
    settings = {"HF_ENDPOINT": hub.url, "HF_ASSETS_CACHE": str(_copies(tmp_path)), "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen([sys.executable, "-c", _KILLED], env={**os.environ, **settings})
    seen: list[str] = []

    def kill(name: str, content: bytes) -> bytes | None:
        if name == "weights.safetensors" and not seen:
            seen.extend(path.name for path in place.iterdir())
            process.kill()
            return content[:10]
        return content

    hub.sending = kill
    assert process.wait(60) == -signal.SIGKILL
    assert f".{sha}.unfinished" in seen
    assert not (place / sha).exists()
    assert fetch_bundle(NAME).folder == place / sha
    assert [path.name for path in place.iterdir()] == [sha]
