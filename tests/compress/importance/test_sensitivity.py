"""Sensitivity: consumers against numpy's least squares, curves against networks that are really pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pruneport.arrays import FloatArray
from pruneport.compress.activations.calibration import Batches, Calibration, in_memory
from pruneport.compress.activations.synthetic import dead_leaves
from pruneport.compress.allocation.cost import count_macs_by_module
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.assessment import assess
from pruneport.compress.graph.groups import Group, find_groups
from pruneport.compress.graph.widths import choose_units, possible_widths
from pruneport.compress.hooks import norms_recorded
from pruneport.compress.importance import sensitivity
from pruneport.compress.importance.consumers import Consumer, visit_consumers
from pruneport.compress.importance.sensitivity import Curve, measure_sensitivity
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated
from pruneport.compress.resize.layers import narrow
from pruneport.errors import TargetError
from pruneport.models.digits.network import digits_resnet
from pruneport.models.options import SourceOptions
from pruneport.models.record import Source
from pruneport.models.source import open_source
from small_networks import randomise_norms

SHAPE = (3, 8, 8)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        randomise_norms(network)
    return network.eval()


def images(count: int = 96, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))


def batches(inputs: Tensor) -> Batches:
    return in_memory(inputs.split(32))


def consumers_of(network: nn.Module, name: str, inputs: Tensor) -> tuple[Group, list[Consumer]]:
    groups = find_groups(network, inputs[:1])
    index = next(number for number, group in enumerate(groups) if group.name == name)
    _, consumers, _ = next(visit_consumers(network, groups, [index], batches(inputs)))
    return groups[index], consumers


def test_groups_are_seen_in_one_run_of_the_network() -> None:
    network = digits_resnet().eval()
    inputs = images(96, (1, 8, 8))
    groups = find_groups(network, inputs[:1])
    ran: list[int] = []
    network.blocks[1].conv2.register_forward_hook(lambda module, inputs, output: ran.append(len(inputs[0])))
    within = [index for index, group in enumerate(groups) if group.role == "filters"]  # blocks, and so cuts
    visits = [index for index, *_ in visit_consumers(network, groups, within, batches(inputs))]
    assert sorted(visits) == within
    assert ran.count(32) == 3  # batches


PLAIN = {
    "3 x 3": (lambda: nn.Conv2d(8, 5, 3, padding=1), lambda x: nn.functional.unfold(x, 3, padding=1)),
    "strided": (lambda: nn.Conv2d(8, 5, 3, stride=2), lambda x: nn.functional.unfold(x, 3, stride=2)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2), lambda x: nn.functional.unfold(x, 3, padding=1)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(512, 5)), lambda x: x.flatten(1)[:, :, None]),
}


def with_ridge(rows: FloatArray, unknowns: int) -> FloatArray:
    """Equations more: each unknown may differ by its input's deviation, which counts as six equations an unknown."""
    return np.vstack([rows, np.diag(rows.std(0) * np.sqrt(6 * unknowns))])


@pytest.mark.parametrize("kind", list(PLAIN))
def test_a_consumer_makes_up_for_lost_inputs_as_least_squares_does(kind: str) -> None:
    make, rows_of = PLAIN[kind]
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), make()))
    inputs = images(800 if kind == "flattened" else 96)
    _, (consumer,) = consumers_of(network, "0", inputs)
    assert consumer.plain
    removed = [1, 4, 6]
    layer = network[2][1] if kind == "flattened" else network[2]  # type: ignore[index]
    with torch.inference_mode():
        hidden = network[1](network[0](inputs))  # type: ignore[index]
    rows = rows_of(hidden).transpose(1, 2).flatten(0, 1).double().numpy()
    rows = rows - rows.mean(0)
    count, rows = len(rows), with_ridge(rows, layer.weight[0].numel())
    size = rows.shape[1] // 8
    runs = getattr(layer, "groups", 1)
    outputs = layer.weight.shape[0] // runs
    squared = total = 0.0
    for run in range(runs):
        own = range(run * 8 // runs, (run + 1) * 8 // runs)
        weight = layer.weight[run * outputs : (run + 1) * outputs].detach().flatten(1).T.double().numpy()
        every = [unit * size + place for unit in own for place in range(size)]
        left = [unit * size + place for unit in own if unit not in removed for place in range(size)]
        targets = rows[:, every] @ weight
        fitted = np.linalg.lstsq(rows[:, left], targets, rcond=None)[0]
        found = consumer.compensated(removed)[left][:, run * outputs : (run + 1) * outputs].numpy()
        np.testing.assert_allclose(found, fitted, atol=1e-3 * np.abs(fitted).max())
        squared += np.square(rows[:, left] @ fitted - targets).sum() / count
        total += np.square(targets[:count]).mean(0).sum()
    wanted = squared / total * layer.weight.shape[0]  # no norm behind: relative to the mean variance of an output
    assert consumer.error(consumer.compensated(removed)) == pytest.approx(wanted, rel=1e-3)
    assert not consumer.compensated(removed)[consumer.columns[removed].flatten()].any()


def test_a_norm_behind_weighs_the_outputs_by_its_squared_gain() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)))
    _, (consumer,) = consumers_of(network, "0", images())
    norm = network[3]  # type: ignore[index]
    wanted = norm.weight.detach().double().square() / (norm.running_var.double() + norm.eps)
    torch.testing.assert_close(consumer.importance, wanted)


