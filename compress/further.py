"""A compressed network is compressed further: what it came from, what targets mean then, and what it is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pruneport.compress.allocation.target import target_of
from pruneport.compress.group_records import Cost, GroupPlan
from pruneport.compress.options import PruneOptions
from pruneport.compress.surgery.compose import compose_further
from pruneport.compress.surgery.plan import Plan
from pruneport.errors import TargetError

__all__ = ["Origin", "check_below"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network came from that is compressed further.

    Attributes:
        plan: How it was made. Its ``dense`` is what the original costs, and what targets are shares of.
        original: The dense network with its weights; None where these cannot be had.
    """

    plan: Plan
    original: nn.Module | None = None

    @property
    def cost(self) -> Cost:
        """What the original costs."""
        return self.plan.dense

    @property
    def reference(self) -> nn.Module | None:
        """The original where its outputs are what the pruned network shall compute: not after a training."""
        return None if self.plan.trained_since else self.original

    def composed(self, further: Plan) -> Plan:
        """The plan of both, in units of the original."""
        return compose_further(self.plan, further)

    def groups(self, further: Plan) -> Sequence[GroupPlan]:
        """What is gone, seen from the network that recovery compares with."""
        return further.groups if self.reference is None else self.composed(further).groups


def check_below(options: PruneOptions, plan: Plan, name: object) -> None:
    """Raise a ``TargetError`` where a compressed network keeps no more than the target already.

    ``flops`` and ``params`` are shares of the original dense network.

    Args:
        options: With the target.
        plan: How the network was made.
        name: What it is called in the message.
    """
    target, value = target_of(options)
    if target not in ("flops", "params"):  # of a latency, whoever times it says more
        return
    kept = plan.macs_kept if target == "flops" else plan.params_kept
    if kept <= value:
        raise TargetError(
            f"`{target}` is {value:g} of the dense network, and {name} keeps {kept:.3g} of it already; give a smaller "
            f"`{target}`: it is a share of the original, not of what is left."
        )
