"""Compute and parameters of a network as it is, counted by fvcore."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from pruneport.compress.group_records import Cost
from pruneport.compress.hooks import hooks_restored
from pruneport.compress.sizes.size_queries import QUERIES
from pruneport.errors import ModelError
from pruneport.models.inputs import ExampleInputs, InputShape, inputs_of, run_on, tensors_in
from pruneport.models.outputs import TensorsOnly

with warnings.catch_warnings():  # fvcore decorates with torch.jit.script, which torch calls deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

__all__ = ["Cost", "count_cost", "count_macs_by_module", "count_params", "run_once"]


def count_cost(network: nn.Module, shape: InputShape) -> Cost:
    """Count one input through the network.

    Raises:
        ModelError: The network refuses an input of this shape.
    """
    return Cost(macs=count_macs_by_module(network, shape)[""], params=count_params(network))


def run_once(network: nn.Module, shape: InputShape, example: ExampleInputs | None = None) -> Any:
    """What the network returns for one empty input, or for the ``example`` in its place.

    Raises:
        InputError: The input takes more memory than is free.
        ModelError: The network refuses an input of this shape.
    """
    takes = inputs_of(shape)
    given = takes.filled() if example is None else example
    try:
        with torch.no_grad():  # not inference_mode: some keep tensors of their first pass, which autograd reads
            return run_on(network, given)
    except Exception as error:
        if takes.image_shape is None:
            raise ModelError(
                f"the network refuses inputs {takes}, here with B = 1: {type(error).__name__}: {error}. Give "
                "`example_inputs` as its forward takes them: a tensor, a tuple by position, or a dict by name."
            ) from error
        if not _takes_one(network):
            raise ModelError(
                f"the network's forward does not take one image alone: {error}. Such a network is pruned in Python: "
                "pruneport.prune takes its inputs as example_inputs, a tuple by position or a dict by name."
            ) from error
        raise ModelError(
            f"the network refuses an input of shape {(1, *takes.image_shape)}: {error}. Give the shape it was made "
            "for with `input_shape` C H W."
        ) from error


def _takes_one(network: nn.Module) -> bool:
    """Whether the forward can be called with one argument."""
    try:
        inspect.signature(network.forward).bind(None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def count_macs_by_module(network: nn.Module, shape: InputShape) -> dict[str, int]:
    """Multiply-accumulates of one input by module name; "" is the whole network.

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


def _count(network: nn.Module, shape: InputShape) -> dict[str, int]:
    """Run fvcore's counter, with what it leaves out."""
    inputs = inputs_of(shape)
    given = tuple(tensors_in(inputs.filled()))
    analysis = FlopCountAnalysis(TensorsOnly(network, inputs.names if inputs.by_name else ()), given)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::baddbmm", _added_product_macs)
    counts = analysis.by_module().items()
    return {name.removeprefix("network").removeprefix("."): int(count) for name, count in counts}


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """Checkpointed blocks, computed anew for the gradient, are simply called: torch.jit.trace cannot follow them."""
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


def count_params(network: nn.Module) -> int:
    """Entries of all parameters; one under several names counts once."""
    return sum(parameter.numel() for parameter in network.parameters())
