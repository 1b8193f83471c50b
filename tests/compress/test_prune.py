"""Pruning: what is left computes what zeroing would, and the plan alone does it again."""

from __future__ import annotations

import copy
import importlib.metadata
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneport import versions
from pruneport.compress.assessment import describe_groups
from pruneport.compress.group_records import scope_in_files
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import PLAN_LIBRARIES, Pruned, prune
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.errors import ModelError, PruningError, TargetError
from pruneport.models.record import Source
from pruneport.versions import library_versions
from small_networks import Net, same_state, zeroed

SHAPE = (3, 8, 8)
SOURCE = Source(spec="tests:network", model_args={}, input_shape=SHAPE)
DIGITS = Source(spec="pruneport:digits_resnet", model_args={}, input_shape=(1, 8, 8))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def sizes(network: nn.Module) -> list[tuple[str, str]]:
    return [(name, repr(module)) for name, module in network.named_modules() if not list(module.children())]


# Every network


@pytest.mark.slow
@given(
    seed=st.integers(0, 100_000),
    norms=st.booleans(),
    gates=st.booleans(),
    scope=st.sampled_from(["filters", "channels"]),
    ranking=st.sampled_from(["uniform", "global"]),
    criterion=st.sampled_from(["l1", "l2", "random"]),
    round_to=st.sampled_from([1, 2, 4]),
    target=st.sampled_from([("ratio", 0.3), ("ratio", 0.6), ("flops", 0.75), ("params", 0.8)]),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_pruned_network(
    random_network: Callable[..., nn.Module],
    seed: int,
    norms: bool,
    gates: bool,
    target: tuple[str, float],
    **fields: Any,
) -> None:
    dense = random_network(seed, norms=norms, gates=gates)
    before = state_of(dense)
    options = PruneOptions(**{target[0]: target[1]}, **fields)
    try:
        pruned = prune(dense, SOURCE, options)
    except (TargetError, PruningError) as error:
        assert "cannot be reached" in str(error) or "nothing can be pruned" in str(error)  # noqa: PT017
        return

    # It computes what zeroing computes.
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        expected, actual = zeroed(dense, pruned.plan, only_inputs=True)(images), pruned.network(images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert pruned.plan.masked_error is not None
    assert pruned.plan.masked_error < 1e-4

    # The dense network is as it was.
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())

    # The plan survives JSON and does the same again.
    text = pruned.plan.to_json()
    parsed = parse_plan(text)
    assert parsed.to_json() == text
    assert_same_plan(parsed, pruned.plan)
    again = random_network(seed, norms=norms, gates=gates)
    apply_plan(again, parsed.groups)
    assert same_state(again, pruned.network)
    assert sizes(again) == sizes(pruned.network)

    # The counts are of the network that came out.
    assert_counted(pruned)
    if target[0] != "ratio":
        share = getattr(pruned.plan.pruned, "macs" if target[0] == "flops" else "params")
        share /= getattr(pruned.plan.dense, "macs" if target[0] == "flops" else "params")
        assert abs(share - target[1]) <= 0.015 or pruned.plan.note

    # Widths are as the words say.
    for group in pruned.plan.groups:
        assert group.kept_width % fields["round_to"] == 0 or group.kept is None
        assert group.reason or round(group.asked) == group.kept_width
        assert (scope_in_files(group.role) in ("filters", fields["scope"])) or group.kept is None


def assert_same_plan(parsed: Plan, plan: Plan) -> None:
    assert replace(parsed, groups=()) == replace(plan, groups=())
    for one, other in zip(parsed.groups, plan.groups, strict=True):
        assert one.asked == pytest.approx(other.asked, abs=1e-3)
        assert replace(one, asked=0, members=()) == replace(other, asked=0, members=())
        for member, original in zip(one.members, other.members, strict=True):
            assert (member.module, member.axis, member.size) == (original.module, original.axis, original.size)
            assert np.array_equal(member.positions, original.positions)


def assert_counted(pruned: Pruned) -> None:
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = FlopCountAnalysis(pruned.network, torch.zeros(1, *pruned.plan.source.input_shape))
        assert pruned.plan.pruned.macs == counted.unsupported_ops_warnings(False).total()
    assert pruned.plan.pruned.params == sum(parameter.numel() for parameter in pruned.network.parameters())


# What stays


@pytest.mark.parametrize("scope", ["filters", "channels"])
@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_the_representation_keeps_its_width(digits: nn.Module, scope: Any, ranking: Any) -> None:
    pruned = prune(digits, DIGITS, PruneOptions(ratio=0.5, scope=scope, ranking=ranking))
    assert pruned.network.head.in_features == 64
    assert pruned.network.head.out_features == 10
    assert pruned.network.blocks[2].conv2.out_channels == 64
    assert torch.equal(pruned.network.head.weight, digits.head.weight)
    assert pruned.network.stem[0].out_channels == (32 if scope == "filters" else pruned.network.stem[1].num_features)
    assert (pruned.network.stem[0].out_channels < 32) == (scope == "channels")
    assert not pruned.network.training
    assert pruned.plan.pruned.macs < pruned.plan.dense.macs


def test_the_scopes_of_the_embedded_network(digits: nn.Module) -> None:
    dense, views = describe_groups(digits, DIGITS, PruneOptions(ratio=0.5))
    assert {view.group.name: (view.group.role, view.group.width) for view in views} == {
        "stem.0": ("stream", 32),
        "blocks.0.conv1": ("filters", 32),
        "blocks.1.conv1": ("filters", 64),
        "blocks.1.conv2": ("representation", 64),
        "blocks.2.conv1": ("filters", 64),
        "head": ("output", 10),
    }
    assert dense.params == sum(parameter.numel() for parameter in digits.parameters())
    reasons = {view.group.name: view.reason for view in views}
    assert "residual stream" in reasons["stem.0"]
    assert not reasons["blocks.0.conv1"]


def test_kept_units_are_those_with_the_highest_scores(digits: nn.Module) -> None:
    pruned = prune(digits, DIGITS, PruneOptions(ratio=0.5, criterion="l1"))
    group = next(group for group in pruned.plan.groups if group.name == "blocks.2.conv1")
    block = digits.blocks[2]
    sums = [
        block.conv1.weight.detach().abs().sum((1, 2, 3)),
        block.norm1.weight.detach().abs(),
        block.conv2.weight.detach().abs().sum((0, 2, 3)),
    ]
    expected = sorted(torch.stack(sums).mean(0).topk(32).indices.tolist())
    assert list(group.kept or ()) == expected
    assert torch.equal(pruned.network.blocks[2].conv1.weight, block.conv1.weight[expected])
    assert torch.equal(pruned.network.blocks[2].conv2.weight, block.conv2.weight[:, expected])
    assert torch.equal(pruned.network.blocks[2].norm1.running_mean, block.norm1.running_mean[expected])


def test_keep_leaves_matching_groups_dense(digits: nn.Module) -> None:
    pruned = prune(digits, DIGITS, PruneOptions(ratio=0.5, keep=("blocks.1.*", "stem.0")))
    kept = {group.name: group for group in pruned.plan.groups}
    assert kept["blocks.1.conv1"].kept is None
    assert kept["blocks.1.conv1"].reason == "kept by `keep` blocks.1.*"
    assert kept["blocks.0.conv1"].kept is not None
    assert pruned.plan.request.keep == ("blocks.1.*", "stem.0")
    with pytest.raises(TargetError, match=r"`keep` layer9\.\*, nothing matches no module; names look like stem, "):
        prune(digits, DIGITS, PruneOptions(ratio=0.5, keep=("layer9.*", "stem.*", "nothing")))


def test_a_target_that_widths_cannot_meet_is_noted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 2, 3)).eval()
    pruned = prune(network, SOURCE, PruneOptions(flops=0.8, round_to=8))
    assert pruned.plan.note is not None
    share = pruned.plan.pruned.macs / pruned.plan.dense.macs
    assert f"asked for 0.8 of the dense flops, reached {share:.4f}" in pruned.plan.note
    assert pruned.network[0].out_channels in (8, 16)


