"""Bundles and a study made by an earlier version open, load bit for bit, and are checked and reported (issue 15)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pruneport
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.models.factories import load_factory
from tests.support.command_line import QUICK, read_json

_EARLIER = Path(__file__).parents[1] / "data" / "earlier"
_FACTORY = f"{_EARLIER / 'users_tiny.py'}:build"
_STUDIES = Path(__file__).parents[2] / "bench" / "studies"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy that commands may write into."""
    return Path(shutil.copytree(_EARLIER, tmp_path / "earlier"))


@pytest.mark.parametrize(
    ("name", "factory", "shape"), [("shipped", _FACTORY, (3, 8, 8)), ("finetuned", None, (1, 8, 8))]
)
def test_an_earlier_bundle_loads_bit_for_bit(name: str, factory: str | None, shape: tuple[int, ...]) -> None:
    recorded = read_json(_EARLIER / "tensors.json")[name]
    assert check_hashes(open_bundle(_EARLIER / name))
    network = pruneport.load(_EARLIER / name, factory=load_factory(factory) if factory else None)
    tensors = {
        key: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for key, tensor in network.state_dict().items()
    }
    assert tensors == recorded["tensors"]
    with torch.inference_mode():
        outputs = network(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(1, *shape))
    torch.testing.assert_close(outputs[0], torch.tensor(recorded["outputs"]), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_an_earlier_bundles_training_says_what_can_be_embedded(run: Any, earlier: Path) -> None:
    bundle = earlier / "finetuned"
    assert run("export", bundle, "--embed-preprocessing", "uint8-nhwc").code == 0
    assert not read_json(bundle / "preprocessor.json")["do_normalize"]
    assert run("verify", bundle, "--parity-batches", 2).code == 0
    assert run("export", bundle).code == 0
    assert not (bundle / "preprocessor.json").exists()  # as before: its plan does not record how images are prepared
    assert check_hashes(open_bundle(bundle))


def test_an_earlier_bundle_is_verified_and_timed_again(run: Any, earlier: Path) -> None:
    bundle = earlier / "shipped"
    done = run("verify", bundle, "--factory", _FACTORY, "--parity-batches", 1, 3)
    assert done.code == 0, done.err
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert "| Latency p50, batch 1 | 0.010 ms | 0.011 ms |" in card  # written anew, from the bench.json that was there
    timed = run("bench", bundle, *QUICK)
    assert timed.code == 0, timed.err
    assert check_hashes(open_bundle(bundle))


@pytest.mark.slow
def test_an_earlier_fine_tuned_bundle_is_exported(run: Any, earlier: Path) -> None:
    bundle = earlier / "finetuned"
    exported = run("export", bundle)
    assert exported.code == 0, exported.err
    verified = run("verify", bundle, "--parity-batches", 1, 3)
    assert verified.code == 0, verified.err
    events = read_json(bundle / "training.json")["events"]
    assert f"{100 * (1 - events[-1]['error']):.1f} %" in (bundle / "README.md").read_text(encoding="utf-8")


def test_an_earlier_study_is_reported_advises_and_has_nothing_left_to_run(run: Any, earlier: Path) -> None:
    out = earlier / "study"
    grid = ("--tasks", "pruneport:digits-parity", "--kept", 1.0, 0.5, "--budgets", "1e9", "3e9", "--seeds", 0)
    done = run("transfer", _STUDIES / "digits.yaml", *grid, "--scopes", "filters", "--out", out, "--json")
    assert done.code == 0, done.err
    trials = json.loads(done.out)["trials"]
    assert (trials["done"], trials["wanted"], trials["failed"]) == (4, 4, [])
    assert not (out / "networks").exists()  # nothing was pruned, so nothing was trained
    (network,) = json.loads(run("transfer", "--report", "--out", out, "--json").out)["networks"]
    errors = {way["kept"]: [point["error"] for point in way["points"]] for way in network["stream"]}
    assert errors == {
        1.0: pytest.approx([0.4177777777777778, 0.017777777777777778]),
        0.5: pytest.approx([0.2, 0.03111111111111111]),
    }
    advised = run("transfer", "--advise", "--budget", "2e9", "--out", out)
    assert advised.code == 0, advised.err
    assert "keep 50% of the MACs" in advised.out
