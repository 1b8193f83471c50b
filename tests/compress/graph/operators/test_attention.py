"""Attention: queries go with keys, values go on; heads lose width, or go whole."""

from __future__ import annotations

from typing import Any

import pytest
from channel_names import named
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import conv


def heads(y: Tensor) -> Tensor:
    """(B, C, H, W) to two attention heads (B, 2, places, C / 2)."""
    return y.flatten(2).transpose(1, 2).reshape(2, 64, 2, -1).transpose(1, 2)


def test_fused_attention_joins_queries_with_keys_and_keeps_values(follow: Any) -> None:
    layers = {name: conv(3, 8) for name in "qkv"}
    found = follow(
        lambda n, x: F.scaled_dot_product_attention(*(heads(layer(x)) for layer in (n.q, n.k, n.v))), **layers
    )
    widths = [{f"{layer}{place}", f"{layer}{place + 4}"} for place in range(4) for layer in "qkv"]
    assert [unit for unit in found.joined if any(name[0] == "v" for name in unit)] == widths[2::3]
    assert [unit for unit in found.joined if any(name[0] == "q" for name in unit)] == [
        query | key for query, key in zip(widths[::3], widths[1::3], strict=True)
    ]
    assert found.along(3) == named("v", 4)
    assert sum(product.macs for product in found.trace.products) == 2 * (2 * 2 * 64 * 64 * 4)
    assert len(found.trace.scaled_keys) == 1


@pytest.mark.parametrize("whole_heads", [False, True])
def test_torchs_attention_layer(whole_heads: bool, follow: Any) -> None:
    found = follow(
        lambda n, x: n.mha(*[n.c(x).flatten(2).transpose(1, 2)] * 3)[0],
        c=conv(3, 4),
        mha=nn.MultiheadAttention(4, 2, batch_first=True),
        whole_heads=whole_heads,
    )
    assert found.along(2) == named("mha.out_proj", 4)
    rows = [{*(f"mha{place + 4 * part}" for part in range(3)), f"mha.out_proj.in{place}"} for place in range(4)]
    by_width = [rows[0] | rows[2], rows[1] | rows[3]]
    by_head = [rows[0] | rows[1], rows[2] | rows[3]]
    assert [unit for unit in found.joined if "mha0" in unit or "mha.out_proj.in3" in unit] == (
        by_head if whole_heads else by_width
    )
    assert [unit for unit in found.joined if "c0" in unit] == [{"c0", "mha.in0"}]
    assert [(name, attribute) for name, attribute, _ in found.trace.counted] == [("mha", "num_heads")] * whole_heads
    assert sum(product.macs for product in found.trace.products) >= 4 * 2 * 64 * 16
