"""A plan of the embedded network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.surgery.plan import Plan
from pruneport.models.digits.network import digits_resnet
from pruneport.models.record import Source

SOURCE = Source(spec="pruneport:digits_resnet", model_args={"num_classes": 10}, input_shape=(1, 8, 8))


@pytest.fixture(scope="session")
def plan() -> Plan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prune(digits_resnet().eval(), SOURCE, PruneOptions(ratio=0.5, keep=("head",))).plan


@pytest.fixture
def content(plan: Plan) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(plan.to_json())
    return loaded
