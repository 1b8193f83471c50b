"""The command line: flags come from the verbs' configurations, tables and errors from here."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Any

import tyro
from rich.console import Console

from pruneport import verbs
from pruneport.errors import CheckFailed, InputError, PruneportError

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class _Display:
    json: bool = False
    """Print the result as JSON on standard output, and nothing else."""


_CONFIGS: dict[str, type[Any]] = {
    "ship": verbs.ShipConfig,
    "inspect": verbs.InspectConfig,
    "compress": verbs.CompressConfig,
    "export": verbs.ExportConfig,
    "verify": verbs.VerifyConfig,
    "bench": verbs.BenchConfig,
    "finetune": verbs.FinetuneConfig,
    "transfer": verbs.TransferConfig,
}
_COMMANDS: dict[str, Callable[..., Any]] = {
    verb: make_dataclass(verb, [], bases=(_Display, config), namespace={"__doc__": config.__doc__}, frozen=True)
    for verb, config in _CONFIGS.items()
}
_RESUMES = {"finetune", "transfer"}
_SILENT = {"inspect", "verify"}  # write nothing, so no command line is recorded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 when done, 1 when a check failed, 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        from pruneport import __version__

        print(f"pruneport {__version__}")
        return 0
    if not arguments:
        arguments = ["--help"]
    console = Console(file=sys.stderr, highlight=False)
    try:
        arguments = _with_study(arguments)
    except PruneportError as error:
        return _failed(error, console)
    config = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="pruneport",
        description="From a trained checkpoint to a verified, benchmarked ONNX artifact.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    verb = next(name for name, kind in _COMMANDS.items() if kind is type(config))
    own = _CONFIGS[verb](**{field.name: getattr(config, field.name) for field in fields(_CONFIGS[verb])})
    try:
        result = _run(verb, own, arguments, console)
    except PruneportError as error:
        return _failed(error, console)
    except OSError as error:  # a path that the system refuses; what went wrong with our own files is named above
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        console.print(f"error: {reason}. Check the path and its permissions.", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print(f"interrupted; {'what was done is kept' if verb in _RESUMES else 'nothing was kept'}")
        return 130
    if config.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        from pruneport.verbs.tables import show

        show(result, Console(highlight=False))
    return 0


def _with_study(arguments: list[str]) -> list[str]:
    """Put the options of a study's file before the flags, which then have the last word."""
    if arguments[0] != "transfer":
        return arguments
    if late := next((word for word in arguments[2:] if word.endswith((".yaml", ".yml"))), None):
        raise InputError(f"the study comes first: pruneport transfer {late}, then the flags.")
    if len(arguments) < 2 or arguments[1].startswith("-"):
        return arguments
    from pathlib import Path

    from pruneport.verbs.transferring import study_flags

    return [*arguments[:2], *study_flags(Path(arguments[1])), *arguments[2:]]


def _failed(error: PruneportError, console: Console) -> int:
    kind = "check failed" if isinstance(error, CheckFailed) else "error"
    console.print(f"[bold red]{kind}:[/] ", end="")
    console.print(str(error), markup=False, soft_wrap=True)
    return error.exit_code


def _run(verb: str, config: Any, arguments: Sequence[str], console: Console) -> Any:
    function = getattr(verbs, verb)
    extra = {} if verb in _SILENT else {"command": shlex.join(["pruneport", *arguments])}
    if not console.is_terminal:
        return function(config, lambda message: console.print(message, markup=False, soft_wrap=True), **extra)
    with console.status("starting") as status:
        return function(config, lambda message: status.update(message), **extra)


if __name__ == "__main__":
    sys.exit(main())
