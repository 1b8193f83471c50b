"""A pruned network in memory, which its methods save and export."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from pruneport.bench.options import ProviderName
from pruneport.commands.api.bundles import COMMAND, Layout, check_fits, write_bundle
from pruneport.commands.api.configured import options_from
from pruneport.commands.api.deployed import Deployed
from pruneport.commands.api.keywords import ExportKeywords, PathName
from pruneport.commands.configs import ExportConfig
from pruneport.commands.deploying import export
from pruneport.commands.starting import BundleStart, check_composed
from pruneport.compress.activations.calibration import BATCH, Calibration
from pruneport.compress.activations.tensors import gather_calibration
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.options import CalibrationOptions
from pruneport.compress.surgery.plan import Plan, preprocessing_of
from pruneport.errors import BundleError
from pruneport.export.bundle.bundle import is_bundle, open_bundle
from pruneport.export.bundle.weights import check_reload, read_weights
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.form import check_form
from pruneport.export.precisions.providers import check_precisions
from pruneport.models.inputs import InputShape
from pruneport.models.live.copying import copy_network
from pruneport.models.live.identity import state_sha256
from pruneport.models.options import PreparationOptions
from pruneport.models.outputs import main_output, takes_several
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Factory
from pruneport.progress import Progress, silent

__all__ = ["PrunedNetwork", "gather_tensors"]


@dataclass(frozen=True, kw_only=True)
class PrunedNetwork:
    """A pruned network in memory.

    Attributes:
        network: The network, in eval mode on the CPU; it is yours to train.
        plan: What was removed and why; ``plan.macs_kept`` is the share of the compute that is left.
    """

    network: nn.Module = field(repr=False)
    plan: Plan = field(repr=False)
    _factory: Factory | None = field(repr=False)
    _start: BundleStart | None = field(repr=False)
    _state_sha256: str = field(repr=False)
    _layout: Layout = field(repr=False)
    _calibration: Calibration | None = field(default=None, repr=False)

    def save(self, folder: PathName, *, overwrite: bool = False) -> Path:
        """Write a bundle, from which ``pruneport.load(folder, factory=…)`` gives the network back, bit for bit.

        Where the network was trained since it was pruned, the plan says so: ``training`` is ``outside``.

        Args:
            folder: It must not exist yet, or be empty.
            overwrite: Replace the bundle that is there.

        Returns:
            The folder.

        Raises:
            OutputError: The folder is taken or cannot be written.
            BundleError: The network no longer fits its plan.
        """
        network, plan = self._now()
        return self._write(Path(folder), network, plan, overwrite)

    def export(
        self,
        folder: PathName,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        calibration: PathName | Iterable[Any] | None = None,
        provider: ProviderName = "cpu",
        overwrite: bool = False,
        progress: Progress = silent,
        **options: Unpack[ExportKeywords],
    ) -> Deployed:
        """Write the ONNX files of the pruned and the dense network into the bundle; it is saved first where need be.

        Args:
            folder: Where this network was saved, or where it will be.
            mean: Of each channel, of pixels in [0, 1]: for ``embed_preprocessing`` of a network that does not say how
                images become its inputs. The plan records it.
            std: See ``mean``.
            calibration: Inputs to calibrate int8 with, as ``prune`` takes them; default: those that it was given, else
                synthetic ones.
            provider: Of ONNX Runtime, that int8 is made for.
            overwrite: Replace the bundle that is there, if it is another network's.
            progress: Told what is being done.
            **options: Fields of ``ExportOptions``, such as ``precisions``, ``batch_size_fixed``,
                ``embed_preprocessing``.

        Raises:
            BundleError: The folder is another network's bundle.
            ExportError: torch cannot export the network.
            InputError: An option cannot be used, or ``mean`` and ``std`` do not fit the input.
            OutputError: The folder is taken or cannot be written.
        """
        folder = Path(folder)
        named: dict[str, Any] = {"folder": folder, "provider": provider}
        if isinstance(calibration, str | PathLike):
            named["calibration"] = calibration
        config = options_from(ExportConfig, "export", {**options, **named})
        check_form(config, one_input=self.plan.source.inputs is None)
        check_precisions(config.precisions, config.provider, calibrated=calibration is not None)
        network, plan = self._now()
        given = mean is not None or std is not None
        there = _plan_in(folder, network, plan)
        if given:
            numbers = options_from(PreparationOptions, "export", {"mean": mean, "std": std})
            plan = replace(plan, source=prepared(plan.source, numbers))
        elif there is not None:
            plan = there
        if config.embed_preprocessing is not None:  # what cannot be is met before anything is written
            known = preprocessing_of(plan, network)
            embedding_for(config.embed_preprocessing, known, plan.source.input_shape)
        if there is None or there.to_json() != plan.to_json():
            if there is None and is_bundle(folder) and not overwrite:
                raise BundleError(
                    f"{folder} is the bundle of another network, or of this one before it was trained; choose another "
                    "folder, or replace it with `overwrite=True`."
                )
            self._write(folder, network, plan, overwrite or there is not None)
        inputs = self._inputs(calibration, config, network)
        written = export(config, progress, COMMAND, factory=self._factory, calibration=inputs)
        return Deployed(
            folder=folder,
            plan=plan,
            network=self.network,
            files=written.files,
            _factory=self._factory,
            _heldout=inputs.heldout if inputs else (),
        )

    def _inputs(
        self, calibration: PathName | Iterable[Any] | None, config: ExportConfig, network: nn.Module
    ) -> Calibration | None:
        """What int8 is calibrated with, where that is not a folder: tensors that are given, else those of ``prune``."""
        if "int8" not in config.precisions or config.calibration is not None:
            return None
        if calibration is None:
            return self._calibration
        source = self.plan.source
        scores = main_output(run_once(network, source.takes))
        return gather_tensors(calibration, CalibrationOptions(), network, source.takes, scores, source.seed)

    def _now(self) -> tuple[nn.Module, Plan]:
        """A copy of the network to write, and its plan, which says where it was trained meanwhile."""
        network = copy_network(self.network).network
        if state_sha256(network.state_dict()) == self._state_sha256:
            return network, self.plan
        check_fits(network, self._layout, "the network that was pruned")
        return network, replace(self.plan, training="outside")

    def _write(self, folder: Path, network: nn.Module, plan: Plan, overwrite: bool) -> Path:
        """Write the bundle, and see that it loads bit for bit."""

        def check(staging: Path) -> None:
            if self._start is not None:
                check_composed(staging, network, plan, self._start)
            else:
                check_reload(staging, network, plan, self._factory)

        return write_bundle(folder, network, plan, check, overwrite=overwrite)


def gather_tensors(
    calibration: Any,
    options: CalibrationOptions,
    dense: nn.Module,
    shape: InputShape,
    scores: Tensor,
    seed: int,
) -> Calibration:
    """Calibration from tensors, in batches that the network takes; ``scores`` is what it returns for one input."""
    batch = BATCH if takes_several(dense, shape) else 1
    classes = scores.shape[1] if scores.ndim > 1 else 0
    return gather_calibration(calibration, options, shape, outputs=classes, seed=seed, batch=batch)


def _plan_in(folder: Path, network: nn.Module, plan: Plan) -> Plan | None:
    """The plan of the bundle that is there, if that is this network's: the same weights, and the same plan.

    How images are prepared may be said in one of the two alone.
    """
    if not is_bundle(folder):
        return None
    bundle = open_bundle(folder)
    one, other = (replace(each, source=replace(each.source, preprocessing=None)) for each in (bundle.plan, plan))
    ours = state_sha256(network.state_dict())
    return bundle.plan if one.to_json() == other.to_json() and state_sha256(read_weights(bundle)) == ours else None
