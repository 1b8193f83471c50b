"""The commands of the command line as Python functions, each with its frozen configuration.

- ``configs``: the configurations, composed of the rooms' options
- ``flags``: the command line's arguments and their help, made from the configurations
- ``flag_names``: options of Python as flags, in messages
- ``slips``: what is wrong with the words of a command line
- ``steps``: inspect, compress, export, verify and bench
- ``shipping``: ship: all steps in one
- ``finetuning``: finetune
- ``transferring``: transfer: the study, its report and its advice
- ``pushing``: push
- ``artifacts``: what the commands put into a bundle
- ``records``: what earlier commands wrote into a bundle, read for card and report
- ``terminal/``: what a person at the terminal, or of a log, reads
- ``results``: what the commands return, typed and as JSON

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
    PushConfig,
    ShipConfig,
    TransferConfig,
    VerifyConfig,
)

if TYPE_CHECKING:
    from pruneport.commands.finetuning import finetune
    from pruneport.commands.pushing import push
    from pruneport.commands.shipping import ship
    from pruneport.commands.steps import bench, compress, export, inspect, verify
    from pruneport.commands.transferring import transfer

__all__ = [
    "BenchConfig",
    "CompressConfig",
    "ExportConfig",
    "FinetuneConfig",
    "InspectConfig",
    "PushConfig",
    "ShipConfig",
    "TransferConfig",
    "VerifyConfig",
    "bench",
    "compress",
    "export",
    "finetune",
    "inspect",
    "push",
    "ship",
    "transfer",
    "verify",
]

_HOMES = {"finetune": "finetuning", "push": "pushing", "ship": "shipping", "transfer": "transferring"} | dict.fromkeys(
    ("bench", "compress", "export", "inspect", "verify"), "steps"
)


def __getattr__(name: str) -> Any:
    """Import torch and ONNX Runtime only when a verb is used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"pruneport.commands.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
