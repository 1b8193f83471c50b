"""What a network takes: one tensor, several by position, or several by name; and seeded values of that kind."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeVar

import psutil
import torch
from torch import Tensor, nn

from pruneport.documents import Size
from pruneport.errors import InputError
from pruneport.units import scaled

__all__ = [
    "INPUT_NAME",
    "ExampleInputs",
    "InputShape",
    "InputSpec",
    "TensorSpec",
    "batch_of",
    "changed",
    "check_memory",
    "check_seed",
    "inputs_of",
    "rows_of_inputs",
    "run_on",
    "tensors_in",
]

INPUT_NAME = "input"
"""Of images, in ONNX files."""

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor; a list or tuple of arguments; or a dict of named arguments."""

DtypeName = Literal["float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8"]
_MOST = 2**63 - 1
_Inputs = TypeVar("_Inputs", bound=ExampleInputs)


def check_seed(seed: SupportsIndex, option: str = "seed") -> int:
    """The seed as Python's number, which torch's generators and a plan must be able to hold.

    Raises:
        InputError: It is no whole number of 64 bits.
    """
    number = operator.index(seed) if isinstance(seed, SupportsIndex) and not isinstance(seed, bool) else None
    if number is None or not -_MOST - 1 <= number <= _MOST:
        raise InputError(f"`{option}` is {seed!r}; expected a whole number from {-_MOST - 1} to {_MOST}, such as 0.")
    return number


def check_memory(needed: int, what: str) -> None:
    """Refuse a batch that cannot be, before the system gives all of its memory for it.

    Args:
        needed: Bytes.
        what: Takes them, for the message.

    Raises:
        InputError: They are more than is free.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{what} takes {scaled(needed, 'B')} of memory, and {scaled(free, 'B')} is free; choose a smaller one."
        )


def run_on(network: nn.Module, example: ExampleInputs) -> Any:
    """What the network returns for its example inputs."""
    if isinstance(example, Tensor):
        return network(example)
    return network(**example) if isinstance(example, Mapping) else network(*example)


def tensors_in(inputs: ExampleInputs) -> list[Tensor]:
    """The tensors, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def changed(inputs: _Inputs, change: Callable[[Tensor], Tensor]) -> _Inputs:
    """The same with every tensor changed."""
    made: Any
    if isinstance(inputs, Tensor):
        made = change(inputs)
    elif isinstance(inputs, Mapping):
        made = {name: change(tensor) for name, tensor in inputs.items()}
    else:
        made = tuple(map(change, inputs))
    return made  # type: ignore[no-any-return]


def batch_of(inputs: ExampleInputs) -> int:
    """How many inputs there are in a batch; single numbers belong to all of them."""
    return next((len(tensor) for tensor in tensors_in(inputs) if tensor.ndim), 1)


def rows_of_inputs(inputs: _Inputs, rows: slice | Sequence[int]) -> _Inputs:
    """Some inputs of a batch."""
    return changed(inputs, lambda tensor: tensor[rows] if tensor.ndim else tensor)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor that a network takes.

    Attributes:
        name: Of the argument; in ONNX files, too.
        shape: Sizes without the batch, such as (C, H, W).
        dtype: Of its values.
        batched: Whether the batch comes first; else it is a single number for the whole batch.
        low: The lowest value that it may be given; None where values are standard normal.
        high: The highest.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: DtypeName = "float32"
    batched: bool = True
    low: int | float | None = None
    high: int | float | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None) or (self.low or 0) > (self.high or 0):
            raise ValueError(f"the values of {self.name[:80]} go from {self.low} to {self.high}")
        if self.low is None and not self.dtype.startswith("float"):
            raise ValueError(f"{self.name[:80]} is {self.dtype} of no known values")

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Its whole shape at a batch size."""
        return (batch, *self.shape) if self.batched else self.shape

    def drawn(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal values, or values from its range, all as likely."""
        sizes, dtype = self.sizes(batch), getattr(torch, self.dtype)
        if self.low is None or self.high is None:
            return torch.randn(sizes, generator=generator).to(dtype)
        if dtype.is_floating_point:
            share = torch.rand(sizes, generator=generator, dtype=torch.float64)
            return (self.low + (self.high - self.low) * share).to(dtype)
        return torch.randint(int(self.low), min(int(self.high) + 1, _MOST), sizes, generator=generator).to(dtype)

    def filled(self, batch: int, value: int) -> Tensor:
        """One value throughout, or the nearest in its range."""
        if self.low is not None and self.high is not None:
            value = min(max(value, self.low), self.high)  # type: ignore[assignment]
        return torch.full(self.sizes(batch), value, dtype=getattr(torch, self.dtype))

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join((*['B'] * self.batched, *map(str, self.shape)))})"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """All that a network takes; an image alone is the case of one tensor (see ``inputs_of``).

    Attributes:
        tensors: In the order of the arguments.
        by_name: Whether they are given by name, as a dict; else by position.
    """

    tensors: tuple[TensorSpec, ...]
    by_name: bool = False

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"inputs called {', '.join(names)[:200] or 'nothing'}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """C, H, W, where an image (B, C, H, W) is all that it takes."""
        first = self.tensors[0]
        plain = TensorSpec(name=INPUT_NAME, shape=first.shape)
        if self.by_name or self.tensors != (plain,) or len(first.shape) != 3:
            return None
        return (first.shape[0], first.shape[1], first.shape[2])

    @property
    def thing(self) -> str:
        """What one input is called in messages."""
        return "input" if self.image_shape is None else "image"

    @property
    def entries(self) -> int:
        """Numbers in one input."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def drawn(self, batch: int, seed: int) -> ExampleInputs:
        """Seeded values, the same each time.

        Raises:
            InputError: They take more memory than is free.
        """
        self._check_memory(batch)
        generator = torch.Generator().manual_seed(seed)
        return self.given([tensor.drawn(batch, generator) for tensor in self.tensors])

    def filled(self, batch: int = 1, value: int = 0) -> ExampleInputs:
        """One value throughout, or the nearest that each tensor may have.

        Raises:
            InputError: They take more memory than is free.
        """
        self._check_memory(batch)
        return self.given([tensor.filled(batch, value) for tensor in self.tensors])

    def _check_memory(self, batch: int) -> None:
        items = (math.prod(tensor.sizes(batch)) * getattr(torch, tensor.dtype).itemsize for tensor in self.tensors)
        check_memory(sum(items), f"a batch of {batch} of {self}")

    def given(self, tensors: Sequence[Tensor]) -> ExampleInputs:
        """Tensors in the form in which the network is given them (see ``run_on``)."""
        if self.by_name:
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def __str__(self) -> str:
        return ", ".join(map(str, self.tensors))


InputShape = tuple[int, int, int] | InputSpec
"""C, H, W of images (B, C, H, W) of float32; or whatever else a network takes."""


def inputs_of(shape: InputShape) -> InputSpec:
    """What a network of this input shape takes."""
    if isinstance(shape, InputSpec):
        return shape
    return InputSpec(tensors=(TensorSpec(name=INPUT_NAME, shape=tuple(shape)),))
