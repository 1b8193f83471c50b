"""The networks that ``training.py`` trains: one pruned the plain way, and the same share with accuracy won back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pruneport.bench.experiments.accuracy import Case
from pruneport.compress.activations.calibration import BATCH
from pruneport.compress.devices import find_device
from pruneport.compress.finetune.setup import with_output_layer
from pruneport.compress.finetune.state import TrainState, read_state, write_state
from pruneport.compress.finetune.training import training_flops
from pruneport.compress.options import CompressOptions
from pruneport.compress.pipeline import compress_to
from pruneport.compress.records import Recovered
from pruneport.compress.recovery.imitate import steps_in_all
from pruneport.compress.surgery.plan import Plan
from pruneport.models.images.tasks import Task
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source

__all__ = ["STARTS", "Asked", "make_start"]

STARTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "plain": {"criterion": "l1", "ranking": "uniform", "recover": "none"},
        "recovered": {"criterion": "block-hessian", "ranking": "sensitivity", "recover": "reconstruct"},
        "imitated": {"criterion": "block-hessian", "ranking": "sensitivity", "recover": "imitate"},
    }
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What all starts have in common.

    Attributes:
        case: The network; its calibration images are taken from ``calibration``.
        data: Holds the checkpoint.
        kept: Share of the multiply-accumulates.
        calibration: A folder of training images, whose labels are not read.
        recovery_steps: Of the imitation.
        accelerator: Where it is scored and recovered.
    """

    case: Case
    data: Path
    kept: float
    calibration: Path
    recovery_steps: int
    accelerator: str


def make_start(name: str, asked: Asked, task: Task, file: Path) -> TrainState:
    """Prune and recover as ``pruneport compress`` does, and keep the output layer; once, then it is read again.

    Args:
        name: Of ``STARTS``.
        asked: What they have in common.
        task: Whose classes the outputs are.
        file: Where the start is kept.

    Returns:
        A training that has not begun; its configuration says what the start took.
    """
    if file.is_file():
        return read_state(file)
    case, way = asked.case, STARTS[name]
    dense, source = open_source(
        SourceOptions(source=case.source, checkpoint=asked.data / "weights" / case.weights, input_shape=case.shape)
    )
    imitates = way["recover"] == "imitate"
    options = CompressOptions(
        **way,
        flops=asked.kept,
        round_to=case.round_to,
        calibration=None if way["recover"] == "none" else asked.calibration,
        calibration_images=case.calibration,
        recovery_steps=asked.recovery_steps if imitates else None,
        accelerator=asked.accelerator,
        mean=case.mean,
        std=case.std,
    )
    began = time.monotonic()
    (pruned,) = compress_to([options], dense, source)
    seconds = time.monotonic() - began
    network, plan = with_output_layer(pruned.network, pruned.plan, task, keep=True)
    took = {
        **way,
        "macs_kept": round(plan.macs_kept, 4),
        "macs": plan.pruned.macs,
        "dense_macs": plan.dense.macs,
        "calibration_images": 0 if plan.recovery is None else plan.recovery.images,
        "compress_s": round(seconds, 1),
        "device": find_device(asked.accelerator).type,
        "imitation_flops": 0.0 if plan.recovery is None else _imitation_flops(plan.recovery, plan),
        "imitation": None
        if plan.recovery is None or plan.recovery.imitation is None
        else asdict(plan.recovery.imitation),
    }
    state = TrainState(plan=plan, weights=dict(network.state_dict()), config=took)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_state(file, state)
    return state


def _imitation_flops(recovery: Recovered, plan: Plan) -> float:
    """FLOPs of an imitation's steps, counted as those of a training with a teacher; 0 where nothing was imitated.

    What is measured on the images that were set aside is not counted, as the validation of a training is not.
    """
    done = recovery.imitation
    if done is None:
        return 0.0
    images = (recovery.images - done.tuning) / -(-recovery.images // BATCH)  # of a step, on the mean
    return steps_in_all(done) * images * training_flops(plan.pruned.macs, plan.dense.macs)
