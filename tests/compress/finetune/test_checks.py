"""Options of a training that cannot be met are refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_training(TrainOptions(task=Path(), **{"batch_size": 256} | wrong))
