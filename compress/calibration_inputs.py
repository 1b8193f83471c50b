"""The inputs that a network is scored, measured and recovered on: images, or synthetic ones; and whether it can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pruneport.compress.activations.calibration import BATCH, Calibration, held_out_count, open_calibration
from pruneport.compress.activations.memory import freed_memory_kept, memory_bounded
from pruneport.compress.activations.synthetic import WITHOUT_INPUTS, enough, require_statistics, synthesise
from pruneport.compress.devices import find_device, in_batches_that_fit, in_full_precision
from pruneport.compress.options import CalibrationImages, ChoiceOptions
from pruneport.errors import ModelError, PruningError
from pruneport.models.outputs import Outputs, detections_in, takes_several
from pruneport.models.record import Source
from pruneport.progress import Progress

__all__ = ["calibration_inputs", "check_measurable", "check_synthetic", "is_measurable", "solvable"]


def calibration_inputs(
    options: CalibrationImages,
    network: nn.Module,
    source: Source,
    progress: Progress,
    *,
    hold_out: bool = False,
) -> Calibration:
    """The calibration images, or synthetic inputs where there are none.

    Args:
        options: The images, or how many synthetic inputs at most.
        network: The dense network.
        source: Where it came from; gives the input shape and the seed.
        progress: Told what is being done.
        hold_out: Whether some inputs are held out, to measure on.

    Raises:
        ImageFolderError: The images cannot be used.
        PruningError: There are none, and no synthetic inputs can be made.
    """
    if options.calibration is None:
        check_synthetic(options, network, source)
    batch = BATCH if takes_several(network, source.takes) else 1
    given = open_calibration(
        options, source.image_shape, source.preprocessing, hold_out=hold_out, seed=source.seed, batch=batch
    )
    if given is not None:
        return given
    shape, device = source.image_shape, find_device(options.accelerator)
    count = min(options.calibration_images, enough(shape))
    held_out = held_out_count(count) if hold_out else 0

    def synthetic(size: int) -> Calibration:
        try:
            return synthesise(
                network, shape, count, source.seed, progress, held_out=held_out, device=device, batch=size
            )
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise PruningError(
                "synthetic inputs cannot be made: no gradient goes through the network to its input, as where its "
                "forward runs under no_grad or inference_mode. Take that out, give images with `calibration=FOLDER`, "
                f"or choose {WITHOUT_INPUTS}."
            ) from error

    with in_full_precision(), freed_memory_kept(), memory_bounded(options.memory, device):
        return in_batches_that_fit(synthetic, BATCH, progress)


def check_synthetic(options: CalibrationImages, network: nn.Module, source: Source) -> None:
    """Raise a ``PruningError`` where no synthetic inputs can be made."""
    depth = " `depth=never`" if isinstance(options, ChoiceOptions) and options.depth != "never" else ""
    without = f"{WITHOUT_INPUTS}{depth}"
    if source.inputs is not None:
        raise PruningError(
            f"the network takes {source.inputs}, and synthetic inputs can only be made for images: give `calibration`, "
            f"a DataLoader or a list of what it takes, or choose {without}."
        )
    if not takes_several(network, source.takes):
        raise PruningError(
            "the network takes one image at a time, and synthetic inputs are made from the statistics of many: give "
            f"images with `calibration=FOLDER`, or choose {without}."
        )
    require_statistics(network, without)


@contextmanager
def solvable() -> Iterator[None]:
    """Say of equations that cannot be solved that it is for the calibration inputs.

    Raises:
        PruningError: In the place of what torch raises.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise PruningError(
            "the equations of the calibration inputs have no solution, as where these are blank, all the same, or "
            f"numbers of another size than the network takes ({error}). Give other inputs, or choose {WITHOUT_INPUTS}."
        ) from error


def is_measurable(outputs: Outputs) -> bool:
    """Whether an error of the outputs means anything."""
    main = outputs.tensors[outputs.main]
    return not detections_in(outputs.tensors) and main.is_floating_point() and main.ndim > 0


def check_measurable(outputs: Outputs) -> None:
    """Raise where no error can be measured on the outputs."""
    if detections_in(outputs.tensors):
        raise ModelError(
            "the network returns detections, of which it finds another number in every image, so no error can be "
            "measured on them. Give a function that returns its backbone, and calibrate that; or leave out "
            f"`calibration` and choose {WITHOUT_INPUTS}."
        )
    if not is_measurable(outputs):
        raise ModelError(
            f"the network's outputs ({', '.join(outputs.tensors)}) hold no floating point numbers for each image, so "
            "no error can be measured on them. Let its forward return the scores that it decides by, or leave out "
            f"`calibration` and choose {WITHOUT_INPUTS}."
        )
