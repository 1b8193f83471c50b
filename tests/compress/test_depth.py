"""Depth: residual branches that the solver drops, and everything that follows from it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.allocation.cost import count_cost
from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.further import Origin
from pruneport.compress.options import CompressOptions, PruneOptions
from pruneport.compress.pipeline import compress_network, compress_to
from pruneport.compress.prune import network_with, prune
from pruneport.compress.records import Calibrated
from pruneport.compress.recovery.recover import recover
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.dropping import Absent
from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import BundleError, PruningError
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.models.record import Source

SHAPE = (3, 16, 16)
SOURCE = Source(spec="tests:network", model_args={}, input_shape=SHAPE)
DEPTH = PruneOptions(criterion="block-hessian", ranking="sensitivity", depth="auto", flops=0.6)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


class Blocks(nn.Module):
    """Residual blocks; ``sizes`` is what each branch's last norm multiplies by."""

    def __init__(self, *sizes: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(16) for _ in sizes])
        self.head = nn.Linear(16, 10)
        for block, size in zip(self.blocks, sizes, strict=True):
            nn.init.constant_(block.norm2.weight, size)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


def blocks(*sizes: float) -> Blocks:
    torch.manual_seed(0)
    network = Blocks(*sizes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics are those of the next pass
    with torch.no_grad():
        network(torch.rand(64, *SHAPE))
    return network.eval()


def images(count: int = 64, shape: tuple[int, ...] = SHAPE) -> Calibration:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(count, *shape, generator=generator)
    return Calibration(batches=in_memory(inputs.split(32)), record=Calibrated(inputs="images", count=count))


def assessed(network: nn.Module, options: PruneOptions = DEPTH, source: Source = SOURCE) -> Assessment:
    return assess(network, source, options, images(shape=source.image_shape))


def dropped(plan: Plan) -> list[str]:
    return [branch.name for branch in plan.branches]


def test_a_branch_that_hardly_matters_goes_and_one_that_matters_stays() -> None:
    network = blocks(1.0, 1e-3, 1.0)
    assessment = assessed(network)
    damage = assessment.drop_damage
    assert damage["blocks.1"] < damage["blocks.0"] / 100
    pruned = prune(network, SOURCE, DEPTH, assessment=assessment)
    assert dropped(pruned.plan) == ["blocks.1"]
    (branch,) = pruned.plan.branches
    assert list(branch.modules) == [f"blocks.1.{name}" for name in ("conv1", "norm1", "conv2", "norm2")]
    assert branch.groups == ("blocks.1.conv1",)
    (gone,) = [group for group in pruned.plan.groups if group.kept == ()]
    assert gone.reason == "goes with its residual branch, which is dropped"
    assert pruned.plan.masked_error == pytest.approx(0, abs=1e-5)
    assert pruned.plan.macs_kept == pytest.approx(0.6, abs=0.02)
    assert not any(key.startswith("blocks.1.") for key in pruned.network.state_dict())


def test_branches_stay_unless_asked_and_where_keep_names_them() -> None:
    network = blocks(1.0, 1e-3, 1.0)
    for options in (replace(DEPTH, depth="never"), replace(DEPTH, keep=("blocks.1.conv2",))):
        assert dropped(prune(network, SOURCE, options, assessment=assessed(network, options)).plan) == []


def test_depth_alone_drops_branches_and_narrows_nothing() -> None:
    network = blocks(1.0, 1e-3, 1.0)
    options = replace(DEPTH, max_pruning_ratio=0.001, flops=0.7)
    plan = prune(network, SOURCE, options, assessment=assessed(network, options)).plan
    assert dropped(plan) == ["blocks.1"]
    assert not any(group.kept for group in plan.groups)


def test_the_plan_makes_the_network_again_and_survives_json() -> None:
    network = blocks(1.0, 1e-3, 1.0)
    pruned = prune(network, SOURCE, DEPTH, assessment=assessed(network))
    content = pruned.plan.to_json()
    plan = parse_plan(content)
    assert plan.branches == pruned.plan.branches
    assert plan.to_json() == content
    again = rebuild_network(plan, pruned.network.state_dict(), lambda: blocks(1.0, 1e-3, 1.0))
    x = torch.rand(2, *SHAPE)
    assert torch.equal(again(x), pruned.network(x))
    damaged = json.loads(content)
    del damaged["branches"]
    with pytest.raises(BundleError, match="are not ascending"):
        parse_plan(json.dumps(damaged))
    with pytest.raises(BundleError, match=r"drops the branch blocks\.1.*blocks"):
        apply_plan(nn.Sequential(nn.Conv2d(3, 3, 1)), (), branches=plan.branches)


@pytest.mark.slow
def test_the_exported_file_has_no_node_of_it(tmp_path: Path) -> None:
    network = blocks(1.0, 1e-3, 1.0)
    pruned = prune(network, SOURCE, DEPTH, assessment=assessed(network)).network
    write_onnx(pruned, SHAPE, tmp_path / "model.onnx", {})
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = sorted(node.op_type for node in graph.node if node.op_type in ("Conv", "Add", "Relu", "Expand", "Shape"))
    assert kinds == ["Add"] * 2 + ["Conv"] * 5 + ["Relu"] * 5
    assert not any("blocks.1" in text for node in graph.node for text in (node.name, *node.input, *node.output))


def test_recovery_makes_up_for_a_branch() -> None:
    network = blocks(1.0, 0.7, 1.0)
    assessment = assessed(network)
    kept = np.array([group.width for group in assessment.groups], dtype=np.float64)
    kept[list(assessment.branches[1].groups)] = 0
    pruned = network_with(network, SOURCE, assessment, kept)
    for name in ("bn", "reconstruct"):
        done = recover(name, network, copy.deepcopy(pruned), (), images().batches)
        assert done.error_after < done.error_before / 2, name


@pytest.mark.parametrize(("count", "solved"), [(64, True), (24, False)])
def test_where_only_the_output_layer_is_left_it_makes_up_for_the_branch(count: int, solved: bool) -> None:
    network = blocks(1.0, 0.7)
    assessment = assessed(network)
    kept = np.array([group.width for group in assessment.groups], dtype=np.float64)
    kept[list(assessment.branches[-1].groups)] = 0
    pruned = network_with(network, SOURCE, assessment, kept)
    heldout = in_memory(torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(2)).split(32))
    done = recover("reconstruct", network, pruned, (), images(count).batches, heldout=heldout)
    assert done.heldout_error_before is not None
    assert done.heldout_error_after is not None
    if solved:
        assert done.heldout_error_after < done.heldout_error_before / 2
    else:  # 24 equations for 16 weights would be learnt by heart
        assert done.heldout_error_after == done.heldout_error_before


