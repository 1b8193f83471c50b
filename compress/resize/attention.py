"""torch's own attention layer, in a form whose attention heads may be narrower than its embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HEAD_COUNTS", "NarrowAttention", "attention_head_counts", "narrow_attention"]

HEAD_COUNTS = ("num_heads", "heads", "nhead", "n_heads", "num_kv_heads")
"""Attributes in which modules keep how many attention heads they have."""


def attention_head_counts(module: nn.Module) -> set[int]:
    """How many attention heads the module says it has."""
    values = [getattr(module, name, None) for name in HEAD_COUNTS]
    return {int(value) for value in values if isinstance(value, int)}


class NarrowAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` computes the width of a head from its embedding; this one from its own weights.

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
        q, k, v = (
            self._heads(torch.cat([projected, *more], dim=1))
            for projected, more in zip(self._projected(query, key, value), self._more(query.shape[0]), strict=True)
        )
        logits = (q * self.scale) @ k.transpose(-2, -1)
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]):
            if mask is not None:
                if mask.ndim == 3:
                    mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
                mask = F.pad(mask, (0, k.shape[-2] - mask.shape[-1]))  # the places that are not of the inputs
                logits = logits.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        attended = F.dropout(logits.softmax(-1), self.dropout, self.training)
        out = F.linear((attended @ v).transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        shown = None
        if need_weights:
            shown = attended.mean(1) if average_attn_weights else attended
        return out if self.batch_first else out.transpose(0, 1), shown

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values (B, L, channels)."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        return [
            F.linear(part, weight, bias)
            for part, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def _more(self, batch: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Further places (B, 1, channels) of queries, keys and values: learned ones, then one of zeros."""
        more: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for added, extra in zip(more[1:], (self.bias_k, self.bias_v), strict=True):
            if extra is not None:
                added.append(extra.expand(batch, -1, -1))
            if self.add_zero_attn:
                added.append(self.out_proj.weight.new_zeros(batch, 1, self.out_proj.in_features))
        return more

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, L, channels) to (B, heads, L, width)."""
        return projected.reshape(*projected.shape[:2], self.num_heads, -1).transpose(1, 2)


def narrow_attention(layer: Any, keep: Mapping[str, Sequence[int]]) -> None:
    """Keep the given inputs ("in") and rows of the three projections ("channels", equally many a head), in place.

    Where whole attention heads go, ``num_heads`` is the caller's to set.
    """
    if not isinstance(layer, NarrowAttention):
        layer.scale = layer.head_dim**-0.5
        layer.__class__ = NarrowAttention
        layer._qkv_same_embed_dim = False  # torch's fused paths, which would take the widths for granted, look here
    for axis, kept in keep.items():
        rows = torch.as_tensor(kept, dtype=torch.long)
        names = ("in_proj_weight", "in_proj_bias") if axis == "channels" else ("in_proj_weight", "q_proj_weight")
        for name in names:
            tensor = getattr(layer, name)
            if tensor is not None:
                chosen = tensor.detach().index_select(0 if axis == "channels" else 1, rows.to(tensor.device))
                setattr(layer, name, nn.Parameter(chosen, requires_grad=tensor.requires_grad))
        if axis == "in":
            layer.embed_dim = len(kept)
            if layer.in_proj_weight is not None:
                layer.kdim = layer.vdim = len(kept)
