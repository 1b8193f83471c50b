"""Where a training starts and what it ends as: the plan of a dense network, a new output layer, what training did."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch
from torch import nn

from pruneport.compress.allocation.cost import count_cost
from pruneport.compress.finetune.state import TrainState
from pruneport.compress.graph.output_layers import find_output_layers
from pruneport.compress.group_records import Cost
from pruneport.compress.prune import PLAN_LIBRARIES
from pruneport.compress.records import Trained
from pruneport.compress.surgery.plan import GroupPlan, Plan, Request
from pruneport.errors import InputError, ModelError
from pruneport.models.images.tasks import Task
from pruneport.models.inputs import run_on
from pruneport.models.outputs import tensor_leaves
from pruneport.models.record import Source
from pruneport.models.source import renew_output_layers
from pruneport.versions import library_versions

__all__ = ["dense_plan", "trained_plan", "with_output_layer"]


def dense_plan(network: nn.Module, source: Source) -> Plan:
    """A plan that removes nothing.

    Raises:
        ModelError: The network refuses the input shape.
    """
    cost = count_cost(network, source.takes)
    nothing = Request(
        target="flops", value=1.0, criterion="none", scope="filters", ranking="none", round_to=1, max_pruning_ratio=0.0
    )
    return Plan(
        source=source,
        request=nothing,
        dense=cost,
        pruned=cost,
        groups=(),
        libraries=library_versions(*PLAN_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def with_output_layer(network: nn.Module, plan: Plan, task: Task, keep: bool = False) -> tuple[nn.Module, Plan]:
    """A copy of the network with a fresh output layer for the task's classes, and its plan.

    Args:
        network: In eval mode.
        plan: How it came from its source.
        task: What the output layer is for.
        keep: Leave the output layer that is there, and only record it.

    Raises:
        InputError: The output layer is to be kept, and has another number of outputs.
        ModelError: It does not return scores of the classes, or gives no gradients.
        PruningError: The outputs are no layer's.
    """
    output_layers, classes = find_output_layers(network, plan.source.image_shape), len(task.classes)
    if keep and set(output_layers.values()) != {classes}:
        raise InputError(
            f"`keep_head`: the network has {next(iter(output_layers.values()))} outputs and {task.name} has {classes} "
            "classes; leave it out to train a new output layer."
        )
    named = replace(plan.source, class_names=task.classes)
    if keep:
        _check_trainable(network, plan.source, classes)
        return network, replace(plan, source=replace(named, output_layers=output_layers))
    outputs = dict.fromkeys(output_layers, classes)
    network, source = copy.deepcopy(network), replace(named, output_layers=outputs)
    renew_output_layers(network, source)
    _check_trainable(network, source, classes)
    pruned = count_cost(network, plan.source.takes)
    more = Cost(macs=pruned.macs - plan.pruned.macs, params=pruned.params - plan.pruned.params)
    # The output layer reads the representation, whose width is the dense network's: both gain the same.
    dense = Cost(macs=plan.dense.macs + more.macs, params=plan.dense.params + more.params)
    groups = tuple(_resized(group, classes) if group.name in outputs else group for group in plan.groups)
    # A latency that was measured is not that of a network with this output layer.
    return network, replace(plan, source=source, dense=dense, pruned=pruned, groups=groups, latency=None)


def _check_trainable(network: nn.Module, source: Source, classes: int) -> None:
    """Raise where no loss of the network's scores can be computed, or none of its gradients."""
    try:
        with torch.enable_grad():
            scores = tensor_leaves(run_on(network, source.takes.filled(2)))[0]
    except Exception as error:  # a forward may raise anything
        raise ModelError(
            f"the network cannot be trained: it does not run on two images at once: {type(error).__name__}: {error}."
        ) from error
    if not scores.is_floating_point() or tuple(scores.shape) != (2, classes):
        raise ModelError(
            f"the network cannot be trained: its first output for two images is {scores.dtype} of shape "
            f"{tuple(scores.shape)}; expected scores of shape (2, {classes}), one for each class. Let its forward "
            "return them first."
        )
    if not scores.requires_grad:
        raise ModelError(
            "the network cannot be trained: no gradient reaches its weights. Let its forward compute with gradients, "
            "and leave the weights that are trained unfrozen."
        )


def trained_plan(state: TrainState, task: Task) -> Plan:
    """The plan of a training's last state, which says what the training did."""
    return replace(
        state.plan,
        training=Trained(
            task=task.name,
            classes=task.classes,
            images=len(task.train),
            steps=state.step,
            flops=state.flops,
            top1=1 - state.events[-1].error,
            test_images=len(task.test),
            resize=task.test.preprocessing.resize,
            mean=task.test.preprocessing.mean,
            std=task.test.preprocessing.std,
        ),
    )


def _resized(group: GroupPlan, classes: int) -> GroupPlan:
    """The output layer's own group, whose every unit is one output."""
    members = tuple(
        replace(member, size=classes, positions=np.arange(classes, dtype=np.int64)[:, None]) for member in group.members
    )
    return replace(
        group,
        width=classes,
        asked=float(classes),
        macs=round(group.macs * classes / group.width),
        params=round(group.params * classes / group.width),
        members=members,
    )
