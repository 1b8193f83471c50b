"""What a command starts from: a source, or a bundle to go on from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from pruneport.commands.configs import StartOptions
from pruneport.commands.records import bundle_at, dense_of
from pruneport.compress.further import Origin
from pruneport.compress.structure import example_inputs
from pruneport.compress.surgery.plan import Plan, preprocessing_of
from pruneport.errors import BundleError, CheckpointError, HubError, PruningError, SourceError
from pruneport.export.bundle.bundle import Bundle, is_bundle
from pruneport.export.bundle.weights import check_reload, rebuild
from pruneport.export.hub import is_on_hub
from pruneport.models.factories import load_factory
from pruneport.models.inputs import check_seed, run_on
from pruneport.models.names import not_a_source
from pruneport.models.options import given_of
from pruneport.models.outputs import read_outputs, takes_several
from pruneport.models.preparation.class_names import named
from pruneport.models.record import Factory, Source
from pruneport.models.source import open_source
from pruneport.progress import Note, Progress

__all__ = ["BundleStart", "Start", "check_composed", "open_start", "origin_of", "start_at"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network to go on from, in eval mode on the CPU.

    Attributes:
        name: The source, or the bundle's name, as it was given.
        network: With its weights.
        source: The record of the dense network.
    """

    name: str
    network: nn.Module
    source: Source


@dataclass(frozen=True, kw_only=True)
class BundleStart(Start):
    """A bundle's network.

    Attributes:
        bundle: As it was opened.
        plan: How the network was made from the dense one. Its ``source`` is this ``source``, which may say more than
            the bundle's own plan.
        factory: Builds the dense architecture in place of the source.
    """

    bundle: Bundle
    plan: Plan
    factory: Factory | None


def open_start(options: StartOptions, progress: Progress, *, moved: bool = False) -> Start:
    """Build the network that a source names, or load a bundle's.

    Args:
        options: The source, and what else says how it is built.
        progress: Told of what is fetched.
        moved: Whether ``checkpoint`` says of a bundle where its dense checkpoint lies now.

    Raises:
        SourceError: The source is none, or options were given that a bundle knows itself.
        BundleError: The bundle is damaged, or needs a factory.
        HubError: The source, the bundle or weights are on the hub and cannot be read there.
        CheckpointError: The checkpoint cannot be read safely or does not fit.
        ModelError: Weights are not finite, or the input shape is not known.
    """
    if not is_on_hub(options.source) and not is_bundle(Path(options.source)):
        return _from_source(options)
    names = ("weights", "model_arg", "input_shape", *(() if moved else ("checkpoint",)))
    if given := given_of(options, names):
        raise SourceError(f"{options.source} is a bundle, which knows its own source: leave out {', '.join(given)}.")
    start = start_at(options.source, load_factory(options.factory) if options.factory else None, progress, options.seed)
    if options.class_names is None:
        return start
    source = named(start.source, start.network, options.class_names)
    return replace(start, source=source, plan=replace(start.plan, source=source))


def start_at(name: str | PathLike[str], factory: Factory | None, progress: Progress, seed: int = 0) -> BundleStart:
    """Load a bundle's network, by its folder or its name on the hub.

    Args:
        name: The bundle.
        factory: Builds the dense architecture in place of the source.
        progress: Told of what is fetched.
        seed: Of what is drawn from now on, where it is not the default.

    Raises:
        BundleError: It is damaged, or needs a factory.
        HubError: It cannot be fetched.
        InputError: The seed is none.
    """
    check_seed(seed)
    bundle = bundle_at(Path(name), progress)
    network = rebuild(bundle, factory)
    source = replace(bundle.plan.source, preprocessing=preprocessing_of(bundle.plan, network))
    if seed and source.trained:  # else the bundle's seed stands for the dense weights themselves
        source = replace(source, seed=seed)
    plan = replace(bundle.plan, source=source, dense_onnx="original")  # a new bundle has no dense.onnx yet
    return BundleStart(name=str(name), network=network, source=source, bundle=bundle, plan=plan, factory=factory)


def origin_of(start: BundleStart, checkpoint: Path | None, progress: Progress) -> Origin:
    """Where a bundle's network came from, with the dense weights where they can be had.

    Where they cannot, a note says what that changes.

    Raises:
        CheckpointError: ``checkpoint`` was given, and is not the bundle's.
    """
    plan = start.plan
    kept = f"{plan.macs_kept:.3g} of the compute and {plan.params_kept:.3g} of the parameters"
    progress(Note(f"{start.name} keeps {kept} of {plan.source.spec}; targets are shares of that original"))
    try:
        return Origin(plan=plan, original=dense_of(start.bundle, start.factory, checkpoint))
    except (CheckpointError, SourceError, HubError) as error:
        if checkpoint is not None:
            raise
        progress(
            Note(
                f"the original's weights cannot be had, so dense stands for the network of {start.name} where outputs "
                f"and latency are compared; compute and parameters stay those of the original. {error}"
            )
        )
        return Origin(plan=plan)


def check_composed(folder: Path, network: nn.Module, plan: Plan, start: BundleStart) -> None:
    """Build a network from what was written and its original source; see that it is and computes the same.

    Args:
        folder: What ``write_network`` wrote.
        network: What was written: a bundle's network, compressed further.
        plan: Its plan.
        start: What it was compressed from.

    Raises:
        PruningError: It is not.
    """
    again = f"compress {plan.source.spec} anew, to the smaller target."
    try:
        reloaded = check_reload(folder, network, plan, start.factory)
    except BundleError as error:
        raise PruningError(f"both compressions in a row do not fit into one plan: {error} Instead {again}") from error
    example = example_inputs(plan.source, 2 if takes_several(network, plan.source.takes) else 1)
    with torch.inference_mode():
        ours, theirs = (read_outputs(run_on(one, example)).tensors for one in (network, reloaded))
    if any(not torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()) for name in ours):
        raise PruningError(
            f"the plan of both compressions in a row does not give the network that was compressed; {again}"
        )


def _from_source(options: StartOptions) -> Start:
    if options.factory is not None:
        raise SourceError(f"`factory` is for a bundle, and {options.source} is none; leave it out.")
    if ":" not in options.source:
        raise SourceError(
            f"there is no bundle at {options.source} (a folder written by pruneport compress), and "
            f"{not_a_source(options.source)}"
        )
    network, source = open_source(options)
    return Start(name=options.source, network=network, source=source)
