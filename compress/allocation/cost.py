"""Compute and parameters: counted by fvcore once, then known for every choice of widths.

A layer's multiply-accumulates and weights are proportional to each of its widths. So one count of the
dense network and the groups say what any allocation costs, without tracing again.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.groups import Group
from pruneport.compress.hooks import hooks_restored
from pruneport.compress.records import Axis, Cost
from pruneport.compress.resize.layers import removed_whole
from pruneport.compress.sizes.size_calls import QUERIES
from pruneport.errors import ModelError
from pruneport.models.outputs import TensorsOnly

with warnings.catch_warnings():  # fvcore decorates with torch.jit.script, which torch calls deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

__all__ = ["Cost", "CostModel", "Quadratic", "count_cost", "count_macs_by_module", "run_once"]

Array = np.ndarray[Any, np.dtype[np.float64]]


def count_cost(network: nn.Module, shape: tuple[int, int, int]) -> Cost:
    """Count one image through the network.

    Raises:
        ModelError: The network refuses an input of this shape.
    """
    return Cost(macs=count_macs_by_module(network, shape)[""], params=_params(network))


def run_once(network: nn.Module, shape: tuple[int, int, int]) -> Any:
    """What the network returns for one empty image.

    Raises:
        ModelError: It refuses an input of this shape.
    """
    try:
        with torch.no_grad():  # not inference_mode: some keep tensors of their first pass, which autograd reads
            return network(torch.zeros(1, *shape))
    except Exception as error:
        raise ModelError(
            f"the network refuses an input of shape {(1, *shape)}: {error}. Give the shape it was made for with "
            "`input_shape` C H W."
        ) from error


def count_macs_by_module(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-accumulates of one image by module name; "" is the whole network.

    fvcore leaves out fused attention, counted here as its two matrix products, and products that something is added to.

    Raises:
        ModelError: The network refuses an input of this shape, or cannot be traced.
    """
    run_once(network, shape)
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with hooks_restored(network), warnings.catch_warnings(), _plain_checkpoints():
            warnings.simplefilter("ignore")
            try:
                with _PlainSizes():
                    return _count(network, shape)
            except Exception as error:
                first = error
            try:
                return _count(network, shape)  # some forwards ask whether they are traced, and take sizes as tensors
            except Exception:
                raise ModelError(
                    f"the network's multiply-accumulates cannot be counted: {type(first).__name__}: {first}. Its "
                    "forward must be traceable by torch.jit.trace."
                ) from first
    finally:
        logger.setLevel(level)