def test_the_proof_sees_a_branch_that_adds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    network = blocks(1.0, 1.0)
    assessment = assessed(network)
    kept = np.array(
        [0.0 if index in assessment.branches[0].groups else g.width for index, g in enumerate(assessment.groups)]
    )
    monkeypatch.setattr(Absent, "forward", lambda self, x: torch.ones_like(x))
    with pytest.raises(PruningError, match="beyond what zeroing them does"):
        network_with(network, SOURCE, assessment, kept)


class Biased(nn.Module):
    """A block whose forward adds a constant to what its modules gave: they cannot be dropped so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.second(self.first(x)) * 1e-4 + 0.5)


def test_a_branch_that_the_proof_blames_stays_and_the_others_go() -> None:
    network = blocks(1e-3, 1.0)
    network.blocks.append(Biased().eval())
    options = replace(DEPTH, max_pruning_ratio=0.001, flops=0.6)
    plan = prune(network, SOURCE, options, assessment=assessed(network, options)).plan
    assert dropped(plan) == ["blocks.0"]


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )


def _convnext() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(16, 32, 2), setting(32, None, 1)], num_classes=5, layer_scale=0.5)


NETWORKS: dict[str, tuple[Any, int, int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 5, 32),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.5), 10, 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 6, 32),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=5), 9, 32),
    "regnet_y_400mf": (lambda: torchvision.models.regnet_y_400mf(num_classes=5), 12, 32),
    "convnext": (_convnext, 3, 32),
    "vit": (_vit, 4, 16),
}


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name != "resnet18")]
)
@pytest.mark.parametrize("scope", ["filters", "channels"])
def test_branches_of_known_architectures_go_beside_narrower_widths(name: str, scope: Any) -> None:
    """Every second branch; what is left is proven, costs what was predicted, and is made again from the plan alone."""
    make, count, size = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias)
    source = replace(SOURCE, input_shape=(3, size, size))
    options = PruneOptions(criterion="l1", ranking="uniform", depth="auto", scope=scope, round_to=4)
    assessment = assess(network, source, options)
    assert len(assessment.branches) == count
    kept = np.array([float(group.width) for group in assessment.groups])
    for index, reason in enumerate(assessment.reasons):
        if not reason:
            group = assessment.groups[index]
            kept[index] = -(-group.width // (2 * group.blocks)) * group.blocks
    for branch in assessment.branches[::2]:
        kept[list(branch.groups)] = 0
    pruned = network_with(network, source, assessment, kept)
    counted = count_cost(pruned, source.takes)
    assert assessment.cost.macs(kept) == pytest.approx(counted.macs, rel=0.01)
    assert assessment.cost.params(kept) == pytest.approx(counted.params, rel=0.01)
    assert assessment.cost.price("flops").of(kept) == pytest.approx(assessment.cost.macs(kept))
    assert sum(isinstance(module, Absent) for module in pruned.modules()) >= len(assessment.branches[::2])


def test_a_compressed_network_loses_a_branch_in_a_second_step() -> None:
    network = blocks(1.0, 1e-3, 1.0)
    first = prune(network, SOURCE, replace(DEPTH, depth="never", flops=0.8), assessment=assessed(network))
    options = CompressOptions(criterion="block-hessian", ranking="sensitivity", depth="auto", flops=0.5, recover="none")
    origin = Origin(plan=first.plan, original=network)
    second = next(iter_to([options], first.network, origin))
    assert dropped(second.plan) == ["blocks.1"]
    again = copy.deepcopy(network)
    plan = parse_plan(second.plan.to_json())
    apply_plan(again, plan.groups, plan.attributes, plan.sizes, plan.branches)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in second.network.state_dict().items()
    }


def iter_to(targets: Any, network: nn.Module, origin: Any) -> Any:
    return compress_to(targets, network, SOURCE, calibration=images(), origin=origin)


def test_a_network_of_a_dropped_branch_is_pruned_again() -> None:
    network = blocks(1.0, 1e-3, 1.0)
    options = CompressOptions(
        criterion="block-hessian",
        ranking="sensitivity",
        depth="auto",
        flops=0.6,
        recover="reconstruct",
        scope="channels",
    )
    first = next(iter_to([options], network, None))
    assert dropped(first.plan) == ["blocks.1"]
    further = compress_network(
        first.network,
        SOURCE,
        CompressOptions(flops=0.5, criterion="l1", ranking="uniform", scope="channels", recover="none", round_to=1),
    )
    assert further.plan.macs_kept == pytest.approx(0.5, abs=0.05)
