"""Attention over tokens, written by hand: reshapes with the input's width, scales of every kind, cuts of all sorts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import add, parameter

__all__ = ["InputWidth", "Tokens", "both", "whole"]


class Tokens(nn.Module):
    """Sixteen patches, one block with the given attention, a neck and a classifier."""

    def __init__(self, attention: nn.Module, dim: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.places = nn.Parameter(0.2 * torch.randn(1, 16, dim))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn = attention
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.neck, self.head = nn.Linear(dim, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.places
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(F.relu(self.neck(self.norm3(x).mean(1))))


def both(name: str, attention: Callable[[], nn.Module], prunes: str, **fields: Any) -> None:
    """The attention in a block whose stream stays, and in one whose stream shrinks too."""
    inside = " ".join(f"attn.{layer}" for layer in prunes.split())
    add(name, lambda: Tokens(attention()), prunes=f"{inside} fc1", keeps="neck head", **fields)
    wide = f"{inside} fc1 patch places norm1 norm3"
    add(
        f"{name} and its stream",
        lambda: Tokens(attention()),
        prunes=wide,
        keeps="neck head",
        options={"scope": "channels"},
    )


def whole(name: str, attention: Callable[[], nn.Module], prunes: str = "") -> None:
    """The same where whole heads go: what does not know how many it has stays dense, and the rest shrinks."""
    inside = " ".join(f"attn.{layer}" for layer in prunes.split())
    options = {"attention": "heads"}
    add(
        f"whole heads of {name}",
        lambda: Tokens(attention()),
        prunes=f"{inside} fc1",
        keeps="neck head",
        options=options,
    )


class InputWidth(nn.Module):
    """As DINOv2 has it: heads and their width from the input's C, at both ends."""

    def __init__(self, dim: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] * self.scale @ qkv[1].transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ qkv[2]).transpose(1, 2).reshape(B, N, C))


class Reduced(nn.Module):
    """As SegFormer has it: keys and values of a map that a strided convolution made smaller."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.reduce, self.norm = nn.Conv2d(dim, dim, 2, 2), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        small = self.reduce(x.permute(0, 2, 1).reshape(b, c, 4, 4)).reshape(b, c, -1).permute(0, 2, 1)
        kv = self.kv(self.norm(small)).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ kv[0].transpose(-2, -1)) * self.scale).softmax(-1)
        return self.proj((weights @ kv[1]).transpose(1, 2).reshape(b, n, c))


class Configured(nn.Module):
    """As BERT and ViT of the large libraries: three layers, widths of heads as attributes, logits over their root."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, dim // heads
        self.all_head_size = heads * self.attention_head_size
        self.query, self.key = nn.Linear(dim, self.all_head_size), nn.Linear(dim, self.all_head_size)
        self.value, self.dense = nn.Linear(dim, self.all_head_size), nn.Linear(self.all_head_size, dim)

    def heads_of(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, states: Tensor) -> Tensor:
        q, k, v = self.heads_of(self.query(states)), self.heads_of(self.key(states)), self.heads_of(self.value(states))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        context = torch.matmul(nn.functional.dropout(scores.softmax(-1), 0.1, self.training), v)
        context = context.permute(0, 2, 1, 3).contiguous()
        return self.dense(context.view(*context.size()[:-2], self.all_head_size))


class Scaled(nn.Module):
    """One projection with open sizes; ``weights`` makes the attention's result of queries, keys and values."""

    def __init__(self, attend: Callable[[Any, Tensor, Tensor, Tensor], Tensor], dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim, self.attend = heads, dim // heads, attend
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(self, q, k, v).transpose(1, 2).flatten(2))


def by_key_width(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / k.size(-1) ** 0.5).softmax(-1) @ v


def by_attribute(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v


def by_argument(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)


def by_both_roots(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    root = q.shape[-1] ** 0.25
    return torch.softmax((q / root) @ (k / root).transpose(-2, -1), dim=-1) @ v


def unscaled(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def causal(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_einsum(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5)
    return torch.einsum("bhij,bhjd->bhid", logits.softmax(dim=-1), v)


def by_mean_product(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax((q[:, :, :, None] * k[:, :, None]).mean(-1) * 4, dim=-1) @ v


class Split(nn.Module):
    """One head for all, whose projection is cut in three by the width that ``parts`` names."""

    def __init__(self, cut: Callable[[Any, Tensor], Any], dim: int = 32) -> None:
        super().__init__()
        self.dim, self.parts, self.cut = dim, [dim, dim, dim], cut
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self, self.c_attn(x))
        return self.c_proj(((q @ k.mT) / math.sqrt(self.dim)).softmax(-1) @ v)


class Gpt(nn.Module):
    """As GPTs: the projection split by the embedding's width, then viewed with the input's C."""

    def __init__(self, n_embd: int = 32, n_head: int = 4) -> None:
        super().__init__()
        self.n_embd, self.n_head = n_embd, n_head
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class ScaledStream(nn.Module):
    """An attribute that is a size here and a number there."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.dim = dim
        self.up, self.out = nn.Linear(32, dim), nn.Linear(dim, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).reshape(x.shape[0], -1, self.dim)
        weights = (y @ y.transpose(1, 2) * self.dim**-0.5).softmax(-1)
        return self.out(weights @ y * self.dim**-0.5)


class Temperature(nn.Module):
    """A learned temperature for each head, and queries and keys of length one."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.logit_scale = heads, parameter(heads, 1, 1)
        self.to_qkv, self.to_out = (
            nn.Linear(dim, 3 * dim, bias=False),
            nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _, h = *x.shape, self.heads
        q, k, v = (part.reshape(b, n, h, -1).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = (logits * self.logit_scale.clamp(max=math.log(100.0)).exp()).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(b, n, -1))


both("attention by the width of its input", InputWidth, "qkv")
both("attention to a reduced map", Reduced, "q kv")
both("attention of a configured class", Configured, "query key value")
both("attention scaled by the size of keys", lambda: Scaled(by_key_width), "qkv")
both("attention scaled by an attribute", lambda: Scaled(by_attribute), "qkv")
both("attention scaled by an argument", lambda: Scaled(by_argument), "qkv")
both("attention scaled on both sides", lambda: Scaled(by_both_roots), "qkv")
both("attention without a scale", lambda: Scaled(unscaled), "qkv")
both("causal attention", lambda: Scaled(causal), "qkv")
both("attention by einsum", lambda: Scaled(by_einsum), "qkv", onnx=True)
both("attention by a mean of products", lambda: Scaled(by_mean_product), "qkv")
for title, cut in {
    "chunk": lambda self, qkv: qkv.chunk(3, dim=-1),
    "a list of widths": lambda self, qkv: torch.split(qkv, self.parts, dim=-1),
    "an attribute": lambda self, qkv: torch.split(qkv, self.dim, dim=-1),
    "slices": lambda self, qkv: (qkv[..., : self.dim], qkv[..., self.dim : 2 * self.dim], qkv[..., 2 * self.dim :]),
}.items():
    both(f"attention split by {title}", lambda cut=cut: Split(cut), "c_attn")
both("attention of a GPT", Gpt, "c_attn")
both("a width that is also a number", ScaledStream, "up")
both("attention by cosines", Temperature, "to_qkv")
whole("attention by the width of its input", InputWidth)
whole("attention to a reduced map", Reduced)
whole("attention of a configured class", Configured)
whole("attention scaled by the size of keys", lambda: Scaled(by_key_width))
whole("attention of a GPT", Gpt)
whole("attention by cosines", Temperature)
