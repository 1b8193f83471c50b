"""prune: from a network in memory to a pruned one, by the way that ``compress`` goes from a source to a bundle."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from pruneport.commands.api.bundles import check_fits, layout_of
from pruneport.commands.api.configured import macs_for_flops, options_from, plain_number
from pruneport.commands.api.keywords import MemoryKeywords, PathName
from pruneport.commands.api.pruned import PrunedNetwork, gather_tensors
from pruneport.commands.configs import MemoryOptions
from pruneport.commands.starting import BundleStart, origin_of, start_at
from pruneport.commands.timing.asked import check_latency, is_latency, refuse_latency
from pruneport.commands.timing.loop import LatencyPruner
from pruneport.commands.timing.tables import check_given
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.allocation.target import target_of
from pruneport.compress.further import check_below
from pruneport.compress.pipeline import STAGES, check_inputs, compress_to
from pruneport.errors import ImageFolderError, ModelError
from pruneport.export.options import DEFAULTS
from pruneport.models.inputs import ExampleInputs, InputShape
from pruneport.models.live.copying import as_factory, copy_network
from pruneport.models.live.example import read_example
from pruneport.models.live.identity import live_source, state_sha256
from pruneport.models.options import PREPARATION
from pruneport.models.outputs import main_output, read_outputs
from pruneport.models.preparation.known import infer_preprocessing
from pruneport.models.record import Factory
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["prune"]


def prune(
    model: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    input_shape: tuple[int, int, int] | None = None,
    example_inputs: ExampleInputs | None = None,
    calibration: PathName | Iterable[Any] | None = None,
    like: PathName | None = None,
    factory: Factory | nn.Module | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **options: Unpack[MemoryKeywords],
) -> PrunedNetwork:
    """Prune a network that is in memory, and win accuracy back; the network itself is left as it is.

    It is copied: in any mode, on any device, inside DataParallel, DistributedDataParallel or torch.compile. The copy
    has no hooks but its own, and the plan's note says where some were left out.

    Args:
        model: A trained network in float32.
        macs: Keep this share of the compute, in (0, 1). Exactly one of the five targets is given.
        params: Keep this share of the parameters.
        ratio: Remove this share of the filters.
        latency: Keep this share of the latency, timed in ONNX Runtime where ``provider``, ``threads`` and
            ``latency_batch`` say.
        latency_ms: The same in milliseconds.
        input_shape: C, H, W of the input.
        example_inputs: In its place, for networks of several inputs or other than images: a tensor, a tuple of tensors
            by position, or a dict by name, each with the batch first; a single number has none. Names and shapes are
            kept, and the range of whole numbers: give them as they come, such as token ids.
        calibration: Inputs that decide what is removed, and that recovery solves with: a folder of images, prepared by
            ``resize``, ``mean`` and ``std``; or a DataLoader or a list of tensors (B, C, H, W), as the network takes
            them, alone, as ``(x, y)`` or in dicts; of several inputs tuples or dicts, with labels behind or without.
        like: The bundle that the network was loaded from, to go on from there: ``macs`` and ``params`` are then shares
            of the bundle's original dense network, and the plan is one of that. The input is the bundle's. Without it,
            a network that was pruned before is taken as any other: as dense.
        factory: With ``like``: builds the original dense network, with its weights, where the bundle's source is not
            torchvision's, timm's or ours; or that network itself.
        seed: Chooses the inputs that are held out, and random scores.
        progress: Told what is being done.
        **options: Fields of ``CompressOptions``, such as ``criterion``, ``scope``, ``round_to``, ``keep``, ``recover``,
            and of ``LatencyOptions``.

    Raises:
        TargetError: The target is wrong or out of reach.
        ModelError: The network cannot be pruned as it is (quantised, scripted, sharded, without values, not float32,
            not finite, returning no tensor), or refuses the input.
        BundleError: The network's tensors are not those of ``like``.
        ImageFolderError: The calibration yields nothing, or what the network does not take.
        PruningError: Nothing can be pruned.

    Example:
        >>> import pruneport
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.Flatten(), nn.Linear(256, 4))
        >>> pruned = pruneport.prune(model, macs=0.5, input_shape=(1, 8, 8))
        >>> pruned.network[0].weight.shape
        torch.Size([16, 1, 3, 3])
    """
    with macs_for_flops():
        targets = {"flops": macs, "params": params, "ratio": ratio, "latency": latency, "latency_ms": latency_ms}
        chosen = _options(targets, calibration, options)
        check_latency(chosen, DEFAULTS, target_of(chosen)[0])
        progress = numbered(progress, 1 + STAGES + is_latency(chosen))
        progress(Stage("copying the network"))
        dense, unhooked = copy_network(model)
        start = origin = None
        if like is not None:
            if input_shape is not None or example_inputs is not None:
                raise ModelError("`input_shape` and `example_inputs` are for a network without `like`; leave them out.")
            start = _start_like(dense, like, as_factory(factory), seed, progress)
            check_below(chosen, start.plan, like)
            origin, source = origin_of(start, None, progress), start.source
            refuse_latency(target_of(chosen)[0], chosen, like, origin.original)
        elif factory is not None:
            raise ModelError("`factory` is for a network with `like`; leave it out.")
        else:
            source = live_source(dense, _input_shape(dense, input_shape, example_inputs), seed)
            source = replace(source, preprocessing=infer_preprocessing(source, dense))
        shape = source.inputs or source.image_shape
        outputs = read_outputs(run_once(dense, shape))
        given = None
        if calibration is not None and chosen.calibration is None:
            given = gather_tensors(calibration, chosen, dense, shape, main_output(outputs.tensors), seed)
        check_inputs(chosen, dense, source, calibrated=given is not None, origin=origin)
        structure = check_given(dense, source, chosen, chosen, progress)
        pruner = LatencyPruner(where=chosen, original=origin.original if origin else None)
        pruned = next(compress_to([chosen], dense, source, progress, given, origin, pruner, structure))
    plan = pruned.plan
    if unhooked:
        said = f"hooks of the network that was given are not in this one: those on {', '.join(unhooked[:10])}."
        progress(Note(said))
        plan = replace(plan, note=f"{plan.note} {said}" if plan.note else said)
    state = pruned.network.state_dict()
    return PrunedNetwork(
        network=pruned.network,
        plan=plan,
        _factory=(lambda **_: copy.deepcopy(dense)) if start is None else start.factory,
        _start=start,
        _state_sha256=state_sha256(state),
        _layout=layout_of(state),
        _calibration=pruned.calibration,
    )


def _start_like(
    network: nn.Module, like: PathName, factory: Factory | None, seed: int, progress: Progress
) -> BundleStart:
    """Go on from a bundle with a network that was loaded from it, and may have been trained since."""
    start = start_at(like, factory, progress, seed)
    check_fits(network, layout_of(start.network.state_dict()), str(like))
    same = state_sha256(network.state_dict()) == state_sha256(start.network.state_dict())
    return replace(start, network=network, plan=start.plan if same else replace(start.plan, training="outside"))


def _options(
    targets: Mapping[str, float | None],
    calibration: PathName | Iterable[Any] | None,
    given: MemoryKeywords,
) -> MemoryOptions:
    """The options; the calibration is among them where it is a folder."""
    folder = Path(calibration) if isinstance(calibration, str | PathLike) else None
    named: dict[str, Any] = {**targets, "calibration": folder}
    options = options_from(MemoryOptions, "prune", {**given, **named})
    target_of(options)
    idle = [name for name in (*PREPARATION, "skip_unreadable") if name in given]
    if calibration is not None and folder is None and idle:
        raise ImageFolderError(
            f"{', '.join(f'`{name}`' for name in idle)}: for a folder of images; tensors in `calibration` are taken as "
            "they are. Leave it out, and give tensors as the network takes them."
        )
    return options


def _input_shape(network: nn.Module, shape: tuple[int, int, int] | None, example: ExampleInputs | None) -> InputShape:
    """C, H, W of the input, or what else the network takes.

    Raises:
        ModelError: Neither is given, or both, or something that no forward takes.
    """
    if (shape is None) == (example is None):
        raise ModelError(
            "exactly one of `input_shape` and `example_inputs` is needed: C, H, W, such as (3, 224, 224), or tensors "
            "as the network's forward takes them."
        )
    if shape is not None:
        shape = tuple(map(plain_number, shape))
        if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ModelError(f"`input_shape` is {shape}; expected three positive numbers C H W, such as 3 224 224.")
        return (shape[0], shape[1], shape[2])
    assert example is not None
    return read_example(network, example)
