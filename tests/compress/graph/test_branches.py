"""Residual branches: which additions end one, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.graph.branches import Branch, branches_changed, droppable_branches
from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.graph.groups import group_units

EXAMPLE = torch.zeros(1, 3, 8, 8)


def branches_of(network: nn.Module, *keep: str) -> tuple[Branch, ...]:
    coupling = find_coupling(network.eval(), EXAMPLE)
    return droppable_branches(network, group_units(network, coupling), coupling.branches, keep)


def modules_of(network: nn.Module) -> list[list[str]]:
    return [list(branch.traced.modules) for branch in branches_of(network)]


class Residual(nn.Module):
    """x + f(x) in a forward that is given."""

    def __init__(self, forward: Callable[[Residual, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.first, self.second = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.norm, self.relu = nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.full((16, 1, 1), 0.5))
        self.head = nn.Linear(16, 4)
        self._run = forward

    def branch(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self._run(self, x).mean((2, 3)))


def in_place(net: Residual, x: Tensor) -> Tensor:
    out = net.branch(x)
    out += x
    return net.relu(out)


def read_elsewhere(net: Residual, x: Tensor) -> Tensor:
    made = net.branch(x)
    return torch.cat([x + made, made], 1)[:, :16]


def of_the_input(net: Residual, x: Tensor) -> Tensor:
    return x + net.branch(net.stem(torch.ones(1, 3, 8, 8)) + F.relu(x))


def overwritten(net: Residual, x: Tensor) -> Tensor:
    y = net.relu(net.norm(x))
    return y + net.branch(y)


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (lambda net, x: x + net.branch(x), [["first", "relu", "second"]]),
        (lambda net, x: net.branch(x).add(x), [["first", "relu", "second"]]),
        (in_place, [["first", "second"]]),
        (overwritten, [["first", "second"]]),
        (lambda net, x: x + net.scale * net.branch(x), [["first", "relu", "second"]]),
        (lambda net, x: x + net.norm(x), []),  # no group of its own
        (lambda net, x: x - net.branch(x), []),
        (lambda net, x: net.norm(x) + net.branch(x), []),
        (lambda net, x: x + net.branch(x).mean((2, 3), keepdim=True), []),
        (read_elsewhere, []),
        (of_the_input, []),  # the stem is read outside, too
    ],
)
def test_an_addition_ends_a_branch_that_is_computed_from_the_other_operand_alone(
    forward: Callable[[Residual, Tensor], Tensor], found: list[list[str]]
) -> None:
    assert modules_of(Residual(forward)) == found


def test_an_input_that_is_read_again_makes_no_branch() -> None:
    class Again(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head((y + self.branch(y + self.stem(x))).mean((2, 3)))

    assert modules_of(Again(lambda net, x: x)) == []


def test_parameters_beside_the_modules_go_too_and_keep_holds_a_branch() -> None:
    network = Residual(lambda net, x: x + net.scale * net.branch(x))
    (branch,) = branches_of(network)
    assert branch.traced.parameters == ("scale",)
    assert (branch.name, branch.traced.channel_dim) == ("the network", 1)
    assert branch.holds("first")
    assert not branch.holds("firsts")
    assert branches_of(network, "secon*") == ()


def test_the_trace_finds_the_same_branches_each_time() -> None:
    network = Residual(in_place)
    first = find_coupling(network.eval(), EXAMPLE).branches
    assert all(find_coupling(network, EXAMPLE).branches == first for _ in range(5))


@pytest.mark.parametrize("forward", [in_place, lambda net, x: net.branch(x) + x, lambda net, x: x + net.branch(x)])
def test_an_addition_can_be_given_something_else(forward: Callable[[Residual, Tensor], Tensor]) -> None:
    network = Residual(forward).eval()
    x = torch.rand(2, 3, 8, 8)
    (branch,) = branches_of(network)
    with torch.no_grad(), branches_changed(network, [branch.traced], lambda _, computed: torch.ones_like(computed)):
        outputs = [network(x), network(x)]  # additions are counted anew in every pass
    added = network.stem(x) + 1
    expected = network.head((F.relu(added) if forward is in_place else added).mean((2, 3)))
    for output in outputs:
        torch.testing.assert_close(output, expected)
