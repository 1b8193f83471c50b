"""pruneport push, and the commands that take a name of the hub for a bundle; the real client, a server here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub_server import TOKEN, running_hub

_EARLIER = Path(__file__).parents[1] / "data" / "earlier" / "shipped"


@pytest.mark.slow
def test_a_shipped_bundle_is_pushed_verified_timed_and_exported_by_its_name(
    bundle: Path, run: Any, hub: Any, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    before = listing(bundle)
    done = run("push", bundle, "me/digits-half", "--private", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert listing(bundle) == before
    assert hub.repos["me/digits-half"].private
    assert set(said["files"]) == set(hub.uploaded) == {path.name for path in bundle.iterdir()}
    card = hub.repos["me/digits-half"].files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "pruneport"
    assert TOKEN not in done.out + done.err + "".join(map(str, hub.repos["me/digits-half"].files.values()))
    for verb in (("verify", "--parity-batches", "1"), ("bench", "--repeats", "2", "--warmup", "1", "--batches", "1")):
        done = run(verb[0], "hf-hub:me/digits-half", *verb[1:], "--json")
        assert done.code == 0, done.err
        copy = Path(json.loads(done.out)["folder"])
        assert (copy / f"{verb[0]}.json").is_file()
        assert said["commit"] in str(copy)
    done = run("export", "hf-hub:me/digits-half", "--json")
    assert done.code == 0, done.err
    assert listing(bundle) == before


def test_the_table_says_where_it_is_and_how_it_is_loaded(bundle: Path, run: Any, hub: Any) -> None:
    done = run("push", bundle, "me/digits-half")
    assert done.code == 0, done.err
    commit = hub.repos["me/digits-half"].commits[-1][0]
    assert f"Public repository: {hub.url}/me/digits-half" in done.out
    assert f'pruneport.load("hf-hub:me/digits-half@{commit}")' in done.out
    assert "weights.safetensors" in done.out


def test_the_card_of_an_earlier_version_is_written_anew(run: Any, hub: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(_EARLIER, tmp_path / "earlier"))
    assert not (folder / "README.md").read_text().startswith("---")
    done = run("push", folder, "me/earlier")
    assert done.code == 0, done.err
    assert "README.md is written anew: the hub could not read it" in done.err
    card = (folder / "README.md").read_bytes()
    assert card == hub.repos["me/earlier"].files["README.md"]
    assert card.startswith(b"---\nlibrary_name: pruneport\n")
    assert "pruneport push" in json.loads((folder / "manifest.json").read_text())["commands"][-1]


def test_a_bundle_on_the_hub_is_trained_on(bundle: Path, run: Any, hub: Any, tmp_path: Path) -> None:
    from PIL import Image

    assert run("push", bundle, "me/half").code == 0
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "task" / part / label).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), 60 * number + (label == "b")).save(
                    tmp_path / f"task/{part}/{label}/{number}.png"
                )
    words = ("--task", tmp_path / "task", "--epochs", "1", "--batch-size", "4", "--out", tmp_path / "trained")
    done = run("finetune", "hf-hub:me/half", *words)
    assert done.code == 0, done.err


_BAD = {
    "a bad name": (("push", "BUNDLE", "half"), "'half' is no repository; expected owner/name"),
    "a bundle on the hub": (("push", "hf-hub:me/half", "me/other"), "is on the hub already; expected the folder of a"),
    "no bundle": (("push", "nothing", "me/half"), "no bundle at nothing"),
    "a network": (("push", "torchvision:resnet18", "me/half"), "names a network; expected the folder of a bundle"),
    "somebody else's": (("push", "BUNDLE", "others/half"), "the hub does not allow it (403: "),
    "public and private": (("push", "BUNDLE", "me/public", "--private"), "is public; leave out --private"),
    "no repository": (("verify", "hf-hub:me/nothing"), "there is no such repository, or it is private"),
    "no bundle there": (("bench", "hf-hub:me/public"), "is not a bundle: the repository has no manifest.json"),
    "no name": (("push", "BUNDLE"), "pruneport push lacks OWNER/NAME. Example: pruneport push half me/"),
    "nothing at all": (("push",), "pruneport push lacks BUNDLE and OWNER/NAME."),
    "too many": (
        ("push", "a", "b/c", "d"),
        "'d' is one value too many: there is one BUNDLE and one OWNER/NAME, 'a', 'b/c'",
    ),
    "a network for a bundle": (("inspect", "hf-hub:me/public"), "A network of timm's there is timm:hf-hub:me/public."),
    "no bundle to compress": (
        ("compress", "hf-hub:me/half", "--flops", "0.5", "--out", "o"),
        "hf-hub:me/half: there is no such repository",
    ),
}


@pytest.mark.parametrize("name", _BAD)
def test_bad_input(name: str, bundle: Path, run: Any, hub: Any, listing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    hub.put("me/public", {".gitattributes": b""})
    words, message = _BAD[name]
    before = listing(bundle.parent)
    done = run(*(bundle if word == "BUNDLE" else word for word in words))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert listing(bundle.parent) == before
    assert hub.uploaded == []


@pytest.mark.parametrize("missing", ["token", "client", "network"])
def test_what_is_missing_here(
    missing: str, bundle: Path, run: Any, hub: Any, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(bundle)
    if missing == "token":
        monkeypatch.delenv("HF_TOKEN")
    elif missing == "client":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    done = run("push", bundle, "me/half")
    assert (done.code, done.out) == (2, "")
    expected = {"token": "hf auth login", "client": "pip install 'pruneport[hub]'", "network": "cannot be reached"}
    assert expected[missing] in done.err
    assert listing(bundle) == before


@pytest.mark.slow
def test_the_client_is_found_by_the_environment_and_imported_by_nobody_else(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pruneport.cli import main\n"
        "try: main(['push', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'huggingface_hub' not in sys.modules and 'torch' not in sys.modules\n"
        "code = main(['push', sys.argv[1], 'me/half', '--json'])\n"
        "sys.exit(code)\n"
    )
    with running_hub() as server:
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(TOKEN)  # where `hf auth login` puts it
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        done = subprocess.run(
            [sys.executable, "-c", code, bundle],
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        sent = {path.split("/")[1]: token for (_, path), token in zip(server.asked, server.tokens, strict=True)}
        assert sent == {"api": TOKEN, "me": TOKEN, "large": None}  # to where files are uploaded it is not sent
        assert set(server.repos["me/half"].files) >= {"plan.json", "manifest.json", "README.md"}
    assert TOKEN not in done.stdout + done.stderr
