"""Operations of torch on tensors in which NaN says that an entry is not there: it takes no part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Absent"]

Operation = Callable[..., Any]


class Absent(TorchDispatchMode):
    """Runs operations so that NaN entries take no part."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        kwargs = kwargs or {}
        handler = _TABLE.get(name)
        floating = args and isinstance(args[0], Tensor) and args[0].is_floating_point()
        if handler is None or not floating or args[0].numel() == 0 or function._overloadname == "other":
            return function(*args, **kwargs)
        named = {entry.name: value for entry, value in zip(function._schema.arguments, args, strict=False)} | kwargs
        for entry in function._schema.arguments:
            if entry.has_default_value():
                named.setdefault(entry.name, entry.default_value)
        return handler(function, named)


def _filled(tensor: Tensor, value: float = 0) -> Tensor:
    return torch.where(tensor.isnan(), value, tensor)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(…, I, K) times (…, K, J); rows and columns that are absent as a whole are absent in the result."""
    gone = left.isnan().all(-1, keepdim=True) | right.isnan().all(-2, keepdim=True)
    return (_filled(left) @ _filled(right)).masked_fill(gone, math.nan)


def _multiply(function: Any, named: dict[str, Any]) -> Tensor:
    first, second = ("mat1", "mat2") if "mat1" in named else ("batch1", "batch2") if "batch1" in named else ("", "")
    if first:
        out = named["alpha"] * _product(named[first], named[second])
        return named["beta"] * named["self"] + out if named["beta"] else out
    return _product(named["self"], named.get("mat2", named.get("other")))


def _linear(function: Any, named: dict[str, Any]) -> Tensor:
    out = _product(named["input"], named["weight"].T)
    return out if named["bias"] is None else out + named["bias"]


def _vector(function: Any, named: dict[str, Any]) -> Tensor:
    return _product(named["self"], named["vec"][:, None])[:, 0]


def _convolve(function: Any, named: dict[str, Any]) -> Tensor:
    source, weight, groups = named["input"], named["weight"], named["groups"]
    read = source.isnan().flatten(2).all(2).all(0).reshape(groups, -1)
    if named.get("transposed"):
        runs = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel()).isnan().all(3)  # group, in, out
        gone = runs.all(1)
    else:
        gone = weight.isnan().flatten(1).all(1).reshape(groups, -1)
    gone = (gone | read.all(1, keepdim=True)).flatten()
    out = function(**{**named, "input": _filled(source), "weight": _filled(weight)})
    return out.masked_fill(gone.reshape(1, -1, *[1] * (out.ndim - 2)), math.nan)


def _deform(function: Any, named: dict[str, Any]) -> Tensor:
    gone = named["weight"].isnan().flatten(1).all(1)
    out = function(**{**named, "input": _filled(named["input"]), "weight": _filled(named["weight"])})
    return out.masked_fill(gone.reshape(1, -1, 1, 1), math.nan)


def _attend(function: Any, named: dict[str, Any]) -> Any:
    query, key, value = named["query"], named["key"], named["value"]
    scale = query.shape[-1] ** -0.5 if named["scale"] is None else named["scale"]
    logits = _product(query * scale, key.transpose(-2, -1))
    mask = named.get("attn_mask", named.get("attn_bias"))
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    if named.get("is_causal"):
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    out = _product(logits.softmax(-1), value)
    return out if len(function._schema.returns) == 1 else (out, logits.logsumexp(-1))


def _dims(named: dict[str, Any], source: Tensor) -> list[int]:
    dim = named.get("dim")
    dims = range(source.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return [entry % source.ndim for entry in dims] if source.ndim else []


def _reduce(value: float) -> Operation:
    """Absent entries stand for ``value``; where all are absent, the result is."""

    def reduce(function: Any, named: dict[str, Any]) -> Any:
        source = named["self"]
        gone = source.isnan()
        for dim in _dims(named, source):
            gone = gone.all(dim, keepdim=True)
        out = function(**{**named, "self": _filled(source, value)})
        first = out[0] if isinstance(out, tuple) else out
        first = first.masked_fill(gone.reshape(first.shape), math.nan) if first.is_floating_point() else first
        return (first, *out[1:]) if isinstance(out, tuple) else first

    return reduce


def _moments(source: Tensor, dims: Sequence[int], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance over what is there, with the dimensions kept."""
    count = (~source.isnan()).sum(tuple(dims), keepdim=True)
    mean = _filled(source).sum(tuple(dims), keepdim=True) / count
    squares = _filled(source - mean).square().sum(tuple(dims), keepdim=True)
    return mean, squares / (count - correction).clamp_min(0)


