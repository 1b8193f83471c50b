"""A layer to solve: what the norm behind it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pruneport.compress.recovery.layer_rows import Layer


def test_a_channel_that_its_norm_nearly_silences_is_not_fitted_at_any_price() -> None:
    """Errors are divided by no less than a twentieth of the median gain, with its sign."""
    norm: Any = nn.BatchNorm2d(5, eps=0)
    unread: Any = None
    norm.weight.data = torch.tensor([2.0, -1.0, 1e-4, -1e-4, 4.0])
    norm.running_var.fill_(0.25)
    norm.running_mean.fill_(3.0)
    norm.bias.data = torch.arange(5.0)
    layer = Layer(name="", wanted=unread, norm=norm, clip=None, weights=unread, extra=False, views=1)
    torch.testing.assert_close(layer.gain, torch.tensor([4.0, -2.0, 0.1, -0.1, 8.0]))
    torch.testing.assert_close(layer.scale.gain, torch.tensor([4.0, -2.0, 0.0, 0.0, 8.0]))
    torch.testing.assert_close(layer.scale.offset, torch.tensor([-12.0, 7.0, 2.0, 3.0, -20.0]))
