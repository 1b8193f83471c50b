"""Which sizes a forward asks for, what they are computed from, and which channels they count."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruneport.compress.sizes.arguments import nested_tensors
from pruneport.compress.sizes.call_sites import call_site
from pruneport.compress.sizes.size_calls import SIZE_CALLS, SizeCall
from pruneport.compress.sizes.size_queries import QUERIES, SizeQuery
from pruneport.compress.sizes.traced_sizes import Expression, QueriedSize, TracedSize, expression_of

__all__ = ["AskedSize", "SizeTracer", "UsedSize"]

_ARITHMETIC = frozenset(
    {"add", "sub", "mul", "div", "true_divide", "divide", "multiply", "subtract", "pow", "float_power", "floor_divide"}
    | {"radd", "rsub", "rmul", "rdiv", "rtruediv", "truediv", "rpow"}
)


@dataclass(frozen=True, eq=False)
class UsedSize:
    """A size that a forward gave to a function.

    Attributes:
        module: Whose forward it was.
        call: The function that made the call, the function called, and how many such calls came before it.
        slot: Which number of the call.
        value: The number, in the dense network.
        expression: What it was computed from.
        line: Elements along the dimension that it measures, (size,).
        start: The first of those that it counts.
        stop: The one behind the last.
    """

    module: str
    call: str
    slot: int
    value: int
    expression: Expression
    line: Tensor
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class AskedSize:
    """A size that a forward asked for: its value in the dense network, and the elements (size,) that it grows with."""

    value: int
    line: Tensor


class SizeTracer(TorchFunctionMode):
    """Watches which functions of a forward take and return sizes.

    Args:
        network: Whose forward it is.
        skipped: Types of modules whose own calls do not matter, since they are shrunk with their attributes.
        line_of: The elements along a tensor's dimension, (size,); None where no channels lie along it.
        is_fixed: Whether all that lies along a tensor's dimension is of one channel, so that the size stays.

    Attributes:
        used: Sizes given to functions.
        asked: Sizes asked for.
        numbers: Expressions that took part in arithmetic of real numbers.
        compared: Pairs of expressions that were found equal.
    """

    def __init__(
        self,
        network: nn.Module,
        skipped: tuple[type[nn.Module], ...],
        line_of: Callable[[Tensor, int], Tensor | None],
        is_fixed: Callable[[Tensor, int], bool],
    ) -> None:
        super().__init__()
        self.used: list[UsedSize] = []
        self.asked: dict[QueriedSize, AskedSize] = {}
        self.numbers: list[Expression] = []
        self.compared: list[tuple[Expression, Expression]] = []
        self.paused = False
        self._names = {id(module): name for name, module in reversed(list(network.named_modules()))}
        self._skipped, self._line_of, self._is_fixed = skipped, line_of, is_fixed
        self._calls: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def entered(self, name: str) -> None:
        """A module's forward begins: its calls are numbered from 0."""
        self._calls[name].clear()

    def used_as_number(self, size: TracedSize) -> None:
        """Note a scale."""
        self.numbers.append(size.expression)

    def compared_equal(self, size: TracedSize, other: int) -> None:
        """Note two numbers that the forward found equal."""
        self.compared.append((size.expression, expression_of(other)))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        output = function(*args, **named)
        if self.paused:
            return output
        query, call = QUERIES.get(function), SIZE_CALLS.get(function)
        if query is None and call is None:
            if getattr(function, "__name__", "").strip("_") in _ARITHMETIC:
                self.numbers += [part.expression for part in (*args, *named.values()) if isinstance(part, TracedSize)]
            return output
        module, site = call_site(function)
        name = self._names.get(id(module))
        if name is None or isinstance(module, self._skipped):
            return output
        number = f"{site} {self._calls[name][site]}"
        self._calls[name][site] += 1
        if call is not None:
            self._note_used(call, name, number, args, named, output)
            return output
        assert query is not None
        return self._note_asked(query, name, number, args, named, output)

    def _note_used(self, call: SizeCall, name: str, number: str, args: Any, kwargs: Any, output: Any) -> None:
        """Note the sizes that a call was given, and which channels each counts."""
        for part in call.measure(args, kwargs, output) if output is None or nested_tensors(output) else ():
            whole = not part.start and part.stop == part.tensor.shape[part.dim]
            if not isinstance(part.value, int) or (part.value < 0 and whole):  # torch computes it
                continue
            line = self._line_of(part.tensor, part.dim)
            if line is None and call.new and (asked := self.asked.get(expression_of(part.value))) is not None:
                line = asked.line
                self._follow(part.tensor, part.dim, line)
            if line is None and isinstance(part.value, TracedSize) and self._is_fixed(part.tensor, part.dim):
                line = torch.zeros(part.tensor.shape[part.dim], dtype=torch.long)
            if line is not None:
                value, expression = int(part.value), expression_of(part.value)
                self.used.append(UsedSize(name, number, part.slot, value, expression, line, part.start, part.stop))

    def _follow(self, output: Tensor, dim: int, line: Tensor) -> None:
        """A new dimension has the size of a known one, channel by channel."""

    def _note_asked(self, query: SizeQuery, name: str, number: str, args: Any, kwargs: Any, output: Any) -> Any:
        """Note the sizes that a forward asked for; returns them as numbers that remember it."""
        tensor, traced = args[0], {}
        sizes = [output] if isinstance(output, int) else list(output)
        for slot, (dim, value) in enumerate(zip(query.dims(args, kwargs), sizes, strict=True)):
            dims = range(tensor.ndim) if dim is None else [dim]
            lines = [line for one in dims if (line := self._line_of(tensor, one)) is not None]
            if len(lines) == 1:
                leaf = QueriedSize(name, number, slot)
                self.asked[leaf] = AskedSize(int(value), lines[0])
                traced[slot] = TracedSize(int(value), leaf, self)
        return query.replace(output, traced) if traced else output
