"""verify.json and bench.json are believed only where they are what our verbs write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruneport.commands.records import read_record
from pruneport.errors import BundleError
from pruneport.export.bundle.bundle import open_bundle
from tests.support.command_line import QUICK

_DATA = Path(__file__).parents[1] / "data"


def _damage(folder: Path, name: str, rehash: Callable[..., None]) -> None:
    content = json.loads((folder / name).read_text())
    content["checks" if name == "verify.json" else "batches"] = [{"ok": "yes"}]
    (folder / name).write_text(json.dumps(content))
    rehash(folder)


def test_a_damaged_record_names_the_verb_that_writes_it(bundle: Path, run: Any, rehash: Any, listing: Any) -> None:
    _damage(bundle, "verify.json", rehash)
    before = listing(bundle)
    done = run("bench", bundle, *QUICK)
    assert (done.code, done.out) == (2, "")
    assert f"{bundle}/verify.json is not what pruneport verify writes: " in done.err
    assert f"Write it anew with: pruneport verify {bundle}" in done.err
    assert listing(bundle) == before
    done = run("verify", bundle, "--parity-batches", "1")
    assert done.code == 0
    assert "nothing is kept of what was there" in done.err
    assert run("bench", bundle, *QUICK).code == 0


@pytest.mark.slow
def test_where_both_are_damaged_exporting_helps(bundle: Path, run: Any, rehash: Any) -> None:
    for name in ("bench.json", "verify.json"):
        _damage(bundle, name, rehash)
    for verb in ("verify", "bench"):
        done = run(verb, bundle)
        assert done.code == 2
        assert f"start with: pruneport export {bundle}" in done.err
    assert run("export", bundle).code == 0
    opened = open_bundle(bundle)
    assert [read_record(opened, name) for name in ("verify.json", "bench.json")] == [None, None]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("verify.json", lambda content: content["accuracy"].update(dense_torch=1.5), "a share from 0 to 1, got 1.5"),
        ("verify.json", lambda content: content["accuracy"].update(images=0), "a number of images, got 0"),
        ("verify.json", lambda content: content["accuracy"].update(only_dense=10**9), "1000000000 of"),
        ("verify.json", lambda content: content["files"].update({"model.onnx": -1}), "Expected `int` >= 0"),
        ("verify.json", lambda content: content.update(parity=[None]), r"at `parity\[0\]`"),
        (
            "bench.json",
            lambda content: content["batches"][0]["speedup"].update(ratio=0),
            r"at `batches\[0\].speedup.rat",
        ),
        ("bench.json", lambda content: content["batches"][0]["dense"].update(samples_ms=[]), "length >= 1"),
        ("bench.json", lambda content: content["batches"][0]["dense"].update(p50_ms=1e300), "`float` <= 1"),
        ("bench.json", lambda content: content["device"].update(load_average_1min="high"), "expected a number"),
        ("bench.json", lambda content: content["settings"].update(a={"b": {"c": {"d": 1}}}), r"at `settings\[...\]"),
        ("bench.json", lambda content: content.update(batches=content["batches"] * 200), "length <= 256"),
    ],
)
def test_what_would_not_draw_is_refused(
    name: str, change: Callable[[Any], Any], message: str, bundle: Path, rehash: Any
) -> None:
    content = json.loads((_DATA / f"sample_{name}").read_text())
    (bundle / name).write_text(json.dumps(content))
    rehash(bundle)
    assert read_record(open_bundle(bundle), name) == content
    change(content)
    (bundle / name).write_text(json.dumps(content))
    rehash(bundle)
    with pytest.raises(BundleError, match=message):
        read_record(open_bundle(bundle), name)