def test_the_plan_records_what_was_asked(digits: nn.Module) -> None:
    options = PruneOptions(params=0.7, criterion="l2", scope="channels", ranking="global", round_to=4)
    plan = prune(digits, replace(DIGITS, seed=3), options).plan
    assert (plan.request.target, plan.request.value, plan.request.criterion) == ("params", 0.7, "l2")
    assert (plan.request.scope, plan.request.ranking, plan.request.round_to) == ("channels", "global", 4)
    assert plan.source.seed == 3
    assert plan.libraries["torch"] == torch.__version__.partition("+")[0]
    assert plan.pruned.params / plan.dense.params == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("installed", ["onnxruntime", "onnxruntime-gpu"])
def test_the_versions_name_the_onnx_runtime_that_is_installed(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions._version.cache_clear()
    try:
        assert library_versions(*PLAN_LIBRARIES) == {installed: "1.31.1"}
    finally:
        versions._version.cache_clear()


def test_random_pruning_follows_the_seed(digits: nn.Module) -> None:
    def kept(seed: int) -> list[Any]:
        plan = prune(digits, replace(DIGITS, seed=seed), PruneOptions(ratio=0.5, criterion="random")).plan
        return [group.kept for group in plan.groups]

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_torch_is_as_random_as_before(digits: nn.Module) -> None:
    before = torch.get_rng_state()
    prune(digits, DIGITS, PruneOptions(ratio=0.5, criterion="random"))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dense_network_is_left_alone(digits: nn.Module) -> None:
    network = copy.deepcopy(digits)
    network.head.weight.requires_grad_(False)
    before, shown = state_of(network), sizes(network)
    pruned = prune(network, DIGITS, PruneOptions(ratio=0.5, scope="channels"))
    assert sizes(network) == shown
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not pruned.network.head.weight.requires_grad
    assert pruned.network.stem[0].weight.requires_grad
    with torch.no_grad():
        pruned.network.head.weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_search_needs_no_forward_passes(digits: nn.Module) -> None:
    def forwards(**options: Any) -> int:
        network = copy.deepcopy(digits)
        calls = []
        network.head.register_forward_hook(lambda *_: calls.append(1))
        prune(network, DIGITS, PruneOptions(**options))
        return len(calls)

    counts = {
        forwards(ratio=0.5),
        forwards(flops=0.5),
        forwards(flops=0.83, round_to=1, ranking="global"),
        forwards(params=0.6, scope="channels", round_to=2),
    }
    assert len(counts) == 1
    # Counting runs each of the two networks twice, tracing once, the proof the pruned one once and the dense one twice.
    assert counts.pop() == 8


# Networks of other kinds


def check(network: nn.Module, **options: Any) -> Pruned:
    """Prune and compare with the zeroed network."""
    network.eval()
    pruned = prune(network, SOURCE, PruneOptions(**{"ratio": 0.5, "round_to": 2} | options))
    images = torch.randn(2, *SHAPE)
    with torch.inference_mode():
        expected, actual = zeroed(network, pruned.plan, only_inputs=True)(images), pruned.network(images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert any(group.kept for group in pruned.plan.groups)
    assert_counted(pruned)
    return pruned


def test_flatten_before_linear() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6), nn.ReLU(), nn.Linear(6, 3))
    pruned = check(network)
    assert pruned.network[0].out_channels == 4
    assert pruned.network[3].in_features == 144
    assert pruned.network[5].in_features == 6