def _count(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    analysis = FlopCountAnalysis(TensorsOnly(network), torch.zeros(1, *shape))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::baddbmm", _added_product_macs)
    counts = analysis.by_module().items()
    return {name.removeprefix("network").removeprefix("."): int(count) for name, count in counts}


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """Blocks that are computed anew for the gradient are simply called: torch.jit.trace loses itself in them."""
    CheckpointFunction.apply = lambda block, preserve, *inputs: block(*inputs)
    try:
        yield
    finally:
        del CheckpointFunction.apply  # that of its base shows again


class _PlainSizes(TorchFunctionMode):
    """Sizes are numbers, as without a trace, and not tensors: a forward may round or compare them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        if function not in QUERIES:
            return value
        return torch.Size(int(size) for size in value) if isinstance(value, tuple) else int(value)


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Q (…, L, E) times K (…, S, E), then the weights (…, L, S) times V (…, S, V)."""
    query, key, value = (list(item.type().sizes()) for item in inputs[:3])
    rows = int(np.prod(query[:-1], dtype=np.int64))
    return rows * int(key[-2]) * int(query[-1] + value[-1])


def _added_product_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Of the product of (B, I, K) and (B, K, J) that a third tensor is added to."""
    left, right = (list(item.type().sizes()) for item in inputs[1:3])
    return int(np.prod(left, dtype=np.int64)) * int(right[-1])


def _params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class _Term:
    """A cost proportional to up to two widths (indices into the axes; -1 stands for none)."""

    size: float
    first: int
    second: int = -1


@dataclass(frozen=True)
class Quadratic:
    """A cost as a polynomial of the kept widths k: constant + linear'k + k' products k, products symmetric."""

    constant: float
    linear: Array
    products: Array

    def of(self, kept: Array) -> float:
        """The cost where group ``i`` keeps ``kept[i]`` units."""
        return float(self.constant + self.linear @ kept + kept @ self.products @ kept)


class CostModel:
    """Cost of the network as a function of how many units each group keeps.

    Args:
        network: The dense network.
        groups: Its groups.
        macs_by_module: From ``count_macs_by_module``.
        coupling: Adds matrix products that are no layer's, and layers applied along other channels.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        macs_by_module: dict[str, int],
        coupling: Coupling | None = None,
    ) -> None:
        self.dense = Cost(macs=macs_by_module[""], params=_params(network))
        self._widths = np.array([group.width for group in groups], dtype=np.float64)
        axes: dict[tuple[str, Axis], int] = {}
        for group in groups:
            for member in group.members:
                axes.setdefault((member.module, member.axis), len(axes))
        products = coupling.products if coupling else ()
        lines: dict[Any, Sequence[int]] = dict(coupling.applied_along) if coupling else {}
        lines |= {
            (number, side): line for number, (_, sides, _) in enumerate(products) for side, line in enumerate(sides)
        }
        place = {key: len(axes) + number for number, key in enumerate(lines)}
        rows = len(axes) + len(lines) + 1  # the last stands for a size that never changes
        self._sizes = np.ones(rows)
        self._lost = np.zeros((rows, len(groups)))
        for column, group in enumerate(groups):
            for member in group.members:
                row = axes[member.module, member.axis]
                self._sizes[row] = member.size
                self._lost[row, column] = member.positions.shape[1]
        owner = {unit: index for index, group in enumerate(groups) for unit in group.units}
        for key, line in lines.items():
            self._sizes[place[key]] = len(line)
            for unit in line:
                if unit in owner:
                    self._lost[place[key], owner[unit]] += 1 / groups[owner[unit]].width
        fixed = {row for row in range(rows) if not self._lost[row, [not group.reason for group in groups]].any()}
        known = Counter[str]()
        for size, _, layer in products:
            known[layer] += size
        computed = {name: macs_by_module.get(f"{name}.parametrizations", 0) for name in macs_by_module}
        left = {name: max(0, count - known[name] - computed[name]) for name, count in macs_by_module.items() if name}
        macs, params = _terms(network, axes, left, place, fixed)
        for number, (size, sides, _) in enumerate(products):
            macs.append(_Term(size, *[place[number, side] for side in range(len(sides))][:2]))
        self._macs, self._params = _pack(macs), _pack(params)
        self._folded = _folded(network, axes, computed)

    def macs(self, kept: Array) -> float:
        """Multiply-accumulates where group ``i`` keeps ``kept[i]`` units."""
        return self.dense.macs - self._gone(kept).macs - self._saved(kept, self._macs)

    def params(self, kept: Array) -> float:
        """Parameters where group ``i`` keeps ``kept[i]`` units."""
        return self.dense.params - self._gone(kept).params - self._saved(kept, self._params)

    def quadratic(self, target: str) -> Quadratic:
        """The same cost (``flops`` stands for multiply-accumulates, else ``params``) as a polynomial."""
        sizes, first, second = self._macs if target == "flops" else self._params
        total = self.dense.macs if target == "flops" else self.dense.params
        slope = self._lost / self._sizes[:, None]
        start = 1 - slope @ self._widths
        one, other = slope[first], slope[second]
        products = one.T @ (sizes[:, None] * other)
        linear = (sizes * start[first]) @ other + (sizes * start[second]) @ one
        constant = total - sizes.sum() + float(sizes @ (start[first] * start[second]))
        return Quadratic(constant=constant, linear=linear, products=(products + products.T) / 2)

    def group_cost(self, index: int) -> Cost:
        """Dense cost of what would go with the whole group: its layers, by their share of the axis."""
        kept = self._widths.copy()
        kept[index] = 0
        return Cost(macs=round(self._saved(kept, self._macs)), params=round(self._saved(kept, self._params)))

    def _saved(self, kept: Array, terms: tuple[Array, Any, Any]) -> float:
        fraction = self._left(kept)
        sizes, first, second = terms
        return float(np.sum(sizes * (1 - fraction[first] * fraction[second])))

    def _gone(self, kept: Array) -> Cost:
        """What goes as soon as a layer loses a channel: what its weight was computed from, and by."""
        left = self._left(kept)
        folded = [cost for cost, rows in self._folded if (left[rows] < 1).any()]
        return Cost(macs=sum(cost.macs for cost in folded), params=sum(cost.params for cost in folded))

    def _left(self, kept: Array) -> Array:
        """The share that is left of every size."""
        left: Array = 1 - self._lost @ (self._widths - kept) / self._sizes
        return left


