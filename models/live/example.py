"""Example inputs of a network in memory, read: what they say of all that it takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pruneport.errors import ModelError
from pruneport.models.inputs import DtypeName, ExampleInputs, InputSpec, TensorSpec, inputs_of

__all__ = ["read_example"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_DTYPES = {getattr(torch, name): name for name in get_args(DtypeName)}


def read_example(network: nn.Module, example: ExampleInputs) -> InputSpec:
    """What a network takes, by an example of it.

    One image tensor (B, C, H, W) of floating point says a shape (C, H, W). Of anything else names, shapes and types are
    kept, and the range of whole numbers and truth values, so that none is ever made that could be out of a table's
    range. Floats are standard normal later on: but for those that are nowhere negative in the example, and not all the
    same, which stay in its range; and for single numbers, which keep their value.

    Args:
        network: Gives arguments by position their names; it is not run.
        example: A tensor, a tuple or a dict of tensors; each but single numbers has the batch first, of any size.

    Raises:
        ModelError: It is something else, or batch sizes differ; all faults are named.
    """
    named = _named(network, example)
    if faults := list(_faults(named)):
        raise ModelError(
            f"`example_inputs` cannot be used: {'; '.join(faults)}. Expected a tensor, a tuple or a dict of tensors, "
            "as the network's forward takes them, such as torch.zeros(1, 3, 224, 224), each with the batch first."
        )
    tensors = [tensor.detach().to("cpu") for tensor in named.values()]
    first = tensors[0]
    if len(tensors) == 1 and first.ndim == 4 and first.is_floating_point() and _takes_a_position(network):
        return inputs_of((first.shape[1], first.shape[2], first.shape[3]))
    return InputSpec(
        tensors=tuple(_spec(name, tensor) for name, tensor in zip(named, tensors, strict=True)),
        by_name=isinstance(example, Mapping),
    )


def _named(network: nn.Module, example: Any) -> dict[str, Any]:
    """The parts of the example with the names of the arguments that they are."""
    if isinstance(example, Mapping):
        return {str(name): part for name, part in example.items()}
    parts = list(example) if isinstance(example, list | tuple) else [example]
    names: list[str] = []
    try:
        taken = inspect.signature(network.forward).bind(*parts)
    except (TypeError, ValueError):  # running it says what is wrong
        taken = None
    for name, value in taken.arguments.items() if taken is not None else ():
        several = taken is not None and taken.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}_{place}" for place in range(len(value))] if several else [name]
    if len(names) != len(parts):
        names = [f"input_{place}" for place in range(len(parts))]
    return dict(zip(names, parts, strict=True))


def _takes_a_position(network: nn.Module) -> bool:
    """Whether the forward can be given a tensor without its name."""
    try:
        inspect.signature(network.forward).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def _faults(named: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be used, by name."""
    if not named:
        yield "it is empty"
    batches: dict[str, int] = {}
    for name, part in named.items():
        if not _NAME.fullmatch(name):
            yield f"{ascii(name)[:100]} is no name of an argument"
        elif not isinstance(part, Tensor):
            inside = (
                "; let forward take the tensors in it by themselves" if isinstance(part, Mapping | Sequence) else ""
            )
            yield f"{name} is {part!r}" if part is None else f"{name} is {type(part).__name__}, no tensor{inside}"
        elif part.is_quantized or part.layout != torch.strided or part.dtype not in _DTYPES:
            yield f"{name} is a tensor of {part.dtype}, {part.layout}; expected {', '.join(get_args(DtypeName))}"
        elif part.device.type == "meta":
            yield f"{name} is on the meta device, where it has no values"
        elif 0 in part.shape:
            yield f"{name} has shape {tuple(part.shape)}, which holds nothing"
        elif not bool(part.isfinite().all()):
            yield f"{name} has values that are NaN or infinite"
        elif part.ndim:
            batches[name] = len(part)
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{name} {size}" for name, size in batches.items())
        yield (
            f"batch sizes differ ({sizes}); what is the same for all inputs of a batch must be a single number "
            "torch.tensor(2.0), or belong to the network"
        )


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    """What is kept of a tensor."""
    batched = tensor.ndim > 0
    low, high = (int(end) if tensor.dtype == torch.bool else end.item() for end in tensor.aminmax())
    normal = tensor.is_floating_point() and batched and (low < 0 or low == high)
    return TensorSpec(
        name=name,
        shape=tuple(tensor.shape[1:]),
        dtype=_DTYPES[tensor.dtype],
        batched=batched,
        low=None if normal else low,
        high=None if normal else high,
    )
