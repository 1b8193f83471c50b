"""timm's networks on the hub or in a folder: their configuration says the architecture, their weights lie beside it.

``timm:hf-hub:owner/name`` and ``timm:local-dir:FOLDER`` are short for the architecture, its arguments and the weights,
each named. A plan records these, so that a bundle is loaded without the hub and without the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pruneport.errors import HubError, SourceError
from pruneport.models.hubs.client import HUB, Repository, hub_client, hub_errors, look_up, parse_repository
from pruneport.models.options import SourceOptions
from pruneport.models.record import Scalar

__all__ = ["base_model", "check_architecture", "spelled_out"]

_Options = TypeVar("_Options", bound=SourceOptions)

_TIMM, _FOLDER = "timm:", "local-dir:"
# In the order in which timm looks for them.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@dataclass(frozen=True, kw_only=True)
class _Configuration:
    """What a config.json of timm says that a source records."""

    architecture: str
    arguments: dict[str, Scalar]
    input_shape: tuple[int, int, int] | None


def spelled_out(options: _Options) -> _Options:
    """Name architecture, arguments, weights and input shape of a timm network on the hub or in a folder.

    Weights that a user names stay; arguments and input shape of theirs have the last word.

    Args:
        options: Of any source.

    Returns:
        The same options where the source is another one.

    Raises:
        SourceError: There is no such folder, its configuration is not timm's, or timm is not installed.
        HubError: The repository cannot be read.
    """
    if options.source.startswith(HUB):
        raise SourceError(
            f"{options.source} names a bundle on the hub, which all commands open but transfer; "
            f"expected a network here, such as {_TIMM}{options.source} for one of timm's there."
        )
    name = options.source.removeprefix(_TIMM)
    if name == options.source:
        return options
    if name.startswith(HUB):
        if options.weights not in (None, "DEFAULT"):
            raise SourceError(
                f"{options.source} brings its weights, and `weights` {options.weights} are others; leave out one."
            )
        pinned = _pinned(parse_repository(name))
        options = replace(options, weights=None if options.checkpoint is not None else str(pinned))
        configuration = _on_hub(pinned)
    elif name.startswith(_FOLDER):
        if options.weights is not None:
            raise SourceError(f"{options.source} brings its weights; leave out `weights`.")
        folder = Path(name.removeprefix(_FOLDER))
        configuration = _in_folder(folder)
        options = replace(options, checkpoint=options.checkpoint or _weights_in(folder))
    elif options.weights is not None and options.weights.startswith(HUB):
        return replace(options, weights=str(_pinned(parse_repository(options.weights))))
    else:
        return options
    asked = {item.partition("=")[0] for item in options.model_arg}
    given = tuple(f"{key}={value!r}" for key, value in configuration.arguments.items() if key not in asked)
    return replace(
        options,
        source=_TIMM + configuration.architecture,
        model_arg=(*given, *options.model_arg),
        input_shape=options.input_shape or configuration.input_shape,
    )


def check_architecture(weights: str, architecture: str) -> str:
    """The name by which timm builds a network with these weights, ``hf-hub:owner/name@revision``.

    Raises:
        SourceError: They are of another architecture.
        HubError: The repository cannot be read.
    """
    repository = parse_repository(weights)
    there = _on_hub(repository).architecture
    if there != architecture.partition(".")[0]:
        raise SourceError(f"{repository} holds weights of timm:{there}, not of timm:{architecture}.")
    return str(repository)


def base_model(spec: str, weights: str | None) -> str | None:
    """The repository on the hub that a network's weights are from; None where they are from elsewhere, or unknown.

    Args:
        spec: The source.
        weights: The name of its weights.
    """
    if weights is None or not spec.startswith(_TIMM):
        return None
    if weights.startswith(HUB):
        try:
            return parse_repository(weights).id
        except HubError:  # a stranger's plan may say anything
            return None
    try:
        import timm
    except ModuleNotFoundError:
        return None
    name = spec.removeprefix(_TIMM)
    try:
        known = timm.get_pretrained_cfg(name if weights == "DEFAULT" else f"{name}.{weights}")
    except RuntimeError:  # timm has no such weights
        return None
    return known.hf_hub_id if known is not None and isinstance(known.hf_hub_id, str) else None


def _pinned(repository: Repository) -> Repository:
    """The same at a commit, so that its content is what it was."""
    if repository.is_pinned:
        return repository
    return replace(repository, revision=look_up(hub_client(), repository).sha)


def _on_hub(repository: Repository) -> _Configuration:
    """The configuration of a network on the hub."""
    timm_models = _timm_models()
    hub_client()
    with hub_errors(f"config.json of {repository}"):
        parsed = timm_models.load_model_config_from_hf(str(repository).removeprefix(HUB))
    return _read(parsed, str(repository))


def _in_folder(folder: Path) -> _Configuration:
    """The configuration of a network in a folder, as timm's ``save_for_hf`` writes it."""
    timm_models = _timm_models()
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no config.json; expected a folder that timm's save_for_hf wrote.")
    try:
        parsed = timm_models._hub.load_model_config_from_path(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{folder / 'config.json'} is no configuration of timm's ({type(error).__name__}: {error})."
        ) from error
    return _read(parsed, str(folder))


def _weights_in(folder: Path) -> Path:
    """The file of weights that timm would take."""
    found = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise SourceError(f"{folder} has no weights; expected one of {', '.join(_WEIGHT_FILES)}, or give `checkpoint`.")
    return Path(os.path.realpath(found))


def _timm_models() -> Any:
    try:
        import timm.models
    except ModuleNotFoundError as error:
        raise SourceError("timm is not installed; install it with: pip install timm") from error
    return timm.models


def _read(parsed: tuple[Mapping[str, Any], str, Mapping[str, Any]], where: str) -> _Configuration:
    """What a plan can record of timm's configuration: its arguments, and those that timm takes from the rest of it."""
    described, architecture, own = parsed
    arguments = dict(own)
    shape = described.get("input_size")
    shape = tuple(shape) if isinstance(shape, list | tuple) and len(shape) == 3 else None
    implied = {"num_classes": described.get("num_classes"), "global_pool": described.get("global_pool")}
    if shape is not None:
        implied["in_chans"] = shape[0]
        if described.get("fixed_input_size"):
            implied["img_size"] = list(shape[1:])
    if isinstance(implied["num_classes"], int) and implied["num_classes"] < 0:
        implied["num_classes"] = None  # timm's sign for the architecture's own
    for name, value in implied.items():
        if value is not None:
            arguments.setdefault(name, value)
    return _Configuration(
        architecture=architecture,
        arguments={name: _scalar(name, value, where) for name, value in arguments.items()},
        input_shape=shape,
    )


def _scalar(name: str, value: Any, where: str) -> Scalar:
    """One argument as a plan records it: a height and a width that are the same become one number."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not name.isidentifier() or not isinstance(value, bool | int | float | str | None):
        raise SourceError(
            f"{where}: config.json builds the network with {name}={value!r}, and a plan records numbers, strings, "
            "true, false and none only. Give the network by a factory of your own."
        )
    return value
