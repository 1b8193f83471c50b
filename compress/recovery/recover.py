"""Recovery: accuracy won back after pruning, without labels: by statistics, in closed form, or by imitation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from pruneport.compress.activations.calibration import LEAST_HELD_OUT, Batches, set_aside
from pruneport.compress.activations.statistics import as_seen, estimate_statistics
from pruneport.compress.activations.synthetic import has_statistics, require_statistics
from pruneport.compress.devices import CPU, loaded_on, network_on
from pruneport.compress.importance.sensitivity import relative_error
from pruneport.compress.options import RecoveryOptions
from pruneport.compress.records import Imitated, Recovered
from pruneport.compress.recovery.imitate import Effort, imitate
from pruneport.compress.recovery.imitation_state import Unfinished
from pruneport.compress.recovery.reconstruct import reconstruct
from pruneport.compress.surgery.apply import positions_kept
from pruneport.compress.surgery.plan import GroupPlan
from pruneport.errors import ImageFolderError, InputError, PruningError
from pruneport.models.inputs import run_on
from pruneport.models.outputs import main_output
from pruneport.progress import Progress, silent

__all__ = ["RECOVERIES", "choose_recovery", "imitates", "recover"]

_EFFORT = Effort()
Kept = Mapping[str, Mapping[str, Sequence[int]]]
Recovery = Callable[[nn.Module, nn.Module, Kept, Batches, Progress], None]


def choose_recovery(
    options: RecoveryOptions, network: nn.Module, trained: bool, data_free: bool = True, *, calibrated: bool = False
) -> str:
    """Name the recovery that the options ask for.

    ``auto`` is the best that the given images allow in closed form; it imitates where a time is given for that, since
    what it brings takes minutes.

    Args:
        options: What was asked.
        network: The dense network: without images, its BatchNorm statistics are all there is.
        trained: Whether its weights were trained; random ones are not worth recovering without being asked.
        data_free: Whether synthetic inputs would be of use: it takes several at a time and returns what errors can be
            measured on.
        calibrated: Whether there are inputs besides a folder that the options name.

    Raises:
        ImageFolderError: It needs images and none are given, or none and they are.
        InputError: Time is given for another recovery than imitation, or is out of range.
        PruningError: It needs BatchNorm statistics and the network has none.
    """
    calibrated = calibrated or options.calibration is not None
    timed = _check_effort(options)
    if options.recover == "auto":
        synthetic = trained and data_free and has_statistics(network)
        if timed is not None:
            if not calibrated and not synthetic:
                raise ImageFolderError(
                    f"`{timed}` is given, and there is nothing to imitate on: give images with `calibration=FOLDER`."
                )
            return "imitate"
        return "reconstruct" if calibrated else "data-free" if synthetic else "none"
    if options.recover == "imitate":
        if not calibrated:
            require_statistics(network)
        return "imitate"
    if timed is not None:
        raise InputError(f"`{timed}` is for `recover=imitate`, and `recover={options.recover}` was asked for.")
    if options.recover == "data-free":
        if calibrated:
            raise ImageFolderError("`recover=data-free` uses no images: leave out `calibration`, or use reconstruct.")
        require_statistics(network)
    elif options.recover != "none" and not calibrated:
        raise ImageFolderError(
            f"`recover={options.recover}` needs images: give `calibration=FOLDER`; no labels are needed. "
            "Without images there is `recover=data-free`."
        )
    return options.recover


def imitates(options: RecoveryOptions) -> bool:
    """Whether the options ask for imitation, or for nothing that can be met."""
    return options.recover == "imitate" or (options.recover == "auto" and bool(_lengths(options)))


def recover(
    name: str,
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[GroupPlan],
    batches: Batches,
    progress: Progress = silent,
    heldout: Batches = (),
    effort: Effort = _EFFORT,
    device: torch.device = CPU,
    *,
    synthetic: bool = False,
    unfinished: Unfinished | None = None,
) -> Recovered:
    """Change the weights or statistics of ``pruned`` in place so that it computes more of what ``dense`` does.

    Args:
        name: ``imitate`` or a key of ``RECOVERIES``; with ``none`` nothing is changed, only measured.
        dense: The original network; it is only run.
        pruned: The pruned one.
        groups: What was removed.
        batches: Calibration inputs.
        progress: Told what is being done.
        heldout: Inputs that were used for nothing else, to measure on.
        effort: How long imitation may take.
        device: Where both networks are run and layers are solved; they themselves stay where they are.
        synthetic: Whether the inputs were made from the network's statistics: see ``as_seen``.
        unfinished: Where imitation is saved meanwhile, and goes on from if it was stopped.

    Raises:
        OSError: It cannot be saved.
        ImageFolderError: There are too few images.
        PruningError: The outputs of one of the networks are not numbers.
    """
    kept = positions_kept([(m, group.kept) for group in groups if group.kept for m in group.members])
    dense, given, pruned = network_on(device, dense), pruned, network_on(device, pruned)
    batches, heldout = loaded_on(device, batches), loaded_on(device, heldout)
    progress("measuring the output error")
    seen, unseen = _Wanted(dense, batches), _Wanted(dense, heldout)
    before, unseen_before = seen.compare(pruned), unseen.compare(pruned)
    after, unseen_after = before, unseen_before
    imitated: Imitated | None = None
    if name != "none":
        seeing = as_seen(dense, pruned, kept, batches, progress) if synthetic else nullcontext(dense)
        with seeing as teacher:
            if name == "imitate":
                imitated = _imitate(
                    teacher, pruned, kept, batches, effort, progress, unfinished, mirrored=not synthetic
                )
            else:
                RECOVERIES[name](teacher, pruned, kept, batches, progress)
        progress("measuring the output error")
        after, unseen_after = seen.compare(pruned), unseen.compare(pruned)
        if pruned is not given:
            given.load_state_dict(pruned.state_dict())
    assert before.error is not None
    assert after.error is not None
    return Recovered(
        name=name,
        images=seen.count,
        error_before=before.error,
        error_after=after.error,
        heldout=unseen.count,
        heldout_error_before=unseen_before.error,
        heldout_error_after=unseen_after.error,
        heldout_agreement_before=unseen_before.agreement,
        heldout_agreement=unseen_after.agreement,
        imitation=imitated,
    )


class _Compared(NamedTuple):
    """How a pruned network's main output compares with the dense one's; None where that cannot be said."""

    error: float | None
    agreement: float | None


class _Wanted:
    """The dense network's main output on some inputs, and what others make of them."""

    def __init__(self, dense: nn.Module, batches: Batches) -> None:
        self._batches = batches
        self._outputs = _outputs(dense, batches)
        self.count = sum(len(outputs) for outputs in self._outputs)

    def compare(self, network: nn.Module) -> _Compared:
        """Error and agreement of another network.

        Raises:
            PruningError: One of the two gives what is no number.
        """
        if not self._outputs:
            return _Compared(None, None)
        found = _outputs(network, self._batches)
        error = relative_error(self._outputs, found)
        if not math.isfinite(error):
            whose = "pruned" if all(bool(outputs.isfinite().any()) for outputs in self._outputs) else "dense"
            raise PruningError(
                f"the {whose} network's outputs are not finite numbers on the calibration inputs. Check `mean` and "
                "`std`, or prune less."
            )
        if any(outputs.ndim != 2 or outputs.shape[1] < 2 for outputs in self._outputs):
            return _Compared(error, None)
        same = sum(
            int((ours.argmax(1) == theirs.argmax(1)).sum()) for theirs, ours in zip(self._outputs, found, strict=True)
        )
        return _Compared(error, same / self.count)


