"""ONNX files: written by torch's dynamo exporter with a dynamic batch, and checked."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pruneport.errors import ExportError

__all__ = ["INPUT_NAME", "check_onnx", "read_metadata", "write_onnx"]

INPUT_NAME = "input"
_INLINE_LIMIT_BYTES = 1_800_000_000  # a protobuf holds at most 2 GiB


def write_onnx(network: nn.Module, shape: tuple[int, int, int], path: Path, metadata: Mapping[str, str]) -> None:
    """Export ``network`` for inputs (B, C, H, W) with any B.

    Args:
        network: In eval mode.
        shape: C, H, W.
        path: The .onnx file; weights beyond 1.8 GB go to ``path`` + ".data".
        metadata: Stands in the file's metadata with the prefix ``pruneport.``.

    Raises:
        ExportError: The exporter cannot express the network, or only for one batch size.
    """
    example = torch.zeros(2, *shape)
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of torch's tracers, which say in pages what the error below says in a line
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _PlainAttention():
            warnings.simplefilter("ignore")  # and the exporter prints graphs on stderr
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ExportError(
            f"torch cannot export {type(network).__name__} with a dynamic batch: {reason[0] if reason else error!r}. "
            "Make its forward free of control flow that depends on values, and of sizes taken as Python numbers."
        ) from error
    finally:
        logging.disable(disabled)
    assert program is not None
    dimensions = program.model.graph.inputs[0].shape
    if dimensions is not None and isinstance(dimensions[0], int):
        raise ExportError(
            f"torch exports {type(network).__name__} for a batch of {dimensions[0]} only: its forward turns the batch "
            "size into a number. Take it from the input's shape wherever it is needed, and as a torch size."
        )
    _part_pads_from_pools(program.model.graph)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    program.model.metadata_props.update({f"pruneport.{key}": value for key, value in metadata.items()})
    program.save(str(path), external_data=size > _INLINE_LIMIT_BYTES)


def _part_pads_from_pools(graph: Any) -> None:
    """Put a reshape to the same shape, which costs nothing, between a padding and a maximum pooling.

    ONNX Runtime makes one node of the two, whose padding never is the largest value, whatever it was: timm's BiT pads
    with zeros, which are larger than what is negative.
    """
    from onnxscript import ir  # slow to import

    for pool in list(graph.all_nodes()):
        padding = pool.inputs[0].producer() if pool.op_type == "MaxPool" and pool.inputs[0] is not None else None
        if padding is not None and padding.op_type == "Pad":
            sizes = [0] * (2 + len(pool.attributes["kernel_shape"].as_ints()))  # 0: the size that is there
            shape = ir.node("Constant", inputs=[], attributes={"value_ints": sizes})
            same = ir.node("Reshape", inputs=[pool.inputs[0], shape.outputs[0]])
            pool.graph.insert_before(pool, [shape, same])
            pool.replace_input_with(0, same.outputs[0])


class _PlainAttention(TorchFunctionMode):
    """Gives attention, and its mask, the four dimensions (batch, heads, places, width) that the exporter knows.

    Its result is copied: the layout that fused attention returns is not the one that the exporter's has.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = _attend if function is F.scaled_dot_product_attention else function
        return call(*args, **(kwargs or {}))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **named: Any
) -> Any:
    """Attention of queries (…, L, E), keys (…, S, E) and values (…, S, V); the mask broadcasts to (…, L, S)."""
    lead = query.shape[:-2]
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _four(attn_mask.expand(*lead, *attn_mask.shape[-2:]))
    attended = F.scaled_dot_product_attention(_four(query), _four(key), _four(value), attn_mask, *args, **named)
    return attended.reshape(*lead, *attended.shape[-2:]).clone(memory_format=torch.contiguous_format)


def _four(part: Tensor) -> Tensor:
    """(…, places, width) as (batch, heads, places, width); without heads, as of one."""
    return part.flatten(0, part.ndim - 4) if part.ndim > 3 else part.reshape(-1, 1, *part.shape[-2:])


def check_onnx(path: Path) -> str:
    """Run onnx's checker with shape inference; return a sentence that says what was checked.

    Raises:
        ExportError: The file is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"{path} is not valid ONNX: {error}. Export it again.") from error
    model = onnx.load(str(path), load_external_data=False)
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    return f"{path.name}: {len(model.graph.node)} nodes, opset {opsets}"


def read_metadata(path: Path) -> dict[str, str]:
    """Return the ``pruneport.`` metadata of an ONNX file, without the prefix."""
    model = onnx.load(str(path), load_external_data=False)
    return {
        entry.key.removeprefix("pruneport."): entry.value
        for entry in model.metadata_props
        if entry.key.startswith("pruneport.")
    }
