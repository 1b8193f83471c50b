"""What each operation of torch does to the labels of channels (see ``tracer``): one table, by the operator's name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pruneport.compress.graph.operators.attention import attend, attend_by_layer
from pruneport.compress.graph.operators.convolution import convolve
from pruneport.compress.graph.operators.elementwise import combine, concatenate, put, stack, write
from pruneport.compress.graph.operators.norm import norm, prelu
from pruneport.compress.graph.operators.product import multiply
from pruneport.compress.graph.operators.reduce import fold, glu, normalise, order, pool, reduce, sample
from pruneport.compress.graph.operators.shape import (
    channel_shuffle,
    embed,
    move,
    pad,
    pick,
    pixel_shuffle,
    pixel_unshuffle,
    share_memory,
    split,
    windows,
)
from pruneport.compress.graph.tracing.tracer import OpCall, Operation, Tracer

__all__ = ["LEAVES", "operate"]

_BatchNorm = nn.modules.batchnorm._NormBase


def operate(tracer: Tracer, call: OpCall) -> None:
    """Follow one operation: give its outputs their labels and join what it couples."""
    inputs, outputs = call.inputs, call.outputs
    name = call.name
    handler = _TABLE.get(name) or _TABLE.get(name.removesuffix("_"))
    if handler is None:
        handler = combine if torch.Tag.pointwise in call.function.tags else _unknown
    if handler in (_create, _create_like):
        handler(tracer, call)
        return
    changed = [inputs[0]._base] if name.endswith("_") and inputs and inputs[0]._base is not None else []
    tracer.carry(inputs, [*outputs, *changed])
    if inputs and not any(tensor.numel() for tensor in inputs):
        return  # nothing is in it that could be removed
    known = [labels.compact() for tensor in inputs for labels in tracer.labels_of(tensor) if not labels.unwrapped]
    handler(tracer, call)
    if handler not in _ENDS:
        after = [labels for out in outputs for labels in tracer.labels_of(out) if not labels.unwrapped]
        left = [labels.compact().flatten() for labels in after]
        shown = tracer.channel_ids.roots(torch.cat(left)) if left and handler in _JOINS else torch.tensor([])
        for ids in known if handler in _JOINS or not left else ():
            tracer.lose(outputs, ids[~torch.isin(tracer.channel_ids.roots(ids), shown)])
    tracer.carry(outputs, changed)


def _unknown(tracer: Tracer, call: OpCall) -> None:
    """What an operator does that is not in the table: the channels of its inputs must stay."""
    for tensor in call.inputs:
        for labels in tracer.labels_of(tensor):
            if not labels.unwrapped:
                tracer.notes.unprunable(labels.compact(), f"{tracer.here} calls {call.function}, which is not known")


def _create(tracer: Tracer, call: OpCall) -> None:
    """The outputs do not depend on any values."""


def _create_like(tracer: Tracer, call: OpCall) -> None:
    """The outputs have the shape of a tensor, and so its channels, but do not depend on its values."""
    if call.output.shape == call.args[0].shape:
        tracer.give(call.output, [labels for labels in tracer.labels_of(call.args[0]) if not labels.unwrapped])


def _read(tracer: Tracer, call: OpCall) -> None:
    """The outputs hold no channels, but depend on all of them."""


def _table() -> dict[str, Operation]:
    """Every operator that is known by name, and its handler."""
    table: dict[str, Operation] = {}
    for handler, names in (
        (move, "permute transpose t expand unsqueeze squeeze select unbind roll flip clone _to_copy contiguous alias "
                "detach repeat tile narrow diagonal movedim lift_fresh expand_as view_as repeat_interleave view "
                "_unsafe_view reshape slice split_with_sizes unfold as_strided"),
        (pad, "constant_pad_nd"),
        (split, "split chunk"),
        (concatenate, "cat concat"),
        (stack, "stack"),
        (write, "copy"),
        (put, "index_put"),
        (pool, "max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices avg_pool1d avg_pool2d "
                "avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool3d "
                "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d "
                "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
                "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
                "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
                "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
                "replication_pad3d grid_sampler_2d grid_sampler_3d mkldnn_max_pool2d mkldnn_max_pool3d"),
        (reduce, "mean sum var std var_mean std_mean amax amin max min argmax argmin any all "
                 "linalg_vector_norm norm logsumexp prod"),
        (normalise, "_softmax _log_softmax softmax cumsum"),
        (fold, "col2im"),
        (embed, "embedding"),
        (combine, "dropout native_dropout tril triu hardswish hardsigmoid hardtanh mish gelu elu celu selu softplus "
                   "log_sigmoid_forward leaky_relu "
                   "hardshrink threshold rrelu_with_noise where masked_fill"),
        (convolve, "convolution conv2d conv1d mkldnn_convolution"),
        (multiply, "mm bmm addmm baddbmm matmul linear"),
        (attend, "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
                  "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math"),
        (norm((_BatchNorm,), 1), "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
                                  "cudnn_batch_norm batch_norm instance_norm"),
        (norm((nn.LayerNorm,), -1, averaging=True), "native_layer_norm _fused_rms_norm"),
        (norm((nn.GroupNorm,), 1, averaging=True), "native_group_norm"),
        (prelu, "_prelu_kernel prelu"),
        (order, "topk sort argsort kthvalue median mode cummax cummin msort"),
        (glu, "glu"),
        (sample, "roi_align roi_pool"),
        (channel_shuffle, "channel_shuffle native_channel_shuffle"),
        (pixel_shuffle, "pixel_shuffle"),
        (pixel_unshuffle, "pixel_unshuffle"),
        (windows, "im2col"),
        (pick, "index index_select gather masked_select take"),
        (share_memory, "set"),
        (_create, "arange empty zeros ones full rand randn zero fill new_zeros new_ones new_full new_empty "
                  "scalar_tensor linspace eye random uniform normal is_same_size empty_strided sym_size bernoulli "
                  "meshgrid _assert_async"),
        (_create_like, "zeros_like ones_like empty_like full_like rand_like randn_like"),
        (_read, "_local_scalar_dense nonzero item unique _unique2 unique_consecutive bucketize searchsorted "
                "bincount"),
    ):  # fmt: skip
        table.update(dict.fromkeys(names.split(), handler))
    return table


_TABLE = _table()
_JOINS = frozenset({concatenate, stack, write})
"""Handlers of operations in which some channels may be shown by the outputs' labels, and others not."""
_ENDS = frozenset({convolve, multiply, attend, reduce, pick})
"""Handlers that say themselves which channels end in the operation."""


LEAVES: dict[type[nn.Module], Callable[..., None]] = {nn.MultiheadAttention: attend_by_layer}
