"""Damaged and forged documents of a bundle, their hashes right: each works, or ends in one of our errors."""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from pruneport.bench.report.report import render_report
from pruneport.commands.records import read_record
from pruneport.errors import PruneportError
from pruneport.export.bundle.bundle import BENCH, PLAN, VERIFY, open_bundle, plan_hash
from pruneport.export.bundle.weights import rebuild
from pruneport.export.card.card import model_card
from pruneport.export.card.verdict import warnings_for
from tests.support.slow_values import each_quick

_MORE_BYTES = 700 * 2**20
_JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.5, 10**6, 10**9, 10**12, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**40),
    *(1e-300, 1e300, float("inf"), float("-inf"), float("nan"), "", "x", "0", "1e9", "\u0000", "\ud800", "\udcff"),
    *("../../x", "a" * 300, [], {}, [None], [0], [1, 2], [[1]], {"a": 1}, {"": {}}, [{}], [10**9], "\u202e<script>"),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a document, of long lists the first and last few."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in sorted({*range(min(3, len(value))), *range(max(0, len(value) - 1), len(value))}):
            yield from _places(value[index], (*path, index))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged copies of a document, each with what was done to it."""
    draw = random.Random(seed)
    document = json.loads(content)
    places = [path for path in _places(document) if path]
    by_depth: dict[int, list[tuple[Any, ...]]] = {}
    for path in places:
        by_depth.setdefault(len(path), []).append(path)
    for _ in range(count):
        path = draw.choice(by_depth[draw.choice(list(by_depth))])  # else most would lie in the longest list
        kind = draw.choices(
            ["junk", "number", "delete", "extra", "twice", "swap", "deep", "bytes", "cut", "repeat"],
            [8, 4, 2, 1, 1, 2, 1, 1, 1, 1],
        )[0]
        changed = copy.deepcopy(document)
        owner, key = _at(changed, path[:-1]), path[-1]
        what = f"{kind} at {path}"
        if kind == "junk":
            owner[key] = draw.choice(_JUNK)
            what += f": {str(owner[key])[:40]!r}"
        elif kind == "number":
            numbers = [place for place in places if type(_at(document, place)) in (int, float)]
            place = draw.choice(numbers)
            value = draw.choice([0, -1, 1e-300, 1e300, 10**9, 10**10, 10**12, 2**31 - 1, 0.1, 10**6, 64, 5])
            _at(changed, place[:-1])[place[-1]] = value
            what = f"number at {place}: {value}"
        elif kind == "delete":
            del owner[key]
        elif kind == "extra" and isinstance(owner, dict):
            owner[draw.choice(["more", "trained", "positions", "run", "__class__", ""])] = draw.choice(_JUNK)
        elif kind == "swap":
            other = draw.choice(places)
            owner[key] = copy.deepcopy(_at(document, other))
            what += f" with {other}"
        elif kind == "repeat" and isinstance(owner[key], list):
            owner[key] = owner[key] * draw.choice([2, 50])
        elif kind == "deep":
            owner[key] = "DEEP"
        text = json.dumps(changed)
        if kind == "deep":
            depth = draw.choice([20, 900, 100_000])
            text = text.replace('"DEEP"', "[" * depth + "]" * draw.choice([0, depth]))
        elif kind == "twice" and isinstance(owner, dict):
            text = text.replace(f"{json.dumps(key)}:", f"{json.dumps(key)}: 1, {json.dumps(key)}:", 1)
        raw = text.encode("utf-8")
        if kind == "bytes":
            place = draw.randrange(len(raw))
            raw = (
                raw[:place] + draw.choice([b"\xff", b"\xc3", b"\x00", b"\xed\xa0\x80", b'"', b"\\"]) + raw[place + 1 :]
            )
        elif kind == "cut":
            raw = raw[: draw.randrange(len(raw))]
        yield what, raw


@pytest.fixture
def memory_limit() -> Iterator[None]:
    """Let this process take little more memory than it has; what asks for more gets a MemoryError."""
    resource = pytest.importorskip("resource")
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems do not keep to the limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + _MORE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _use(folder: Path, build: bool, draw: bool) -> None:
    """All that is done with what the documents say, but for what the network itself computes."""
    bundle = open_bundle(folder)
    if build:
        rebuild(bundle)
    verified, measured = read_record(bundle, VERIFY), read_record(bundle, BENCH)
    plan = json.loads(bundle.plan.to_json())
    model_card(plan, verified, measured).encode("utf-8")
    warnings_for(plan, verified, measured)
    if draw:
        render_report(plan, verified, measured).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "count", "drawn"),
    each_quick([(PLAN, 150, 1), ("manifest.json", 100, 0), (VERIFY, 200, 2), (BENCH, 150, 2)], 4),
)
def test_damage_is_named(
    name: str, count: int, drawn: int, shipped: Path, tmp_path: Path, rehash: Callable[..., None], memory_limit: None
) -> None:
    folder = Path(shutil.copytree(shipped, tmp_path / "bundle"))
    _use(folder, build=True, draw=False)
    raw: list[str] = []
    refused = worked = 0
    manifest = (folder / "manifest.json").read_bytes()
    for what, content in _mutations((shipped / name).read_bytes(), count, seed=1):
        (folder / "manifest.json").write_bytes(manifest)
        (folder / name).write_bytes(content)
        if name != "manifest.json":
            rehash(folder)
        try:
            _use(folder, build=name in (PLAN, "manifest.json"), draw=worked < drawn)
            worked += 1
        except PruneportError:
            refused += 1
        except Exception as error:
            raw.append(f"{what}: {type(error).__name__}: {error}")
    assert raw == []
    assert refused > count / 4
    assert worked > count / 20


def _width(plan: Any, size: int) -> None:
    group = next(group for group in plan["groups"] if group["kept"])
    group["width"] = size
    for member in group["members"]:
        member["size"] = size


def _run(plan: Any, size: int) -> None:
    next(group for group in plan["groups"] if group["kept"])["members"][0].update(run=size, size=2**31 - 1)


@pytest.mark.parametrize("size", [10**7, 10**9, 10**12])
@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (_width, "its groups name .* positions|Expected `int` <= 2147483647"),
        (_run, "its groups name .* positions|Expected `int` <= 2147483647"),
        (lambda plan, size: plan["source"]["heads"].update(head=size), "the output layer head has|Expected `int` <="),
        (lambda plan, size: plan["source"].update(input_shape=[3, size, size]), "is too large|Expected `int` <="),
        (
            lambda plan, size: plan["source"]["model_args"].update(num_classes=size),
            "far larger than the weights are of",
        ),
        (lambda plan, size: plan.update(sizes={"blocks.0": {"forward 1 reshape 0": {"0": size}}}), "a size in blocks"),
        (lambda plan, size: plan.update(attributes={"head": {"out_features": size}}), "it sets head.out_features to"),
    ],
)
def test_sizes_take_no_memory(
    forge: Callable[[Any, int], None],
    message: str,
    size: int,
    bundle: Path,
    rehash: Callable[..., None],
    memory_limit: None,
) -> None:
    plan = json.loads((bundle / PLAN).read_text())
    forge(plan, size)
    (bundle / PLAN).write_text(json.dumps(plan))
    rehash(bundle)
    with pytest.raises(PruneportError, match=message):
        rebuild(open_bundle(bundle))


def test_a_forged_plan_whose_network_does_not_run(bundle: Path, rehash: Callable[..., None], run: Any) -> None:
    plan = json.loads((bundle / PLAN).read_text())
    plan["source"]["input_shape"] = [3, 8, 8]
    (bundle / PLAN).write_text(json.dumps(plan))
    for name in ("model.onnx", "dense.onnx"):
        network = onnx.load(bundle / name)
        for entry in network.metadata_props:
            if entry.key.endswith("plan_sha256"):
                entry.value = plan_hash(bundle)
        onnx.save(network, bundle / name)
    rehash(bundle)
    done = run("verify", bundle)
    assert (done.code, done.out) == (2, "")
    assert "the dense network does not run on an input of shape (1, 3, 8, 8): RuntimeError: Given groups=1" in done.err
    assert "The plan was damaged or edited" in done.err
