"""What the verbs read of a bundle: its networks, and what earlier verbs wrote, where card and report are drawn anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneport.bench.latency.onnx_input import read_inputs
from pruneport.bench.latency.records import read_measured
from pruneport.bench.options import ProviderName
from pruneport.commands.configs import BundleOptions
from pruneport.documents import read_start
from pruneport.errors import BundleError, CheckpointError, InputError
from pruneport.export.bundle.bundle import BENCH, DENSE_ONNX, MODEL_ONNX, VERIFY, Bundle, onnx_name
from pruneport.export.bundle.weights import rebuild
from pruneport.export.hub import is_on_hub, open_any_bundle
from pruneport.export.onnx.embedding import EMBEDDED, embedded_name
from pruneport.export.onnx.form import InputSizes
from pruneport.export.onnx.onnx_file import read_metadata
from pruneport.export.options import OnnxPrecision
from pruneport.export.precisions.providers import INT8_FOR, why_not_on
from pruneport.export.records import read_verified
from pruneport.models.factories import load_factory
from pruneport.models.record import Factory
from pruneport.models.source import build_dense
from pruneport.progress import Note, Progress

__all__ = [
    "bundle_at",
    "dense_of",
    "input_sizes_of",
    "open_networks",
    "read_record",
    "read_replaced",
    "timed_precisions",
    "with_earlier",
]

_READERS: dict[str, tuple[str, Callable[[bytes, str, str], dict[str, Any]]]] = {
    VERIFY: ("verify", read_verified),
    BENCH: ("bench", read_measured),
}


def read_record(bundle: Bundle, name: str) -> dict[str, Any] | None:
    """What stands in verify.json or bench.json; None where it was not written yet.

    Raises:
        BundleError: The file is damaged; the message names the verb that writes it.
    """
    if name not in bundle.files:
        return None
    verb, read = _READERS[name]
    return read(
        read_start(bundle.path(name)),
        f"{bundle.folder / name} is not what pruneport {verb} writes",
        f"Write it anew with: pruneport {verb} {bundle.folder} (where others are damaged, too, start with: pruneport "
        f"export {bundle.folder}).",
    )


def read_replaced(bundle: Bundle, name: str, progress: Progress) -> dict[str, Any] | None:
    """The same of a file that is about to be written: where it is damaged, nothing is kept of it, which is said."""
    try:
        return read_record(bundle, name)
    except BundleError as error:
        progress(Note(f"nothing is kept of what was there: {error}"))
        return None


def bundle_at(folder: Path, progress: Progress) -> Bundle:
    """Open a bundle, on the hub or here; where a file in one or a network was named in its place, say what to name.

    Raises:
        BundleError: There is no bundle, or it is damaged.
        HubError: It cannot be fetched from the hub.
    """
    if is_on_hub(folder):
        return open_any_bundle(folder, progress)
    if folder.is_file():
        raise BundleError(f"{folder} is a file; expected the folder of a bundle: {folder.parent}, if it lies in one.")
    if ":" in str(folder) and not folder.exists():
        raise BundleError(
            f"{folder} names a network; expected the folder of a bundle, such as half, written by: "
            f"pruneport compress {folder} --flops 0.5 --out half"
        )
    return open_any_bundle(folder)


def input_sizes_of(bundle: Bundle) -> InputSizes:
    """Which inputs the bundle's ONNX files take."""
    path = bundle.path(MODEL_ONNX)
    taken = read_inputs(path)
    return InputSizes(
        batch=taken.batch if isinstance(taken.batch, int) else None,
        any_size=any(one.open_sizes for one in taken.inputs),
        embedded=embedded_name(read_metadata(path).get(EMBEDDED)),
    )


def open_networks(
    config: BundleOptions, progress: Progress, factory: Factory | None = None
) -> tuple[Bundle, nn.Module, Factory | None]:
    """The bundle, its pruned network, and the factory that builds the dense one: ``factory`` itself, if given."""
    bundle = bundle_at(config.folder, progress)
    source = bundle.plan.source
    if factory is None and config.factory:
        factory = load_factory(config.factory)
    if factory is None and config.trust_source and source.library is None and source.live is None:
        factory = load_factory(source.spec)
    return bundle, rebuild(bundle, factory), factory


def dense_of(bundle: Bundle, factory: Factory | None, checkpoint: Path | None) -> nn.Module:
    """Build the bundle's dense network, its weights from ``checkpoint`` where that was moved.

    Raises:
        CheckpointError: The checkpoint is not there, has another content, or is not wanted.
        SourceError: The factory cannot be found or fails.
    """
    source = bundle.plan.source
    if checkpoint is not None:
        if source.checkpoint is None:
            raise CheckpointError(f"{bundle.folder} was not made from a checkpoint; leave out `checkpoint`.")
        source = replace(source, checkpoint=os.path.realpath(checkpoint))
    return build_dense(source, factory)


def with_earlier(verified: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Keep what was counted on images before, where this time there were none: the ONNX files are the same.

    What the user would lose at most stays, too.
    """
    earlier = earlier or {}
    counted = verified["accuracy"] or verified["agreement"]
    names = ("max_drop",) if counted else ("accuracy", "agreement", "max_drop")
    kept = {name: earlier[name] for name in names if earlier.get(name) is not None}
    before = earlier.get("precisions") or ()
    if not counted and before and min(map(_worth, before)) > min(map(_worth, verified["precisions"]), default=0):
        kept["precisions"] = before
    return verified | kept


def _worth(record: Mapping[str, Any]) -> int:
    """How much the inputs say that precisions were compared on: random ones least, then held-out ones, then images."""
    return ("seeded", "held-out", "images").index(record["inputs"])


def timed_precisions(
    bundle: Bundle, asked: OnnxPrecision | None, provider: ProviderName, progress: Progress
) -> dict[OnnxPrecision, tuple[Path, Path]]:
    """The dense and pruned files in precisions to time beside fp32: the one asked for, or all that the provider runs.

    Raises:
        InputError: The bundle does not have the precision, or the provider does not run it.
    """
    if asked not in (None, *bundle.precisions):
        raise InputError(
            f"`precision` is {asked}, and {bundle.folder} has {', '.join(bundle.precisions)}; export it "
            f"with `precisions` fp32 {asked}."
        )
    files = {}
    for precision in bundle.precisions[1:]:
        if asked not in (None, precision):
            continue
        pair = tuple(bundle.path(onnx_name(file, precision)) for file in (DENSE_ONNX, MODEL_ONNX))
        why_not = why_not_on(provider, precision, read_metadata(pair[1]).get(INT8_FOR))
        if why_not and precision == asked:
            raise InputError(f"`precision` is {asked}, and `provider` is {provider}: {why_not}.")
        if why_not:
            progress(Note(f"{precision} is not timed on {provider}: {why_not}"))
        else:
            files[precision] = (pair[0], pair[1])
    return files
