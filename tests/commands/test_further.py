"""A bundle is compressed further: one plan of the original, whose shares are of the original."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pruneport
from pruneport.compress.surgery.plan import Plan
from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.onnx.onnx_file import read_metadata
from pruneport.models.digits.network import digits_resnet
from pruneport.models.digits.tasks import write_digits_task
from pruneport.models.factories import load_factory

_EARLIER = Path(__file__).parents[1] / "data" / "earlier"
_PLAIN = ("--criterion", "l1", "--ranking", "uniform", "--recover", "none")
_TIMED = ("--repeats", 2, "--warmup", 1, "--batches", 1, "--parity-batches", 1)


@pytest.fixture
def further(run: Any, tmp_path: Path) -> Callable[..., Plan]:
    """Compress a bundle further, by the command line; the new plan."""

    def compress(bundle: object, *options: object, out: str = "further") -> Plan:
        done = run("compress", bundle, *_PLAIN, *options, "--out", tmp_path / out)
        assert done.code == 0, done.err
        return open_bundle(tmp_path / out).plan

    return compress


@pytest.fixture
def from_checkpoint(run: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle that was made from a checkpoint, and the checkpoint."""
    torch.manual_seed(0)
    checkpoint = tmp_path / "weights.safetensors"
    save_file(digits_resnet().state_dict(), checkpoint)
    source = ("pruneport:digits_resnet", "--checkpoint", checkpoint)
    done = run("compress", *source, *_PLAIN, "--flops", 0.7, "--out", tmp_path / "first")
    assert done.code == 0, done.err
    return tmp_path / "first", checkpoint


def test_shares_are_of_the_original_and_the_first_bundle_is_not_needed_again(
    further: Any, bundle: Path, run: Any, tmp_path: Path
) -> None:
    first = open_bundle(bundle).plan
    plan = further(bundle, "--flops", 0.35)
    assert first.macs_kept == pytest.approx(0.5, abs=0.01)
    assert plan.macs_kept == pytest.approx(0.35, abs=0.01)
    assert (plan.source, plan.dense) == (first.source, first.dense)
    assert [group.width for group in plan.groups] == [group.width for group in first.groups]
    assert [step.pruned for step in plan.earlier] == [first.pruned]
    shutil.rmtree(bundle)
    assert pruneport.load(tmp_path / "further")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert further(tmp_path / "further", "--params", 0.25, out="third").params_kept == pytest.approx(0.25, abs=0.01)
    assert len(open_bundle(tmp_path / "third").plan.earlier) == 2
    card = (tmp_path / "third" / "README.md").read_text()
    assert "- Step 1: asked: keep 50.0 % of the compute" in card
    assert "- Step 2: asked: keep 35.0 % of the compute" in card


def test_a_share_that_is_kept_already_is_refused_with_what_it_is_of(bundle: Path, run: Any, tmp_path: Path) -> None:
    for target in ("--flops", "--params"):
        done = run("compress", bundle, target, 0.6, "--out", tmp_path / "out")
        assert done.code == 2
        kept = open_bundle(bundle).plan.macs_kept if target == "--flops" else open_bundle(bundle).plan.params_kept
        assert f"{target} is 0.6 of the dense network, and {bundle} keeps {kept:.3g} of it already" in done.err
        assert f"give a smaller {target}: it is a share of the original, not of what is left." in done.err


def test_a_ratio_is_of_the_filters_that_are_left(further: Any, bundle: Path) -> None:
    left = {group.name: group.kept_width for group in open_bundle(bundle).plan.groups if not group.reason}
    plan = further(bundle, "--ratio", 0.5, "--round-to", 1)
    now = {group.name: group.kept_width for group in plan.groups if group.name in left}
    assert sum(now.values()) == pytest.approx(sum(left.values()) / 2, abs=1)


def test_units_are_those_of_the_original(further: Any, bundle: Path) -> None:
    before = {group.name: group.kept for group in open_bundle(bundle).plan.groups}
    for group in further(bundle, "--flops", 0.35).groups:
        assert before[group.name] is None or set(group.kept or ()) <= set(before[group.name])


@pytest.mark.slow
def test_ship_measures_against_the_original(bundle: Path, run: Any, tmp_path: Path) -> None:
    result = pruneport.ship(
        str(bundle), macs=0.3, out=tmp_path / "out", repeats=2, warmup=1, batches=(1,), parity_batches=(1,)
    )
    dense = open_bundle(bundle).plan.dense
    assert result.plan.macs_kept == pytest.approx(0.3, abs=0.01)
    assert result.plan.dense_onnx == "original"
    assert result.plan.recovery is not None
    assert result.plan.recovery.reference == "dense"
    assert read_metadata(tmp_path / "out" / "dense.onnx")["macs"] == str(dense.macs)
    assert {entry.network for entry in result.verification.parity} == {"dense", "pruned"}
    again = pruneport.load(tmp_path / "out")
    ours, theirs = again.state_dict(), result.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any("stands here" in warning for warning in result.warnings)
    for verb in ("export", "verify"):
        done = run(verb, tmp_path / "out")
        assert done.code == 0, done.err


