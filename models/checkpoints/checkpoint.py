"""Checkpoints: read without running code, matched to the network key by key."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pruneport.errors import CheckpointError
from pruneport.models.checkpoints.pickles import check_endless
from pruneport.models.files import not_a_file

__all__ = ["SUFFIXES", "load_weights", "read_checkpoint", "with_versions"]

SUFFIXES = {".pt", ".pth", ".th", ".bin", ".tar", ".ckpt", ".safetensors"}

_WRAPPINGS = (
    *("state_dict", "model_state_dict", "model", "network", "net", "params", "weights", "module"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),  # averages of the weights; where there are both, behind
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
_LISTED = 10
_SHOWN = 200  # characters of a key, or of what a library says
_DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
}
_TORCH_STARTS = (b"PK", b"\x80")  # a zip archive, or before torch 1.6 a pickle
_SAFETENSORS_HEADER = b"\0\0\0\0{"  # behind the lower half of the header's length: JSON of less than 4 GiB


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors; pickled code in it is never run.

    Args:
        path: A .safetensors file, or a torch file (.pt, .pth, .th, .bin, .tar, .ckpt), in which the usual
            wrappings (``state_dict``, ``model``, …) are recognised. Its content says which, whatever its name.

    Returns:
        Dense tensors by name, on the CPU.

    Raises:
        CheckpointError: No such file, truncated, not a checkpoint, it would have run code, or it would not end; or
            its tensors are sparse, quantised or without values.
    """
    if found := not_a_file(path):
        raise CheckpointError(f"checkpoint {path} {found}; expected a .safetensors or a torch file.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error.strerror}); check the file and its permissions."
        ) from error
    if not start:
        raise CheckpointError(f"checkpoint {path} is empty; download it again.")
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise CheckpointError(
            f"checkpoint {path} is a web page saved under that name, not weights; "
            "download the file itself (the page's own download link) and try again."
        )
    by_safetensors = start[4:9] == _SAFETENSORS_HEADER
    by_torch = start.startswith(_TORCH_STARTS) and not by_safetensors
    if not (by_torch or by_safetensors or path.suffix == ".safetensors"):
        raise CheckpointError(_not_a_checkpoint(path))
    content = _read_torch(path) if by_torch else _read_safetensors(path)
    tensors = _unwrap(content, path)
    if odd := [f"{_short(key)} ({fault})" for key, value in tensors.items() if (fault := _not_dense(value))]:
        raise CheckpointError(
            f"checkpoint {path} holds tensors that a network's weights cannot be copied from: {_listed(odd)}. "
            "Save the float32 network's state_dict(), on the CPU."
        )
    return tensors


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``state`` into ``network``; every key must fit, but for a prefix such as ``module.`` before all of them.

    Raises:
        CheckpointError: Lists missing, unexpected and mis-shaped keys at once: ten of each, and how many there are.
    """
    own, weights = network.state_dict(), dict(network.named_parameters())
    state = _strip_prefixes(state, own)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} (network {tuple(own[key].shape)}, checkpoint {tuple(state[key].shape)})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    mistyped = [
        f"{key} (network {_plain(own[key].dtype)}, checkpoint {_plain(state[key].dtype)})"
        for key in own
        if key in state and _would_lose(state[key], own[key], weight=key in weights)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped, "of another kind": mistyped}
    if any(faults.values()):
        lines = [f"  {kind} ({len(keys)}): {_listed(keys)}" for kind, keys in faults.items() if keys]
        raise CheckpointError(
            f"checkpoint {path} does not fit the network:\n" + "\n".join(lines) + "\n"
            "Check that the source is the architecture it was trained with (`model_arg` num_classes=N, say)."
        )
    try:
        network.load_state_dict(with_versions(network, state), strict=False)
    except Exception as error:  # what a network's own hooks raise
        raise CheckpointError(f"checkpoint {path} cannot be copied into the network: {_first_line(error)}.") from error


def _would_lose(given: Tensor, own: Tensor, weight: bool) -> bool:
    """Whether a copy would drop imaginary parts, or take codes of a quantised network for its weights."""
    codes = weight and own.is_floating_point() and not (given.is_floating_point() or given.is_complex())
    return codes or (given.is_complex() and not own.is_complex())


def _not_dense(tensor: Tensor) -> str | None:
    """What a tensor is, if it is not one of plain values in memory."""
    if tensor.is_meta:
        return "without values, on the meta device"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided:
        return f"of layout {_plain(tensor.layout).removeprefix('sparse_')}, sparse"
    if tensor.dtype not in _DTYPES:
        return f"of type {_plain(tensor.dtype)}"
    return None


def _plain(name: torch.dtype | torch.layout) -> str:
    return str(name).removeprefix("torch.")


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(map(_short, keys[:_LISTED])) + more


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _first_line(error: BaseException) -> str:
    return _short(next(iter(str(error).splitlines()), "")) or type(error).__name__


def with_versions(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the network's own format versions, which files lose and some networks (MNASNet) insist on."""
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors by name."""
    try:
        return dict(load_file(path))
    except Exception as error:  # sizes that are not so raise what Python raises
        raise CheckpointError(
            f"checkpoint {path} cannot be read as safetensors ({_first_line(error)}); it may be truncated: fetch it "
            "again."
        ) from error


def _read_torch(path: Path) -> Any:
    """Whatever torch.save wrote, if it holds nothing but tensors and plain values."""
    try:
        check_endless(path)
        with warnings.catch_warnings(), path.open("rb") as file:  # of a path torch looks at its ending
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"checkpoint {path} holds more than tensors: unpickling it would run {found[1]}; nothing was run. "
                "Save the state_dict alone (torch.save(network.state_dict(), ...)) where you trust it, and use that."
            ) from error
        raise CheckpointError(_not_a_checkpoint(path)) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything: struct.error, KeyError, TypeError …
        raise CheckpointError(
            f"checkpoint {path} is truncated or damaged ({_first_line(error)}); fetch it again."
            if path.suffix in SUFFIXES
            else _not_a_checkpoint(path)
        ) from error


def _not_a_checkpoint(path: Path) -> str:
    return f"{path} is not a checkpoint; expected .safetensors or a file written by torch.save."


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Tensors by name, out of the usual mappings around them."""
    opened: list[Any] = []
    found = f"a {type(content).__name__}"
    while isinstance(content, Mapping) and content:
        if any(content is outer for outer in opened):
            found = "a mapping that holds itself"
            break
        opened.append(content)
        keys = [str(key) if isinstance(key, str | int) else f"a {type(key).__name__}" for key in content]
        found = f"a mapping of {_listed(keys)}"
        if not all(isinstance(key, str) for key in content):
            break
        if all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        content = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), None)
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