@torch.inference_mode()
def _outputs(network: nn.Module, batches: Batches) -> list[torch.Tensor]:
    """The main output on every batch."""
    return [main_output(run_on(network, load())).cpu() for load in batches]


def _estimate(dense: nn.Module, pruned: nn.Module, kept: Kept, batches: Batches, progress: Progress) -> None:
    """Measure the BatchNorm statistics anew; the weights stay."""
    estimate_statistics(pruned, batches, progress)


def _reconstruct(dense: nn.Module, pruned: nn.Module, kept: Kept, batches: Batches, progress: Progress) -> None:
    """Solve every layer behind the first pruned one by least squares, on images and their mirror images.

    The statistics stay the dense network's.
    """
    reconstruct(dense, pruned, kept, batches, progress=progress, mirrored=True)


def _reconstruct_data_free(
    dense: nn.Module, pruned: nn.Module, kept: Kept, batches: Batches, progress: Progress
) -> None:
    """The same on synthetic inputs, half of which are mirrored already; what they are too few for keeps its weights."""
    reconstruct(dense, pruned, kept, batches, progress=progress, strict=False)


def _imitate(
    dense: nn.Module,
    pruned: nn.Module,
    kept: Kept,
    batches: Batches,
    effort: Effort,
    progress: Progress,
    unfinished: Unfinished | None,
    *,
    mirrored: bool,
) -> Imitated:
    """Reconstruct, if that is not done yet, and imitate, both without the inputs that say whether imitation helps."""
    fitted, tuning = set_aside(batches)
    if not tuning:
        raise ImageFolderError(
            f"`recover=imitate` needs {2 * LEAST_HELD_OUT} calibration inputs at least, to set some aside; choose "
            "`recover=reconstruct`."
        )
    if unfinished is not None and unfinished.imitation is not None:
        pruned.load_state_dict(unfinished.imitation.start)
    else:
        reconstruct(dense, pruned, kept, fitted, progress=progress, strict=False, mirrored=mirrored)
    return imitate(dense, pruned, fitted, tuning, effort, progress, unfinished)


def _lengths(options: RecoveryOptions) -> list[str]:
    """The options that are given of those that say how long imitation may take."""
    return [name for name in ("recovery_minutes", "recovery_steps") if getattr(options, name) is not None]


def _check_effort(options: RecoveryOptions) -> str | None:
    """Name the option that says how long imitation may take, if one does."""
    given = _lengths(options)
    if len(given) > 1:
        raise InputError("`recovery_minutes` and `recovery_steps` were given; imitation's length comes from one.")
    if options.recovery_minutes is not None and not 0 < options.recovery_minutes < math.inf:
        raise InputError(f"`recovery_minutes` is {options.recovery_minutes:g}; expected a number above 0.")
    if options.recovery_steps is not None and options.recovery_steps < 1:
        raise InputError(f"`recovery_steps` is {options.recovery_steps}; expected at least 1.")
    return given[0] if given else None


RECOVERIES: Mapping[str, Recovery] = MappingProxyType(
    {"bn": _estimate, "reconstruct": _reconstruct, "data-free": _reconstruct_data_free}
)
