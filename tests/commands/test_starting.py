"""The proof that a bundle compressed further is the network that was compressed, seen from its original source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruneport
from pruneport.commands.starting import BundleStart, check_composed, start_at
from pruneport.compress.surgery.plan import Plan
from pruneport.errors import PruningError
from pruneport.export.bundle.weights import write_network
from pruneport.progress import silent


class Gains(nn.Module):
    """What its channels are multiplied by is in no state dict: kept units that are wrong show in the outputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3), nn.Linear(16, 5)
        self.register_buffer("gains", torch.linspace(1, 2, 32)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(torch.relu(self.one(x)) * self.gains).mean((2, 3)))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Gains().eval()


@pytest.fixture
def compressed(tmp_path: Path) -> tuple[nn.Module, Plan, BundleStart]:
    """A bundle's network, compressed further, with its plan and what it came from."""
    given: dict[str, Any] = {"criterion": "l1", "ranking": "uniform", "recover": "none"}
    first = pruneport.prune(build(), macs=0.8, input_shape=(3, 8, 8), **given).save(tmp_path / "first")
    network = pruneport.load(first, factory=build)
    again = pruneport.prune(network, macs=0.5, like=first, factory=build, **given)
    return again.network, again.plan, start_at(first, build, silent)


def _with_units(plan: Plan, name: str, kept: tuple[int, ...]) -> Plan:
    groups = tuple(replace(group, kept=kept) if group.name == name else group for group in plan.groups)
    return replace(plan, groups=groups)


def test_it_passes_what_is_right_and_nothing_else(
    compressed: tuple[nn.Module, Plan, BundleStart], tmp_path: Path
) -> None:
    network, plan, start = compressed
    (kept,) = [group.kept for group in plan.groups if group.name == "one"]
    assert kept is not None
    others = tuple(sorted({*range(32)} - set(kept)))[: len(kept)]
    for units, said in (
        (kept, None),
        (
            tuple(sorted((*kept[1:], *others[:1]))),
            "does not give the network that was compressed; compress .*:Gains anew",
        ),
        (kept[:-1], "(?s)do not fit into one plan: .* Instead compress .*:Gains anew"),
    ):
        wrong = _with_units(plan, "one", units)
        write_network(tmp_path, network, wrong)
        if said is None:
            check_composed(tmp_path, network, wrong, start)
            continue
        with pytest.raises(PruningError, match=said):
            check_composed(tmp_path, network, wrong, start)
