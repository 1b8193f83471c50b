"""Operations with weights that are no layer's: sequences, deformed and dynamic convolutions, tables, spectra, codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_maps import Around
from .registry import add, conv, parameter

__all__ = ["between", "fixed"]

Parts = Mapping[str, nn.Module | nn.Parameter]


class Between(nn.Module):
    """Two convolutions with a function between; ``parts`` are its layers and parameters."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], out: int, parts: Parts) -> None:
        super().__init__()
        self.a, self.function, self.b = conv(32, 32), function, conv(out, 32)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, F.relu(self.a(x))))


def between(
    name: str,
    function: Callable[[Any, Tensor], Tensor],
    parts: Callable[[], Parts] = dict,
    prunes: str = "",
    out: int = 32,
    **fields: Any,
) -> None:
    """Register a stranger with the function inside; what is around it must shrink, and the parts that are named."""
    inner = " ".join(f"block.{layer}" for layer in prunes.split())
    required = f"stem.0 before.0 block.b {inner}"
    add(name, lambda: Around(Between(function, out, parts())), prunes=required, keeps="after.0 head", **fields)


def fixed(value: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(value, requires_grad=False)


def sequence(n: Any, y: Tensor) -> Tensor:
    b, _, h, w = y.shape
    out, _ = n.rnn(n.read(y.flatten(2).permute(0, 2, 1)))
    return n.project(out).permute(0, 2, 1).reshape(b, -1, h, w)


def rows_and_columns(n: Any, y: Tensor) -> Tensor:
    rows = n.rnn(y.permute(0, 2, 3, 1).flatten(0, 1))[0]
    return rows.view(len(y), y.shape[2], y.shape[3], -1).permute(0, 3, 1, 2)


def deformed(n: Any, y: Tensor) -> Tensor:
    offset, mask = n.offset(y), n.mask(y).sigmoid()
    return torchvision.ops.deform_conv2d(y, offset, n.weight, n.bias, padding=1, mask=mask)


def deformed_layer(n: Any, y: Tensor) -> Tensor:
    return n.deform(y, n.offset(y))


def functional(n: Any, y: Tensor) -> Tensor:
    return F.conv2d(y, n.weight, n.bias, padding=1)


def dynamic(n: Any, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    share = n.route(y.mean((2, 3))).softmax(-1)
    weight = torch.einsum("bk,koihw->boihw", share, n.experts).flatten(0, 1)
    return F.conv2d(y.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, -1, h, w)


def experts(n: Any, y: Tensor) -> Tensor:
    share = n.route(y.mean((2, 3))).softmax(-1)
    return (torch.stack([expert(y) for expert in n.experts], 1) * share[:, :, None, None, None]).sum(1)


def cosines(n: Any, y: Tensor) -> Tensor:
    return torch.matmul(n.table, torch.matmul(y, n.table.t()))


def cosines_of_channels(n: Any, y: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", n.table, y)


def fourier(n: Any, y: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(y, norm="ortho")
    both = n.left(torch.cat([spectrum.real, spectrum.imag], 1))
    real, imaginary = both.chunk(2, dim=1)
    return torch.fft.irfft2(torch.complex(real.contiguous(), imaginary.contiguous()), s=y.shape[-2:], norm="ortho")


def filtered(n: Any, y: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(y) * n.gain, s=y.shape[-2:])


def outer(n: Any, y: Tensor) -> Tensor:
    first, second = n.left(y), n.right(y)
    return torch.einsum("bchw,bdhw->bcdhw", first, second).flatten(1, 2)


def bilinear(n: Any, y: Tensor) -> Tensor:
    flat = y.permute(0, 2, 3, 1)
    return n.both(flat, n.left(flat)).permute(0, 3, 1, 2)


def assigned(n: Any, y: Tensor) -> Tensor:
    centres = n.centres
    share = (y.permute(0, 2, 3, 1) @ centres.T).softmax(-1)
    return y - (share @ centres).permute(0, 3, 1, 2)


def quantised(n: Any, y: Tensor) -> Tensor:
    flat = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
    nearest = torch.cdist(flat, n.codes.weight).argmin(1)
    return n.codes(nearest).view(y.shape[0], y.shape[2], y.shape[3], -1).permute(0, 3, 1, 2) + 0.5 * y


def positions(n: Any, y: Tensor) -> Tensor:
    return y + n.places.to(y.dtype)


between("an LSTM over places", sequence, prunes="a project", parts=lambda: {
    "read": nn.Linear(32, 24), "rnn": nn.LSTM(24, 20, batch_first=True), "project": nn.Linear(20, 32)})  # fmt: skip
between("a GRU both ways over rows", rows_and_columns, out=40, parts=lambda: {
    "rnn": nn.GRU(32, 20, batch_first=True, bidirectional=True)})  # fmt: skip
between("a deformed convolution with own weights", deformed, out=24, parts=lambda: {
    "offset": conv(32, 18), "mask": conv(32, 9), "weight": parameter(24, 32, 3, 3), "bias": parameter(24)})  # fmt: skip
between("a deformed convolution as a layer", deformed_layer, out=24, parts=lambda: {
    "offset": conv(32, 18), "deform": torchvision.ops.DeformConv2d(32, 24, 3, padding=1)})  # fmt: skip
between("a functional convolution", functional, out=24, parts=lambda: {
    "weight": nn.Parameter(torch.randn(24, 32, 3, 3)), "bias": parameter(24)})  # fmt: skip
between("a dynamic convolution", dynamic, out=24, parts=lambda: {
    "route": nn.Linear(32, 3), "experts": nn.Parameter(torch.randn(3, 24, 32, 3, 3))})  # fmt: skip
between("a mixture of experts", experts, out=24, prunes="route.0", onnx=True, parts=lambda: {
    "route": nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3)),
    "experts": nn.ModuleList(conv(32, 24) for _ in range(3))})  # fmt: skip
between("cosines of places", cosines, lambda: {"table": fixed(torch.randn(8, 8))}, "a")
between("cosines of channels", cosines_of_channels, lambda: {"table": fixed(torch.randn(24, 32))}, out=24)
between("a Fourier convolution", fourier, lambda: {"left": conv(64, 64, 1)})
between("a Fourier filter", filtered, lambda: {"gain": parameter(32, 8, 5)})
between("an outer product", outer, lambda: {"left": conv(32, 6), "right": conv(32, 8)}, "a", out=48)
between("a bilinear layer", bilinear, lambda: {"left": nn.Linear(32, 12), "both": nn.Bilinear(32, 12, 24)}, out=24)
between("soft centres", assigned, lambda: {"centres": nn.Parameter(torch.randn(6, 32))})
between("nearest codes", quantised, lambda: {"codes": nn.Embedding(6, 32)})
between("places that are added", positions, lambda: {"places": fixed(torch.randn(1, 32, 8, 8))}, "a")
