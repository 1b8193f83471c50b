"""Two plans in a row become one that does both to the dense network, whatever groups each of them saw."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.compose import compose, compose_further
from pruneport.compress.surgery.plan import parse_plan
from pruneport.errors import BundleError
from pruneport.models.record import Source
from small_networks import Net, conv, pooled, randomise_norms

_SHAPE = (3, 8, 8)
_SOURCE = Source(spec="users:build", model_args={}, input_shape=_SHAPE)


class Attention(nn.Module):
    """Four heads on the patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.patches, self.norm = nn.Conv2d(3, 32, 2, 2), nn.LayerNorm(32)
        self.qkv, self.proj, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.transpose(1, 2).reshape(batch, tokens, -1))).mean(1))


def residual() -> nn.Module:
    return Net(
        lambda net, x: net.head(pooled((y := net.stem(x)) + net.two(torch.relu(net.norm(net.one(y)))))),
        stem=conv(3, 16),
        one=conv(16, 32),
        norm=nn.BatchNorm2d(32),
        two=conv(32, 16),
        head=nn.Linear(16, 5),
    )


def concatenated() -> nn.Module:
    """The second convolution reads two groups on one axis, as in a DenseNet; the third is depthwise."""
    return Net(
        lambda net, x: net.head(pooled(net.three(net.two(torch.cat([net.one(x), net.other(x)], 1))))),
        one=conv(3, 12),
        other=conv(3, 16),
        two=conv(28, 16),
        three=conv(16, 16, groups=16),
        head=nn.Linear(16, 5),
    )


def twice(network: nn.Module, first: PruneOptions, second: PruneOptions) -> tuple[Pruned, Pruned]:
    one = prune(network, _SOURCE, first)
    return one, prune(one.network, _SOURCE, second)


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = build().eval()
    randomise_norms(network)
    return network


_STREAMS = {"scope": "channels", "prune_representation": True, "round_to": 1}


@pytest.mark.parametrize(
    ("build", "first", "second"),
    [
        (residual, {"flops": 0.7}, {"flops": 0.6}),
        (residual, {"flops": 0.7, "scope": "filters"}, {"flops": 0.6}),
        (concatenated, {"ratio": 0.3}, {"ratio": 0.4}),
        (Attention, {"ratio": 0.3}, {"ratio": 0.3}),
        (Attention, {"ratio": 0.3}, {"ratio": 0.5, "attention": "heads"}),
        (Attention, {"ratio": 0.5, "attention": "heads"}, {"ratio": 0.3}),
    ],
)
def test_the_composed_plan_makes_of_the_dense_network_what_both_made(
    build: Callable[[], nn.Module], first: dict[str, Any], second: dict[str, Any]
) -> None:
    network = made(build)
    one, two = twice(network, PruneOptions(**(_STREAMS | first)), PruneOptions(**(_STREAMS | second)))
    assert two.plan.pruned.macs < one.plan.pruned.macs
    plan = parse_plan(compose(one.plan, two.plan).to_json())
    once = copy.deepcopy(network)
    apply_plan(once, plan.groups, plan.attributes, plan.sizes)
    ours, theirs = once.state_dict(), two.network.state_dict()
    scaled = {"qkv.weight", "qkv.bias"}  # by what the attention divides less by when its heads are narrower
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - scaled)
    once.load_state_dict(theirs)
    inputs = torch.randn(2, *_SHAPE)
    with torch.inference_mode():
        assert torch.equal(once(inputs), two.network(inputs))
    assert (plan.dense, plan.pruned) == (one.plan.dense, two.plan.pruned)
    names = [group.name for group in plan.groups]
    assert len(set(names)) == len(names)


def test_groups_that_the_first_plan_did_not_know_stand_beside_its_own() -> None:
    network = made(Attention)
    first = PruneOptions(**(_STREAMS | {"ratio": 0.3}))
    one, two = twice(network, first, PruneOptions(**(_STREAMS | {"ratio": 0.5, "attention": "heads"})))
    plan = compose(one.plan, two.plan)
    whole = [group for group in plan.groups if group.whole_attention_heads]
    before = {group.name: group.kept for group in one.plan.groups}
    assert len(whole) == 1
    assert whole[0].width == 4
    assert whole[0].name not in before
    assert {member.size for member in whole[0].members} == {32, 96}  # of the dense network
    assert (
        next(group.kept for group in plan.groups if whole[0].name == f"{group.name}, again")
        == before[whole[0].name.removesuffix(", again")]
    )


def test_a_plan_tells_what_was_done_before_and_reads_back_so() -> None:
    one, two = twice(made(residual), PruneOptions(flops=0.8, round_to=1), PruneOptions(flops=0.8, round_to=1))
    trained = replace(one.plan, training="outside")
    plan = compose_further(trained, two.plan)
    (step,) = plan.earlier
    assert (step.request, step.pruned, step.training) == (trained.request, trained.pruned, "outside")
    assert plan.training is None
    assert plan.trained  # the weights were, whatever was done to them later
    assert plan.request == two.plan.request
    again = parse_plan(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert again.earlier == plan.earlier
    assert "earlier" not in one.plan.to_json()  # as earlier versions wrote it
    third = compose_further(again, prune(two.network, _SOURCE, PruneOptions(flops=0.8, round_to=1)).plan)
    assert [entry.pruned for entry in third.earlier] == [one.plan.pruned, two.plan.pruned]


def test_what_is_no_plan_of_several_steps_is_refused() -> None:
    one, two = twice(made(residual), PruneOptions(flops=0.8, round_to=1), PruneOptions(flops=0.8, round_to=1))
    content = json.loads(compose_further(one.plan, two.plan).to_json())
    for change, said in (
        ({"dense_onnx": "start", "earlier": []}, "there is none in `earlier`"),
        ({"earlier": [content["earlier"][0] | {"mood": 1}]}, r"earlier\.0\.mood"),
        ({"earlier": [content["earlier"][0] | {"pruned": {"macs": 0, "params": 1}}]}, "costs nothing"),
        ({"earlier": {}}, "array"),
        ({"dense_onnx": "other"}, "dense_onnx"),
    ):
        with pytest.raises(BundleError, match=said):
            parse_plan(json.dumps(content | change))
