"""One pruned network after the other, each a bundle: the dense network is assessed, exported and verified once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pruneport.commands.artifacts import export_dense
from pruneport.commands.bundling import STAGES as BUNDLING
from pruneport.commands.bundling import Filled, OpenedDense, fill_bundle, fill_verified
from pruneport.commands.compressing import saved_beside
from pruneport.commands.configs import ShipConfig, SweepConfig
from pruneport.commands.starting import BundleStart
from pruneport.commands.timing.loop import LatencyPruner
from pruneport.compress.further import check_below
from pruneport.compress.options import ChoiceOptions, CompressOptions, RecoveryOptions
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.compress.pipeline import Ready, prepare
from pruneport.compress.prune import Pruned
from pruneport.export.bundle.writing import new_bundle
from pruneport.progress import Progress, Stage

__all__ = ["EACH", "ONCE", "TARGETS", "Maker", "labelled", "without_target"]

_Found = TypeVar("_Found")
_PREPARING = 2
ONCE, EACH = 1 + _PREPARING, COMPRESSION - _PREPARING + BUNDLING
"""Stages: exporting the dense network and preparing; and those of each network."""
_OTHERS = {field.name for kind in (RecoveryOptions, ChoiceOptions) for field in fields(kind)}
TARGETS = tuple(field.name for field in fields(CompressOptions) if field.name not in _OTHERS)
"""Names of the options that can be a target."""


def without_target(config: Any) -> CompressOptions:
    """What a configuration says of pruning and recovery, whatever the target."""
    names = [field.name for field in fields(CompressOptions) if field.name not in TARGETS]
    return CompressOptions(**{name: getattr(config, name) for name in names})


class Maker:
    """Makes pruned networks of one dense network.

    Args:
        dense: The dense network.
        asked: How it is pruned; the target is left out.
        options: How each is exported, verified and timed.
        progress: Told what is being done.
        command: For the bundles' manifests.
        max_drop: The most points of top-1 to lose, for the bundles' records.
    """

    def __init__(
        self,
        dense: OpenedDense,
        asked: CompressOptions,
        options: ShipConfig | SweepConfig,
        progress: Progress,
        command: str,
        max_drop: float | None = None,
    ) -> None:
        self._dense, self._asked, self._options = dense, asked, options
        self._progress, self._command, self._max_drop = progress, command, max_drop
        self._ready: Ready | None = None

    def make(self, folder: Path, target: str, value: float) -> tuple[Pruned, Filled]:
        """Prune to a target and write the bundle, which appears when all of it is done.

        Raises:
            InputError: The target is out of reach, or something that was given cannot be used.
        """
        return self._made(folder, target, value, fill_bundle)

    def make_untimed(self, folder: Path, target: str, value: float) -> None:
        """The same without timing: the bundle has no bench.json and no report yet.

        Raises:
            InputError: As for ``make``.
        """
        self._made(folder, target, value, fill_verified)

    def _made(self, folder: Path, target: str, value: float, fill: Callable[..., _Found]) -> tuple[Pruned, _Found]:
        if self._dense.exported is None:
            self._progress(Stage("exporting the dense network"))
            self._dense.exported = export_dense(self._dense.network, self._dense.source, self._options, self._progress)
        if self._ready is None:
            start, origin = self._dense.start, self._dense.origin
            self._ready = prepare(
                self._asked,
                start.network,
                self._dense.source,
                self._progress,
                origin=origin,
                structure=self._dense.structure,
            )
        moved: dict[str, Any] = {target: value}
        asked = replace(self._asked, **moved)
        origin = self._dense.origin
        if isinstance(self._dense.start, BundleStart):
            check_below(asked, self._dense.start.plan, self._dense.start.name)
        progress = labelled(self._progress, f"{target} {value:g}")
        pruner = LatencyPruner(
            where=self._options,
            form=self._options,
            exported=self._dense.exported.fp32,
            original=origin.original if origin else None,
        )
        with saved_beside(folder, self._options, asked) as saved:
            pruned = self._dense.said_of(self._ready.prune_to(asked, progress, pruner, saved))
            with new_bundle(folder, overwrite=False, command=self._command) as staging:
                found = fill(staging, self._dense, pruned, self._options, progress, self._max_drop)
        return pruned, found


def labelled(progress: Progress, label: str) -> Callable[[str], None]:
    """Pass every line on; stages say of which network they are, and are counted with the others."""

    def say(message: str) -> None:
        """Put the label before a stage, and pass on what is said."""
        progress(Stage(f"{label}: {message}", still=message.still) if isinstance(message, Stage) else message)

    return say
