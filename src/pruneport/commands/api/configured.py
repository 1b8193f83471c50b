"""Keyword arguments made a configuration, and errors that name options as the functions here do."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pruneport.errors import InputError, PruneportError
from pruneport.models.factories import did_you_mean

__all__ = ["macs_for_flops", "options_from", "plain_number"]

_Options = TypeVar("_Options")


def options_from(kind: type[_Options], function: str, given: Mapping[str, Any]) -> _Options:
    """Make a configuration of keyword arguments: lists become tuples, names paths, and NumPy's numbers Python's.

    Args:
        kind: A frozen dataclass.
        function: What the caller called, for messages.
        given: The arguments.

    Raises:
        TypeError: There is no such argument.
        InputError: A name is not among those that an argument takes, or a value is no number where one is needed.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name not in names:
            raise TypeError(f"{function} takes no argument {name!r}.{did_you_mean(name, names)}")
        kinds = list(_alternatives(hints[name]))
        choices = [choice for part in kinds if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
        if choices and isinstance(value, str) and value not in choices:
            near = did_you_mean(value, choices)
            raise InputError(f"`{name}` is {value!r}; expected one of {', '.join(map(str, choices))}.{near}")
        if choices and not (isinstance(value, str) or value is None or callable(value)):
            raise InputError(f"`{name}` is {value!r}; expected one of {', '.join(map(str, choices))}.")
        several = next((typing.get_args(part) for part in kinds if typing.get_origin(part) is tuple), None)
        if several is not None and value is not None:
            single = isinstance(value, str) or not isinstance(value, Iterable)
            value = tuple(_fitted(name, each, several[:1]) for each in ([value] if single else value))
        elif Path in kinds and isinstance(value, str):
            value = Path(value)
        else:
            value = _fitted(name, value, kinds)
        made[name] = value
    return kind(**made)


def _fitted(name: str, value: Any, kinds: Sequence[Any]) -> Any:
    """A value as a field of these types holds it.

    Raises:
        InputError: The field holds numbers alone, and it is none, or no whole one where these are needed.
    """
    value = plain_number(value)
    if not {int, float}.intersection(kinds) or str in kinds or (value is None and type(None) in kinds):
        return value
    whole = float not in kinds
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise InputError(f"`{name}` is {value!r}; expected a {'whole ' if whole else ''}number.")
    return value


def plain_number(value: Any) -> Any:
    """Python's number for one of NumPy's or torch's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


@contextmanager
def macs_for_flops() -> Iterator[None]:
    """Let errors name the target as the functions here do: ``macs`` is what the command line calls flops."""
    try:
        yield
    except PruneportError as error:
        said = str(error).replace("`flops`", "`macs`").replace("`flops=", "`macs=")
        if said == str(error):
            raise
        raise type(error)(said) from error


def _alternatives(hint: Any) -> Iterator[Any]:
    """The types of a union, or the one that it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint
