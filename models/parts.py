"""A network's parts by their names: layers, parameters and buffers."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["owner_of", "part", "set_part"]


def owner_of(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the named part as an attribute, and the attribute's name.

    Raises:
        AttributeError: There is no such module.
    """
    owner, _, attribute = name.rpartition(".")
    return network.get_submodule(owner), attribute


def part(network: nn.Module, name: str) -> Any:
    """The named layer, parameter or buffer.

    Raises:
        AttributeError: There is none.
    """
    return getattr(*owner_of(network, name))


def set_part(network: nn.Module, name: str, value: Any) -> None:
    """Put a layer, parameter or buffer in the named place.

    Raises:
        AttributeError: There is no module to hold it.
    """
    owner, attribute = owner_of(network, name)
    setattr(owner, attribute, value)
