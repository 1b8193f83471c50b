"""pruneport: from a checkpoint to a verified, benchmarked ONNX artifact.

The rooms ``models``, ``compress``, ``export`` and ``bench`` hold the parts; ``commands`` joins them into what
the command line offers. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from pruneport.errors import PruneportError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pruneport.commands.api.bundles import save as save
    from pruneport.commands.api.inspecting import inspect as inspect
    from pruneport.commands.api.pruning import prune as prune
    from pruneport.commands.api.shipping import ship as ship
    from pruneport.commands.api.sweeping import sweep as sweep
    from pruneport.commands.api.training import finetune as finetune
    from pruneport.compress.graph.dependency.channel_graph import ChannelGraph as ChannelGraph
    from pruneport.compress.graph.dependency.channel_graph import dependency_graph as dependency_graph
    from pruneport.compress.graph.dependency.channel_pruner import ChannelPruner as ChannelPruner
    from pruneport.models.record import Factory

__all__ = [
    "ChannelGraph",
    "ChannelPruner",
    "PruneportError",
    "__version__",
    "dependency_graph",
    "finetune",
    "inspect",
    "load",
    "prune",
    "save",
    "ship",
    "sweep",
]

_WHERE = {
    "ChannelGraph": "pruneport.compress.graph.dependency.channel_graph",
    "ChannelPruner": "pruneport.compress.graph.dependency.channel_pruner",
    "dependency_graph": "pruneport.compress.graph.dependency.channel_graph",
    "finetune": "pruneport.commands.api.training",
    "inspect": "pruneport.commands.api.inspecting",
    "prune": "pruneport.commands.api.pruning",
    "save": "pruneport.commands.api.bundles",
    "ship": "pruneport.commands.api.shipping",
    "sweep": "pruneport.commands.api.sweeping",
}

__version__ = importlib.metadata.version("pruneport")


def __getattr__(name: str) -> Any:
    """Import what needs torch, or torch-pruning, when it is asked for, and not before: that takes seconds."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def load(folder: str | Path, *, factory: Factory | nn.Module | None = None, trust_source: bool = False) -> nn.Module:
    """Load a bundle's pruned network, bit for bit as it was compressed.

    Args:
        folder: The bundle's folder, or ``hf-hub:owner/name`` of one on the Hugging Face Hub, ``@revision`` behind it
            where it shall not be the newest. It is fetched once, with every file checked against its manifest.
        factory: Builds the dense architecture, with any weights; or a network of it in memory, which is copied and left
            as it is. Needed where the source is not torchvision's, timm's or ours.
        trust_source: Build it by running the source named in the plan instead; only for bundles you trust.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        BundleError: The bundle is damaged, was changed, is of a newer format, or needs a factory.
        ModelError: The network that was given cannot be copied.
        SourceError: The factory fails.
        HubError: The hub cannot be asked, or has no such repository.

    Example:
        >>> network = pruneport.load("resnet50-half")  # doctest: +SKIP
    """
    from pruneport.export.bundle.weights import rebuild
    from pruneport.export.hub import open_any_bundle
    from pruneport.models.live.copying import as_factory

    return rebuild(open_any_bundle(folder), as_factory(factory), trust_source=trust_source)
