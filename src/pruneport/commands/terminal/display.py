"""Progress for a person: stages with count, elapsed and left on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleRenderable, RichCast
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from pruneport.commands.arguments.flag_names import with_flags
from pruneport.progress import Note, Stage, Step

__all__ = ["Display", "spoken"]

_SAY_LEFT_AFTER_S = 5.0


class Display:
    """Shows what a verb says of its progress; what a stage took stays on the screen when the next begins.

    Args:
        console: Where to; on a terminal the running stage is redrawn in place, elsewhere every line is printed once.
        first: The first stage; it is shown at once, before anything slow is imported.
    """

    def __init__(self, console: Console, first: str) -> None:
        self._console, self._first = console, Stage(first)
        self._live: _Live | None = None
        self._stage: Stage | None = None
        self._began = time.monotonic()
        self._count: Step | None = None
        self._counted_from = (self._began, 0.0)
        self._taken: list[tuple[Stage, float]] = []

    def __enter__(self) -> Display:
        """Begin the first stage, which has no number."""
        self._begin_stage(self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last stage; where the work was done, print what each took."""
        self._end_stage(done=kind is None)
        self._stop()
        if kind is None and len(self._taken) > 1:
            self._console.print(self._table())

    def __call__(self, message: str) -> None:
        """Show one line."""
        if isinstance(message, Stage):
            self._end_stage()
            self._begin_stage(message)
        elif isinstance(message, Note):
            self._print(message)
        elif self._live is not None:
            self._live.say(message)
        else:
            self._print(message + self._left(message))

    def _begin_stage(self, stage: Stage) -> None:
        """Show a stage that begins."""
        self._stage, self._began = stage, time.monotonic()
        if self._console.is_terminal and not stage.still:
            self._start(_titled(stage))
        else:
            self._stop()
            self._print(_titled(stage))

    def _end_stage(self, done: bool = True) -> None:
        """Note how long the stage took, and show that it ended."""
        if self._stage is None:
            return
        took = time.monotonic() - self._began
        self._taken.append((self._stage, took))
        if self._console.is_terminal:
            self._stop()
            mark = "[green]✓[/]" if done else "[red]✗[/]"
            line = Text.assemble(Text.from_markup(mark), " ", _titled(self._stage), "  ", (spoken(took), "dim"))
            self._console.print(line, soft_wrap=True)
        self._stage = None

    def _start(self, title: str) -> None:
        self._stop()
        self._live = _Live(self._console, title)
        self._live.start()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _left(self, message: str) -> str:
        """How long a log's counted stage still takes, once that can be known."""
        if not isinstance(message, Step) or message.left_s is not None:
            return ""
        now = time.monotonic()
        since, before = self._counted_from
        if self._count is None or self._count.total != message.total or message.done < self._count.done:
            since, before = self._counted_from = (now, message.done)  # another count
        self._count = message
        if now - since < _SAY_LEFT_AFTER_S or message.done == before:
            return ""
        return f" (about {spoken((now - since) / (message.done - before) * (message.total - message.done))} left)"

    def _table(self) -> Table:
        """The stages, and how long each took."""
        total = sum(took for _, took in self._taken)
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("stage", overflow="fold")
        table.add_column("time", justify="right")
        table.add_column("share", justify="right")
        for stage, took in self._taken:
            table.add_row(Text(_titled(stage)), spoken(took), f"{took / total:.0%}")
        table.add_row("all", spoken(total), "")
        return table

    def _print(self, line: str) -> None:
        self._console.print(with_flags(line), markup=False, soft_wrap=True)


class _Live(Progress):
    """The running stage: its title, its count where it has one, the time, and below them what it does now."""

    def __init__(self, console: Console, title: str) -> None:
        self._doing = ""
        self._count: Step | None = None
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[time]}", style="dim", markup=False),
            console=console,
            transient=True,
            get_time=time.monotonic,
            refresh_per_second=4,
        )
        self._began = time.monotonic()
        self._task = self.add_task(title, total=None, time="", count="")

    def say(self, message: str) -> None:
        """Show a line below the stage; a counted one moves the bar, too."""
        self._doing = with_flags(message)
        if isinstance(message, Step):
            if self._count is None or self._count.total != message.total or message.done < self._count.done:
                self.reset(self._task, total=message.total)  # another count in the same stage
            self._count = message
            self.update(self._task, completed=message.done, count=_counted(message))

    def get_renderables(self) -> Iterable[ConsoleRenderable | RichCast | str]:
        """Draw with the time of now."""
        for task in self.tasks:
            left = None if self._count is None else self._count.left_s or task.time_remaining
            task.fields["time"] = spoken(time.monotonic() - self._began) + (
                "" if left is None else f", about {spoken(left)} left"
            )
        yield self.make_tasks_table([task for task in self.tasks if task.visible])
        if self._doing:
            yield Text(f"  {self._doing}", style="dim", no_wrap=True, overflow="ellipsis")


def spoken(seconds: float) -> str:
    """Return a time for a person: ``0.4 s``, ``12 s``, ``4 min 12 s``, ``2 h 5 min``.

    Example:
        >>> spoken(252)
        '4 min 12 s'
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _counted(step: Step) -> str:
    return f"{step.done:.0%}" if step.total == 1 else f"{step.done:g} of {step.total:g}"


def _titled(stage: Stage) -> str:
    title = with_flags(stage)
    return f"[{stage.number}/{stage.total}] {title}" if stage.total else title