@pytest.mark.slow
def test_without_the_originals_weights_dense_is_the_bundles_network_and_all_say_so(
    from_checkpoint: tuple[Path, Path], run: Any, tmp_path: Path
) -> None:
    first, checkpoint = from_checkpoint
    checkpoint.rename(tmp_path / "moved.safetensors")
    before, out = open_bundle(first).plan, tmp_path / "out"
    done = run("ship", first, *_PLAIN, "--flops", 0.5, *_TIMED, "--out", out)
    assert done.code == 0, done.err
    assert "the original's weights cannot be had, so dense stands for the network of" in done.err
    warning = "Dense stands here for the network that was compressed further, at 69."
    plan = open_bundle(out).plan
    assert plan.dense_onnx == "start"
    assert plan.macs_kept == pytest.approx(0.5, abs=0.01)  # of the original all the same
    assert read_metadata(out / "dense.onnx")["macs"] == str(before.pruned.macs)
    for text in (done.out, (out / "README.md").read_text(), (out / "report.html").read_text()):
        assert warning in text
    assert "(against 70 % of its compute)" in (out / "README.md").read_text()
    verified = run("verify", out, "--json")
    assert verified.code == 0, verified.err
    assert "dense.onnx not compared: it is the network that was compressed further" in verified.out
    exported = run("export", out, "--checkpoint", tmp_path / "moved.safetensors")
    assert exported.code == 2
    assert "ship anew from the bundle that it was made from" in exported.err
    saved = pruneport.save(pruneport.load(out), tmp_path / "saved", like=out)  # which has no dense.onnx yet
    assert open_bundle(saved).plan.dense_onnx == "original"
    moved = ("--checkpoint", tmp_path / "moved.safetensors")
    exported = run("export", saved, *moved)
    assert exported.code == 0, exported.err
    done = run("ship", first, *moved, *_PLAIN, "--flops", 0.5, *_TIMED, "--out", tmp_path / "found")
    assert done.code == 0, done.err
    assert open_bundle(tmp_path / "found").plan.dense_onnx == "original"
    other = run("compress", first, "--checkpoint", first / "weights.safetensors", "--flops", 0.5, "--out", out / "no")
    assert other.code == 2
    assert "is not the file that was compressed" in other.err


@pytest.mark.slow
def test_recovery_compares_with_the_original_where_it_can(from_checkpoint: tuple[Path, Path], run: Any) -> None:
    first, checkpoint = from_checkpoint
    with_it = run("compress", first, "--flops", 0.5, "--recover", "data-free", "--out", first.parent / "a")
    assert with_it.code == 0, with_it.err
    assert open_bundle(first.parent / "a").plan.recovery.reference == "dense"  # type: ignore[union-attr]
    checkpoint.unlink()
    without = run("compress", first, "--flops", 0.5, "--recover", "data-free", "--out", first.parent / "b")
    assert without.code == 0, without.err
    done = open_bundle(first.parent / "b").plan.recovery
    assert done is not None
    assert done.reference == "start"
    assert "same top-1 as the network that was compressed further" in (first.parent / "b" / "README.md").read_text()


