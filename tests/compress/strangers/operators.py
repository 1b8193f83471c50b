"""Operations on entries: slices that are written, arithmetic of shapes, copies, masks, orders, sums along a way."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .own_weights import between, fixed
from .registry import conv, parameter


def written(n: Any, y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    half = y.shape[1] // 2
    out[:, :half] = n.left(y[:, :half])
    out[:, half:] = n.right(y[:, half:])
    return out


def added_in_place(n: Any, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :8] += n.left(y)
    return y


def clamped(n: Any, y: Tensor) -> Tensor:
    return torch.cat([y[:, : min(24, y.shape[1])], n.left(y[:, -8:])], 1)


def counted(n: Any, y: Tensor) -> Tensor:
    share = y.numel() // (y.shape[0] * y.shape[2] * y.shape[3])
    return y * (share / 32) + 1 / math.sqrt(y[0].numel())


def arithmetic(n: Any, y: Tensor) -> Tensor:
    size = y.size()
    return y.view(size[0], size[1], size[2] * size[3]).permute(0, 2, 1).reshape(-1, y.shape[1]).view(
        size[0], -1, size[1]
    ).transpose(1, 2).view(*size)  # fmt: skip


def copied(n: Any, y: Tensor) -> Tensor:
    side = n.left(copy.copy(y))
    return y + F.pad(side, (0, 0, 0, 0, 0, 0))


def cloned(n: Any, y: Tensor) -> Tensor:
    return y * n.left(y.clone()).sigmoid()


def coordinates(n: Any, y: Tensor) -> Tensor:
    b, _, h, w = y.shape
    rows = torch.linspace(-1, 1, h, dtype=y.dtype).view(1, 1, h, 1).expand(b, 1, h, w)
    columns = torch.linspace(-1, 1, w, dtype=y.dtype).view(1, 1, 1, w).expand(b, -1, h, -1)
    return torch.cat([y, rows, columns, (rows**2 + columns**2).sqrt()], dim=1)


def chosen(n: Any, y: Tensor) -> Tensor:
    mask = y > y.mean((2, 3), keepdim=True)
    return torch.where(mask, y, n.slope * y) + torch.masked_fill(y, ~mask, 0.0)


def ranked(n: Any, y: Tensor) -> Tensor:
    return y.sort(dim=1)[0]


def rolled(n: Any, y: Tensor) -> Tensor:
    return torch.roll(y, shifts=3, dims=1) + y


def summed_up(n: Any, y: Tensor) -> Tensor:
    return torch.cumsum(y, dim=1) / 32


def summed_over_places(n: Any, y: Tensor) -> Tensor:
    return y.cumsum(-1).cumsum(-2) / 64


def powers(n: Any, y: Tensor) -> Tensor:
    mean = y.clamp(min=1e-6).pow(n.p).mean((2, 3), keepdim=True).pow(1.0 / n.p)
    return y * mean


def norms_of_capsules(n: Any, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    capsules = y.view(b, c // 4, 4, h, w)
    squares = (capsules**2).sum(2, keepdim=True)
    return (capsules * squares / ((1 + squares) * (squares + 1e-6).sqrt())).view(b, c, h, w)


def strided(n: Any, y: Tensor) -> Tensor:
    return torch.as_strided(y.contiguous(), (y.shape[0], y.shape[1], 4, 4), (y.shape[1] * 64, 64, 16, 2))


def unbound(n: Any, y: Tensor) -> Tensor:
    first, *rest = torch.unbind(y, dim=1)
    return torch.stack([first, *(part + first for part in rest)], dim=1)


def scattered(n: Any, y: Tensor) -> Tensor:
    return y.index_select(1, n.order).index_fill(1, n.order[:4], 0.0)


between("slices that are written", written, lambda: {"left": conv(16, 16), "right": conv(16, 16)})
between("a sum into a slice", added_in_place, lambda: {"left": conv(32, 8)})
between("a slice up to a limit", clamped, lambda: {"left": conv(8, 8)})
between("a number of entries", counted)
between("arithmetic of shapes", arithmetic, prunes="a")
between("a copy in a side branch", copied, lambda: {"left": conv(32, 32)}, "a left", options={"scope": "channels"})
between("a clone in a side branch", cloned, lambda: {"left": conv(32, 32)}, "a left")
between("coordinates beside channels", coordinates, prunes="a", out=35, onnx=True)
between("places chosen by a mask", chosen, lambda: {"slope": parameter(1, 32, 1, 1)}, "a")
between("channels in order of size", ranked)
between("rolled channels", rolled)
between("channels summed up", summed_up)
between("places summed up", summed_over_places, prunes="a")
between("generalised means", powers, lambda: {"p": parameter(1)}, "a")
between("lengths of capsules", norms_of_capsules, prunes="a")
between("strides by hand", strided)
between("channels one by one", unbound)
between("another order of channels", scattered, lambda: {"order": fixed(torch.randperm(32))})
