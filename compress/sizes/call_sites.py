"""Where in a forward a function of torch is called, by the interpreter's stack."""

from __future__ import annotations

import sys
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

from pruneport.compress.sizes.size_calls import SIZE_CALLS
from pruneport.compress.sizes.size_queries import QUERIES

__all__ = ["call_site"]


def call_site(function: Any) -> tuple[nn.Module | None, str]:
    """Who calls a function of torch, by the interpreter's stack.

    Returns:
        The innermost module that is being called, and where it calls: the innermost function outside torch, its line of
        code (comments and blank lines do not count) and the function called, as in "Attention.forward 7 reshape".
    """
    frame: FrameType | None = sys._getframe(1)
    place = ""
    while frame is not None and frame.f_code is not _CALL:
        library = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        inlined = frame.f_code.co_name in ("<listcomp>", "<dictcomp>", "<setcomp>")  # as Python 3.12 does
        if not place and not inlined and library not in ("torch", "pruneport"):
            place = f"{frame.f_code.co_qualname} {_code_lines(frame.f_code).get(frame.f_lineno, 0)}"
        frame = frame.f_back
    return (None if frame is None else frame.f_locals["self"]), f"{place} {_NAMES.get(function, '')}".strip()


@lru_cache(maxsize=1000)
def _code_lines(code: CodeType) -> dict[int, int]:
    """Numbers of the lines that hold code, by their place in the file."""
    lines = sorted({line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno})
    return {line: number for number, line in enumerate(lines, start=1)}


_CALL = nn.Module._call_impl.__code__
_NAMES = {function: getattr(function, "__name__", "").strip("_") for function in (*SIZE_CALLS, *QUERIES)} | {
    Tensor.shape.__get__: "shape"  # type: ignore[attr-defined]
}
