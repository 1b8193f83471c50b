"""A bundle with ONNX files, which its methods verify and time, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from pruneport.bench.latency.records import Measured
from pruneport.commands.api.bundles import COMMAND
from pruneport.commands.api.configured import options_from
from pruneport.commands.api.keywords import BenchKeywords, ParityKeywords, PathName
from pruneport.commands.configs import BenchConfig, VerifyConfig
from pruneport.commands.deploying import bench, verify
from pruneport.compress.activations.calibration import Batches
from pruneport.compress.surgery.plan import Plan
from pruneport.export.accuracy import Accuracy
from pruneport.export.options import OnnxPrecision
from pruneport.export.verification import Verification
from pruneport.models.record import Factory
from pruneport.progress import Progress, silent

__all__ = ["Deployed"]


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A bundle with ONNX files.

    Attributes:
        folder: The bundle.
        plan: What was removed and why.
        network: The pruned network in memory.
        files: Size in bytes of each file that was exported.
        verification: What was checked, once it was.
        measured: What was timed, once it was.
        warnings: What a reader must know, as the last step found it.
    """

    folder: Path
    plan: Plan = field(repr=False)
    network: nn.Module = field(repr=False)
    files: Mapping[str, int]
    verification: Verification | None = field(default=None, repr=False)
    measured: Measured | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    _factory: Factory | None = field(repr=False)
    _heldout: Batches = field(default=(), repr=False)

    def verify(
        self, *, images: PathName | None = None, progress: Progress = silent, **options: Unpack[ParityKeywords]
    ) -> Deployed:
        """Check hashes, ONNX files, and parity between torch and ONNX Runtime; write verify.json into the bundle.

        Args:
            images: A folder of images to compare on, one folder a class where labelled; counts accuracy, too.
            progress: Told what is being done.
            **options: Fields of ``ParityOptions``.

        Returns:
            The bundle, with its ``verification``.

        Raises:
            ParityError: The outputs differ by more than the tolerance; verify.json says so.
            InputError: The bundle is damaged, or an option or the images cannot be used.
        """
        given: dict[str, Any] = {**options, "images": images, "folder": self.folder}
        config = options_from(VerifyConfig, "verify", given)
        done = verify(config, progress, COMMAND, factory=self._factory, heldout=self._heldout)
        return replace(self, verification=done.verification, warnings=done.warnings)

    def bench(
        self,
        *,
        precision: OnnxPrecision | None = None,
        progress: Progress = silent,
        **options: Unpack[BenchKeywords],
    ) -> Deployed:
        """Time dense against pruned, and write bench.json and the report into the bundle.

        Args:
            precision: Time this one alone, beside fp32; default: all that the bundle has and the provider runs.
            progress: Told what is being done.
            **options: Fields of ``BenchOptions``, such as ``provider``, ``batches``, ``threads``.

        Returns:
            The bundle, with what was ``measured``.

        Raises:
            InputError: An option or the provider cannot be used.
            SpeedupError: ``require_speedup`` was not reached; bench.json is written all the same.
        """
        given: dict[str, Any] = {**options, "folder": self.folder, "precision": precision}
        done = bench(options_from(BenchConfig, "bench", given), progress, COMMAND)
        return replace(self, measured=done.bench, warnings=done.warnings)

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the dense network, at the smallest batch size; None before it was timed."""
        return None if self.measured is None else self.measured.speedup.ratio

    @property
    def accuracy(self) -> Accuracy | None:
        """Top-1 on the labelled images that it was verified on; None where there were none."""
        return None if self.verification is None else self.verification.accuracy

    @property
    def report(self) -> Path | None:
        """The page to open or to send; None before it was timed."""
        return None if self.measured is None else self.folder / "report.html"
