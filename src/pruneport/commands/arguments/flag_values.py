"""What a flag takes: its kind, what stands for its value in help, and how it is read, with errors of our own."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pruneport.commands.arguments.slips import Flag
from pruneport.errors import InputError

__all__ = ["expected", "kind_of", "likely", "metavar", "reader", "takes"]

_NAMES = {  # what stands for the value; where it is not here, the type says it
    "source": "SOURCE",
    "folder": "BUNDLE",
    "repository": "OWNER/NAME",
    "study": "[STUDY.yaml]",
    "model_arg": "KEY=VALUE",
    "input_shape": "C H W",
    "keep": "PATTERN",
    "factory": "FILE.py:FUNCTION",
    "checkpoint": "FILE",
    "dynamic": "SIZES",
    "class_names": "FILE",
    "latency_table": "FILE.json",
    "plot": "FILE.svg",
    "graph": "FILE.svg",
    "seeds": "INT ...",
}
_TYPES: dict[Any, str] = {
    str: "NAME",
    int: "INT",
    float: "NUMBER",
    Path: "FOLDER",
    tuple[str, ...]: "NAME ...",
    tuple[int, ...]: "INT ...",
    tuple[float, ...]: "NUMBER ...",
}
_EXPECTED: dict[Any, str] = {
    int: "one whole number",
    float: "one number",
    tuple[int, ...]: "whole numbers with spaces between them",
    tuple[float, ...]: "numbers with spaces between them",
    tuple[int, int, int]: "three whole numbers C H W with spaces between them, such as 3 224 224",
}


def kind_of(hint: Any) -> Any:
    """The type without None and without what is said beside it."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    given = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return given[0] if type(None) in typing.get_args(hint) and len(given) == 1 else hint


def metavar(name: str, kind: Any) -> str | None:
    """What stands for the value of an option in help; None where tyro says it."""
    return _NAMES.get(name) or _TYPES.get(kind)


def expected(kind: Any) -> str | None:
    """What a value of this kind is, in words; None where the names of its choices say it, or anything will do."""
    return _EXPECTED.get(kind)


def takes(name: str, hint: Any, one_each: bool) -> Flag:
    """What a flag takes; ``one_each`` says that it is given several times in place of several values."""
    kind = kind_of(hint)
    if kind is bool:
        return Flag(takes="")
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    return Flag(takes=metavar(name, kind) or "NAME", several=inner is not kind and not one_each, choices=choices)


def reader(kind: Any, flag: str, text: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads such a value, which says what was expected where it fails."""
    own = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
    assert isinstance(own, PrimitiveConstructorSpec)
    fixed = own.nargs if isinstance(own.nargs, int) and own.nargs > 1 else None

    def readable(words: list[str]) -> bool:
        """Whether tyro reads these words as a value of this kind."""
        try:
            own.instance_from_str(words)
        except ValueError:
            return False
        return own.nargs in ("*", len(words)) if fixed is None else fixed == len(words)

    def read(words: list[str]) -> Any:
        """The value, or an error that says what was expected."""
        if readable(words):
            return own.instance_from_str(words)
        meant = next((f" Did you mean {flag} {' '.join(other)}?" for other in likely(words) if readable(other)), "")
        raise InputError(f"{flag} is {' '.join(words)!r}; expected {_EXPECTED[kind]}.{meant} {text}")

    return dataclasses.replace(
        own,
        nargs="*" if fixed else own.nargs,  # where tyro counts, it does not say what was expected
        instance_from_str=read,
        is_instance=lambda value: value is None or own.is_instance(value),
        str_from_instance=lambda value: [] if value is None else own.str_from_instance(value),
    )


def likely(words: list[str]) -> Iterator[list[str]]:
    """What may have been meant: numbers with something else than spaces between them, per cent, a decimal comma."""
    text = " ".join(words)
    yield re.split(r"[,;x×\s]+", text)
    if re.fullmatch(r"[\d.]+\s*%", text):
        yield [f"{float(text.rstrip('% ')) / 100:g}"]
    yield [text.replace(",", ".")]
