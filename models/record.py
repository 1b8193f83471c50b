"""The record of a model source: everything needed to build the dense network again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pruneport.documents import Path, Size
from pruneport.errors import ModelError
from pruneport.models.inputs import InputSpec, inputs_of
from pruneport.models.options import InterpolationName

__all__ = ["LIBRARIES", "Factory", "Live", "Preprocessing", "Scalar", "Source", "fields_of_source"]

Factory = Callable[..., nn.Module]
Scalar = bool | int | float | str | None

LIBRARIES = ("torchvision", "timm", "pruneport")
"""Sources whose code is installed beside ours; a bundle of any other source needs its owner's factory."""

_WHERE_KNOWN = ("live", "preprocessing", "class_names", "inputs")  # left out else, as earlier versions wrote it
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
class Preprocessing:
    """How an image becomes an input: resized, cropped from the centre to the input's size, normalised.

    Attributes:
        resize: Pixels of the shorter side, or of both where they are squashed.
        interpolation: How pixels are resized.
        mean: Of pixels in [0, 1], per channel; inputs are less it, over ``std``.
        std: See ``mean``.
        squash: Whether both sides are resized to the same length, whatever the image's shape.
        origin: Who says so, in words.
    """

    resize: Size
    interpolation: InterpolationName
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything needed to build the dense network again; the plan records it as JSON.

    Attributes:
        live: For a network that was in memory; then ``spec`` is the name of its class.
        output_layers: Those that were replaced for other classes: number of outputs by layer name.
        preprocessing: How images become its inputs; None where these are no images, and in plans from before it was
            recorded.
        class_names: In the order of the outputs; empty where they are not known.
        input_shape: C, H, W of images; None where it takes something else.
        inputs: What it takes, where these are not images alone.
    """

    spec: str
    model_args: dict[str, Scalar]
    input_shape: tuple[Size, Size, Size] | None
    seed: int = 0
    weights: str | None = None
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    output_layers: dict[str, Size] = field(default_factory=dict)
    live: Live | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    inputs: InputSpec | None = None

    def __post_init__(self) -> None:
        if (self.input_shape is None) == (self.inputs is None):
            raise ValueError("expected either `input_shape` or `inputs`")

    @property
    def takes(self) -> InputSpec:
        """What the network takes."""
        return self.inputs if self.inputs is not None else inputs_of(self.image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W of the images that the network takes.

        Raises:
            ModelError: It takes something else.
        """
        if self.input_shape is None:
            raise ModelError(
                f"{self.spec} takes {self.inputs}, no images (B, C, H, W) alone: what reads images cannot be used with "
                "it. Give it tensors, in Python: pruneport.prune with `example_inputs` and a list as `calibration`."
            )
        return self.input_shape

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
        return {name: value for name, value in plain.items() if value or name not in _WHERE_KNOWN}


def fields_of_source(plain: object) -> object:
    """What plan.json says of a source, with the names of its fields for keys; what is no object stays as it is."""
    names = {key: name for name, key in _IN_FILES.items()}
    return {names.get(key, key): value for key, value in plain.items()} if isinstance(plain, dict) else plain
