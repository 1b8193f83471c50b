"""What long work says of itself, without a word on how it is shown.

Whatever takes long is given a :data:`Progress`, any callable that takes a line of text. Lines that mean more than their
text are of the types below: a display reads their attributes, and every other callable sees the text.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Note", "Progress", "Stage", "Step", "numbered", "silent"]

Progress = Callable[[str], None]


class Stage(str):
    """Begins a part of the work that takes a time of its own; it ends where the next begins.

    Attributes:
        number: Its place among the stages, from 1; 0 where nobody counts them (see :func:`numbered`).
        total: How many stages there are; 0 where nobody counts them.
        still: Nothing may run beside it, so that a display must not redraw the screen by itself.
    """

    number: int
    total: int
    still: bool

    def __new__(cls, text: str, *, number: int = 0, total: int = 0, still: bool = False) -> Stage:
        """Make the line."""
        line = super().__new__(cls, text)
        line.number, line.total, line.still = number, total, still
        return line


class Step(str):
    """Begins one of several like steps of a stage.

    Attributes:
        done: How many are done, as this one begins.
        total: How many there are; 1 where ``done`` is a share.
        left_s: Seconds left, where the work itself knows better than its steps; the text says so, too.
    """

    done: float
    total: float
    left_s: float | None

    def __new__(cls, text: str, done: float, total: float, left_s: float | None = None) -> Step:
        """Make the line."""
        line = super().__new__(cls, text)
        line.done, line.total, line.left_s = done, total, left_s
        return line


class Note(str):
    """Says what a reader must still see when the work has ended."""


def silent(message: str) -> None:
    """Say nothing: the default progress."""


def numbered(progress: Progress, total: int) -> Progress:
    """Pass every line on, and give each stage its number of ``total``."""
    count = 0

    def say(message: str) -> None:
        """Number a stage, and pass on what is said."""
        nonlocal count
        if isinstance(message, Stage):
            count += 1
            message = Stage(str(message), number=count, total=max(count, total), still=message.still)
        progress(message)

    return say
