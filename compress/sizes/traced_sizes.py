"""Sizes that remember where they come from: integers of a forward that follow a width, and what is computed of them.

During one traced forward pass every integer attribute of a module, and every size of a dimension along which channels
lie, is a ``TracedSize``. Arithmetic on it keeps the expression, so that the size a pruned network would ask for can be
computed before it runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

__all__ = [
    "AttributeSize",
    "Expression",
    "Leaf",
    "QueriedSize",
    "SizeListener",
    "TracedSize",
    "attributes_traced",
    "evaluate",
    "expression_of",
    "leaves_of",
]


@dataclass(frozen=True)
class AttributeSize:
    """An integer attribute of a module, or one entry of a list or tuple of integers."""

    module: str
    name: str
    index: int | None = None


@dataclass(frozen=True)
class QueriedSize:
    """What a module's call that asks for sizes returned (see ``call_site``): its ``slot``-th number."""

    module: str
    call: str
    slot: int


Leaf = AttributeSize | QueriedSize
Expression = Any
"""An int, a ``Leaf``, or a tuple (function, expression, ...)."""


class SizeListener(Protocol):
    """Told what a forward does with a traced size beside asking for a shape."""

    def used_as_number(self, size: TracedSize) -> None:
        """It took part in arithmetic of real numbers: a scale, such as the root of a width."""

    def compared_equal(self, size: TracedSize, other: int) -> None:
        """It was compared with another number, and they were equal."""


class TracedSize(int):
    """An integer with the expression that it was computed by; whatever it is used for, it acts as the plain integer."""

    expression: Expression
    listener: SizeListener

    def __new__(cls, value: int, expression: Expression, listener: SizeListener) -> TracedSize:
        """An integer that knows its expression and tells ``listener`` how it is used."""
        made = super().__new__(cls, value)
        made.expression, made.listener = expression, listener
        return made

    def __float__(self) -> float:
        self.listener.used_as_number(self)
        return float(int(self))

    def __int__(self) -> int:
        return int.__index__(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int):
            return NotImplemented
        equal = int.__eq__(self, other)
        if equal:
            self.listener.compared_equal(self, other)
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __truediv__(self, other: Any) -> Any:
        return self._as_number(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._as_number(operator.truediv, other, self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        if isinstance(other, int) and other >= 0 and modulus is None:
            return self._combined(operator.pow, self, other)
        return self._as_number(operator.pow, self, other)

    def __rpow__(self, other: Any, modulus: Any = None) -> Any:
        return self._as_number(operator.pow, other, self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __copy__(self) -> int:
        return int(self)

    def _as_number(self, function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        """The result as a plain number, which is noted."""
        other = right if left is self else left
        if not isinstance(other, int | float):
            return NotImplemented
        for part in (left, right):
            if isinstance(part, TracedSize):
                self.listener.used_as_number(part)
        return function(*(int(part) if isinstance(part, int) else part for part in (left, right)))

    def _combined(self, function: Callable[..., int], *parts: Any) -> Any:
        """The result as a number that remembers how it was made."""
        if any(isinstance(part, float) for part in parts):
            return self._as_number(function, *parts)
        if not all(isinstance(part, int) for part in parts):
            return NotImplemented
        value = function(*(int(part) for part in parts))
        return TracedSize(value, (function, *map(expression_of, parts)), self.listener)


def _give_operators() -> None:
    """Give traced sizes Python's operators on whole numbers."""

    def binary(function: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return (
            lambda self, other: self._combined(function, self, other),
            lambda self, other: self._combined(function, other, self),
        )

    for name in ("add", "sub", "mul", "floordiv", "mod"):
        forth, back = binary(getattr(operator, name))
        setattr(TracedSize, f"__{name}__", forth)
        setattr(TracedSize, f"__r{name}__", back)
    for name in ("neg", "pos", "abs"):
        function = getattr(operator, name)
        setattr(TracedSize, f"__{name}__", lambda self, function=function: self._combined(function, self))
    for name in ("__divmod__", "__rdivmod__"):
        setattr(TracedSize, name, _divmod if name == "__divmod__" else lambda self, other: _divmod(other, self))


def _divmod(left: Any, right: Any) -> Any:
    return left // right, left % right


_give_operators()


def expression_of(value: Any) -> Expression:
    """The expression of a size; a plain integer stands for itself."""
    return value.expression if isinstance(value, TracedSize) else value


def leaves_of(expression: Expression) -> Iterator[Leaf]:
    """Every attribute and every asked size in an expression."""
    if isinstance(expression, Leaf):
        yield expression
    elif isinstance(expression, tuple):
        for part in expression[1:]:
            yield from leaves_of(part)


def evaluate(expression: Expression, value_of: Callable[[Leaf], int]) -> int | None:
    """What the expression computes where its leaves have these values; None where it cannot be computed."""
    if isinstance(expression, Leaf):
        return value_of(expression)
    if not isinstance(expression, tuple):
        return int(expression)
    parts = [evaluate(part, value_of) for part in expression[1:]]
    try:
        return None if None in parts else int(expression[0](*parts))
    except ArithmeticError:
        return None


@contextmanager
def attributes_traced(
    network: nn.Module, skipped: tuple[type[nn.Module], ...], listener: SizeListener
) -> Iterator[None]:
    """Let every integer attribute, and every list or tuple of integers, of a network's modules be traced.

    Args:
        network: Its attributes are as they were afterwards; those that its forward sets are plain integers again.
        skipped: Types whose attributes are left alone.
        listener: Told how the attributes are used.
    """
    modules = dict(network.named_modules())
    before: list[tuple[dict[str, Any], str, Any, Any]] = []
    for name, module in modules.items():
        if isinstance(module, skipped):
            continue
        for attribute, value in vars(module).items():
            traced = _traced(value, name, attribute, listener)
            if traced is not None:
                before.append((module.__dict__, attribute, value, traced))
    for own, attribute, _, traced in before:
        own[attribute] = traced
    try:
        yield
    finally:
        for own, attribute, value, traced in before:
            if own.get(attribute) is traced:
                own[attribute] = value
        for module in modules.values():
            for attribute, value in vars(module).items():
                module.__dict__[attribute] = _plain(value)


def _traced(value: Any, module: str, attribute: str, listener: SizeListener) -> Any:
    """The value with its integers traced; None where there are none."""
    if attribute.startswith("_"):
        return None
    if type(value) is int and value > 1:
        return TracedSize(value, AttributeSize(module, attribute), listener)
    if type(value) in (list, tuple) and value and all(type(part) is int for part in value):
        parts = [
            TracedSize(part, AttributeSize(module, attribute, index), listener) for index, part in enumerate(value)
        ]
        return type(value)(parts)
    return None


def _plain(value: Any) -> Any:
    """The value without traced sizes; the same object where it has none."""
    if type(value) is TracedSize:
        return int(value)
    if type(value) in (list, tuple) and any(type(part) is TracedSize for part in value):
        return type(value)(_plain(part) for part in value)
    return value
