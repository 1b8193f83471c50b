"""Distillation from the dense network: its representation, which has the same width in the pruned one.

The output layer reads it, whatever the classes, so that a dense network trained on others can teach.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pruneport.compress.allocation.cost import count_cost
from pruneport.compress.hooks import inputs_recorded
from pruneport.models.record import Factory, Source
from pruneport.models.source import build_dense

__all__ = ["Teacher"]


class Teacher:
    """The dense network as its source builds it, in eval mode.

    Args:
        source: Its output layers are those that it was trained with.
        output_layer: Reads the representation.
        factory: Builds the architecture in place of the source's.
        device: Where it runs.

    Raises:
        CheckpointError: Its checkpoint is not where it was.
    """

    def __init__(self, source: Source, output_layer: str, factory: Factory | None, device: torch.device) -> None:
        dense = build_dense(replace(source, output_layers={}), factory)
        self.macs = count_cost(dense, source.takes).macs
        self._dense, self._output_layer = dense.to(device), output_layer

    @torch.no_grad()
    def _represent(self, inputs: Tensor) -> Tensor:
        with inputs_recorded(self._dense, self._output_layer) as seen:
            self._dense(inputs)
        return seen[-1]

    def distance(self, inputs: Tensor, student: Tensor) -> Tensor:
        """Mean squared distance to the teacher's representation, over its variance."""
        wanted = self._represent(inputs)
        return (student.float() - wanted).square().mean() / wanted.var().clamp_min(1e-12)
