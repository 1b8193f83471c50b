"""The terminal, or the log, that a person reads."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pruneport.text import escaped

__all__ = ["SafeConsole"]


class SafeConsole(Console):
    """A console to which names from outside cannot speak: their control characters are written as escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does; its own control codes stand in segments of their own and stay."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(escaped(text, keep="\n"), style)
