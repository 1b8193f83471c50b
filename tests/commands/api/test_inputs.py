"""Networks of several inputs, and of others than images, from pruning to times."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import pruneport
from pruneport.commands.configs import ExportConfig, FinetuneConfig, VerifyConfig
from pruneport.commands.deploying import export, verify
from pruneport.commands.finetuning import finetune
from pruneport.compress.surgery.plan import parse_plan
from pruneport.errors import BundleError, ExportError, ImageFolderError, InputError, ModelError, PruningError
from pruneport.export.options import ParityOptions
from pruneport.export.parity import check_seeded
from pruneport.export.verify import open_parity_images
from pruneport.models.inputs import InputSpec, rows_of_inputs, run_on, tensors_in
from pruneport.models.outputs import tensor_leaves
from tests.support.input_networks import NETWORKS, Given

QUICK: Mapping[str, Any] = {"criterion": "l1", "ranking": "uniform", "recover": "none", "round_to": 4}
all_networks = pytest.mark.parametrize("given", NETWORKS.values(), ids=NETWORKS)


def prune(given: Given, **options: Any) -> pruneport.PrunedNetwork:
    return pruneport.prune(given.build(), **{"macs": 0.6, "example_inputs": given.example(), **QUICK, **options})


def spec_of(pruned: pruneport.PrunedNetwork) -> InputSpec:
    inputs = pruned.plan.source.inputs
    assert inputs is not None
    return inputs


@all_networks
def test_they_are_pruned_proved_and_counted(given: Given) -> None:
    pruned = prune(given)
    plan, takes = pruned.plan, spec_of(pruned)
    assert takes.names == given.names
    assert [tensor.dtype for tensor in takes.tensors] == [
        str(tensor.dtype).removeprefix("torch.") for tensor in tensors_in(given.example())
    ]
    assert plan.masked_error is not None
    assert plan.masked_error < 1e-5
    assert 0.4 < plan.macs_kept < 0.8
    assert run_on(pruned.network, given.example()) is not None, "in the form in which the example came"
    one = rows_of_inputs(given.example(), slice(1))
    with FlopCounterMode(display=False) as counter:
        run_on(pruned.network, one)
    assert 0.85 < counter.get_total_flops() / 2 / plan.pruned.macs <= 1, "torch's own, which leaves norms out"


@all_networks
def test_a_plan_keeps_what_they_take_and_the_bundle_comes_back_bit_for_bit(given: Given, tmp_path: Path) -> None:
    pruned = prune(given)
    again = parse_plan(pruned.plan.to_json())
    assert again.source == pruned.plan.source
    pruned.save(tmp_path / "half")
    loaded = pruneport.load(tmp_path / "half", factory=given.build)
    wanted = pruned.network.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [pytest.param(NETWORKS[name], id=name) for name in NETWORKS],
)
def test_they_are_exported_verified_and_timed(given: Given, tmp_path: Path) -> None:
    pruned = prune(given)
    takes = spec_of(pruned)
    deployed = (
        pruned.export(tmp_path / "half")
        .verify(parity_batches=(1, 3))
        .bench(batches=(1, 2), repeats=2, warmup=1, threads=1)
    )
    verification, measured = deployed.verification, deployed.measured
    assert verification is not None
    assert measured is not None
    assert verification.ok
    assert {(entry.network, entry.batch) for entry in verification.parity} == {
        (network, batch) for network in ("dense", "pruned") for batch in (1, 3)
    }
    assert not any(entry.constant for entry in verification.parity)
    assert [entry.batch for entry in measured.batches] == [1, 2]
    file = tmp_path / "half" / "model.onnx"
    sizes = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(file).graph.input}
    assert tuple(sizes) == given.names
    assert [dims[0].dim_param if dims else None for dims in sizes.values()] == [
        "batch" if tensor.batched else None for tensor in takes.tensors
    ]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    example = given.example()
    feed = {name: tensor.numpy() for name, tensor in zip(given.names, tensors_in(example), strict=True)}
    with torch.inference_mode():
        expected = tensor_leaves(run_on(pruned.network, example))
    for theirs, ours in zip(expected, session.run(None, feed), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_card_says_what_they_take_and_its_lines_run(tmp_path: Path) -> None:
    given = NETWORKS["a dict with a single number"]
    prune(given).export(tmp_path / "half")
    card = (tmp_path / "half" / "README.md").read_text(encoding="utf-8")
    assert "weight: float32, a single number, 0.5 to 0.5; metadata: float32, B × 6; image: float32, B × 3 × 8" in card
    lines = re.search(r"```python\n(import numpy.*?)```", card, re.DOTALL)
    assert lines is not None
    done = subprocess.run(
        [sys.executable, "-c", lines[1]], cwd=tmp_path / "half", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "scores (1, 5)\nimage.2 (1, 4, 4)\n", f"an input is called image, too; {done.stderr}"


def test_whole_numbers_stay_in_the_range_of_the_example(tmp_path: Path) -> None:
    given = NETWORKS["tokens"]
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = given.build()

        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(tokens.detach().clone())
            scores: Tensor = self.inner(tokens)
            return scores

    pruned = pruneport.prune(Watching().eval(), macs=0.6, example_inputs=given.example(), **QUICK)
    pruned.export(tmp_path / "half").verify()
    values = [tokens for tokens in seen if type(tokens) is Tensor]
    assert len(values) > 10
    assert min(int(tokens.min()) for tokens in values) >= 3
    assert max(int(tokens.max()) for tokens in values) <= 49
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "half" / "model.onnx").metadata_props}
    assert json.loads(metadata["pruneport.input_ranges"]) == {"tokens": [3, 49]}
    (tokens,) = spec_of(pruned).tensors
    beyond = InputSpec(tensors=(replace(tokens, high=5000),))
    with pytest.raises(ExportError, match=r"does not run on seeded inputs, tokens int64 .*: IndexError: .*range"):
        check_seeded("pruned", pruned.network, None, beyond, (2,))


def _several(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randn(count, 6, generator=generator)


def _rows(count: int) -> list[Any]:
    return [tuple(tensor[row] for tensor in _several(count)) for row in range(count)]


@pytest.mark.parametrize(
    "calibration",
    [
        lambda: [_several(80)],
        lambda: [(_several(80), torch.arange(80) % 5)],
        lambda: _rows(80),
        lambda: DataLoader(TensorDataset(*_several(80), torch.arange(80) % 5), batch_size=16),
        lambda: [dict(zip(("image", "metadata"), _several(80), strict=True))],
    ],
    ids=["tuple", "pair with labels", "single inputs", "DataLoader with labels", "dict"],
)
def test_they_are_calibrated_with_tuples_and_dicts(calibration: Callable[[], Any]) -> None:
    given = NETWORKS["image and metadata"]
    defaults = dict.fromkeys(("criterion", "ranking", "recover"), "auto")
    pruned = prune(given, calibration=calibration(), calibration_images=64, **defaults)
    plan = pruned.plan
    assert plan.calibration is not None
    assert plan.recovery is not None
    assert (plan.calibration.count, plan.recovery.name, plan.recovery.heldout) == (64, "reconstruct", 16)
    assert (plan.request.criterion, plan.request.ranking) == ("block-hessian", "sensitivity")
    before, after = plan.recovery.heldout_error_before, plan.recovery.heldout_error_after
    assert before is not None
    assert after is not None
    assert after < before


@pytest.mark.parametrize("name", ["signal", "volume", "tokens", "pixels and truth values"])
def test_layers_of_any_dimension_are_solved_anew(name: str) -> None:
    given = NETWORKS[name]
    takes = spec_of(prune(given))
    items = [takes.drawn(80, seed=1)]
    defaults = dict.fromkeys(("criterion", "ranking", "recover"), "auto")
    recovery = prune(given, calibration=items, calibration_images=64, **defaults).plan.recovery
    assert recovery is not None
    assert recovery.heldout_error_before is not None
    assert recovery.heldout_error_after is not None
    assert recovery.error_after < 0.8 * recovery.error_before
    assert recovery.heldout_error_after < recovery.heldout_error_before


@pytest.mark.parametrize("criterion", ["taylor", "activation", "synflow"])
def test_criteria_that_run_the_network_take_them(criterion: str) -> None:
    given = NETWORKS["tokens with weights"]
    tokens = torch.randint(3, 50, (40, 12), generator=torch.Generator().manual_seed(0))
    items = [((tokens, torch.ones(40, 12)), torch.arange(40) % 4)]
    pruned = prune(given, criterion=criterion, calibration=items, calibration_images=32, recover="bn")
    assert pruned.plan.request.criterion == criterion
    assert pruned.plan.masked_error is not None


@pytest.mark.parametrize(
    ("calibration", "fault"),
    [
        ([], "yields nothing; expected image float32 (B, 3, 8, 8), metadata float32 (B, 6)"),
        ([torch.zeros(2, 3, 8, 8)], "a tensor of shape (2, 3, 8, 8); expected a tuple of image"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(3, 6))], "(2, 3, 8, 8), a tensor of shape (3, 6); expected a tuple"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2, 7))], "(2, 3, 8, 8), a tensor of shape (2, 7); expected a tuple"),
        ([(torch.zeros(2, 3, 8, 8), None)], "a NoneType; expected a tuple"),
        ([{"image": torch.zeros(2, 3, 8, 8)}], "image: a tensor of shape (2, 3, 8, 8); expected a tuple"),
        ([()], "an empty tuple; expected"),
        (
            [(torch.zeros(2, 3, 8, 8), torch.zeros(2, 6, dtype=torch.int64))],
            "for metadata a tensor of torch.int64; expected torch.float32",
        ),
        ([(torch.zeros(2, 3, 8, 8), torch.full((2, 6), torch.nan))], "for metadata numbers that are NaN"),
    ],
)
def test_calibrations_that_do_not_fit(calibration: Any, fault: str) -> None:
    with pytest.raises(ImageFolderError, match=re.escape(fault)):
        prune(NETWORKS["image and metadata"], calibration=calibration)


def test_a_single_number_must_be_the_same_in_all_of_a_calibration() -> None:
    given = NETWORKS["a dict with a single number"]
    items = [given.example() | {"weight": torch.tensor(value)} for value in (0.5, 0.25)]
    with pytest.raises(ImageFolderError, match="several values of weight, a single number for a whole batch"):
        prune(given, calibration=items)


def test_what_needs_images_is_refused_by_name(tmp_path: Path) -> None:
    given = NETWORKS["image and metadata"]
    with pytest.raises(ModelError, match=r"takes image float32 .*, no images .* alone.* a list as `calibration`"):
        prune(given, calibration=str(tmp_path))
    with pytest.raises(PruningError, match="synthetic inputs can only be made for images: give `calibration`"):
        prune(given, recover="data-free")
    prune(given).save(tmp_path / "half")
    factory = f"{tmp_path / 'users_fused.py'}:build"
    (tmp_path / "users_fused.py").write_text(
        "from tests.support.input_networks import NETWORKS\n\n\ndef build():\n"
        "    return NETWORKS['image and metadata'].build()\n"
    )
    with pytest.raises(ModelError, match=r"takes image float32 .*, no images \(B, C, H, W\) alone"):
        finetune(FinetuneConfig(source=str(tmp_path / "half"), task="digits", out=tmp_path / "tuned", factory=factory))
    with pytest.raises(ImageFolderError, match=r"`images` .*: the network takes image float32"):
        open_parity_images(ParityOptions(images=tmp_path), spec_of(prune(given)))


class Single(nn.Module):
    """A convolution that any input has to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, image: Tensor, shift: Tensor | None = None) -> Tensor:
        result: Tensor = self.layers(image)
        return result if shift is None else result + shift


