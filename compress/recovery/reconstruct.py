"""Reconstruction: weights solved anew, layer by layer, so that outputs are the dense network's.

In order through the network, each layer is given the inputs that the pruned network really produces and is
fitted by least squares to the dense network's outputs (as in He et al. 2017, arXiv 1707.06168, where only
consumers are). We define: where a branch ends in an addition, the target is corrected by the error that already
lies on what it is added to, so that the sum, and not the branch, is fitted. Rows count by how much the outputs
depend on their place (see ``RowWeights``), and where a ReLU is behind, it is its outputs that are fitted (see
``open_targets``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.cuts import find_cuts
from pruneport.compress.activations.least_squares import Equations, is_plain, ridge_of
from pruneport.compress.activations.replay import Replay
from pruneport.compress.activations.row_weights import RowWeights
from pruneport.compress.hooks import calls_recorded, hooks_restored, norms_recorded
from pruneport.compress.recovery.augment import mirror_images
from pruneport.compress.recovery.clipping import clips_recorded
from pruneport.compress.recovery.input_channels import InputChannels
from pruneport.compress.recovery.layer_rows import Layer, Passes
from pruneport.compress.recovery.rows_seen import Wanted, Watch
from pruneport.compress.surgery.dropping import Absent
from pruneport.errors import ImageFolderError
from pruneport.models.inputs import batch_of, changed, rows_of_inputs, run_on
from pruneport.progress import Note, Progress, Step, silent

__all__ = ["reconstruct", "solvable_layers"]

_ROWS = 150_000  # equations a layer at most; with 20,000 a ResNet-20 lost 0.25 points of top-1
_FEW = 40_000  # equations a layer; where images give fewer, their mirror images are added, which bring others little
_ROWS_OF_EXTRA = 2  # equations an unknown
_CLIPPED = 3  # solves with targets that an activation leaves open
_RELAXED = 1.7  # steps a solve goes: below 2 each still lowers the error, and fewer are needed than of 1
_MOST_BYTES = 2**30  # of the dense network's outputs that are held together


def solvable_layers(pruned: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> list[str]:
    """Layers to solve, in the order of their definition: convolutions, and linear layers with pruned inputs.

    Grouped convolutions and layers of more than 8192 inputs keep their weights.
    """
    names = []
    for name, layer in pruned.named_modules():
        solvable = is_plain(layer) and getattr(layer, "groups", 1) == 1 and "weight" in layer._parameters
        if solvable and (not isinstance(layer, nn.Linear) or "in" in kept.get(name, {})):
            names.append(name)
    return names


def reconstruct(
    dense: nn.Module,
    pruned: nn.Module,
    kept: Mapping[str, Mapping[str, Sequence[int]]],
    batches: Batches,
    ridge: float | None = None,
    progress: Progress = silent,
    strict: bool = True,
    mirrored: bool = False,
) -> list[str]:
    """Solve the layers of ``pruned`` behind its first pruned one or dropped branch, in order of execution and in place.

    Behind a dropped branch, linear layers are solved too, where there are enough equations: they are what can make up
    for it in networks without convolutions, and where only the output layer is left behind it.

    Args:
        dense: The original network; it is only run.
        pruned: The pruned one, with modules of the same names.
        kept: Positions kept by layer and axis, as ``positions_kept`` gives them.
        batches: Inputs; no labels are needed.
        ridge: Pull towards where a layer's solve starts, relative to the variance of each of its inputs; None:
            ``ridge_of`` its unknowns and equations.
        progress: Told which layer is being solved.
        strict: Raise where there are too few equations; else such a layer keeps its weights.
        mirrored: Show each image mirrored, too, to layers of which the images alone give less than 40,000 equations.

    Returns:
        Names of the layers that were solved.

    Raises:
        ImageFolderError: There are fewer equations than unknowns; the message says how many images are needed.
    """
    wanted = set(solvable_layers(pruned, kept))
    first = batches[0]()
    example, images = rows_of_inputs(first, slice(2)), batch_of(first) * len(batches)
    with (
        calls_recorded(pruned) as order,
        norms_recorded(pruned) as norms,
        _rows_an_input(pruned) as rows,
        torch.no_grad(),
    ):
        run_on(pruned, changed(example, Tensor.clone))
    with clips_recorded(pruned, norms) as clips, torch.no_grad():
        run_on(pruned, changed(example, Tensor.clone))
    modules = dict(pruned.named_modules())
    starts = (index for index, name in enumerate(order) if "in" in kept.get(name, {}))
    dropped = next((index for index, name in enumerate(order) if isinstance(modules[name], Absent)), len(order))
    start = min(next(starts, len(order)), dropped)
    adding = {name for name in order[dropped:] if name not in wanted and _may_add(modules[name])}
    layers = [name for name in order[start:] if name in wanted | adding and order.count(name) == 1]
    cuts = find_cuts(dense, example)
    progress("weighing the places of the layers' outputs")
    weights = RowWeights(dense, layers, batches)
    if layers and not weights.known:
        progress(Note("the network has no gradient to weigh places of outputs by: all of them count the same"))
    few = {name for name in layers if rows[name] * images < _FEW} if mirrored else set()
    shown = [*batches, *mirror_images(batches, example)] if few else batches
    views = {name: len(shown) // len(batches) if name in few else 1 for name in layers}
    solved = []
    with Replay(pruned, cuts, shown) as ours, Replay(dense, cuts, shown) as theirs:
        sizes = [_bytes_of(dense.get_submodule(name), rows[name] * images * views[name]) for name in layers]
        runs = [[layers[place] for place in run] for run in theirs.runs(layers, sizes, _MOST_BYTES)]
        for run, after in itertools.zip_longest(runs, runs[1:]):
            theirs.advance(run[0])
            targets = {name: _wanted(dense, name, kept.get(name, {}), views[name] * len(batches)) for name in run}
            with Watch(dense, targets, theirs.stop) as watch:
                for _ in theirs.passes(ahead=after[0] if after else "", seen=watch.seen):
                    watch.renew()
            for name in run:
                done = layers.index(name)
                progress(Step(f"solving layer {done + 1} of {len(layers)}: {name}", done, len(layers)))
                ours.advance(name)
                layer = Layer(
                    name=name,
                    wanted=targets.pop(name),
                    norm=norms.get(name),
                    clip=clips.get(name),
                    weights=weights,
                    extra=name in adding,
                    views=views[name],
                )
                if _solve(ours, layer, ridge, strict):
                    solved.append(name)
    return solved


@contextmanager
def _rows_an_input(network: nn.Module) -> Iterator[dict[str, int]]:
    """Yield a dictionary that fills with how many equations one input gives of each plain layer."""
    rows: dict[str, int] = {}

    def measure(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any, output: Tensor) -> None:
            rows[name] = output.numel() // len(layer.weight) // len(inputs[0])

        return hook

    with hooks_restored(network):
        for name, layer in network.named_modules():
            if is_plain(layer):
                layer.register_forward_hook(measure(name))
        yield rows


def _bytes_of(layer: Any, rows: int) -> int:
    """Of what a layer of the dense network gives: outputs, and what they are added to; not of the few inputs."""
    most = rows if isinstance(layer, nn.Linear) else min(rows, _ROWS)
    weight: Tensor = layer.weight
    return 2 * most * len(weight) * weight.element_size()


def _wanted(dense: nn.Module, name: str, kept: Mapping[str, Sequence[int]], batches: int) -> Wanted:
    """What is wanted of a layer: its outputs, and of a kernel of several places with pruned inputs these, too."""
    several = math.prod(getattr(dense.get_submodule(name), "kernel_size", ())) > 1
    channels = InputChannels(kept["in"], batches) if several and "in" in kept else None
    return Wanted(kept.get("out"), batches, _ROWS, channels)


def _may_add(layer: nn.Module) -> bool:
    """Whether it is a linear layer that can be solved."""
    return isinstance(layer, nn.Linear) and is_plain(layer) and "weight" in layer._parameters


def _solve(ours: Replay, layer: Layer, ridge: float | None, strict: bool) -> bool:
    """Solve one layer anew; False where the inputs are too few and that is allowed."""
    module: Any = ours.network.get_submodule(layer.name)
    outputs, unknowns = module.weight.flatten(1).shape
    equations = Equations(unknowns, outputs, module.weight.device)
    passes = Passes(ours, layer)
    for row in passes:
        equations.add(row.inputs, row.targets, row.weights)
    if not _enough(equations.rows, unknowns, passes, strict):
        return False
    centred = module.bias is not None or layer.norm is not None
    start = layer.wanted.start(module, ridge, centred).flatten(1).T
    # A mirror image says much of what the image does: what holds the weights is chosen for the images alone.
    held = ridge_of(unknowns, equations.rows // layer.views) if ridge is None else ridge
    solve = partial(equations.solve, start, held, centred=centred)
    weight, intercept = solve()
    if layer.clip is not None:
        for _ in range(_CLIPPED):
            equations.forget_targets()
            for part in passes.opened(layer.clip, weight, intercept):
                equations.add_targets(part.inputs, part.targets, part.weights)
            further = solve()
            weight, intercept = weight.lerp(further[0], _RELAXED), intercept.lerp(further[1], _RELAXED)
    module.weight.data = weight.T.reshape(module.weight.shape).to(module.weight)
    if module.bias is not None:
        module.bias.data = intercept.to(module.bias)
    elif layer.norm is not None:
        layer.norm.running_mean -= intercept.to(layer.norm.running_mean)  # the norm subtracts its mean: this adds
    return True


def _enough(rows: int, unknowns: int, passes: Passes, strict: bool) -> bool:
    """Whether a layer has enough equations, or raise where it must.

    With few more of them than unknowns an extra layer would learn the inputs by heart, unless it ends in an addition,
    where it is what makes up for the branch. Mirror images are not counted: they say much of what the images do.
    """
    extra, views = passes.layer.extra, passes.layer.views
    rows, images = rows // views, passes.images // views
    enough = rows >= (_ROWS_OF_EXTRA if extra and not passes.summed else 1) * unknowns
    if enough or extra or not strict:
        return enough
    needed = -(-unknowns * images // rows)
    raise ImageFolderError(
        f"{images} calibration images are too few to solve {passes.layer.name}: they give {rows} equations for "
        f"{unknowns} unknowns. Give at least {needed} images to solve with, beside those held out to measure on (a "
        "tenth as many, at least 16), or choose `recover=bn`."
    )