class _Norms(nn.Module):
    """Norms defined apart from the layers they follow; behind an activation in place, a shortcut, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(width, 8, 3, bias=False) for width in (3, 8, 8))
        self.relu = nn.ReLU(inplace=True)
        self.conv4, self.linear = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(4, 8, bias=False)
        self.norm4, self.norm3, self.norm1, self.norm2 = (nn.BatchNorm2d(8) for _ in range(4))
        self.norm5 = nn.BatchNorm1d(8)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.norm1(self.conv1(inputs)))
        hidden = self.relu(self.norm2(self.conv2(hidden)))
        hidden = self.conv4(self.norm3(self.relu(self.conv3(hidden))))
        hidden = self.norm4(hidden) + hidden
        rows = self.linear(hidden.flatten(2))
        return self.norm5(rows.flatten(0, 1)).reshape_as(rows)


def test_the_norm_behind_a_layer_is_the_one_that_reads_it_wherever_it_is_defined() -> None:
    network = seeded(_Norms)
    with norms_recorded(network) as norms, torch.no_grad():
        network(images(2))
    assert norms == {"conv1": network.norm1, "conv2": network.norm2, "linear": network.norm5}


def test_a_layer_without_a_bias_is_fitted_without_an_intercept() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False)))
    inputs = images()
    _, (consumer,) = consumers_of(network, "0", inputs)
    with torch.inference_mode():
        hidden = network[1](network[0](inputs))  # type: ignore[index]
    rows = hidden.transpose(0, 1).flatten(1).T.double().numpy()
    count = len(rows)
    rows = np.vstack([rows, np.diag(np.sqrt(np.square(rows).mean(0) * 6 * rows.shape[1]))])
    weight = network[2].weight.detach().flatten(1).T.double().numpy()  # type: ignore[index]
    left = [0, 2, 3, 5, 7]
    targets = rows @ weight
    fitted = np.linalg.lstsq(rows[:, left], targets, rcond=None)[0]
    found = consumer.compensated([1, 4, 6])
    np.testing.assert_allclose(found[left].numpy(), fitted, atol=1e-3 * np.abs(fitted).max())
    wanted = np.square(rows[:, left] @ fitted - targets).sum() / count / targets[:count].var(0).mean()
    assert consumer.error(found) == pytest.approx(wanted, rel=1e-3)
    assert not consumer.mean.any()


def test_a_layer_that_cannot_be_solved_counts_what_it_loses() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 5, 3)))
    inputs = images()
    _, (consumer,) = consumers_of(network, "0", inputs)
    assert not consumer.plain
    with torch.inference_mode():
        variance = network[1](network[0](inputs)).double().var((0, 2, 3), correction=0)  # type: ignore[index]
    squares = network[2].weight.detach().double().square().sum((1, 2, 3))  # type: ignore[index]
    wanted = (variance * squares)[[0, 3]].sum() / (variance * squares).sum()
    assert consumer.error(consumer.compensated([0, 3])) == pytest.approx(float(wanted), rel=1e-4)


def source(shape: tuple[int, int, int]) -> Source:
    return Source(spec="x:y", model_args={}, input_shape=shape)


def test_the_output_error_is_that_of_the_network_really_pruned() -> None:
    """One group of the network is removed for good, and its consumer fitted by numpy."""
    network, inputs = seeded(digits_resnet), images(96, (1, 8, 8))
    before = copy.deepcopy(network.state_dict())
    groups = find_groups(network, inputs[:1])
    index = next(number for number, group in enumerate(groups) if group.name == "blocks.1.conv1")
    widths = [None] * len(groups)
    widths[index] = np.array([16.0, 64.0])  # type: ignore[call-overload]
    scores, curves = measure_sensitivity(network, groups, widths, in_memory([inputs]), None)
    curve = curves[index]
    assert curve is not None
    assert curve.widths.tolist() == [64, 16]
    assert curve.output_error[0] == curve.local_error[0] == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())

    kept = list(choose_units(groups[index], scores[index], 16))
    pruned = copy.deepcopy(network)
    narrow(pruned, "blocks.1.conv1", {"out": kept})
    narrow(pruned, "blocks.1.norm1", {"channels": kept})
    narrow(pruned, "blocks.1.conv2", {"in": kept})
    block, dense = pruned.blocks[1], network.blocks[1]
    with torch.inference_mode():
        entering = network.blocks[0](network.stem(inputs))
        hidden = block.relu(block.norm1(block.conv1(entering)))
        targets = dense.conv2(dense.relu(dense.norm1(dense.conv1(entering))))
    rows = nn.functional.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1).double().numpy()
    wanted = targets.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    start = dense.conv2.weight[:, kept].detach().flatten(1).T.double().numpy()
    held = with_ridge(rows - rows.mean(0), dense.conv2.weight[0].numel())
    fitted = np.linalg.lstsq(held, np.vstack([wanted - wanted.mean(0), held[len(rows) :] @ start]), rcond=None)[0]
    intercept = wanted.mean(0) - rows.mean(0) @ fitted
    block.conv2.weight.data = torch.from_numpy(fitted.T).float().reshape(block.conv2.weight.shape)
    block.norm2.running_mean -= torch.from_numpy(intercept).float()
    with torch.inference_mode():
        theirs, ours = network(inputs).double(), pruned(inputs).double()
    error = float((ours - theirs).square().mean() / theirs.var(correction=0))
    assert curve.output_error[1] == pytest.approx(error, rel=1e-3)


def test_output_errors_between_those_measured_are_near_what_they_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 8, 8)
    network, _ = open_source(SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT", input_shape=shape))
    inputs = dead_leaves(64, shape, torch.Generator().manual_seed(5))
    groups = find_groups(network, inputs[:1])
    index = next(number for number, group in enumerate(groups) if group.name == "blocks.1.conv1")
    widths = [None] * len(groups)
    widths[index] = np.arange(8.0, 65, 8)  # type: ignore[call-overload]
    runs = []
    network.register_forward_pre_hook(lambda *_: runs.append(1))
    found = []
    for run in ((0, 3, 5), range(6)):
        monkeypatch.setattr(sensitivity, "_RUN", run)
        before = len(runs)
        curve = measure_sensitivity(network, groups, widths, in_memory(inputs.split(32)), None)[1][index]
        assert curve is not None
        found.append((curve, len(runs) - before))
    (filled, few), (measured, many) = found
    assert many - few == 3
    np.testing.assert_array_equal(filled.local_error, measured.local_error)
    np.testing.assert_array_equal(filled.output_error[[0, 1, 4, 6]], measured.output_error[[0, 1, 4, 6]])
    assert np.abs(np.log(filled.output_error[1:] / measured.output_error[1:])).max() < 0.5


class _Attention(nn.Module):
    """One attention of two heads on 16 tokens; its queries, keys and values from one layer or from three."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.layers = nn.ModuleList([nn.Linear(16, 48)] if fused else [nn.Linear(16, 16) for _ in range(3)])
        self.proj = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        made = torch.cat([layer(tokens) for layer in self.layers], dim=2)
        queries, keys, values = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in made.chunk(3, dim=2))
        mixed = (queries @ keys.transpose(2, 3) / 8**0.5).softmax(-1) @ values
        return self.head((tokens + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def _seeded_attention(build: Callable[[], nn.Module]) -> nn.Module:
    network = seeded(build)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.4)
    return network


@pytest.mark.parametrize("fused", [True, False])
def test_what_an_attention_loses_is_more_than_its_projection_sees(fused: bool) -> None:
    """Queries, keys and values are zeroed by hand, and the projection is fitted by numpy."""
    network, inputs = _seeded_attention(lambda: _Attention(fused)), images(96)
    before = copy.deepcopy(network.state_dict())
    groups = find_groups(network, inputs[:1])
    index = next(number for number, group in enumerate(groups) if group.name == "layers.0")
    widths = [np.array([3.0, 8.0]) if number == index else None for number in range(len(groups))]
    scores, curves = measure_sensitivity(network, groups, widths, in_memory([inputs]), None)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    curve = curves[index]
    assert curve is not None
    assert curve.local_error[1] > 0

    kept = choose_units(groups[index], scores[index], 3)
    lost = [head * 8 + unit for head in range(2) for unit in range(8) if unit not in kept]
    pruned = copy.deepcopy(network)
    seen: list[Tensor] = []
    handle = network.proj.register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        theirs = network(inputs).double()
    handle.remove()
    with torch.no_grad():
        for layer in pruned.layers:
            every = [part + row for part in range(0, len(layer.weight), 16) for row in lost]
            layer.weight[every], layer.bias[every] = 0, 0
        read = seen[0].flatten(0, 1).double().numpy()
        left = [row for row in range(16) if row not in lost]
        wanted = read @ network.proj.weight.detach().double().numpy().T
        held = with_ridge(read[:, left] - read[:, left].mean(0), network.proj.in_features)
        start = network.proj.weight[:, left].detach().double().numpy().T
        right = np.vstack([wanted - wanted.mean(0), held[len(read) :] @ start])
        fitted = np.linalg.lstsq(held, right, rcond=None)[0]
        pruned.proj.weight[:, left] = torch.from_numpy(fitted.T).float()
        pruned.proj.bias += torch.from_numpy(wanted.mean(0) - read[:, left].mean(0) @ fitted).float()
        error = float((pruned(inputs).double() - theirs).square().mean() / theirs.var(correction=0))
    assert curve.output_error[1] == pytest.approx(error, rel=0.01)


def test_an_attention_that_takes_its_projections_weights_is_not_free_to_prune() -> None:
    """torch's attention never calls its projection, which so is no consumer that anything could be measured on."""
    network = _seeded_attention(lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7))
    inputs = images(32, (3, 32, 32))
    given = Calibration(batches=in_memory([inputs]), record=Calibrated(inputs="images", count=32))
    options = PruneOptions(ratio=0.1, round_to=1, keep=("*mlp*", "*layer_1*"))
    assessment = assess(network, source((3, 32, 32)), options, given)
    pruned = prune(network, source((3, 32, 32)), options, assessment=assessment)
    index = next(number for number, group in enumerate(pruned.plan.groups) if group.kept is not None)
    group = assessment.groups[index]
    assert group.name.endswith("layer_0.self_attention")
    width = len(pruned.plan.groups[index].kept or ())
    assert width < group.width
    widths = [np.array([width, group.width]) if number == index else None for number in range(len(assessment.groups))]
    _, curves = measure_sensitivity(network, assessment.groups, widths, given.batches, None)
    with torch.inference_mode():
        theirs, ours = network(inputs).double(), pruned.network(inputs).double()
    error = float((ours - theirs).square().mean() / theirs.var(correction=0))
    curve = curves[index]
    assert curve is not None
    assert error > 0.01
    assert curve.output_error[1] == pytest.approx(error, rel=1e-3)
    assert curve.local_error[1] > 0


