"""prune: from a network in memory to a pruned one, by the way that ``compress`` goes from a source to a bundle."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from pruneport.bench.options import ProviderName
from pruneport.commands.api.bundles import COMMAND, Layout, check_fits, layout_of, write_bundle
from pruneport.commands.api.deployed import Deployed
from pruneport.commands.api.keywords import ExportKeywords, MemoryKeywords, PathName, macs_for_flops, options_from
from pruneport.commands.configs import ExportConfig, MemoryOptions
from pruneport.commands.deploying import export
from pruneport.commands.starting import BundleStart, check_composed, origin_of, start_at
from pruneport.commands.timing.loop import LatencyPruner, check_latency, is_latency, refuse_latency
from pruneport.compress.activations.calibration import BATCH, Calibration
from pruneport.compress.activations.tensors import gather_calibration
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.allocation.target import target_of
from pruneport.compress.further import check_below
from pruneport.compress.options import CalibrationOptions
from pruneport.compress.pipeline import STAGES, check_inputs, compress_to
from pruneport.compress.surgery.plan import Plan, preprocessing_of
from pruneport.errors import BundleError, ImageFolderError, ModelError
from pruneport.export.bundle.bundle import is_bundle, open_bundle
from pruneport.export.bundle.weights import check_reload, read_weights
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.form import check_form
from pruneport.export.options import DEFAULTS
from pruneport.export.precisions.providers import check_precisions
from pruneport.models.inputs import ExampleInputs, InputShape
from pruneport.models.live.copying import as_factory, copy_network
from pruneport.models.live.example import read_example
from pruneport.models.live.identity import live_source, state_sha256
from pruneport.models.options import PreparationOptions
from pruneport.models.outputs import main_output, read_outputs, takes_several
from pruneport.models.preparation.known import infer_preprocessing
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Factory
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["PrunedNetwork", "prune"]

_PREPARATION = ("resize", "mean", "std", "skip_unreadable")


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
        return _gather(calibration, CalibrationOptions(), network, source.takes, scores, source.seed)

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
            given = _gather(calibration, chosen, dense, shape, main_output(outputs.tensors), seed)
        check_inputs(chosen, dense, source, calibrated=given is not None, origin=origin)
        pruner = LatencyPruner(where=chosen, original=origin.original if origin else None)
        pruned = next(compress_to([chosen], dense, source, progress, given, origin, pruner))
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
    if calibration is not None and folder is None and (idle := [name for name in _PREPARATION if name in given]):
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
        if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ModelError(f"`input_shape` is {shape}; expected three positive numbers C H W, such as 3 224 224.")
        return (shape[0], shape[1], shape[2])
    assert example is not None
    return read_example(network, example)


def _gather(
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