def _two(rows: Sequence[int], fixed: Collection[int]) -> list[int]:
    """The two sizes, at most, that can change: a layer along other channels has three, of which one is fixed."""
    return [row for row in rows if row >= 0 and row not in fixed][:2] or [-1]


def _pack(terms: list[_Term]) -> tuple[Array, Any, Any]:
    return (
        np.array([term.size for term in terms], dtype=np.float64),
        np.array([term.first for term in terms], dtype=np.int64),
        np.array([term.second for term in terms], dtype=np.int64),
    )


def _terms(
    network: nn.Module,
    axes: dict[tuple[str, Axis], int],
    macs_by_module: dict[str, int],
    riding: Mapping[Any, int],
    fixed: Collection[int],
) -> tuple[list[_Term], list[_Term]]:
    macs: list[_Term] = []
    params: list[_Term] = []
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    counted: set[int] = set()
    for name in dict.fromkeys(name for name, _ in axes):
        layer = modules.get(name)
        if layer is None:
            if name in parameters:
                own = [row for (owner, _), row in axes.items() if owner == name]
                params.append(_Term(parameters[name].numel(), *own[:2]))
            continue
        through = axes.get((name, "channels"), -1)
        first = axes.get((name, "out"), through)
        second = (
            -1 if isinstance(layer, nn.modules.conv._ConvNd) and removed_whole(layer) else axes.get((name, "in"), -1)
        )
        mixes = isinstance(layer, nn.MultiheadAttention)  # what is left of it grows with the heads alone
        rows = [first] if mixes else [first, second, riding.get(name, -1)]
        macs.append(_Term(macs_by_module.get(name, 0), *_two(rows, fixed)))
        apart = {id(parameters[owner]) for owner, _ in axes if owner in parameters}  # with axes of their own
        apart |= {id(parameter) for parameter in _gains(layer)}
        for parameter in [*layer.parameters(recurse=False), *_original(layer)]:
            if id(parameter) not in counted | apart:
                matrix = parameter.ndim > 1
                params.append(_Term(parameter.numel(), first, second if matrix else -1))
            counted.add(id(parameter))
    owners = {name for name, _ in axes}
    for name, row in riding.items():
        if isinstance(name, str) and name not in owners:  # none of its own sizes can change
            macs.append(_Term(macs_by_module.get(name, 0), row))
    return macs, params


def _original(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that a parametrised weight is computed from."""
    parametrised = getattr(layer, "parametrizations", None)
    return [] if parametrised is None else list(parametrised.parameters())


def _gains(layer: nn.Module) -> list[nn.Parameter]:
    """The gains of a weight norm, one an output."""
    parametrised = getattr(layer, "parametrizations", None)
    own = [*layer.named_parameters(recurse=False), *(() if parametrised is None else parametrised.named_parameters())]
    gains = [parameter for name, parameter in own if name == "weight_g" or name.endswith(".original0")]
    return [gain for gain in gains if gain.ndim > 1 and gain.numel() == max(gain.shape)]


def _folded(
    network: nn.Module, axes: Mapping[tuple[str, Axis], int], computed: Mapping[str, int]
) -> list[tuple[Cost, list[int]]]:
    """What goes with the first channel that a layer loses, since its weight is a plain one then, and the layer's axes.

    Args:
        network: The dense network.
        axes: Rows by layer and axis.
        computed: Multiply-accumulates that the layer's weight is computed by.
    """
    modules = dict(network.named_modules())
    costs = {
        name: Cost(macs=computed.get(name, 0), params=sum(part.numel() for part in _gains(modules[name])))
        for name in dict.fromkeys(name for name, _ in axes)
        if name in modules
    }
    return [
        (cost, [row for (owner, _), row in axes.items() if owner == name])
        for name, cost in costs.items()
        if cost.macs or cost.params
    ]
