"""Checkpoints: read without running code, matched to the network key by key."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pruneport.errors import CheckpointError

__all__ = ["SUFFIXES", "load_weights", "read_checkpoint", "with_versions"]

SUFFIXES = {".pt", ".pth", ".th", ".bin", ".tar", ".ckpt", ".safetensors"}

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "network", "net", "params", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
_LISTED = 10
_TORCH_STARTS = (b"PK", b"\x80")  # a zip archive, or before torch 1.6 a pickle


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors; pickled code in it is never run.

    Args:
        path: A .safetensors file, or a torch file (.pt, .pth, .th, .bin, .tar, .ckpt), in which the usual
            wrappings (``state_dict``, ``model``, …) are recognised.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: No such file, truncated, not a checkpoint, or it would have run code.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {what}; expected a .safetensors or a torch file.")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CheckpointError(f"checkpoint {path} is empty; download it again.")
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise CheckpointError(
            f"checkpoint {path} is a web page saved under that name, not weights; "
            "download the file itself (the page's own download link) and try again."
        )
    if path.suffix != ".safetensors" and not start.startswith(_TORCH_STARTS):
        raise CheckpointError(_not_a_checkpoint(path))
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _unwrap(content, path)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``state`` into ``network``; every key must fit, but for a prefix such as ``module.`` before all of them.

    Raises:
        CheckpointError: Lists missing, unexpected and mis-shaped keys at once: ten of each, and how many there are.
    """
    own = network.state_dict()
    state = _strip_prefixes(state, own)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} (network {tuple(own[key].shape)}, checkpoint {tuple(state[key].shape)})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    if any(faults.values()):
        lines = [f"  {kind} ({len(keys)}): {_listed(keys)}" for kind, keys in faults.items() if keys]
        raise CheckpointError(
            f"checkpoint {path} does not fit the network:\n" + "\n".join(lines) + "\n"
            "Check that the source is the architecture it was trained with (--model-arg num_classes=N, say)."
        )
    network.load_state_dict(with_versions(network, state), strict=False)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def with_versions(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the network's own format versions, which files lose and some networks (MNASNet) insist on."""
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read as safetensors ({error}); it may be truncated: fetch it again."
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"checkpoint {path} holds more than tensors: unpickling it would run {found[1]}; nothing was run. "
                "Save the state_dict alone (torch.save(network.state_dict(), ...)) where you trust it, and use that."
            ) from error
        raise CheckpointError(_not_a_checkpoint(path)) from error
    except Exception as error:  # a damaged pickle can raise anything: struct.error, KeyError, TypeError …
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} is truncated or damaged ({first}); fetch it again."
            if path.suffix in SUFFIXES
            else _not_a_checkpoint(path)
        ) from error


def _not_a_checkpoint(path: Path) -> str:
    return f"{path} is not a checkpoint; expected .safetensors or a file written by torch.save."


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    seen: list[str] = []
    while isinstance(content, Mapping):
        if content and all(isinstance(key, str) for key in content):
            if all(isinstance(value, Tensor) for value in content.values()):
                return dict(content)
            inner = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), None)
            if inner is not None:
                content = inner
                continue
        seen = [str(key) for key in content]
        break
    found = f"a mapping of {', '.join(seen[:8])}" if seen else f"a {type(content).__name__}"
    raise CheckpointError(
        f"checkpoint {path} holds {found}; expected tensors by name, or these under one of {', '.join(_WRAPPINGS)}."
    )


def _strip_prefixes(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Strip the prefixes that all keys share, but for those that the network's own keys share too."""
    foreign = [prefix for prefix in _PREFIXES if not all(key.startswith(prefix) for key in own)]
    stripped = dict(state)
    while prefix := next((p for p in foreign if stripped and all(key.startswith(p) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped
