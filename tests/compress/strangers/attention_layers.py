"""torch's own attention in all its forms, windows, rotary embeddings, class tokens, queries that are parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_heads import both, whole
from .registry import ConvBN, add, parameter

FIXED = "neck head"


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` on one sequence."""

    def __init__(self, dim: int = 32, heads: int = 4, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.mha, self.weights = nn.MultiheadAttention(dim, heads, batch_first=True, **options), weights

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.mha(x, x, x, need_weights=self.weights)
        return out if weights is None else out * weights.mean(-1, keepdim=True)


class SequenceFirst(nn.Module):
    """The same, of (L, B, C) and with a mask."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, 2)
        self.register_buffer("mask", torch.triu(torch.full((16, 16), float("-inf")), 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        return self.mha(y, y, y, attn_mask=self.mask)[0].transpose(0, 1)


class OtherWidths(nn.Module):
    """Keys and values from a second sequence of other widths (``kdim``, ``vdim``)."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(dim, 24), nn.Linear(dim, 20)
        self.mha = nn.MultiheadAttention(dim, 4, kdim=24, vdim=20, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, F.relu(self.keys(x)), F.relu(self.values(x)))[0]


class Windowed(nn.Module):
    """Windows of 2 x 2 tokens, a table of relative biases, and the width of the input in every shape."""

    def __init__(self, dim: int = 32, heads: int = 4, window: int = 2) -> None:
        super().__init__()
        self.dim, self.num_heads, self.window, self.scale = dim, heads, window, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = parameter((2 * window - 1) ** 2, heads)
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offsets = (places[:, :, None] - places[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", offsets[..., 0] * (2 * window - 1) + offsets[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        B, L, C = x.shape
        side, w = int(L**0.5), self.window
        parts = x.view(B, side // w, w, side // w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, C)
        qkv = self.qkv(parts).reshape(-1, w * w, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        weights = (self.scale * qkv[0] @ qkv[1].transpose(-2, -1) + bias[None]).softmax(-1)
        y = self.proj((weights @ qkv[2]).transpose(1, 2).reshape(-1, w * w, C))
        return y.view(B, side // w, side // w, w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(B, L, C)


class Rotary(nn.Module):
    """Queries and keys turned by their place: halves of each head go together; the angles are a buffer or computed."""

    def __init__(self, dim: int = 32, heads: int = 2, buffer: bool = True) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        angles = torch.outer(torch.arange(16), 100.0 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim))
        self.register_buffer("angles", angles if buffer else None)

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = self.angles
        if angles is None:
            speeds = 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
            angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * speeds
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(self.turned(q), self.turned(k), v).transpose(1, 2).flatten(2))


class NormedHeads(nn.Module):
    """A norm over each head's width on queries and keys."""

    def __init__(self, norm: type[nn.Module], dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = norm(self.head_dim), norm(self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).reshape(B, N, -1))


class FewKeys(nn.Module):
    """More heads of queries than of keys and values, which are repeated."""

    def __init__(self, groups: int, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.wq, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = (nn.Linear(dim, groups * dim // heads, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q = self.wq(x).view(B, N, self.heads, -1).transpose(1, 2)
        k, v = (layer(x).view(B, N, self.groups, -1).transpose(1, 2) for layer in (self.wk, self.wv))
        k, v = (part.repeat_interleave(self.heads // self.groups, dim=1) for part in (k, v))
        return self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ClassToken(nn.Module):
    """A class token, a pooling by learned queries, and the encoder layer of torch between."""

    def __init__(self, pool: bool, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(1, 3, 32)) if pool else None
        self.keys, self.neck, self.head = nn.Linear(32, 32), nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).flatten(2).mT
        y = self.encoder(torch.cat([self.token.expand(x.shape[0], -1, -1), y], dim=1))
        if self.queries is not None:
            weights = (self.queries @ self.keys(y).mT / 32**0.5).softmax(-1)
            return self.head(self.neck(weights @ y).relu().mean(1))
        return self.head(self.neck(y[:, 0]).relu())


class Decoder(nn.Module):
    """As DETR: learned queries that look at a map, and two outputs for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(ConvBN(3, 24, 3, 2), ConvBN(24, 40, 3, 2))
        self.project, self.queries = nn.Conv2d(40, 32, 1), nn.Embedding(6, 32)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)
        self.classes, self.boxes = nn.Linear(32, 5), nn.Sequential(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        memory = self.project(self.backbone(x)).flatten(2).transpose(1, 2)
        y = self.decoder(self.queries.weight.unsqueeze(0).repeat(len(x), 1, 1), memory)
        return {"pred_logits": self.classes(y), "pred_boxes": self.boxes(y).sigmoid()}


class PoolByAttention(nn.Module):
    """As CLIP's pool: the functional form with separate weights, the mean as the only query."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = ConvBN(3, 24, 3, 2), ConvBN(24, 32, 3, 2)
        self.places = nn.Parameter(torch.randn(17, 32) / 6)
        self.q, self.k, self.v, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x)).flatten(2).permute(2, 0, 1)
        y = torch.cat([y.mean(0, keepdim=True), y]) + self.places[:, None]
        out, _ = F.multi_head_attention_forward(
            query=y[:1], key=y, value=y, embed_dim_to_check=y.shape[-1], num_heads=4, in_proj_weight=None,
            in_proj_bias=torch.cat([self.q.bias, self.k.bias, self.v.bias]), bias_k=None, bias_v=None,
            add_zero_attn=False, dropout_p=0.0, out_proj_weight=self.c.weight, out_proj_bias=self.c.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight, training=False, need_weights=False,
        )  # fmt: skip
        return out.squeeze(0)


both("attention of torch", TorchAttention, "mha")
both("attention of torch that shows its weights", lambda: TorchAttention(weights=True), "mha")
both("attention of torch over places first", SequenceFirst, "mha")
both("attention of torch with other widths", OtherWidths, "")
both("attention of torch with a bias for keys", lambda: TorchAttention(add_bias_kv=True), "")
both("attention of torch with a zero", lambda: TorchAttention(add_zero_attn=True, bias=False), "")
both("attention in windows by the width of its input", Windowed, "qkv")
both("attention with a rotary table", Rotary, "v", onnx=True)
both("attention with computed rotation", lambda: Rotary(buffer=False), "v")
both("attention with layer norms on heads", lambda: NormedHeads(nn.LayerNorm), "qkv")
both("attention with root norms on heads", lambda: NormedHeads(nn.RMSNorm), "")
both("attention with one head of keys", lambda: FewKeys(1), "wq wk wv")
both("attention with few heads of keys", lambda: FewKeys(2), "wq wk wv")
whole("attention of torch", TorchAttention, "mha")
whole("attention in windows", Windowed)
whole("attention with layer norms on heads", lambda: NormedHeads(nn.LayerNorm))
whole("attention with a rotary table", Rotary)
whole("attention with few heads of keys", lambda: FewKeys(2))
LAYERS = "encoder.layers.0.linear1 encoder.layers.1.linear1 encoder.layers.0.self_attn encoder.layers.1.self_attn"
STREAM: dict[str, Any] = {"prunes": f"{LAYERS} embed token", "keeps": FIXED, "options": {"scope": "channels"}}
add("an encoder of torch with a class token", lambda: ClassToken(False, True), prunes=LAYERS, keeps=FIXED, onnx=True)
add("an encoder of torch that norms last", lambda: ClassToken(False, False), prunes=LAYERS, keeps=FIXED)
add("a pool by learned queries", lambda: ClassToken(True, True), prunes=LAYERS, keeps=FIXED)
add("an encoder of torch and its stream", lambda: ClassToken(False, True), **STREAM)
add("an encoder of torch that norms last and its stream", lambda: ClassToken(False, False), **STREAM)
add("a pool by learned queries and its stream", lambda: ClassToken(True, True), **STREAM)
INNER = "backbone.0.0 backbone.1.0 decoder.linear1 decoder.multihead_attn"
add("a decoder with learned queries", Decoder, prunes=INNER, keeps="classes boxes.2")
add("a pool by functional attention", PoolByAttention, prunes="stem.0", keeps="c")
