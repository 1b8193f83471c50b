"""Units: the positions on axes of layers that must be removed together, from what one pass found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.graph.coupling import Coupling
from pruneport.errors import PruningError
from small_networks import Net, conv, parameter, pooled


def coupling_of(forward: Any, whole_heads: bool = False, **parts: Any) -> Coupling:
    return find_coupling(Net(forward, **parts).eval(), torch.randn(1, 3, 8, 8), whole_heads)


def unit_at(coupling: Coupling, layer: str, axis: str, position: int) -> dict[tuple[str, str], list[int]]:
    (unit,) = [axes for axes in coupling.units.values() if position in axes.get((layer, axis), [])]
    return unit


def test_a_unit_holds_the_positions_that_go_together() -> None:
    coupling = coupling_of(
        lambda n, x: n.fc(torch.flatten(torch.relu(n.norm(n.a(x))), 1)),
        a=nn.Conv2d(3, 4, 4, stride=4),
        norm=nn.BatchNorm2d(4),
        fc=nn.Linear(16, 2),
    )
    assert unit_at(coupling, "a", "out", 1) == {
        ("a", "out"): [1],
        ("norm", "channels"): [1],
        ("fc", "in"): [4, 5, 6, 7],
    }
    assert coupling.sizes == {("a", "out"): 4, ("norm", "channels"): 4, ("fc", "in"): 16, ("fc", "out"): 2}
    assert len(coupling.units) == 4 + 2
    assert coupling.output == {number for number, axes in coupling.units.items() if ("fc", "out") in axes}, (
        "units are told by their numbers"
    )


def test_layers_stand_in_the_order_of_execution_and_those_that_did_not_run_are_idle() -> None:
    coupling = coupling_of(
        lambda n, x: n.first(n.second(x)), first=conv(4, 4), second=conv(3, 4), unused=conv(3, 4), other=nn.ReLU()
    )
    assert coupling.order["second"] < coupling.order["first"] < coupling.order[""]
    assert "unused" not in coupling.order
    assert coupling.idle == ("unused",)


def test_a_layer_that_lends_its_weight_is_not_idle() -> None:
    lent = coupling_of(lambda n, x: nn.functional.conv2d(x, n.a.weight, n.a.bias), a=conv(3, 4))
    assert lent.idle == ()


def test_a_parameter_that_no_layer_owns_has_an_axis_of_its_own() -> None:
    coupling = coupling_of(lambda n, x: n.b(n.a(x) * n.scale), a=conv(3, 4), b=conv(4, 2), scale=parameter(4, 1, 1))
    assert unit_at(coupling, "a", "out", 2)["scale", "dim0"] == [2]
    assert coupling.sizes["scale", "dim0"] == 4


def test_a_parameter_whose_entries_follow_no_dimension_holds_its_channels() -> None:
    coupling = coupling_of(
        lambda n, x: n.b(n.a(x) + n.grid.reshape(4, 1, 1)), a=conv(3, 4), b=conv(4, 2), grid=parameter(2, 2)
    )
    reasons = {coupling.unprunable[unit] for unit, axes in coupling.units.items() if ("a", "out") in axes}
    assert reasons == {"the entries of grid do not follow one of its dimensions"}


def test_of_several_reasons_the_first_is_told() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        held = n.a(x) + torch.ones(4, 1, 1)
        return n.b(held.sort(1)[0])  # type: ignore[no-any-return]

    coupling = coupling_of(forward, a=conv(3, 4), b=conv(4, 2))
    (reason,) = {coupling.unprunable[unit] for unit, axes in coupling.units.items() if ("a", "out") in axes}
    assert reason == "the network combines its channels with values whose width does not follow any layer"


def test_layers_with_one_weight_keep_the_same_positions() -> None:
    first, second = conv(4, 4), conv(4, 4)
    second.weight = first.weight
    coupling = coupling_of(lambda n, x: n.last(n.second(torch.relu(n.first(n.a(x))))), a=conv(3, 4), first=first,
                           second=second, last=conv(4, 2))  # fmt: skip
    unit = unit_at(coupling, "first", "out", 3)
    assert unit == {
        key: [3]
        for key in [
            ("a", "out"),
            *((name, axis) for name in ("first", "second") for axis in ("in", "out")),
            ("last", "in"),
        ]
    }


def test_what_left_what_was_added_and_what_is_read_last_are_units() -> None:
    coupling = coupling_of(
        lambda n, x: pooled(n.a(x) + n.b(x)) @ n.table, a=conv(3, 4), b=conv(3, 4), table=parameter(4, 2)
    )
    both = {unit for unit, axes in coupling.units.items() if ("a", "out") in axes and ("b", "out") in axes}
    assert len(both) == 4
    assert coupling.added == coupling.representation == both
    assert coupling.output.isdisjoint(both)


def test_a_network_that_does_not_run_or_shows_no_output_is_refused() -> None:
    with pytest.raises(PruningError, match=r"channels cannot be followed: RuntimeError: .* \(in a\)"):
        coupling_of(lambda n, x: n.a(n.a(x)), a=conv(3, 4))
    with pytest.raises(PruningError, match="no output of the network can be traced back to its layers"):
        coupling_of(lambda n, x: torch.from_numpy(n.a(x).numpy()), a=conv(3, 4))
