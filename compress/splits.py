"""Splits: every reader of a split tensor is coupled to the part that it reads.

torch-pruning numbers the parts in the order in which it meets their readers while it walks backwards. That is
mostly the wrong order, and a part that nobody or that several layers read shifts the others. Autograd records
which output of the split each reader uses, so the numbers are set right from there.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from typing import Any

import torch_pruning as tp
from torch_pruning.dependency import index_mapping, shape_infer

__all__ = ["Graph"]


class Graph(tp.DependencyGraph):  # type: ignore[misc]
    """torch-pruning's graph with the parts of splits in their places."""

    def _trace_computational_graph(
        self, module2node: Any, output: Any, gradfn2module: Any, *rest: Any, **named: Any
    ) -> Any:
        self._gradfn2module = gradfn2module
        return super()._trace_computational_graph(module2node, output, gradfn2module, *rest, **named)

    def build_dependency(self, *args: Any, **named: Any) -> Any:
        """Build the graph, then set right what hangs on splits."""
        self._gradfn2module = {}
        super().build_dependency(*args, **named)
        read = self._parts_read()
        for split in [node for node in self.module2node.values() if node.type == tp.ops.OPTYPE.SPLIT]:
            _renumber(split, read)
        if read:
            for node in self.module2node.values():
                if node.type == tp.ops.OPTYPE.CONCAT:
                    _measure_again(self, node, read)
        return self

    def _parts_read(self) -> dict[tuple[Any, Any], list[int]]:
        """For each split and each of its readers the parts read, in the order of the reader's inputs."""
        read: dict[tuple[Any, Any], list[int]] = defaultdict(list)
        for grad_fn, module in self._gradfn2module.items():
            reader = self.module2node.get(module)
            for source, part in getattr(grad_fn, "next_functions", ()) if reader is not None else ():
                split = self.module2node.get(self._gradfn2module.get(source))
                if split is not None and split.type == tp.ops.OPTYPE.SPLIT:
                    read[split, reader].append(part)
        return read


def _renumber(split: Any, read: dict[tuple[Any, Any], list[int]]) -> None:
    if not any(isinstance(dep.index_mapping[0], index_mapping._SplitIndexMapping) for dep in split.dependencies):
        return  # not along the channels
    sizes = _part_sizes(split.grad_fn)
    stops = list(accumulate(sizes))
    counts: dict[Any, int] = defaultdict(int)
    split.module.split_sizes = []
    for reader in split.outputs:
        part = read[split, reader][counts[reader]]
        place = [stops[part] - sizes[part], stops[part]]
        for owner, target in ((split, reader), (reader, split)):
            edges = [dep for dep in owner.dependencies if dep.target is target]
            mapping = index_mapping._SplitIndexMapping(place, reverse=owner is reader)
            edges[counts[reader]].index_mapping[0] = mapping
        counts[reader] += 1
        split.module.split_sizes.append(sizes[part])


def _part_sizes(grad_fn: Any) -> list[int]:
    if hasattr(grad_fn, "_saved_split_sizes"):
        return [int(size) for size in grad_fn._saved_split_sizes]
    dim = int(grad_fn._saved_dim)
    dim = dim - 2**64 if dim >= 2**63 else dim  # autograd shows a negative dimension as unsigned
    total, part = int(grad_fn._saved_self_sym_sizes[dim]), int(grad_fn._saved_split_size)
    return [min(part, total - start) for start in range(0, total, part)]


def _measure_again(graph: Any, concat: Any, read: dict[tuple[Any, Any], list[int]]) -> None:
    """Concatenations took the widths of their inputs from the splits before."""
    edges = [
        *concat.dependencies,
        *(dep for node in concat.inputs for dep in node.dependencies if dep.target is concat),
    ]
    for dep in edges:
        if isinstance(dep.index_mapping[1], index_mapping._ConcatIndexMapping):
            dep.index_mapping[1] = None
    counts: dict[Any, int] = defaultdict(int)
    concat.module.concat_sizes = []
    for node in concat.inputs:
        size = shape_infer.infer_channels_between(graph, node, concat)
        if (node, concat) in read and size is not None:
            size = _part_sizes(node.grad_fn)[read[node, concat][counts[node]]]
            counts[node] += 1
        concat.module.concat_sizes.append(size)
    index_mapping.update_concat_index_mapping(graph, concat)
    for dep in concat.dependencies:
        if any(dep.target is node and (node, concat) in read for node in concat.inputs):
            dep.index_mapping.reverse()  # backwards the concatenation is undone first, then the split
