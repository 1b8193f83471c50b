"""What a plan says of what was asked and done: plain data, so that loading a bundle imports no tracer or counter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from pruneport.compress.group_records import Cost
from pruneport.documents import Count, Share, Size

__all__ = [
    "Calibrated",
    "Earlier",
    "Imitated",
    "LatencyReached",
    "LatencyRound",
    "Recovered",
    "Request",
    "Trained",
]

_AboveZero = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    target: str
    value: float
    criterion: str
    scope: str
    ranking: str
    round_to: Size
    max_pruning_ratio: Share
    keep: tuple[str, ...] = ()
    attention: str = "width"
    prune_representation: bool = False
    depth: str = "never"


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The inputs that scores, sensitivities and recovery were computed from.

    Attributes:
        inputs: Images of a folder, or given as tensors; or synthetic ones, made from the BatchNorm statistics.
        count: How many.
        skipped: Files that could not be read.
    """

    inputs: Literal["images", "synthetic"]
    count: Count
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Imitated:
    """What an imitation did after reconstruction.

    Distances are of the features before pooling and of the main output: mean squared differences from the dense
    network's over the variance of the dense one's, summed. They are measured on a tenth of the calibration inputs,
    which was left out of reconstruction and training, and chose the learning rate and the state.

    Attributes:
        steps: Steps of the optimizer that were done.
        planned: How many there were to be; with the seed, as ``recovery_steps``, they give the same network again.
        learning_rate: The highest.
        trial_steps: Steps of the short trainings that chose the learning rate, together; 0 in plans that do not say it.
        tuning: Number of the inputs that were set aside.
        features: The module whose outputs were compared; None: the main output alone.
        distance_before: After reconstruction.
        distance_after: Of the state that was kept.
        stopped: Why the training ended: its steps were done, its time was up, ten checks brought no gain, or the loss
            was no finite number.
        kept: Which state; ``reconstruction`` where imitation brought nothing.
    """

    steps: Count
    planned: Count
    learning_rate: float
    tuning: Count
    features: str | None
    distance_before: float
    distance_after: float
    stopped: Literal["steps", "time", "no gain", "diverged"]
    kept: Literal["imitation", "reconstruction"]
    trial_steps: Count = 0


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What a recovery did and what it brought.

    An error is the mean squared difference of the pruned network's main output from the dense one's, over the variance
    of the dense one's. On the calibration inputs it says how well they were fitted, and nothing of others.
    Where a compressed network was compressed further, ``reference`` says whose outputs stand for the dense one's.

    Attributes:
        name: Which recovery; ``none`` where nothing was changed and only the errors were measured.
        images: Number of calibration inputs.
        error_before: On the calibration inputs, before recovery.
        error_after: The same after it.
        heldout: Number of inputs that no score, choice or solve has seen; 0 where there were too few to hold some out,
            and in plans from before any were.
        heldout_error_before: On those, before recovery; None where there are none.
        heldout_error_after: The same after it.
        heldout_agreement_before: Share of those whose highest class is the dense network's, before recovery; None
            where there are none, or the main output is not (B, classes).
        heldout_agreement: The same after it.
        imitation: What it did, where weights were trained, too.
        reference: ``dense``; or ``start``, the network that was compressed further, where it was trained since it came
            from the dense one, or the dense one's weights could not be had.
    """

    name: str
    images: Count
    error_before: float
    error_after: float
    heldout: Count = 0
    heldout_error_before: float | None = None
    heldout_error_after: float | None = None
    heldout_agreement_before: Share | None = None
    heldout_agreement: Share | None = None
    imitation: Imitated | None = None
    reference: Literal["dense", "start"] = "dense"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a fine-tuning did.

    Attributes:
        task: Name of the task's folder.
        classes: Names of the classes, in the order of the outputs.
        images: Training images.
        steps: Steps of the optimizer.
        flops: Training FLOPs: forward and backward of every image at 2 x MACs each pass of the forward's size (the
            backward has two), and of a teacher; validation is left out, as in Nevis'22.
        top1: Share of the test images that are classified right.
        test_images: How many there are.
        resize: Pixels of the images' shorter side before the centre crop to the input.
        mean: Of pixels in [0, 1], per channel; inputs are less it, over ``std``.
    """

    task: str
    classes: tuple[str, ...]
    images: Count
    steps: Count
    flops: float
    top1: Share
    test_images: Count
    resize: Count
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What was done before, to a network that was then compressed further.

    Attributes:
        created: When.
        request: What was asked.
        pruned: What was left.
        note: As in the plan of that time; so are the others.
    """

    created: str
    request: Request
    pruned: Cost
    note: str | None = None
    calibration: Calibrated | None = None
    recovery: Recovered | None = None
    training: Trained | Literal["outside"] | None = None
    latency: LatencyReached | None = None


@dataclass(frozen=True, kw_only=True)
class LatencyRound:
    """One solve for a latency target: what the model predicted, and what was measured on the exported file.

    Attributes:
        predicted: Share of the dense latency that the model gave these widths.
        measured: The share that was measured; None where the target is another machine's.
        low: Lower end of its bootstrap interval of 95 %.
        high: Upper end.
        wall: The share of the time that passed, where ``clock`` counts something else.
        dense_ms: Latency of the dense network beside it.
    """

    predicted: _AboveZero
    measured: _AboveZero | None = None
    low: _AboveZero | None = None
    high: _AboveZero | None = None
    wall: _AboveZero | None = None
    dense_ms: _AboveZero | None = None


@dataclass(frozen=True, kw_only=True)
class LatencyReached:
    """How a latency target was met. Shares are of the dense network's latency.

    Attributes:
        asked: The share that was asked for, or that the milliseconds asked for are.
        asked_ms: The milliseconds, where these were asked for.
        where: Provider, device, versions, threads, batch and precision, in words.
        clock: ``wall``, or ``thread-cpu``: the time that the one thread had a processor.
        batch: Images of a run.
        precision: Of both networks that were timed.
        step: Widths are multiples of it.
        networks: How many networks the model was fitted to before the first round.
        fit_error: Mean relative error of the model on networks that it was not fitted to.
        rounds: One entry a solve.
        chosen: Index of the round whose widths are the plan's.
    """

    asked: _AboveZero
    asked_ms: _AboveZero | None = None
    where: str
    clock: str
    batch: Size
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    step: Size
    networks: Count
    fit_error: float | None
    rounds: Annotated[tuple[LatencyRound, ...], msgspec.Meta(min_length=1)]
    chosen: Count

    @property
    def kept(self) -> float | None:
        """The share of the dense latency that was measured for the plan's widths; None where it was only predicted."""
        return self.rounds[self.chosen].measured
