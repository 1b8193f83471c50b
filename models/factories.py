"""Factories: functions that return a network, the user's own found by file or by module name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from pruneport.errors import SourceError
from pruneport.models.record import LIBRARIES, Factory, Source

__all__ = ["call_factory", "did_you_mean", "load_factory"]


def load_factory(spec: str) -> Factory:
    """Import ``path/to/file.py:factory`` or ``package.module:factory``.

    The user's folder (the file's own, or the working directory) goes to the front of ``sys.path``, so that
    the code finds the modules beside it, whatever their names.

    Raises:
        SourceError: There is no such file, module or factory, or importing it fails.
    """
    location, _, name = spec.rpartition(":")
    if not location or not name:
        libraries = ", ".join(f"{library}:NAME" for library in LIBRARIES)
        raise SourceError(
            f"source {spec!r} is not understood; expected one of {libraries}, package.module:factory "
            "or path/to/file.py:factory."
        )
    module = _import_file(Path(location)) if location.endswith(".py") else _import_module(location)
    factory = getattr(module, name, None)
    if factory is None:
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SourceError(f"{location} has no factory {name!r}.{did_you_mean(name, offered)}")
    if not callable(factory):
        raise SourceError(f"{spec} is a {type(factory).__name__}; expected a function or class returning a Module.")
    return factory  # type: ignore[no-any-return]


def call_factory(factory: Factory, source: Source) -> nn.Module:
    """Call the factory with the source's arguments.

    Raises:
        SourceError: It raises, or returns no Module.
    """
    try:
        network = factory(**source.model_args)
    except (Exception, SystemExit) as error:
        given = f" called with {source.model_args}" if source.model_args else ""
        check = ""
        if source.model_args:
            check = " (Its arguments are those of `model_arg`.)"
        elif isinstance(error, TypeError):
            check = " (If it needs arguments, give them as `model_arg` key=value.)"
        raise SourceError(
            f"the factory of {source.spec}{given} raised {type(error).__name__}: {error}{check}"
        ) from error
    if not isinstance(network, nn.Module):
        raise SourceError(f"the factory of {source.spec} returned a {type(network).__name__}, not a torch.nn.Module.")
    return network


def did_you_mean(name: str, offered: Iterable[str]) -> str:
    """A question with the nearest names, or an empty string."""
    close = difflib.get_close_matches(name, list(offered), n=4, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def _import_file(path: Path) -> Any:
    """Run a Python file as a module; the files beside it can be imported."""
    if not path.is_file():
        raise SourceError(f"no file {path} (looked in {Path.cwd()}); expected path/to/file.py:factory.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise SourceError(f"{path} cannot be imported as a Python file.")
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if previous is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = previous
        raise SourceError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> Any:
    """Import a module, also from the working folder."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            near = difflib.get_close_matches(name, LIBRARIES, n=1, cutoff=0.8)
            meant = f" Did you mean {near[0]}:NAME?" if near else ""
            raise SourceError(
                f"no module {name!r} (looked in {folder} and the installed packages); "
                f"expected package.module:factory, path/to/file.py:factory or one of {', '.join(LIBRARIES)}.{meant}"
            ) from error
        raise SourceError(f"importing {name} failed: it needs {error.name}, which is not installed.") from error
    except (Exception, SystemExit) as error:
        raise SourceError(f"importing {name} failed: {type(error).__name__}: {error}") from error
