"""pruneport: from a checkpoint to a verified, benchmarked ONNX artifact.

The rooms ``models``, ``compress``, ``export`` and ``bench`` hold the parts; ``commands`` joins them into what
the command line offers. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from pruneport.errors import PruneportError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pruneport.models.record import Factory

__all__ = ["PruneportError", "__version__", "load"]

__version__ = importlib.metadata.version("pruneport")


def load(folder: str | Path, *, factory: Factory | None = None, trust_source: bool = False) -> nn.Module:
    """Load a bundle's pruned network, bit for bit as it was compressed.

    Args:
        folder: The bundle.
        factory: Builds the dense architecture; needed where the source is not torchvision's, timm's or ours.
        trust_source: Build it by running the source named in the plan instead; only for bundles you trust.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        BundleError: The bundle is damaged, was changed, is of a newer format, or needs a factory.
        SourceError: The factory fails.

    Example:
        >>> network = pruneport.load("resnet50-half")  # doctest: +SKIP
    """
    from pathlib import Path

    from pruneport.export.bundle.bundle import open_bundle
    from pruneport.export.bundle.weights import rebuild

    return rebuild(open_bundle(Path(folder)), factory, trust_source=trust_source)
