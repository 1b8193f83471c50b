"""Slips of the keyboard: what is wrong with the words of a command line, said before they are read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pruneport.errors import InputError

__all__ = ["Flag", "check_words"]

_NUMBER = re.compile(r"-[\d.]")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What a flag takes."""

    takes: str
    """What stands for its value in help; empty where it takes none."""
    several: bool = False
    """Whether it takes several values in a row."""
    choices: tuple[str, ...] = ()
    """The values that it takes, where only some are."""


@dataclass
class _Reading:
    """What was met on the way through the words."""

    positional: list[str] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    flag: str = ""
    values: int = 0


def check_words(
    verb: str,
    words: Sequence[str],
    flags: Mapping[str, Flag],
    positional: Sequence[str],
    required: Sequence[str],
    example: str,
) -> None:
    """Check that every flag exists and has as many values as it takes, and that none is missing.

    Args:
        verb: Whose flags they are.
        words: What was typed behind the verb.
        flags: Every flag with its dashes, ``-h`` and ``--help`` apart.
        positional: What stands in help for the values without a flag, in order.
        required: What must be given: of ``positional``, and flags.
        example: A whole command, shown where something is missing.

    Raises:
        InputError: Says what is wrong, and what was probably meant.
    """
    see = f"See pruneport {verb} --help."
    if {"-h", "--help"} & set(words):
        return
    reading = _Reading()
    for word in words:
        if word.startswith("-") and not _NUMBER.match(word):
            _check_filled(reading, flags, see)
            _begin_flag(reading, word, flags, see)
        else:
            _take_value(reading, word, flags, positional, see)
    _check_filled(reading, flags, see)
    have = reading.given | set(positional[: len(reading.positional)])
    if missing := [
        name if name in positional else f"{name} {flags[name].takes}" for name in required if name not in have
    ]:
        raise InputError(f"pruneport {verb} lacks {' and '.join(missing)}. Example: {example}. {see}")


def _begin_flag(reading: _Reading, word: str, flags: Mapping[str, Flag], see: str) -> None:
    """Read a flag, with its value where it has one after =."""
    typed, equals, value = word.partition("=")
    name = typed.replace("_", "-")
    if name not in flags:
        raise InputError(f"there is no {typed}.{_meant(name, flags)} {see}")
    if equals and not flags[name].takes:
        raise InputError(f"{name} takes no value; leave out {equals + value!r}. {see}")
    reading.given.add(name)
    reading.flag, reading.values = name, 0
    if equals:
        _check_choice(name, value, flags[name], see)
        reading.values = 1


def _take_value(reading: _Reading, word: str, flags: Mapping[str, Flag], positional: Sequence[str], see: str) -> None:
    """Take a word without dashes: a value of the flag before it, or one without a flag."""
    flag = flags.get(reading.flag)
    if flag is not None and flag.takes and (flag.several or not reading.values):
        _check_choice(reading.flag, word, flag, see)
        reading.values += 1
        return
    reading.positional.append(word)
    if len(reading.positional) <= len(positional):
        return
    if flag is not None and not flag.takes:
        raise InputError(f"{word!r} is one value too many: {reading.flag} takes none. {see}")
    if flag is not None:
        raise InputError(f"{word!r} is one value too many: {reading.flag} takes one {flag.takes}. {see}")
    names = " and one ".join(positional)
    given = ", ".join(map(repr, reading.positional[:-1]))
    raise InputError(f"{word!r} is one value too many: there is one {names}, {given}. {see}")


def _check_filled(reading: _Reading, flags: Mapping[str, Flag], see: str) -> None:
    flag = flags.get(reading.flag)
    if flag is not None and flag.takes and not reading.values:
        expected = f"one of {', '.join(flag.choices)}" if flag.choices else flag.takes
        raise InputError(f"{reading.flag} has no value; expected {expected}. {see}")


def _check_choice(name: str, value: str, flag: Flag, see: str) -> None:
    if not flag.choices or value in flag.choices:
        return
    near = difflib.get_close_matches(value.lower().replace("_", "-"), flag.choices, n=1, cutoff=0.7)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise InputError(f"{name} is {value!r}; expected one of {', '.join(flag.choices)}.{meant} {see}")


def _meant(name: str, flags: Iterable[str]) -> str:
    """A question with the nearest flags, or an empty string."""
    wanted = f"--{name.lstrip('-').lower()}"
    near = difflib.get_close_matches(wanted, list(flags), n=2, cutoff=0.7)
    near += [flag for flag in flags if wanted in flag.replace("--no-", "--") and flag not in near and len(wanted) > 4]
    return f" Did you mean {' or '.join(near[:2])}?" if near else ""
