"""Options as flags: messages name them as Python does, and a person at the keyboard reads what can be typed."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing

import tyro

from pruneport.commands import configs
from pruneport.text import OPTION

__all__ = ["flag_of", "with_flags"]


def flag_of(name: str, *, off: bool = False) -> str:
    """The flag that sets an option, or that switches it off.

    Example:
        >>> flag_of("dry_export", off=True)
        '--no-dry-export'
    """
    return f"--{'no-' if off else ''}{name.replace('_', '-')}"


def with_flags(text: str) -> str:
    """Write the options that a text names in backticks as flags; other text in backticks stays.

    Example:
        >>> with_flags("give `calibration=FOLDER` or a smaller `round_to`, see `plan.json`")
        'give --calibration FOLDER or a smaller --round-to, see `plan.json`'
    """
    return OPTION.sub(_typed, text)


def _typed(found: re.Match[str]) -> str:
    """The flag for an option that was found, with its value; what is no option stays."""
    name, value = found["name"], found["value"]
    if name not in _options():
        return found[0]
    if value in (None, "True", "False"):
        return flag_of(name, off=value == "False")
    return f"{flag_of(name)} {value}"


@functools.cache
def _options() -> frozenset[str]:
    """Every option that some command takes as a flag."""
    hints = [typing.get_type_hints(getattr(configs, name), include_extras=True) for name in configs.__all__]
    classes = [dataclasses.fields(getattr(configs, name)) for name in configs.__all__]
    return frozenset(
        field.name
        for of, fields in zip(hints, classes, strict=True)
        for field in fields
        if tyro.conf.Positional not in getattr(of[field.name], "__metadata__", ())
    )