IMAGE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("example", "fault"),
    [
        ((IMAGE, torch.zeros(3, 1, 1, 1)), "batch sizes differ (image 2, shift 3)"),
        ((IMAGE, None), "shift is None"),
        ({"image": IMAGE, "shift": None}, "shift is None"),
        ({}, "it is empty"),
        ((), "it is empty"),
        ((IMAGE, 3), "shift is int, no tensor"),
        ({"image": {"pixels": IMAGE}}, "image is dict, no tensor; let forward take the tensors in it by themselves"),
        ({"an image": IMAGE}, "'an image' is no name of an argument"),
        ((IMAGE, torch.zeros(2, 0)), "shift has shape (2, 0), which holds nothing"),
        ((IMAGE, torch.full((2, 1, 1, 1), torch.nan)), "shift has values that are NaN or infinite"),
        ((IMAGE, torch.zeros(2, 1, 1, 1, device="meta")), "shift is on the meta device"),
        ((IMAGE, torch.zeros(2, 4, 6, 6, dtype=torch.complex64)), "shift is a tensor of torch.complex64"),
        ((IMAGE, torch.zeros(2, 4, 6, 6).to_sparse()), "shift is a tensor of torch.float32, torch.sparse_coo"),
        ((IMAGE, IMAGE, IMAGE), "the network refuses inputs input_0 float32 (B, 3, 8, 8), input_1"),
        ({"image": IMAGE, "other": IMAGE}, "unexpected keyword argument 'other'"),
        ((IMAGE, torch.zeros(2, 5, 6, 6)), "the network refuses inputs image float32 (B, 3, 8, 8), shift float32"),
        (IMAGE.to(torch.uint8), "the network refuses inputs image uint8 (B, 3, 8, 8)"),
        (torch.zeros(3, 8, 8), "the network refuses inputs image float32 (B, 8, 8)"),
    ],
)
def test_examples_that_do_not_fit(example: Any, fault: str) -> None:
    with pytest.raises(ModelError, match=re.escape(fault)):
        pruneport.prune(Single(), macs=0.5, example_inputs=example, **QUICK)


class InPlace(Single):
    """Writes into what it is given."""

    def forward(self, image: Tensor, shift: Tensor | None = None) -> Tensor:
        image.sub_(0.5).mul_(2)
        return super().forward(image, None if shift is None else shift.add_(1))


@pytest.mark.parametrize(
    "example", [IMAGE, (IMAGE, torch.zeros(2, 1, 1, 1)), (IMAGE, torch.tensor([[[[3]]], [[[4]]]]))]
)
def test_a_forward_may_write_into_its_inputs(example: Any, tmp_path: Path) -> None:
    pruned = pruneport.prune(InPlace(), macs=0.6, example_inputs=example, **QUICK)
    assert pruned.plan.masked_error is not None
    if not isinstance(example, Tensor):
        return
    verification = pruned.export(tmp_path / "half").verify().verification
    assert verification is not None
    assert verification.ok
    photos = [torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    again = pruneport.prune(InPlace(), macs=0.6, example_inputs=example, calibration=photos, calibration_images=64)
    assert again.plan.recovery is not None
    assert again.plan.recovery.heldout == 16


def test_all_faults_of_an_example_are_named_at_once() -> None:
    with pytest.raises(ModelError, match=r"a is None; b is str, no tensor.*; c is int, no tensor"):
        pruneport.prune(Single(), macs=0.5, example_inputs={"a": None, "b": "photo", "c": 2}, **QUICK)


def test_a_single_number_of_a_tuple_has_no_batch() -> None:
    pruned = pruneport.prune(Single(), macs=0.5, example_inputs=(IMAGE, torch.tensor(0.5)), **QUICK)
    image, shift = spec_of(pruned).tensors
    assert (image.batched, shift.batched, shift.low, shift.high) == (True, False, 0.5, 0.5)


def test_the_command_line_verifies_and_exports_them_too(tmp_path: Path) -> None:

    given = NETWORKS["two images"]
    prune(given).save(tmp_path / "half")
    folder = tmp_path / "half"
    with pytest.raises(InputError, match="`input_names` are x: 1 for the 2 inputs left, right; give one for each"):
        export(ExportConfig(folder=folder, input_names=("x",)), factory=given.build)
    with pytest.raises(InputError, match="`dynamic` batch,height,width is for images alone"):
        export(ExportConfig(folder=folder, dynamic="batch,height,width"), factory=given.build)
    export(ExportConfig(folder=folder, input_names=("x", "y"), batch_size_fixed=2), factory=given.build)
    assert verify(VerifyConfig(folder=folder), factory=given.build).verification.ok
    model = onnx.load(folder / "model.onnx")
    assert [(value.name, value.type.tensor_type.shape.dim[0].dim_value) for value in model.graph.input] == [
        ("x", 2),
        ("y", 2),
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda source: source.update(input_shape=[3, 8, 8]), "either `input_shape` or `inputs`"),
        (lambda source: source.pop("inputs"), "either `input_shape` or `inputs`"),
        (lambda source: source["inputs"].update(tensors=[]), "inputs called nothing"),
        (lambda source: source["inputs"]["tensors"][0].update(shape=[2**30]), "is too large"),
        (lambda source: source["inputs"]["tensors"][0].update(shape=[0]), ">= 1"),
        (lambda source: source["inputs"]["tensors"][0].update(low=50), "go from 50 to 49"),
        (lambda source: source["inputs"]["tensors"][0].update(low=None), "go from None to 49"),
        (lambda source: source["inputs"]["tensors"][0].update(dtype="string"), "dtype|enum"),
        (lambda source: source["inputs"].update(more=1), "source.inputs.more"),
    ],
)
def test_plans_that_were_damaged_are_refused(change: Callable[[Any], Any], fault: str) -> None:
    content = json.loads(prune(NETWORKS["tokens"]).plan.to_json())
    assert content["source"]["input_shape"] is None
    change(content["source"])
    with pytest.raises(BundleError, match=fault):
        parse_plan(json.dumps(content))


def test_a_plan_of_images_is_as_it_was() -> None:
    example = torch.zeros(1, 3, 8, 8)
    source = json.loads(pruneport.prune(Single(), macs=0.5, example_inputs=example, **QUICK).plan.to_json())["source"]
    assert source["input_shape"] == [3, 8, 8]
    assert "inputs" not in source
