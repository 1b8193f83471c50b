"""Options of a training that cannot be met are refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pruneport.compress.finetune.checks import check_training
from pruneport.compress.options import TrainOptions
from pruneport.errors import InputError


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 1.0, "budget": 1e9}, "`epochs` and `budget` were given"),
        ({"warmup": 1.0}, "`warmup` is 1.0"),
        ({"learning_rate": -0.1}, "`learning_rate` is -0.1"),
        ({"batch_size": 1}, "`batch_size` is 1"),
        ({"steps": 0}, "`steps` is 0"),
        ({"epochs": 0.0}, "`epochs` is 0; expected a number above 0"),
        ({"budget": 0.0}, "`budget` is 0; expected a number above 0"),
        ({"budget": float("nan")}, "`budget` is nan"),
        ({"accelerator": "cuda", "devices": 99}, "`accelerator=cuda` `devices=99`"),
        ({"accelerator": "mps", "devices": 99}, "`accelerator=mps` `devices=99`"),
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_training(TrainOptions(task=Path(), **{"batch_size": 256} | wrong))


def test_auto_counts_the_gpus_that_are_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fabric takes Apple's before NVIDIA's, and of these there is one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    two = TrainOptions(task=Path(), devices=2)
    check_training(two)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"`accelerator=auto` `devices=2`: torch sees 1 GPU"):
        check_training(two)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    check_training(two)