def test_halves_of_a_chunk() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        first, second = torch.relu(n.a(x)).chunk(2, dim=1)
        joined = torch.cat([first, second, n.b(second)], 1)
        out: Tensor = n.fc(n.c(joined).mean((2, 3)))
        return out

    network = Net(
        forward, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(24, 4, 1), fc=nn.Linear(4, 2)
    )
    pruned = check(network)
    assert pruned.network.a.out_channels == 8


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu_and_instance_norm(slopes: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(slopes), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 2, 1)
    )
    pruned = check(network)
    assert pruned.network[1].num_features == 4
    assert pruned.network[2].num_parameters == min(slopes, 4)


def test_what_a_forward_relies_on_is_left_dense_and_the_plan_says_why() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = torch.relu(n.a(x))
        out: Tensor = n.fc(n.c(n.b(y.as_strided((len(y), 8, 36, 1), (288, 36, 1, 1)))).mean((2, 3)))
        return out

    network = Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 1), c=nn.Conv2d(6, 4, 1), fc=nn.Linear(4, 2)).eval()
    before = state_of(network)
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    plans = {group.name: group for group in pruned.plan.groups}
    assert plans["a"].kept is None
    assert "the forward of the network relies on this width: setStorage: sizes [2, 8, 36, 1]" in plans["a"].reason
    assert plans["b"].kept_width == 3
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_forward_that_refuses_a_width_without_a_word() -> None:
    class Terse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            if y.detach().numpy().shape[1] != 8:
                raise ValueError
            return y

    rest = [nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    pruned = prune(nn.Sequential(Terse(), *rest).eval(), SOURCE, PruneOptions(ratio=0.5, round_to=1))
    plans = {group.name: group for group in pruned.plan.groups}
    assert plans["0.a"].reason == "the forward of 0 relies on this width: ValueError"
    assert plans["1"].kept_width == 3


def test_shared_parameters_stay_shared() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)
    )
    network[2].weight = network[1].weight
    network.eval()
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    untied, images = copy.deepcopy(network), torch.randn(2, *SHAPE)
    untied[2].weight = nn.Parameter(untied[2].weight.detach().clone())  # so that each layer is zeroed on its own
    with torch.inference_mode():
        expected, actual = zeroed(untied, pruned.plan, only_inputs=True)(images), pruned.network(images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert pruned.network[1].weight is pruned.network[2].weight  # type: ignore[index]
    assert pruned.plan.note is None
    again = copy.deepcopy(network)
    apply_plan(again, pruned.plan.groups, pruned.plan.attributes, pruned.plan.sizes)
    assert again[1].weight is again[2].weight


def test_a_refused_input_shape() -> None:
    with pytest.raises(ModelError, match="`input_shape` C H W"):
        prune(nn.Conv2d(3, 4, 3).eval(), replace(SOURCE, input_shape=(1, 8, 8)), PruneOptions(ratio=0.5))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch calls its own scripts deprecated
def test_compiled_modules_are_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 3)).eval()
    for compiled in (torch.jit.script(network[1]), torch.compile(network[1], backend="eager")):
        whole = nn.Sequential(network[0], compiled, network[2])
        with pytest.raises(
            ModelError, match=r"compiled modules cannot be pruned: 1\. Give the network as it is before"
        ):
            prune(whole, SOURCE, PruneOptions(ratio=0.5))
    with pytest.raises(ModelError, match="the network itself"):
        prune(torch.compile(network, backend="eager"), SOURCE, PruneOptions(ratio=0.5))  # type: ignore[arg-type]


