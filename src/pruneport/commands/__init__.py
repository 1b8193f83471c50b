"""The verbs of the command line as Python functions, each with its frozen configuration.

Example:
    >>> from pruneport.commands import ShipConfig, ship  # doctest: +SKIP
    >>> ship(ShipConfig(source="torchvision:resnet50", flops=0.5, out=Path("half")))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pruneport.commands.configs import (
    BenchConfig,
    CompressConfig,
    ExportConfig,
    FinetuneConfig,
    InspectConfig,
    ShipConfig,
    TransferConfig,
    VerifyConfig,
)

if TYPE_CHECKING:
    from pruneport.commands.finetuning import finetune
    from pruneport.commands.shipping import ship
    from pruneport.commands.steps import bench, compress, export, inspect, verify
    from pruneport.commands.transferring import transfer

__all__ = [
    "BenchConfig",
    "CompressConfig",
    "ExportConfig",
    "FinetuneConfig",
    "InspectConfig",
    "ShipConfig",
    "TransferConfig",
    "VerifyConfig",
    "bench",
    "compress",
    "export",
    "finetune",
    "inspect",
    "ship",
    "transfer",
    "verify",
]

_HOMES = {"finetune": "finetuning", "ship": "shipping", "transfer": "transferring"} | dict.fromkeys(
    ("bench", "compress", "export", "inspect", "verify"), "steps"
)


def __getattr__(name: str) -> Any:
    """Import torch and ONNX Runtime only when a verb is used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"pruneport.commands.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
