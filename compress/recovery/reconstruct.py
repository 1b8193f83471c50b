"""Reconstruction: weights solved anew, layer by layer, so that outputs are the dense network's.

In order through the network, each layer is given the inputs that the pruned network really produces and is
fitted by least squares to the dense network's outputs (as in He et al. 2017, arXiv 1707.06168, where only
consumers are). We define: where a branch ends in an addition, the target is corrected by the error that already
lies on what it is added to, so that the sum, and not the branch, is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.least_squares import Equations, is_plain, ridge_of, rows_of
from pruneport.compress.activations.replay import Replay, Stopped, find_cuts
from pruneport.compress.hooks import calls_recorded, norms_recorded
from pruneport.compress.surgery.dropping import Absent
from pruneport.errors import ImageFolderError
from pruneport.models.inputs import batch_of, changed, rows_of_inputs, run_on
from pruneport.progress import Progress, Step, silent

__all__ = ["reconstruct", "solvable_layers"]

_ROWS = 150_000  # equations a layer at most; with 20,000 a ResNet-20 lost 0.25 points of top-1
_ROWS_OF_EXTRA = 2  # equations an unknown
_LEAST_GAIN = 0.05  # of the median: a channel that its norm nearly silences is not fitted at any price
_BatchNorm = nn.modules.batchnorm._BatchNorm
_ADDITIONS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
}
_TRANSPARENT = {F.batch_norm, torch.batch_norm, F.dropout}


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
) -> list[str]:
    """Solve the layers of ``pruned`` behind its first pruned one or dropped branch, in order of execution and in place.

    Behind a dropped branch, linear layers are solved too, where there are enough equations: they are what can make up
    for it in networks without convolutions, and where only the output layer is left behind it.

    Args:
        dense: The original network; it is only run.
        pruned: The pruned one, with modules of the same names.
        kept: Positions kept by layer and axis, as ``positions_kept`` gives them.
        batches: Inputs; no labels are needed.
        ridge: Pull towards the present weights, relative to the variance of each input of a layer; None: ``ridge_of``
            the number of inputs.
        progress: Told which layer is being solved.
        strict: Raise where there are too few equations; else such a layer keeps its weights.

    Returns:
        Names of the layers that were solved.

    Raises:
        ImageFolderError: There are fewer equations than unknowns; the message says how many images are needed.
    """
    wanted = set(solvable_layers(pruned, kept))
    first_batch = batches[0]()
    ridge = ridge_of(batch_of(first_batch) * len(batches)) if ridge is None else ridge
    example = rows_of_inputs(first_batch, slice(2))
    with calls_recorded(pruned) as order, norms_recorded(pruned) as norms, torch.no_grad():
        run_on(pruned, changed(example, Tensor.clone))
    modules = dict(pruned.named_modules())
    starts = (index for index, name in enumerate(order) if "in" in kept.get(name, {}))
    dropped = next((index for index, name in enumerate(order) if isinstance(modules[name], Absent)), len(order))
    first = min(next(starts, len(order)), dropped)
    adding = {name for name in order[dropped:] if name not in wanted and _may_add(modules[name])}
    layers = [name for name in order[first:] if name in wanted | adding and order.count(name) == 1]
    cuts = find_cuts(dense, example)
    solved = []
    with Replay(pruned, cuts, batches) as ours, Replay(dense, cuts, batches) as theirs:
        for number, name in enumerate(layers, start=1):
            progress(Step(f"solving layer {number} of {len(layers)}: {name}", number - 1, len(layers)))
            ours.advance(name)
            theirs.advance(name)
            out, extra = kept.get(name, {}).get("out"), name in adding
            if _solve(ours, theirs, name, norms.get(name), out, ridge, strict and not extra, extra=extra):
                solved.append(name)
    return solved


def _may_add(layer: nn.Module) -> bool:
    """Whether it is a linear layer that can be solved."""
    return isinstance(layer, nn.Linear) and is_plain(layer) and "weight" in layer._parameters


def _solve(
    ours: Replay,
    theirs: Replay,
    name: str,
    norm: Any,
    kept: Sequence[int] | None,
    ridge: float,
    strict: bool,
    *,
    extra: bool = False,
) -> bool:
    """Solve one layer anew; False where the inputs are too few and that is allowed.

    An ``extra`` layer is one whose inputs are all there, behind a dropped branch: with few more equations than unknowns
    it would learn the inputs by heart, unless it ends in an addition, where it is what makes up for the branch.
    """
    layer: Any = ours.network.get_submodule(name)
    start = layer.weight.detach().flatten(1).T
    equations = Equations(start.shape[0], start.shape[1], layer.weight.device)
    limit = _ROWS // len(ours)
    generator = torch.Generator().manual_seed(0)
    images, summed = 0, True
    with _Watch(ours.network, name) as mine, _Watch(theirs.network, name) as dense:
        for _ in zip(ours.passes(), theirs.passes(), strict=True):
            inputs, _, own_sum = mine.take()
            _, target, dense_sum = dense.take()
            if kept is not None:
                target = target.index_select(
                    -1 if isinstance(layer, nn.Linear) else 1, torch.as_tensor(kept, device=target.device)
                )
            summed = summed and own_sum is not None
            if own_sum is not None and dense_sum is not None and own_sum.shape == target.shape == dense_sum.shape:
                error = dense_sum - own_sum
                target = target + (error if norm is None else error / _gain(norm, target.ndim))
            equations.add(*rows_of(layer, inputs, target, limit, generator))
            images += len(inputs)
    unknowns = len(start)
    if extra and not summed and equations.rows < _ROWS_OF_EXTRA * unknowns:
        return False
    if equations.rows < unknowns:
        if not strict:
            return False
        needed = -(-unknowns * images // equations.rows)
        raise ImageFolderError(
            f"{images} calibration images are too few to solve {name}: they give {equations.rows} equations for "
            f"{unknowns} unknowns. Give at least {needed} images to solve with, beside those held out to measure on (a "
            "tenth as many, at least 16), or choose `recover=bn`."
        )
    weight, intercept = equations.solve(start, ridge, centred=layer.bias is not None or norm is not None)
    layer.weight.data = weight.T.reshape(layer.weight.shape).to(layer.weight)
    if layer.bias is not None:
        layer.bias.data = intercept.to(layer.bias)
    elif norm is not None:
        norm.running_mean -= intercept.to(norm.running_mean)  # the norm subtracts its mean: this adds
    return True


def _gain(norm: Any, ndim: int) -> Tensor:
    """What a BatchNorm multiplies its channels by, kept away from zero."""
    gain: Tensor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    least = _LEAST_GAIN * gain.abs().median().clamp_min(1e-6)
    gain = torch.where(gain.abs() < least, torch.where(gain < 0, -least, least), gain)
    return gain.reshape(1, -1, *[1] * (ndim - 2))


class _Watch(TorchFunctionMode):
    """Catches a layer's inputs and outputs, and the tensor that its branch is added to; then stops the pass."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self._network, self._name = network, name
        self._handles: list[Any] = []
        self._branch: Tensor | None = None
        self._inputs = self._outputs = torch.empty(0)
        self._added_to: Tensor | None = None

    def __enter__(self) -> _Watch:
        layer = self._network.get_submodule(self._name)
        self._handles = [layer.register_forward_hook(self._on_layer)]
        for module in self._network.modules():
            if isinstance(module, _BatchNorm | nn.Identity | nn.Dropout):
                self._handles.append(module.register_forward_hook(self._on_transparent))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def take(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return inputs, outputs and what was added of the latest pass, and forget them."""
        seen = (self._inputs, self._outputs, self._added_to)
        self._branch = self._added_to = None
        return seen

    def _on_layer(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._inputs, self._outputs, self._branch = inputs[0].clone(), output.clone(), output

    def _on_transparent(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0] is self._branch:
            self._branch = output

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads_branch = self._branch is not None and any(argument is self._branch for argument in args)
        if reads_branch and function in _ADDITIONS:
            other = args[1] if args[0] is self._branch else args[0]
            if isinstance(other, Tensor):
                self._added_to = other.clone()
                raise Stopped
        result = function(*args, **(kwargs or {}))
        if reads_branch and isinstance(result, Tensor) and function not in _TRANSPARENT:
            raise Stopped  # the branch goes on into something else than an addition
        return result