def test_a_group_that_its_share_leaves_whole_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 20, 3), nn.Conv2d(20, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    groups = {group.name: group for group in prune(network, SOURCE, PruneOptions(ratio=0.1, round_to=1)).plan.groups}
    assert groups["0"].kept is None
    assert groups["0"].reason == "left dense: 2.7 of 3 asked"
    assert groups["1"].reason == ""


def test_progress_is_told(digits: nn.Module) -> None:
    told: list[str] = []
    prune(digits, DIGITS, PruneOptions(flops=0.5), told.append)
    assert told[:2] == ["counting multiply-accumulates", "finding coupled groups"]
    assert "searching widths for flops 0.5" in told


def test_what_would_reach_a_target_is_tried_before_it_is_said(digits: nn.Module) -> None:
    with pytest.raises(TargetError, match="cannot be reached") as caught:
        prune(digits, DIGITS, PruneOptions(flops=0.05, round_to=1, max_pruning_ratio=0.6))
    found = re.search(r"`scope=channels` \(reaches (0\.\d+)\)", str(caught.value))
    assert found is not None
    reached = prune(
        digits, DIGITS, PruneOptions(flops=float(found[1]), round_to=1, max_pruning_ratio=0.6, scope="channels")
    ).plan
    assert reached.pruned.macs / reached.dense.macs == pytest.approx(float(found[1]), abs=0.01)
    chain = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    )
    with pytest.raises(TargetError, match="cannot be reached") as caught:
        prune(chain.eval(), SOURCE, PruneOptions(flops=0.1, round_to=1, max_pruning_ratio=0.6))
    assert "`scope=channels`" not in str(caught.value), "there is no stream"
    assert "`prune_representation` (reaches 0." in str(caught.value)


def test_the_representation_goes_where_that_is_asked_for() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)
    ).eval()
    with pytest.raises(PruningError, match="`prune_representation` prunes the output layer's input too"):
        prune(network, SOURCE, PruneOptions(flops=0.5, round_to=1))
    pruned = prune(network, SOURCE, PruneOptions(flops=0.5, round_to=1, prune_representation=True))
    assert (pruned.network[0].out_channels, pruned.network[4].in_features) == (12, 12)  # type: ignore[index]
    assert pruned.plan.masked_error is not None
    assert pruned.plan.masked_error < 1e-5
    assert pruned.plan.request.prune_representation
