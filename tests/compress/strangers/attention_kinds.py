"""Attention that is not softmax over places: linear, over channels, talking heads, gates, memories, two streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_heads import both, whole
from .registry import ConvBN, add, conv, parameter, pooled


class Linear(nn.Module):
    """Keys times values first, with elu + 1 as feature map."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, self.heads, -1) for part in self.to_qkv(x).chunk(3, dim=-1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bnhd,bnhe->bhde", k, v)
        share = 1 / (torch.einsum("bnhd,bhd->bnh", q, k.sum(dim=1)) + 1e-6)
        return self.to_out(torch.einsum("bnhd,bhde,bnh->bnhe", q, context, share).reshape(b, n, -1))


class Efficient(nn.Module):
    """Softmax of queries over channels and of keys over places."""

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o((q.softmax(dim=-1) @ (k.softmax(dim=-2).transpose(-2, -1) @ v)).transpose(1, 2).flatten(2))


class Covariance(nn.Module):
    """Channels attend to channels, with queries and keys of length one."""

    def __init__(self, dim: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.temperature = num_heads, parameter(num_heads, 1, 1)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(qkv[0], dim=-1), F.normalize(qkv[1], dim=-1)
        weights = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        return self.proj((weights @ qkv[2]).permute(0, 3, 1, 2).reshape(B, N, C))


class Talking(nn.Module):
    """Logits and weights mixed over heads by linear layers."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        logits = self.before(((q * self.scale) @ k.mT).permute(0, 2, 3, 1)).softmax(dim=2)
        return self.proj((self.after(logits).permute(0, 3, 1, 2) @ v).transpose(1, 2).reshape(B, N, -1))


class Memory(nn.Module):
    """External attention: two linear memories, normalised twice."""

    def __init__(self, dim: int = 32, units: int = 24) -> None:
        super().__init__()
        self.query, self.keys = nn.Linear(dim, dim), nn.Linear(dim, units, bias=False)
        self.values = nn.Linear(units, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.keys(self.query(x)).softmax(dim=1)
        return self.values(weights / (1e-9 + weights.sum(dim=2, keepdim=True)))


class Gated(nn.Module):
    """One head of squared logits behind a gate, each key an affine copy of the queries'."""

    def __init__(self, dim: int = 32, inner: int = 40, shared: int = 16) -> None:
        super().__init__()
        self.inner, self.shared = inner, shared
        self.to_uvz, self.out = nn.Linear(dim, 2 * inner + shared), nn.Linear(inner, dim)
        self.gain, self.shift = parameter(2, shared), parameter(2, shared)

    def forward(self, x: Tensor) -> Tensor:
        u, v, z = F.silu(self.to_uvz(x)).split([self.inner, self.inner, self.shared], dim=-1)
        q, k = (z.unsqueeze(2) * self.gain + self.shift).unbind(dim=2)
        return self.out(u * (F.relu(q @ k.transpose(1, 2) / x.shape[1]).square() @ v))


class Latents(nn.Module):
    """Cross-attention of a coarse stream to a fine one, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = ConvBN(3, 24, 3, 2), ConvBN(3, 32, 5, 4)
        self.q, self.k, self.v = conv(32, 20, 1), conv(24, 20, 1), conv(24, 28, 1)
        self.mix, self.last, self.head = conv(28, 24, 1), ConvBN(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(x)
        q, k, v = self.q(coarse).flatten(2), self.k(fine).flatten(2), self.v(fine).flatten(2)
        weights = torch.softmax(torch.bmm(q.permute(0, 2, 1), k) / 20**0.5, dim=-1)
        y = torch.bmm(v, weights.permute(0, 2, 1)).view(x.size(0), -1, *coarse.shape[2:])
        return self.head(pooled(self.last(F.relu(self.mix(y)))))


class PartialSelf(nn.Module):
    """As YOLO11's: half of the channels go through an attention whose projections are convolutions."""

    def __init__(self, c1: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.c, self.heads = c1 // 2, heads
        self.key_dim, self.head_dim = self.c // heads // 2, self.c // heads
        self.stem, self.cv1, self.cv2 = ConvBN(3, 24, 3, 2), ConvBN(24, 2 * self.c, 1), ConvBN(2 * self.c, 32, 1)
        self.qkv, self.pe = ConvBN(self.c, 2 * self.c, 1, act=None), ConvBN(self.c, self.c, 3, 1, self.c, act=None)
        self.proj = ConvBN(self.c, self.c, 1, act=None)
        self.ffn = nn.Sequential(ConvBN(self.c, 2 * self.c, 1, act=nn.SiLU), ConvBN(2 * self.c, self.c, 1, act=None))
        self.last, self.head = ConvBN(32, 24), nn.Linear(24, 5)

    def attend(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).view(B, self.heads, self.key_dim * 2 + self.head_dim, H * W)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        weights = ((q.transpose(-2, -1) @ k) * self.key_dim**-0.5).softmax(dim=-1)
        y = (v @ weights.transpose(-2, -1)).view(B, C, H, W) + self.pe(v.reshape(B, C, H, W))
        return self.proj(y)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(self.stem(x)).split((self.c, self.c), dim=1)
        b = b + self.attend(b)
        b = b + self.ffn(b)
        return self.head(pooled(self.last(self.cv2(torch.cat((a, b), 1)))))


both("linear attention", Linear, "", onnx=True)
both("attention with softmax over channels", Efficient, "v")
both("attention of channels", Covariance, "")
both("attention of talking heads", Talking, "qkv")
both("attention to a memory", Memory, "query")
both("a gated attention unit", Gated, "to_uvz")
whole("attention of channels", Covariance)
whole("attention of talking heads", Talking)
add("attention across two streams", Latents, prunes="fine.0 coarse.0 q k v mix", keeps="last.0 head", onnx=True)
add("attention on half of the channels", PartialSelf, prunes="stem.0 ffn.0.0 qkv.0", keeps="last.0 head")
add("attention on half of the channels and its stream", PartialSelf, prunes="stem.0 ffn.0.0 qkv.0 cv1.0 cv2.0",
    keeps="last.0 head", options={"scope": "channels"})  # fmt: skip
