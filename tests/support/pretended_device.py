"""A device that is not there: tensors that are sent to it are marked, and one that meets an unmarked one is refused.

What torch does with a GPU's tensors, on the CPU: whatever is computed of a marked tensor is marked, an operator refuses
marked and unmarked ones together (a single number, and indices, may come from the CPU), and numpy sees no marked one.
A device of the type mps has no float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

__all__ = ["DEVICE", "PretendedDevice"]

DEVICE = torch.device("cuda", 0)
_FIRST_COUNTS = {Tensor.__getitem__, Tensor.__deepcopy__, Tensor.copy_}
_MIXED = {torch._has_compatible_shallow_copy_type}
_READ = {Tensor.numpy, Tensor.__array__}


class PretendedDevice(TorchFunctionMode):
    """Enter it, and ``.to(device)`` marks; ``count`` says how many calls were of marked tensors."""

    def __init__(self, device: torch.device = DEVICE) -> None:
        super().__init__()
        self._device = device
        self._marked: dict[int, StorageWeakRef] = {}
        self.count = 0

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is on the device."""
        memory = self._marked.get(tensor.untyped_storage()._cdata)
        return memory is not None and not memory.expired()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        counted = args[:1] if function in _FIRST_COUNTS else args[::2] if function is Tensor.__setitem__ else args
        given = list(_tensors((counted, kwargs)))
        here = [tensor for tensor in given if self.holds(tensor)]
        if name == "__get__" and function == Tensor.device.__get__:
            return self._device if here else torch.device("cpu")
        if function in (Tensor.to, Tensor.cpu, nn.Module.to):
            return self._moved(function, args, kwargs)
        if name == "__set__":  # of data, which may lie anywhere
            return function(*args, **kwargs)
        if here and function in _READ:
            raise TypeError("can't convert a device's type tensor to numpy")
        if here and function not in _MIXED and any(not self.holds(tensor) and tensor.ndim for tensor in given):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        wanted = torch.device(kwargs.pop("device")) if kwargs.get("device") is not None else None
        if wanted is not None and "device" in kwargs:
            del kwargs["device"]
        result = function(*args, **kwargs)
        self.count += bool(here)
        self._mark((result,), wanted == self._device if wanted is not None else bool(here))
        return result

    def _moved(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A tensor sent somewhere, or given another type; ``to(other)`` follows another tensor."""
        tensor, rest = args[0], list(args[1:])
        target = torch.device("cpu") if function is Tensor.cpu else None
        for place, value in enumerate(rest):
            if isinstance(value, Tensor):
                target, rest[place] = self._device if self.holds(value) else torch.device("cpu"), value.dtype
            elif isinstance(value, torch.device | str):
                target = torch.device(value)
                rest[place] = "cpu"
        if kwargs.get("device") is not None:
            target = torch.device(kwargs.pop("device"))
        there = self.holds(tensor) if target is None else target == self._device
        result = tensor if function is Tensor.cpu else tensor.to(*rest, **kwargs)
        if result is tensor and there != self.holds(tensor):
            result = tensor.clone()
        self._mark((result,), there)
        return result

    def _mark(self, values: Any, marked: bool) -> None:
        for tensor in _tensors(values):
            memory = StorageWeakRef(tensor.untyped_storage())
            if marked:
                if tensor.dtype == torch.float64 and self._device.type == "mps":
                    raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
                self._marked[memory.cdata] = memory
            else:
                self._marked.pop(memory.cdata, None)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
