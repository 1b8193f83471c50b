"""inspect, by keyword arguments, of a source, a bundle or a network in memory."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any, Unpack

from torch import nn

from pruneport.commands.api.configured import options_from
from pruneport.commands.api.keywords import InspectKeywords, PathName
from pruneport.commands.compressing import inspect as inspect_config
from pruneport.commands.configs import InspectConfig
from pruneport.commands.results import InspectResult
from pruneport.commands.starting import Start
from pruneport.errors import SourceError
from pruneport.models.live.copying import copy_network
from pruneport.models.live.identity import live_source
from pruneport.models.source import check_shape
from pruneport.progress import Progress, silent

__all__ = ["inspect"]

_OF_SOURCES = ("checkpoint", "weights", "model_arg", "class_names", "factory")


def inspect(
    source: PathName | nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    progress: Progress = silent,
    **options: Unpack[InspectKeywords],
) -> InspectResult:
    """Find a network's coupled groups, and what would go with each; nothing is pruned.

    Args:
        source: torchvision:NAME, timm:NAME, pruneport:NAME, package.module:factory or path/to/file.py:factory; a
            bundle's folder or ``hf-hub:owner/name``; or a network in memory, which is left as it is.
        input_shape: C, H, W of the input; needed for a network in memory or a factory of your own.
        progress: Told what is being done.
        **options: Fields of ``InspectConfig``, such as ``scope``, ``keep``, ``sensitivity``, ``graph``.

    Returns:
        The groups, and what the network costs.

    Raises:
        InputError: The source, its weights or the input shape cannot be used, or it cannot be traced.

    Example:
        >>> import pruneport
        >>> found = pruneport.inspect("pruneport:digits_resnet")
        >>> sum(not view.reason for view in found.groups)  # those that can be pruned
        3
    """
    given: dict[str, Any] = {**options, "input_shape": input_shape}
    if not isinstance(source, nn.Module):
        if not isinstance(source, str | PathLike):
            raise SourceError(
                f"the source is a {type(source).__name__}; expected a string such as 'torchvision:resnet50', a "
                "bundle's folder, or a network in memory."
            )
        return inspect_config(options_from(InspectConfig, "inspect", {**given, "source": fspath(source)}), progress)
    if idle := [f"`{name}`" for name in _OF_SOURCES if options.get(name)]:
        raise SourceError(f"{', '.join(idle)}: for a source; a network in memory has what it needs. Leave it out.")
    network, _ = copy_network(source)
    record = live_source(network, check_shape(input_shape, f"this {type(network).__name__}"), options.get("seed", 0))
    config = options_from(InspectConfig, "inspect", {**given, "source": record.spec})
    return inspect_config(config, progress, Start(name=record.spec, network=network, source=record))
