"""What a network returns: a tensor, or tensors in lists, tuples, mappings, named tuples and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.errors import ModelError
from pruneport.models.inputs import InputShape, inputs_of, run_on

__all__ = [
    "DETECTION_PARTS",
    "FLOAT32",
    "Outputs",
    "TensorsOnly",
    "Tolerance",
    "detections_in",
    "main_output",
    "read_outputs",
    "takes_several",
    "tensor_leaves",
]

DETECTION_PARTS = ("boxes", "scores", "labels")
"""Names under which a detector returns what it found in one image: (N, 4), (N,) and (N,)."""


_TRACED = (torch.SymInt, torch.SymFloat, torch.SymBool)  # numbers, while torch's exporter runs


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a network returned, by name.

    A name is the way to the value: keys, field names and places in a sequence, joined with dots. What is no mapping
    and has no fields starts with ``output``: a lone tensor is ``output``, a pair ``output.0`` and ``output.1``.

    Attributes:
        tensors: In the order in which they are met.
        others: Type of everything else but None, which is left out wherever tensors alone are meant.
    """

    tensors: Mapping[str, Tensor]
    others: Mapping[str, str]

    @property
    def main(self) -> str:
        """Name of the output that errors and accuracy are measured on."""
        main = main_output(self.tensors)
        return next(name for name, leaf in self.tensors.items() if leaf is main)


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Outputs may differ by ``atol`` plus ``rtol`` times the largest output."""

    atol: float
    rtol: float

    def allowed(self, largest: float) -> float:
        """How far outputs may differ of which the largest is so large."""
        return self.atol + self.rtol * largest


FLOAT32 = Tolerance(atol=1e-5, rtol=1e-4)
"""float32 kernels differ in the order of their sums, by about 1e-6 of the largest output."""


def tensor_leaves(value: Any) -> list[Tensor]:
    """Every tensor in ``value``, in order; what is no tensor is left out."""
    return [leaf for _, leaf in _leaves(value) if isinstance(leaf, Tensor)]


def read_outputs(value: Any, reserved: Collection[str] = ()) -> Outputs:
    """Name everything that a network returned.

    Args:
        value: What its forward returned.
        reserved: Names that are taken; a tensor of such a name gets a number behind it, as the second of two does.

    Raises:
        ModelError: There is no tensor, or one that is not dense, or in an object that cannot be told apart.
    """
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for path, leaf in _leaves(value):
        name = ".".join(path) or "output"
        if isinstance(leaf, Tensor):
            if leaf.layout != torch.strided or leaf.is_quantized:
                kind = "quantised" if leaf.is_quantized else str(leaf.layout).removeprefix("torch.")
                raise ModelError(f"the network's output {name} is a {kind} tensor; expected dense ones: convert it.")
            tensors[_free(name, {*reserved, *tensors})] = leaf
        elif any(isinstance(part, Tensor) for part in getattr(leaf, "__dict__", {}).values()):
            raise ModelError(
                f"the network's output {name} is a {type(leaf).__name__} that holds tensors; expected tensors in "
                "lists, tuples, mappings, named tuples or dataclasses: return one of these."
            )
        elif leaf is not None:
            kind = type(leaf).__name__
            others[name] = kind.removeprefix("Sym").lower() if isinstance(leaf, _TRACED) else kind
    if not tensors:
        found = ", ".join(f"{name} ({kind})" for name, kind in others.items()) or "nothing"
        raise ModelError(f"the network returns no tensor, but {found}; expected at least one.")
    return Outputs(tensors, others)


def main_output(value: Any) -> Tensor:
    """The tensor in ``value`` that errors and accuracy are measured on.

    It is the first of floating point that is no single number; where there is none, the first. Of detections it is the
    scores.
    """
    named = {".".join(path): leaf for path, leaf in _leaves(value) if isinstance(leaf, Tensor)}
    if detections := detections_in(named):
        return named[detections[0][1]]
    leaves = tensor_leaves(value)
    return next((leaf for leaf in leaves if leaf.is_floating_point() and leaf.ndim), leaves[0])


def detections_in(tensors: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """Names of the boxes, scores and labels of each image, where a network returns what it found in it.

    They are recognised by their names and shapes: N boxes (N, 4), scores (N,) of floating point, and whole labels (N,).
    How many there are may be another number for every image.

    Example:
        >>> found = {"boxes": torch.zeros(5, 4), "scores": torch.zeros(5), "labels": torch.zeros(5, dtype=torch.int64)}
        >>> detections_in({f"output.0.{name}": part for name, part in found.items()})
        [('output.0.boxes', 'output.0.scores', 'output.0.labels')]
    """
    found = []
    for name, boxes in tensors.items():
        start, _, last = name.rpartition(".")
        if last != DETECTION_PARTS[0] or boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            continue
        names = [f"{start}.{part}" if start else part for part in DETECTION_PARTS]
        scores, labels = (tensors.get(part) for part in names[1:])
        if scores is None or labels is None or not scores.is_floating_point() or labels.is_floating_point():
            continue
        if scores.ndim == labels.ndim == 1 and len(boxes) == len(scores) == len(labels):
            found.append((names[0], names[1], names[2]))
    return found


class TensorsOnly(nn.Module):
    """A network that returns its tensors alone, as a tuple, for tools that know no more; its weights are shared.

    Args:
        network: The network.
        names: Of its arguments, where it is given them by name.
    """

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.training = network.training
        self._names = tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the network returns for its inputs, given by position."""
        given = dict(zip(self._names, inputs, strict=True)) if self._names else inputs
        return tuple(tensor_leaves(run_on(self.network, given)))


def takes_several(network: nn.Module, shape: InputShape) -> bool:
    """Whether the network takes more than one input at a time; found by giving it two."""
    try:
        with torch.no_grad():
            run_on(network, inputs_of(shape).filled(2))
    except Exception:  # a forward may raise anything
        return False
    return True


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values without parts, with the names that lead to each."""
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    named, items = parts
    start = path or (() if named else ("output",))
    for name, item in items:
        yield from _leaves(item, (*start, name))


def _parts(value: Any) -> tuple[bool, list[tuple[str, Any]]] | None:
    """Whether the parts of a container have names, and the parts; None of what is no container."""
    if isinstance(value, Mapping):  # before dataclasses: transformers' outputs are both, and leave out what is None
        return True, [(str(key), item) for key, item in value.items()]
    if isinstance(value, torch.Size):
        return None
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None) or _structseq_names(value)):
        return True, list(zip(names, value, strict=True))
    if isinstance(value, list | tuple):
        return False, [(str(place), item) for place, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return True, [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if isinstance(value, SimpleNamespace):
        return True, list(vars(value).items())
    return None


def _structseq_names(value: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of what torch's own named tuples hold, such as ``values`` and ``indices`` of ``topk``."""
    names: tuple[str, ...] = getattr(type(value), "__match_args__", ())
    return names if len(names) == len(value) else ()


def _free(name: str, taken: Collection[str]) -> str:
    """The name, or with a number where it is taken."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}.{number}"
    return free