def _average(function: Any, named: dict[str, Any]) -> Any:
    name, source = function.overloadpacket.__name__, named["self"]
    dims = _dims(named, source)
    correction = named.get("correction", 1 if named.get("unbiased", True) else 0)
    mean, variance = _moments(source, dims, 1 if correction is None else correction)
    spread = variance.sqrt() if name.startswith("std") else variance
    if not named.get("keepdim"):
        for dim in sorted(dims, reverse=True):
            mean, spread = mean.squeeze(dim), spread.squeeze(dim)
    return mean if name == "mean" else (spread, mean) if name.endswith("_mean") else spread


def _layer_norm(function: Any, named: dict[str, Any]) -> Any:
    source = named["input"]
    dims = range(source.ndim - len(named["normalized_shape"]), source.ndim)
    if function.overloadpacket.__name__ == "_fused_rms_norm":
        eps = torch.finfo(source.dtype).eps if named["eps"] is None else named["eps"]
        scale = (_moments(source.square(), dims)[0] + eps).rsqrt()
        return source * scale * (1 if named["weight"] is None else named["weight"]), scale
    mean, variance = _moments(source, dims)
    scale = (variance + named["eps"]).rsqrt()
    out = (source - mean) * scale
    out = out if named["weight"] is None else out * named["weight"]
    return (out if named["bias"] is None else out + named["bias"]), mean, scale


def _group_norm(function: Any, named: dict[str, Any]) -> Any:
    source, groups = named["input"], named["group"]
    runs = source.reshape(len(source), groups, -1)
    mean, variance = _moments(runs, [2])
    scale = (variance + named["eps"]).rsqrt()
    out = ((runs - mean) * scale).reshape(source.shape)
    shape = (1, -1, *[1] * (source.ndim - 2))
    out = out if named["weight"] is None else out * named["weight"].reshape(shape)
    return (out if named["bias"] is None else out + named["bias"].reshape(shape)), mean[..., 0], scale[..., 0]


def _batch_norm(function: Any, named: dict[str, Any]) -> Any:
    """One that measures averages over what is there, dimension by dimension of the channels."""
    source = named["input"]
    if not named["training"]:
        return function(**named)
    mean, variance = _moments(source, [dim for dim in range(source.ndim) if dim != 1])
    scale = (variance + named["eps"]).rsqrt()
    out, shape = (source - mean) * scale, (1, -1, *[1] * (source.ndim - 2))
    out = out if named["weight"] is None else out * named["weight"].reshape(shape)
    return (out if named["bias"] is None else out + named["bias"].reshape(shape)), mean.flatten(), scale.flatten()


def _along(value: float) -> Operation:
    """As ``_reduce``, for what keeps the shape: absent entries stay absent."""

    def along(function: Any, named: dict[str, Any]) -> Tensor:
        source: Tensor = named["self"]
        out: Tensor = function(**{**named, "self": _filled(source, value)})
        return out.masked_fill(source.isnan(), math.nan)

    return along


def _distances(function: Any, named: dict[str, Any]) -> Any:
    return function(**{**named, "x1": _filled(named["x1"]), "x2": _filled(named["x2"])})


_TABLE: dict[str, Operation] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "matmul"), _multiply),
    "linear": _linear,
    "mv": _vector,
    "convolution": _convolve,
    "deform_conv2d": _deform,
    "scaled_dot_product_attention": _attend,
    "_scaled_dot_product_flash_attention_for_cpu": _attend,
    "_scaled_dot_product_attention_math": _attend,
    **dict.fromkeys(("sum", "linalg_vector_norm", "norm"), _reduce(0)),
    **dict.fromkeys(("amax", "max", "logsumexp", "argmax"), _reduce(-math.inf)),
    **dict.fromkeys(("amin", "min", "argmin"), _reduce(math.inf)),
    "prod": _reduce(1),
    **dict.fromkeys(("mean", "var", "std", "var_mean", "std_mean"), _average),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    **dict.fromkeys(("_softmax", "_log_softmax"), _along(-math.inf)),
    "cumsum": _along(0),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), _distances),
}
