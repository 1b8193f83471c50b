"""The tracer: one forward pass, followed from tensor to tensor, that leaves the network as it was."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from channel_names import A
from torch import Tensor, nn

from pruneport.compress.graph.groups import find_groups
from pruneport.compress.graph.operators.table import LEAVES, operate
from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.forward_sizes import ForwardSizes
from pruneport.compress.graph.tracing.trace import Trace
from pruneport.compress.graph.tracing.tracer import Tracer
from pruneport.compress.resize.layer_types import LAYERS
from pruneport.errors import PruningError
from small_networks import Net, conv, parameter, pooled

SHAPE = (3, 8, 8)


# Labels


def test_labels_say_each_entrys_channel_by_line_and_by_rows() -> None:
    line = torch.tensor([5, 6, 7])
    labels = ChannelLabels(line[:, None].expand(3, 4))
    assert labels.compact().shape == (3, 1)
    assert labels.line(0).tolist() == [5, 6, 7]
    assert labels.rows(0).tolist() == [[5], [6], [7]]
    assert labels.rows(1).tolist() == [[5, 6, 7]] * 4
    padded = ChannelLabels(torch.tensor([[0, 0, 6], [0, 5, 6]]))
    assert padded.line(1).tolist() == [0, 5, 6], "a place that is padded in one row is a channel in another"


def test_every_tensor_on_the_way_has_its_labels(follow: Any) -> None:
    seen: dict[str, Tensor] = {}

    def forward(n: Any, x: Tensor) -> Tensor:
        seen["image"], seen["a"] = x, n.a(x)
        seen["read"] = n.c(torch.relu(seen["a"]))
        return pooled(seen["read"])

    found = follow(forward, c=conv(4, 2))
    assert found.along(1, seen["image"]) is None
    assert found.along(1, seen["a"]) == A
    assert found.along(1, seen["read"]) == found.along(1) == ["c0", "c1"]
    assert found.along(2, seen["a"]) is None, "places are no channels"


def test_a_tensors_labels_change_along_the_dimension_of_their_units(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x))
    (labels,) = found.tracer.labels_of(found.output)
    assert found.tracer.varies(labels) == (1,)
    found.trace.channel_ids.join(labels.line(1)[:1], labels.line(1))
    assert found.tracer.varies(labels) == (1,), "all have become one unit: the entries' own channels tell"


def test_parameters_that_no_layer_owns_have_labels_and_buffers_are_not_learned() -> None:
    network = Net(lambda n, x: n.a(x) * n.scale + n.shift, a=conv(3, 4), scale=parameter(4, 1, 1)).eval()
    network.register_buffer("shift", torch.ones(4, 1, 1))
    tracer = Tracer(network, operate, LAYERS, LEAVES, ForwardSizes)
    tracer.trace(torch.randn(1, *SHAPE))
    (scale,), (shift,) = tracer.labels_of(network.scale), tracer.labels_of(network.shift)
    assert scale.unwrapped
    assert shift.unwrapped
    assert (tracer.is_parameter(scale), tracer.is_parameter(shift)) == (True, False)
    assert tracer.labels_of(network.a.weight) == []
    assert tracer.owned(network.a.weight)
    assert not tracer.owned(network.scale)


# What it found


def test_the_trace_says_what_left_the_network_and_what_it_was_made_from(follow: Any) -> None:
    found = follow(lambda n, x: {"scores": n.fc(pooled(n.a(x))), "maps": [torch.relu(n.b(x))]}, fc=nn.Linear(4, 2))
    assert found.names(*found.trace.output) == {"fc0", "fc1", *(f"b{place}" for place in range(4))}
    assert found.trace.found_output
    assert found.trace.calls == ("a", "fc", "b", "")


def test_what_a_learned_matrix_sums_over_on_the_way_out_is_the_representation(follow: Any) -> None:
    found = follow(lambda n, x: pooled(n.a(x)) @ n.table, table=parameter(4, 3))
    assert found.names(*found.trace.representation) == set(A)
    assert found.names(*found.trace.output).isdisjoint(A)


@pytest.mark.parametrize("forward", [lambda n, x: torch.from_numpy(n.a(x).numpy()), lambda n, x: "nothing"])
def test_an_output_that_no_layer_made_is_not_found(forward: Any, follow: Any) -> None:
    assert not follow(forward).trace.found_output


def test_sizes_that_a_forward_asks_for_and_gives_are_noted(follow: Any) -> None:
    found = follow(lambda n, x: (y := n.a(x)).reshape(len(y), y.shape[1], 64) * n.a.out_channels)
    assert any(found.names(asked.line) == set(A) for asked in found.trace.asked_sizes.values())
    assert any(found.names(used.line) == set(A) for used in found.trace.used_sizes)


def test_a_trace_is_frozen_and_holds_nothing_that_grows(follow: Any) -> None:
    trace = follow(lambda n, x: n.a(x) + n.b(x)).trace
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.output = ()
    kinds = {field.name: type(getattr(trace, field.name)) for field in dataclasses.fields(Trace)}
    assert {name for name, kind in kinds.items() if kind not in (tuple, frozenset, bool)} == {
        "channel_ids", "applied_along", "asked_sizes"
    }  # fmt: skip


def test_a_second_pass_goes_on_with_the_numbers_of_the_first() -> None:
    network = Net(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=conv(4, 2)).eval()
    first = Tracer(network, operate, LAYERS, LEAVES, ForwardSizes).trace(torch.randn(1, *SHAPE))
    offsets = dict(first.channel_ids.offsets)
    again = Tracer(network, operate, LAYERS, LEAVES, ForwardSizes, channel_ids=first.channel_ids).trace(
        torch.randn(1, *SHAPE)
    )
    assert again.channel_ids.offsets == offsets
    assert [part.tolist() for part in again.output] == [part.tolist() for part in first.output]


# The network is as it was


def test_the_network_sees_whole_batches_and_runs_once() -> None:
    network = Net(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 4), b=conv(4, 6)).eval()
    shapes: list[tuple[int, ...]] = []
    network.a.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    find_groups(network, torch.randn(1, *SHAPE))
    assert shapes == [(1, *SHAPE)]


def test_the_users_own_hooks_stay() -> None:
    network = Net(lambda n, x: n.fc(pooled(n.a(x))), a=conv(3, 4), fc=nn.Linear(4, 2)).eval()
    calls = []
    network.a.register_forward_hook(lambda *_: calls.append("after"))
    network.a.register_forward_pre_hook(lambda *_: calls.append("before"))
    find_groups(network, torch.randn(1, *SHAPE))
    calls.clear()
    network(torch.randn(1, *SHAPE))
    assert calls == ["before", "after"]


def test_a_forward_that_raises_leaves_no_hooks() -> None:
    network = Net(lambda n, x: n.a(n.a(x)), a=conv(3, 4)).eval()
    network.a.weight.requires_grad_(False)
    with pytest.raises(PruningError, match=r"channels cannot be followed: RuntimeError: .* \(in a\)"):
        find_groups(network, torch.randn(1, *SHAPE))
    assert not network.a.weight.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_forward_need_not_be_differentiable() -> None:
    network = Net(lambda n, x: n.fc(pooled(n.a(x).detach())), a=conv(3, 4), fc=nn.Linear(4, 2))
    groups = find_groups(network.eval(), torch.randn(1, *SHAPE))
    assert {group.name for group in groups} == {"a", "fc"}


def test_parts_that_are_compiled_are_followed_like_others() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU()), nn.Conv2d(12, 4, 1)).eval()
    compiled = nn.Sequential(plain[0], torch.compile(plain[1], backend="eager"), plain[2]).eval()
    widths = [
        [(group.width, group.role) for group in find_groups(net, torch.zeros(2, 1, 8, 8))] for net in (plain, compiled)
    ]
    assert widths[0] == widths[1]
    assert {(8, "filters"), (4, "output")} <= set(widths[0])


@pytest.mark.slow
def test_finding_groups_does_not_import_the_compiler() -> None:
    """Which takes longer than all else that ``inspect`` does."""
    script = """
import sys, torch
from torch import nn
from pruneport.compress.graph.groups import find_groups

assert find_groups(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)).eval(), torch.zeros(1, 1, 8, 8))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
