"""A network as ONNX in memory, and the file that it is written to, with what is known of it in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneport.export.onnx.capture import listed
from pruneport.export.onnx.embedding import EMBEDDED, Embedding, sizes_in_file
from pruneport.export.onnx.form import InputSizes, open_sizes
from pruneport.export.options import ExportOptions, OnnxPrecision
from pruneport.models.inputs import InputSpec

__all__ = ["OnnxNetwork"]

_INLINE_LIMIT_BYTES = 1_800_000_000  # a protobuf holds at most 2 GiB


@dataclass(frozen=True, kw_only=True)
class OnnxNetwork:
    """A network as ONNX in memory; its weights are the torch network's own.

    Attributes:
        options: What it was exported for.
        inputs: What it takes; of images, H and W may be open.
        outputs: Names of its outputs in torch, in order.
        left_out: What the torch network returns besides tensors: type by name.
        embedding: What stands before the network in the file; None where it takes normalised inputs.
        precision: In which the file computes: fp32 or fp16.
    """

    options: ExportOptions
    inputs: InputSpec
    outputs: tuple[str, ...]
    left_out: Mapping[str, str]
    embedding: Embedding | None = None
    precision: OnnxPrecision = "fp32"
    _program: Any

    @property
    def batch(self) -> int | None:
        """The one batch size that it takes, or None where it takes any."""
        return self.options.batch_size_fixed

    @property
    def sizes(self) -> InputSizes:
        """Which inputs it takes."""
        options = self.options
        return InputSizes(batch=self.batch, any_size=open_sizes(options), embedded=options.embed_preprocessing)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; weights beyond 1.8 GB go to ``path`` + ".data", and all where that was asked for.

        Args:
            path: The .onnx file.
            metadata: Stands in the file's metadata with the prefix ``pruneport.``, beside torch's names of the outputs,
                those chosen for them, what is left out, the batch size where it is fixed, what is embedded, a size of
                images to run it at where that is open, in the order of the file's input, and the lowest and highest
                value of inputs that have them.
        """
        model = self._program.model
        said = {**metadata, "outputs": json.dumps(self.outputs)}
        if self.options.output_names:
            said["output_names"] = json.dumps(self.options.output_names)
        if open_sizes(self.options):
            size = self.inputs.image_shape
            said["input_shape"] = json.dumps(size and sizes_in_file(self.options.embed_preprocessing, size))
        if self.embedding is not None:
            said[EMBEDDED] = self.embedding.name
        if ranges := self._ranges():
            said["input_ranges"] = json.dumps(ranges)
        if self.precision != "fp32":
            said["precision"] = self.precision
        if self.left_out:
            said["left_out"] = listed(self.left_out)
        if self.batch is not None:
            said["batch_size_fixed"] = str(self.batch)
        model.metadata_props.update({f"pruneport.{key}": value for key, value in said.items()})
        size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        self._program.save(str(path), external_data=self.options.external_data or size > _INLINE_LIMIT_BYTES)

    def _ranges(self) -> dict[str, tuple[float, float]]:
        """The lowest and highest value of each input that has them, by its name in the file."""
        tensors = self.inputs.tensors
        names = self.options.input_names or [tensor.name for tensor in tensors]
        return {
            name: (tensor.low, tensor.high)
            for name, tensor in zip(names, tensors, strict=True)
            if tensor.low is not None and tensor.high is not None
        }
