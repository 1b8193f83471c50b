"""The commands of the command line as Python functions, each with its frozen configuration.

- ``configs``: the configurations, composed of the rooms' options
- ``arguments/``: the command line's arguments: read, and what is wrong with them
- ``compressing``: inspect and compress: from a source to a bundle with a plan
- ``deploying``: export, verify and bench: from a bundle to files that are proved and timed
- ``bundling``: a pruned network becomes a bundle: exported, verified, timed, reported
- ``shipping``: ship: all steps in one
- ``sweeping/``: sweep, and the search for a network within limits
- ``finetuning``: finetune
- ``transferring``: transfer: the study, its report and its advice
- ``pushing``: push
- ``starting``: what they start from: a source, or a bundle
- ``timing/``: latency, and what a latency target needs
- ``artifacts``: what the commands put into a bundle
- ``records``: what is read of a bundle: its networks, and what earlier commands wrote
- ``api/``: what ``pruneport`` itself offers: the same by keyword arguments, and from a network in memory
- ``terminal/``: what a person at the terminal, or of a log, reads
- ``results``: what the commands return, typed and as JSON
- ``study_results``: the same of those that make many networks: sweep and transfer

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
    LatencyConfig,
    PushConfig,
    ShipConfig,
    SweepConfig,
    TransferConfig,
    VerifyConfig,
)

if TYPE_CHECKING:
    from pruneport.commands.compressing import compress, inspect
    from pruneport.commands.deploying import bench, export, verify
    from pruneport.commands.finetuning import finetune
    from pruneport.commands.pushing import push
    from pruneport.commands.shipping import ship
    from pruneport.commands.sweeping.sweep import sweep
    from pruneport.commands.timing.measuring import latency
    from pruneport.commands.transferring import transfer

__all__ = [
    "BenchConfig",
    "CompressConfig",
    "ExportConfig",
    "FinetuneConfig",
    "InspectConfig",
    "LatencyConfig",
    "PushConfig",
    "ShipConfig",
    "SweepConfig",
    "TransferConfig",
    "VerifyConfig",
    "bench",
    "compress",
    "export",
    "finetune",
    "inspect",
    "latency",
    "push",
    "ship",
    "sweep",
    "transfer",
    "verify",
]

_HOMES = {
    **dict.fromkeys(("compress", "inspect"), "compressing"),
    **dict.fromkeys(("bench", "export", "verify"), "deploying"),
    "finetune": "finetuning",
    "latency": "timing.measuring",
    "push": "pushing",
    "ship": "shipping",
    "sweep": "sweeping.sweep",
    "transfer": "transferring",
}


def __getattr__(name: str) -> Any:
    """Import torch and ONNX Runtime only when a verb is used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"pruneport.commands.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
