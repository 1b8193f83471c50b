"""torch-pruning's pruners on a ``ChannelGraph``: their ratios, rankings and steps are used as they are."""

from __future__ import annotations

from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn

from pruneport.compress.graph.dependency.channel_graph import ChannelGraph
from pruneport.compress.graph.dependency.channel_group import ChannelGroup
from pruneport.errors import PruningError
from pruneport.models.inputs import ExampleInputs

__all__ = ["ChannelPruner"]


class ChannelPruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]
    """torch-pruning's pruner for any network that our tracer can follow.

    Whole units are ranked: where a unit is several channels of a layer (a convolution's channel group), it has their
    mean importance. To give another of torch-pruning's pruners our graph, name both:
    ``class Pruner(torch_pruning.pruner.GroupNormPruner, pruneport.ChannelPruner): pass``.

    Args:
        model: The network; it is shrunk in place.
        example_inputs: A tensor, a list or tuple of arguments, or a dict of named arguments.
        importance: Any of ``torch_pruning.importance``.
        attention: Whether attention heads lose width, or go as a whole.
        whole_channel_groups: Whether narrow channel groups go as a whole (see ``dependency_graph``).
        options: Everything else that ``torch_pruning.pruner.BasePruner`` takes, but for what the graph finds itself:
            ``num_heads``, ``prune_num_heads``, ``customized_pruners``, ``in_channel_groups``, ``out_channel_groups``.

    Raises:
        PruningError: The network does not run, has no layers that could be pruned, or an option does not fit.

    Example:
        >>> import torch, torch_pruning
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
        >>> pruner = ChannelPruner(
        ...     network, torch.zeros(1, 3, 16, 16), torch_pruning.importance.MagnitudeImportance(), pruning_ratio=0.5
        ... )
        >>> pruner.step()
        >>> network[0].out_channels
        4
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        importance: Any,
        *positional: Any,
        attention: Literal["width", "heads"] = "width",
        whole_channel_groups: bool = True,
        **options: Any,
    ) -> None:
        found = [name for name in _FOUND if options.get(name)]
        if found:
            raise PruningError(
                f"{', '.join(f'`{name}`' for name in found)} do not fit this pruner, whose graph finds attention heads "
                "and channel groups itself: leave them out. `attention='heads'` removes whole attention heads."
            )
        fresh: dict[str, Any] = {name: {} for name in ("in_channel_groups", "out_channel_groups", "num_heads")}
        graph = partial(ChannelGraph, attention=attention, whole_channel_groups=whole_channel_groups)
        _with_graph(torch_pruning.pruner.BasePruner.__init__, graph)(
            self, model, example_inputs, importance, *positional, **{**options, **fresh}
        )

    def estimate_importance(self, group: ChannelGroup) -> Tensor | None:
        """The importance of each position of the group's first layer: that of its unit."""
        importance: Tensor | None = super().estimate_importance(group)
        if importance is None:
            return None
        _, unit = torch.unique(torch.tensor(self.DG.units_at(group)), return_inverse=True)
        unit = unit.to(importance.device)
        sums = importance.new_zeros(int(unit.max()) + 1).index_add_(0, unit, importance)
        means: Tensor = sums / torch.bincount(unit)
        return means[unit]

    def _get_channel_groups(self, group: ChannelGroup) -> int:
        """Equal runs of the first layer's positions that must lose as many each, where the graph has such."""
        blocks: int = max((self.DG.shrinking.blocks_of(unit) for unit in group.units), default=1)
        return blocks


_FOUND = (
    "num_heads",
    "prune_num_heads",
    "head_pruning_ratio",
    "head_pruning_ratio_dict",
    "customized_pruners",
    "in_channel_groups",
    "out_channel_groups",
    "channel_groups",
)


def _with_graph(initialise: Any, graph: Any) -> Any:
    """The same function, in which ``dependency.DependencyGraph`` is ours: torch-pruning takes no other there."""
    names = {**initialise.__globals__, "dependency": SimpleNamespace(DependencyGraph=graph)}
    return FunctionType(initialise.__code__, names, initialise.__name__, initialise.__defaults__)
