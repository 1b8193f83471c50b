"""State files: what unfinished work needs to go on, in one file that appears whole, without pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.documents import check_format
from pruneport.errors import CheckpointError, TrainingError
from pruneport.files import beside, held, made_folder, replacing, state_path

__all__ = ["StateFile", "check_same_settings", "open_state", "plain_settings", "state_place", "write_state_file"]


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """A state file's content.

    Attributes:
        plan: Of the network that is worked on.
        content: Everything else that is no tensor.
        tensors: Kind -> name -> tensor.
    """

    plan: Plan
    content: Mapping[str, Any]
    tensors: Mapping[str, dict[str, Tensor]]


@contextmanager
def state_place(out: Path, kind: str) -> Iterator[Path]:
    """Where the state of work towards a bundle lies, ``OUT.KIND`` beside it, held for one process at a time.

    Raises:
        InUseError: Another process works towards the same bundle.
        OSError: Nothing can be written there.
    """
    file = state_path(out, kind)
    with made_folder(file.parent), held(beside(file, "lock"), out):
        yield file


def write_state_file(
    path: Path, version: int, plan: Plan, content: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write a state, whole or not at all; see ``files.replacing``.

    Args:
        path: Where to.
        version: Of the content's format.
        plan: As in ``StateFile``, as are ``content`` and ``tensors``; these may be on any device.
        content: What JSON can hold.
        tensors: May be empty.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there stays.
    """
    flat = {f"{kind}/{name}": tensor for kind, named in tensors.items() for name, tensor in named.items()}
    state = json.dumps({**content, "format_version": version})
    try:
        with replacing(path) as staging:
            save_file(
                {name: tensor.detach().cpu().clone().contiguous() for name, tensor in flat.items()},
                staging,
                metadata={"state": state, "plan": plan.to_json()},
            )
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


@contextmanager
def open_state(path: Path, what: str, version: int, network: str) -> Iterator[StateFile]:
    """Read a state; what the block does not find in it is said of the file, too.

    Args:
        path: From where.
        what: Whose state it should be, such as "a training".
        version: That is known of its format.
        network: The kind of tensors that is the state dict of the plan's network.

    Raises:
        CheckpointError: It is not one, or of a newer format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(metadata["state"])
        check_format(
            content["format_version"],
            (version,),
            path,
            error=CheckpointError,
            otherwise=", or delete the file to start anew",
        )
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            kind, _, name = key.partition("/")
            tensors.setdefault(kind, {})[name] = tensor
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors[network].items()}
        yield StateFile(plan=parse_plan(metadata["plan"], shapes), content=content, tensors=tensors)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the state of {what} ({error}); delete it to start anew.") from error


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def check_same_settings(earlier: Mapping[str, Any], now: Mapping[str, Any], path: Path, what: str) -> None:
    """Refuse to go on from the state of other settings.

    Raises:
        TrainingError: Names what differs.
    """
    changed = [
        f"`{name}` ({earlier.get(name)}, now {value})" for name, value in now.items() if earlier.get(name) != value
    ]
    if changed:
        raise TrainingError(
            f"{path} is the state of {what} with other settings: {', '.join(changed)}. Give those again to go on, "
            "delete the file to start anew, or choose another `out`."
        )
