"""The command line: it reads flags, shows progress, prints results and errors, and sets the exit code."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.console import Console

from pruneport import commands
from pruneport.commands.arguments.flag_names import with_flags
from pruneport.commands.arguments.flags import VERBS, parse, root_help
from pruneport.commands.terminal.console import SafeConsole
from pruneport.commands.terminal.display import Display
from pruneport.errors import CheckFailed, InputError, ModelError, PruneportError
from pruneport.files import state_path

__all__ = ["main"]

_RESUMES = {"finetune", "sweep", "transfer"}
_SILENT = {"inspect", "latency"}  # writes no bundle, so no command line is recorded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 when done, 1 when a check failed, 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--version"]:
        from pruneport import __version__

        print(f"pruneport {__version__}")
        return 0
    console = SafeConsole(file=sys.stderr, highlight=False)
    verb, config = arguments[0] if arguments else "", None
    try:
        if verb not in VERBS:
            root_help(arguments or ["--help"])
        config, as_json = parse(verb, arguments[1:], _study(arguments))
        result = _run(verb, config, arguments, console)
        _print(result, as_json)
        if verb == "sweep":
            result.check()  # once its table is printed: some points may have failed, and the others are worth a look
    except PruneportError as error:
        return _failed(error, console)
    except OSError as error:  # a path that the system refuses; what went wrong with our own files is named above
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        console.print(f"error: {reason}. Check the path and its permissions.", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print(f"interrupted; {'what was done is kept' if _resumes(verb, config) else 'nothing was kept'}")
        return 130
    return 0


def _resumes(verb: str, config: Any) -> bool:
    """Whether the same command goes on where it was interrupted."""
    out = getattr(config, "out", None)
    return verb in _RESUMES or (out is not None and state_path(out, "imitation").exists())


def _print(result: Any, as_json: bool) -> None:
    """Print a verb's result on standard output."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        from pruneport.commands.terminal.tables import show

        show(result, SafeConsole(highlight=False))


def _study(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The options of a study's file, which stand in for defaults: flags have the last word."""
    if arguments[0] != "transfer":
        return None
    if late := next((word for word in arguments[2:] if word.endswith((".yaml", ".yml"))), None):
        raise InputError(f"the study comes first: pruneport transfer {late}, then the flags.")
    if len(arguments) < 2 or arguments[1].startswith("-"):
        return None
    from pathlib import Path

    from pruneport.commands.transferring import read_study

    return read_study(Path(arguments[1]))


def _failed(error: PruneportError, console: Console) -> int:
    """Print an error; returns its exit code."""
    kind = "check failed" if isinstance(error, CheckFailed) else "error"
    console.print(f"[bold red]{kind}:[/] ", end="")
    console.print(with_flags(str(error)), markup=False, soft_wrap=True)
    return error.exit_code


def _run(verb: str, config: Any, arguments: Sequence[str], console: Console) -> Any:
    extra = {} if verb in _SILENT else {"command": shlex.join(["pruneport", *arguments])}
    # What a user's network prints goes where progress does: the result alone is on standard output.
    try:
        with redirect_stdout(sys.stderr), Display(console, "loading torch") as display:  # at once: torch takes seconds
            return getattr(commands, verb)(config, display, **extra)
    except SystemExit as error:
        raise ModelError(
            f"the network's own code ended the process (SystemExit: {error}); take that out of it."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
