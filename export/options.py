"""What a user says about how networks are exported, and how that is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pruneport.models.options import ImageOptions

__all__ = ["DEFAULTS", "DynamicName", "EmbeddedName", "ExportOptions", "OnnxPrecision", "ParityOptions"]

DynamicName = Literal["batch", "batch,height,width"]
EmbeddedName = Literal["uint8-nhwc", "float-nchw"]
OnnxPrecision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the ONNX files are like, the dense and the pruned one alike."""

    batch_size_fixed: int | None = None
    """Export for this one batch size, which verify and bench then use; default: for any. For networks that take one
    image at a time, or that torch exports for no other."""
    dynamic: DynamicName = "batch"
    """Sizes of the input that stay open: batch, or batch,height,width where the network takes images of other sizes."""
    opset: int | None = None
    """ONNX opset of the files, from 18 to the newest that the ONNX Runtime here takes; default: torch's own."""
    input_names: tuple[str, ...] = ()
    """Name of the network's input in the files; default: input."""
    output_names: tuple[str, ...] = ()
    """Names of the outputs in the files, one for each, in the network's order; default: the ways to them in torch."""
    external_data: bool = False
    """Put the weights into a file of their own beside each ONNX file, as is done anyway above 1.8 GB."""
    embed_preprocessing: EmbeddedName | None = None
    """Put the normalisation into the files, which then take images that are only resized and cropped: uint8-nhwc (B, H,
    W, C) from 0 to 255, float-nchw (B, C, H, W) in 0 to 1; default: they take normalised inputs."""
    precisions: tuple[OnnxPrecision, ...] = ("fp32",)
    """Precisions of the files, of dense and pruned alike: fp16 and int8 come beside fp32, which is always there. int8
    is made for `provider`, from the calibration images, or from synthetic inputs."""
    float_layers: tuple[str, ...] = ()
    """Leave these layers in float in int8 files: shell patterns of module names, such as features.0.* or classifier."""


DEFAULTS = ExportOptions()
"""Nothing asked for: any batch, torch's opset and names."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(ImageOptions):
    """Inputs on which torch and ONNX Runtime must agree."""

    parity_batches: tuple[int, ...] = (1, 3, 8)
    """Batch sizes of the seeded inputs on which torch and ONNX Runtime are compared."""
