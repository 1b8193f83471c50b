"""torch's own attention layer, in a form whose heads may be narrower than its embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HEAD_COUNTS", "NarrowAttention", "head_counts", "narrow_attention"]

HEAD_COUNTS = ("num_heads", "heads", "nhead", "n_heads", "num_kv_heads")
"""Attributes in which modules keep how many heads they have."""


def head_counts(module: nn.Module) -> set[int]:
    """How many heads the module says it has."""
    values = [getattr(module, name, None) for name in HEAD_COUNTS]
    return {int(value) for value in values if isinstance(value, int)}


class NarrowAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` computes the width of a head from the embedding; this one from its own weights.

    It is made from a dense layer by ``narrow_attention``. Logits keep the scale of the dense layer.
    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: inputs (B, L, C), or (L, B, C) where the layer is not ``batch_first``."""
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(part, weight, bias).reshape(*part.shape[:2], self.num_heads, -1).transpose(1, 2)
            for part, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        logits = (q * self.scale) @ k.transpose(-2, -1)
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]):
            if mask is not None:
                if mask.ndim == 3:
                    mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
                logits = logits.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        attended = logits.softmax(-1)
        out = F.linear((attended @ v).transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        shown = None
        if need_weights:
            shown = attended.mean(1) if average_attn_weights else attended
        return out if self.batch_first else out.transpose(0, 1), shown


def narrow_attention(layer: Any, keep: Mapping[str, Sequence[int]]) -> None:
    """Keep the given inputs ("in") and rows of the three projections ("channels", equally many a head), in place.

    Where whole heads go, ``num_heads`` is the caller's to set.
    """
    if not isinstance(layer, NarrowAttention):
        layer.scale = layer.head_dim**-0.5
        layer.__class__ = NarrowAttention
        layer._qkv_same_embed_dim = False  # torch's fused paths, which would take the widths for granted, look here
    for axis, kept in keep.items():
        rows = torch.as_tensor(kept, dtype=torch.long)
        for name in ("in_proj_weight", "in_proj_bias") if axis == "channels" else ("in_proj_weight",):
            tensor = getattr(layer, name)
            if tensor is not None:
                chosen = tensor.detach().index_select(0 if axis == "channels" else 1, rows.to(tensor.device))
                setattr(layer, name, nn.Parameter(chosen, requires_grad=tensor.requires_grad))
        if axis == "in":
            layer.embed_dim = layer.kdim = layer.vdim = len(kept)
