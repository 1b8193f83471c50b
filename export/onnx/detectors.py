"""What torchvision's detectors do with data-dependent sizes, in a form that torch's exporter can trace.

Two functions of torchvision ask for a number of boxes as a Python number, which is not known while a network is traced;
and its SSD goes through the classes one by one, which takes minutes. Meanwhile others stand in their place that compute
the same: suppression by class becomes one operator of our own, NonMaxSuppression with a row of scores for each class in
the ONNX file; regions are pooled level by level; and SSD takes all classes at once.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["traceable_detectors", "translations"]

_BOXES, _POOLERS = "torchvision.ops.boxes", "torchvision.ops.poolers"
_SSD, _CHOOSING = "torchvision.models.detection.ssd", "postprocess_detections"
_NOT_OF_THE_CLASS = -3e38  # below every score
_INT64, _ALL = 7, 2**63 - 1  # ONNX's number of the type; no limit


@contextlib.contextmanager
def traceable_detectors(network: nn.Module) -> Iterator[None]:
    """Let the functions that a detector finds its boxes with be traced, in the block.

    Args:
        network: Where its own files have imported these functions by name, they are replaced there, too.
    """
    with contextlib.ExitStack() as stack:
        for home, name, make in ((_BOXES, "batched_nms", _nms), (_POOLERS, "_multiscale_roi_align", _pooling)):
            original = getattr(sys.modules.get(home), name, None)
            if original is not None:  # a network that has not imported torchvision's has no use for it
                stand_in = make(original)
                for names in _namespaces(network):
                    for key in [key for key, value in names.items() if value is original]:
                        stack.callback(names.__setitem__, key, original)
                        names[key] = stand_in
        detector = getattr(sys.modules.get(_SSD), "SSD", None)
        if detector is not None:
            stack.callback(setattr, detector, _CHOOSING, getattr(detector, _CHOOSING))
            setattr(detector, _CHOOSING, _choose_of_ssd)
        yield


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch's exporter: how our operator is written in ONNX."""
    return {_operator(): _onnx_nms_by_class}


def _namespaces(network: nn.Module) -> list[dict[str, Any]]:
    """Where the network may find torchvision's functions: torchvision's modules, and those of its own methods.

    A user's file is no longer among the imported modules once the network is built.
    """
    spaces = [vars(sys.modules[name]) for name in ("torchvision.ops", _BOXES, _POOLERS) if name in sys.modules]
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    methods = [method for kind in kinds for method in vars(kind).values() if isinstance(method, FunctionType)]
    return list({id(names): names for names in [*spaces, *(method.__globals__ for method in methods)]}.values())


@functools.cache
def _operator() -> Any:
    """Our operator; it is only ever traced, so that it has no kernel."""
    torch.library.define(
        "pruneport::nms_by_class", "(Tensor boxes, Tensor scores, Tensor classes, float iou_threshold) -> Tensor"
    )

    def traced(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
        kept = torch.library.get_ctx().new_dynamic_size(min=1)  # a forward may ask whether there are any
        return boxes.new_empty(kept, dtype=torch.int64)

    torch.library.register_fake("pruneport::nms_by_class", traced)

    return torch.ops.pruneport.nms_by_class.default


def _nms(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torchvision.ops.batched_nms``, traced."""

    @functools.wraps(original)
    def nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        kept: Tensor = _operator()(boxes, scores, idxs, iou_threshold)
        return kept

    return nms


def _onnx_nms_by_class(boxes: Any, scores: Any, classes: Any, iou_threshold: float) -> Any:
    """Places of the boxes (N, 4) that stay, by falling score, where boxes suppress those of their class alone."""
    from onnxscript.onnx_opset import opset18  # slow to import

    op: Any = opset18  # whose annotations know no constants
    classes = op.Cast(classes, to=_INT64)
    none = op.Constant(value_ints=[0])  # the largest of no class
    count = op.Add(op.ReduceMax(op.Concat(classes, none, axis=0), keepdims=0), op.Constant(value_int=1))
    each = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    own = op.Equal(op.Unsqueeze(classes, [0]), op.Unsqueeze(each, [1]))
    by_class = op.Where(own, op.Unsqueeze(scores, [0]), op.Constant(value_float=_NOT_OF_THE_CLASS))
    found = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]),
        op.Unsqueeze(by_class, [0]),
        op.Constant(value_ints=[_ALL]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[_NOT_OF_THE_CLASS / 2]),
    )
    places = op.Reshape(op.Slice(found, [2], [3], [1]), [-1])
    _, order = op.TopK(op.Gather(scores, places), op.Shape(places), largest=1, sorted=1)
    return op.Gather(places, order)


def _pooling(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torchvision.ops.MultiScaleRoIAlign``'s own function, which takes ``len`` of the regions, traced."""

    @functools.wraps(original)
    def pool(
        features: Sequence[Tensor],
        boxes: Sequence[Tensor],
        output_size: Sequence[int],
        sampling_ratio: int,
        scales: Sequence[float],
        mapper: Callable[[Sequence[Tensor]], Tensor],
    ) -> Tensor:
        if len(features) == 1:
            return original(features, boxes, output_size, sampling_ratio, scales, mapper)
        from torchvision.ops import roi_align

        owners = [torch.full_like(own[:, :1], image) for image, own in enumerate(boxes)]
        regions = torch.cat([torch.cat(owners), torch.cat(list(boxes))], dim=1)
        levels = mapper(boxes)
        pooled = regions.new_zeros((regions.shape[0], features[0].shape[1], *output_size))
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            places = torch.where(levels == level)[0]
            aligned = roi_align(feature, regions[places], tuple(output_size), scale, sampling_ratio)
            pooled = pooled.index_put((places,), aligned)
        return pooled

    return pool


def _choose_of_ssd(
    self: Any, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """``SSD.postprocess_detections`` of torchvision, with all classes at once."""
    from torchvision.ops import boxes as box_ops

    chosen = []
    every_score = head_outputs["cls_logits"].softmax(-1)
    images = zip(head_outputs["bbox_regression"], every_score, image_anchors, image_shapes, strict=True)
    for regression, scores, anchors, shape in images:
        boxes = box_ops.clip_boxes_to_image(self.box_coder.decode_single(regression, anchors), shape)
        best, places = scores[:, 1:].T.topk(min(self.topk_candidates, len(boxes)), dim=1)  # the first class is none
        label, rank = torch.where(best > self.score_thresh)
        boxes, scores, label = boxes[places[label, rank]], best[label, rank], label + 1
        kept = box_ops.batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
        chosen.append({"boxes": boxes[kept], "scores": scores[kept], "labels": label[kept]})
    return chosen
