"""Text as it can be shown: names from outside, and the options that our own messages name."""

from __future__ import annotations

import re

__all__ = ["OPTION", "can_be_shown", "escaped"]

# How messages name an option: `round_to`, or with its value `recover=none`.
OPTION = re.compile(r"(?<!`)`(?P<name>[a-z][a-z0-9_]*)(?:=(?P<value>[^`]+))?`(?!`)")

# Control characters, which move a terminal's cursor and more; those that turn the direction of what follows; and the
# halves that Python makes of bytes that are not UTF-8.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def can_be_shown(text: str) -> bool:
    """Whether ``escaped`` would leave the text as it is."""
    return not _HIDDEN.search(text)


def escaped(text: str, keep: str = "") -> str:
    r"""Write what must not reach a terminal, or cannot be encoded, as Python would: ``\x1b``, ``\udcff``.

    Args:
        text: Any text.
        keep: Characters that stay.

    Example:
        >>> print(escaped("a" + chr(27) + "[31m"))
        a\x1b[31m
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text)