@pytest.mark.slow
def test_a_fine_tuned_bundle_keeps_its_classes_and_claims_no_accuracy(run: Any, bundle: Path, tmp_path: Path) -> None:
    write_digits_task("parity", tmp_path / "parity")
    pixels = ("--mean", "0.5", "--std", "0.5")
    trained = ("finetune", bundle, "--task", tmp_path / "parity", "--steps", 3, "--augment", "none", *pixels)
    done = run(*trained, "--out", tmp_path / "trained")
    assert done.code == 0, done.err
    images = ("--images", tmp_path / "parity" / "test", "--images-limit", 20)
    done = run("ship", tmp_path / "trained", "--flops", 0.35, *_TIMED, *images, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    plan = open_bundle(tmp_path / "out").plan
    assert pruneport.load(tmp_path / "out")(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert (plan.training, plan.trained, plan.comparable) == (None, True, False)
    assert plan.source.class_names == ("even", "odd")
    assert plan.source.preprocessing is not None
    assert plan.source.preprocessing.mean == (0.5,)
    assert plan.earlier[0].training is not None
    assert plan.recovery is not None
    assert plan.recovery.reference == "start"  # the original knows other classes
    accuracy = json.loads(done.out)["verify"]["accuracy"]
    assert accuracy["dense_torch"] is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It was fine-tuned before it was compressed further" in card
    assert "fine-tuned on parity to top-1" not in card
    assert "fine-tuning: 3 steps on" in card


def test_a_bundle_of_a_network_in_memory_takes_a_factory(run: Any, tmp_path: Path) -> None:
    (tmp_path / "users_net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.Flatten(), "
        "nn.Linear(256, 4)).eval()\n"
    )
    factory = f"{tmp_path / 'users_net.py'}:build"
    pruned = pruneport.prune(load_factory(factory)(), macs=0.7, input_shape=(3, 8, 8), recover="none")
    bundle = pruned.save(tmp_path / "live")
    for verb in ("compress", "ship"):
        done = run(verb, bundle, "--flops", 0.4, "--out", tmp_path / "out")
        assert done.code == 2
        assert f"{bundle} was made from a network in memory" in done.err
        assert "give --factory, which builds the dense network" in done.err
    done = run("compress", bundle, "--flops", 0.4, "--factory", factory, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    network = pruneport.load(tmp_path / "out", factory=load_factory(factory))
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
    assert "cannot be had" not in done.err


def test_options_that_a_bundle_knows_itself_are_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    given = ("--weights", "DEFAULT", "--input-shape", 1, 8, 8)
    done = run("compress", bundle, *given, "--flops", 0.3, "--out", tmp_path / "out")
    assert done.code == 2
    assert "which knows its own source: leave out --weights, --input-shape." in done.err
    done = run("inspect", bundle, "--checkpoint", "x.pt")
    assert "leave out --checkpoint." in done.err
    done = run("compress", bundle, "--checkpoint", "x.pt", "--flops", 0.3, "--out", tmp_path / "out")
    assert "was not made from a checkpoint; leave out --checkpoint." in done.err
    done = run("compress", "pruneport:digits_resnet", "--factory", "a:b", "--flops", 0.3, "--out", tmp_path / "out")
    assert "--factory is for a bundle, and pruneport:digits_resnet is none" in done.err
    done = run("ship", tmp_path / "nothing", "--flops", 0.3, "--out", tmp_path / "out")
    assert done.code == 2
    assert f"there is no bundle at {tmp_path / 'nothing'}" in done.err


@pytest.mark.parametrize(("name", "factory"), [("shipped", f"{_EARLIER / 'users_tiny.py'}:build"), ("finetuned", None)])
def test_bundles_of_earlier_versions(name: str, factory: str | None, further: Any, tmp_path: Path) -> None:
    before = open_bundle(_EARLIER / name).plan
    options = ("--ratio", 0.4, "--round-to", 2, "--max-pruning-ratio", 0.95, "--scope", "channels")
    plan = further(_EARLIER / name, *options, *(("--factory", factory) if factory else ()))
    assert plan.pruned.macs < before.pruned.macs
    assert plan.dense == before.dense
    assert pruneport.load(tmp_path / "further", factory=load_factory(factory) if factory else None)


def test_a_bundle_may_be_replaced_by_its_smaller_self(run: Any, bundle: Path, listing: Any) -> None:
    before = listing(bundle)
    done = run("compress", bundle, *_PLAIN, "--flops", 0.35, "--out", bundle)
    assert done.code == 2
    assert "is not empty" in done.err
    done = run("compress", bundle, *_PLAIN, "--flops", 0.001, "--out", bundle, "--overwrite")
    assert done.code == 2
    assert listing(bundle) == before
    done = run("compress", bundle, *_PLAIN, "--flops", 0.35, "--out", bundle, "--overwrite")
    assert done.code == 0, done.err
    assert open_bundle(bundle).plan.macs_kept == pytest.approx(0.35, abs=0.01)
    assert pruneport.load(bundle)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_bundle_on_the_hub_goes_on_from_there(run: Any, bundle: Path, hub: Any, further: Any) -> None:
    assert run("push", bundle, "me/digits-half").code == 0
    plan = further("hf-hub:me/digits-half", "--flops", 0.35)
    assert plan.source.spec == "pruneport:digits_resnet"
    assert plan.macs_kept == pytest.approx(0.35, abs=0.01)


def test_inspect_shows_what_is_left(run: Any, bundle: Path) -> None:
    plan = open_bundle(bundle).plan
    done = run("inspect", bundle, "--json")
    assert done.code == 0, done.err
    seen = json.loads(done.out)
    assert (seen["source"], seen["macs"]) == (str(bundle), plan.pruned.macs)
    assert {group["name"]: group["width"] for group in seen["groups"]} == {
        group.name: group.kept_width for group in plan.groups
    }
    assert f"keeps {plan.macs_kept:.3g} of the compute of pruneport:digits_resnet" in done.err