def test_damage_grows_with_what_is_removed() -> None:
    curve = Curve(
        widths=np.array([8.0, 6.0, 4.0, 2.0]),
        local_error=np.array([0, 0.1, 0.4, 0.3]),
        output_error=np.array([0, 0.001, 0.002, 0.2]),
    )
    every = curve.damage(np.arange(2.0, 9.0))
    assert every[-1] == 0
    assert (np.diff(every) <= 0).all()
    np.testing.assert_allclose(curve.damage(np.array([4.0])), np.sqrt(0.4 * 0.002))


def test_the_quadratic_costs_what_the_model_costs(random_network: Callable[..., nn.Module]) -> None:
    generator = np.random.default_rng(0)
    for seed in range(6):
        network = random_network(seed)
        groups = find_groups(network, torch.randn(1, *SHAPE))
        cost = CostModel(network, groups, count_macs_by_module(network, SHAPE))
        for _ in range(4):
            kept = np.array([generator.integers(1, group.width + 1) for group in groups], dtype=float)
            assert cost.quadratic("flops").of(kept) == pytest.approx(cost.macs(kept))
            assert cost.quadratic("params").of(kept) == pytest.approx(cost.params(kept))


@pytest.mark.parametrize(("name", "value"), [("flops", 0.6), ("params", 0.5), ("ratio", 0.4)])
def test_a_network_is_pruned_to_its_target_by_sensitivity(name: str, value: float) -> None:
    network = seeded(digits_resnet)
    options = PruneOptions(**{name: value}, criterion="l1", ranking="sensitivity", round_to=1)  # type: ignore[arg-type]
    inputs = Calibration(batches=in_memory([images(48, (1, 8, 8))]), record=Calibrated(inputs="images", count=48))
    assessment = assess(network, source((1, 8, 8)), options, inputs)
    plan = prune(network, source((1, 8, 8)), options, assessment=assessment).plan
    inside = [group for group in plan.groups if group.role == "filters"]
    reached = {
        "flops": plan.pruned.macs / plan.dense.macs,
        "params": plan.pruned.params / plan.dense.params,
        "ratio": 1 - sum(group.kept_width for group in inside) / sum(group.width for group in inside),
    }
    assert reached[name] == pytest.approx(value, abs=0.01)
    out_of_reach = PruneOptions(flops=0.01, criterion="l1", ranking="sensitivity")
    with pytest.raises(TargetError, match="cannot be reached"):
        prune(network, source((1, 8, 8)), out_of_reach, assessment=assessment)


def test_possible_widths_end_with_the_dense_one() -> None:
    group = Group(name="x", width=20, members=(), role="filters")
    found = possible_widths(group, PruneOptions(round_to=8, max_pruning_ratio=0.7))
    assert found.tolist() == [8, 16, 20]
