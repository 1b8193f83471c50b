"""The record of a model source: everything needed to build the dense network again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pruneport.documents import Path, Size

__all__ = ["LIBRARIES", "Factory", "Live", "Scalar", "Source", "fields_of_source"]

Factory = Callable[..., nn.Module]
Scalar = bool | int | float | str | None

LIBRARIES = ("torchvision", "timm", "pruneport")
"""Sources whose code is installed beside ours; a bundle of any other source needs its owner's factory."""

_IN_FILES = {"output_layers": "heads"}  # the key of plan.json's first versions, which stay readable


@dataclass(frozen=True, kw_only=True)
class Live:
    """Of a network that was in memory, and that no factory is known of.

    Attributes:
        trained: Whether it seems to be; BatchNorms that never saw an input say no.
        state_sha256: The hash of its state, see ``state_sha256``.
    """

    trained: bool
    state_sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything needed to build the dense network again; the plan records it as JSON.

    Attributes:
        live: For a network that was in memory; then ``spec`` is the name of its class.
        output_layers: Those that were replaced for other classes: number of outputs by layer name.
    """

    spec: str
    model_args: dict[str, Scalar]
    input_shape: tuple[Size, Size, Size]
    seed: int = 0
    weights: str | None = None
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    output_layers: dict[str, Size] = field(default_factory=dict)
    live: Live | None = None

    @property
    def library(self) -> str | None:
        """The library that holds the factory, or None for a factory of the user's own."""
        prefix = self.spec.partition(":")[0]
        return prefix if prefix in LIBRARIES and self.live is None else None

    @property
    def trained(self) -> bool:
        """Whether the weights come from a checkpoint, a weight name or a trained network, not from an initialiser."""
        if self.live is not None:
            return self.live.trained
        return self.checkpoint is not None or self.weights is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as plan.json has it."""
        plain = {_IN_FILES.get(name, name): value for name, value in asdict(self).items()}
        return {name: value for name, value in plain.items() if (name, value) != ("live", None)}


def fields_of_source(plain: object) -> object:
    """What plan.json says of a source, with the names of its fields for keys; what is no object stays as it is."""
    names = {key: name for name, key in _IN_FILES.items()}
    return {names.get(key, key): value for key, value in plain.items()} if isinstance(plain, dict) else plain
