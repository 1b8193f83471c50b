"""Networks to time, made of the dense ONNX file by slicing its weights: nothing is exported again."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from pruneport.arrays import AnyArray, IntArray
from pruneport.compress.group_records import Member
from pruneport.compress.resize.layer_types import Keep
from pruneport.compress.resize.layers import narrow
from pruneport.compress.surgery.apply import positions_kept
from pruneport.errors import ModelError, PruneportError

__all__ = ["OnnxSlicer"]

_LARGEST = 2**31 - 1  # entries of one weight, which are numbered in 32 bits


class _Origin(NamedTuple):
    """The weight in torch that an initialiser is, reshaped at most, or the transpose of."""

    name: str
    transposed: bool = False


class OnnxSlicer:
    """Writes the ONNX file of any allocation by slicing the dense one's initialisers.

    Which entries of a weight stay is what ``narrow`` leaves of a network whose weights are the numbers of their own
    entries. So any layer that can be pruned can be sliced. An initialiser is a weight of torch's by its name, or, where
    the exporter has transposed or reshaped it, by its values; a bias that a BatchNorm was folded into follows its
    convolution.

    Sizes inside the graph (of a reshape, say) are not changed: the file of a network that needs that does not run.

    Args:
        network: The dense network.
        dense: Its ONNX file.

    Raises:
        ModelError: A weight is too large.
    """

    def __init__(self, network: nn.Module, dense: Path) -> None:
        self._model = onnx.load(str(dense))
        self._weights = {entry.name: numpy_helper.to_array(entry) for entry in self._model.graph.initializer}
        self._numbered = _numbered(network)
        self._origins = dict(_origins(network, self._weights))
        del self._model.graph.initializer[:]
        del self._model.graph.value_info[:]  # says dense shapes

    def write(self, path: Path, kept: Sequence[tuple[Member, Sequence[int]]]) -> None:
        """Write the file of a network whose groups keep these units.

        Args:
            path: Where to.
            kept: The units that stay, for each member of each group that loses some.

        Raises:
            ModelError: A layer cannot be sliced.
        """
        try:
            model = self._sliced(positions_kept(kept))
            path.write_bytes(model.SerializeToString())
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, PruneportError) as error:
            raise ModelError(f"the dense ONNX file cannot be sliced: {str(error) or type(error).__name__}") from error

    def _sliced(self, keep: Mapping[str, Keep]) -> onnx.ModelProto:
        """The model whose layers keep these positions."""
        left = copy.deepcopy(self._numbered)
        for name, positions in keep.items():
            narrow(left, name, positions)
        numbers, dense = left.state_dict(), self._numbered.state_dict()
        weights = dict(self._weights)
        for name, origin in self._origins.items():
            if numbers[origin.name].shape != dense[origin.name].shape:
                weights[name] = _slice(weights[name], origin, numbers[origin.name].numpy(), dense[origin.name].shape)
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for node in model.graph.node:
            if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in self._origins:
                weight = self._origins[node.input[1]].name
                dense_layer, layer = (
                    network.get_submodule(weight.rpartition(".")[0]) for network in (self._numbered, left)
                )
                _set_groups(node, layer)
                if len(node.input) > 2 and node.input[2] not in self._origins:  # a BatchNorm was folded into it
                    outputs = _outputs_left(dense_layer, numbers[weight].numpy())
                    weights[node.input[2]] = self._weights[node.input[2]][outputs]
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
        return model


def _numbered(network: nn.Module) -> nn.Module:
    """The network with the number of each entry in the place of its value."""
    numbered = copy.deepcopy(network)
    for module in numbered.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor.numel() > _LARGEST:
                    raise ModelError(f"{name} has {tensor.numel()} entries")
                numbers: Any = torch.arange(tensor.numel(), dtype=torch.int32).reshape(tensor.shape)
                tensors[name] = nn.Parameter(numbers, requires_grad=False) if name in module._parameters else numbers
    return numbered


def _origins(network: nn.Module, weights: Mapping[str, AnyArray]) -> Iterator[tuple[str, _Origin]]:
    """Where each initialiser that is a weight of the network's comes from."""
    state = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    named = {name for name, value in weights.items() if name in state and value.shape == state[name].shape}
    yield from ((name, _Origin(name)) for name in named)
    left = {name: value for name, value in weights.items() if name not in named and value.size > 1}
    sizes = {value.size for value in left.values()}
    by_values: dict[bytes, _Origin] = {}
    for name, value in state.items():
        if value.size in sizes:
            by_values.setdefault(_digest(value), _Origin(name))
            if value.ndim == 2:
                by_values.setdefault(_digest(value.T), _Origin(name, transposed=True))
    for name, value in left.items():
        origin = by_values.get(_digest(value))
        if origin is not None:
            yield name, origin


def _digest(value: AnyArray) -> bytes:
    return hashlib.sha256(value.dtype.str.encode() + np.ascontiguousarray(value).tobytes()).digest()


def _slice(value: AnyArray, origin: _Origin, numbers: IntArray, dense_shape: Sequence[int]) -> AnyArray:
    """An initialiser with the entries whose numbers are left.

    Raises:
        ModelError: It has another shape than the weight, by more than dimensions of size 1.
    """
    if origin.transposed:
        return np.ascontiguousarray(value.T.reshape(-1)[numbers].T)
    if value.shape == tuple(dense_shape):
        return value.reshape(-1)[numbers]
    sizes = [left for size, left in zip(dense_shape, numbers.shape, strict=True) if size > 1]
    if len(sizes) != sum(size > 1 for size in value.shape):
        raise ModelError(f"{origin.name} has the shape {value.shape} there")
    remaining = iter(sizes)
    return value.reshape(-1)[numbers].reshape([next(remaining) if size > 1 else 1 for size in value.shape])


def _set_groups(node: onnx.NodeProto, layer: nn.Module) -> None:
    """Give a convolution the channel groups that its layer has."""
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = int(getattr(layer, "groups", attribute.i))


def _outputs_left(layer: nn.Module, numbers: IntArray) -> IntArray:
    """The outputs of a dense convolution that are left where its weight keeps these entries."""
    assert isinstance(layer, nn.modules.conv._ConvNd)
    row, column = np.divmod(numbers.reshape(*numbers.shape[:2], -1)[..., 0], math.prod(layer.weight.shape[1:]))
    if not layer.transposed:
        return np.unique(row)
    column = column // math.prod(layer.weight.shape[2:])
    group = row // (layer.in_channels // layer.groups)
    return np.unique(group * layer.weight.shape[1] + column)
