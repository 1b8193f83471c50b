"""Criteria by gradients of the loss (or, for SynFlow, of the flow) at the given weights, which never change.

All run on a copy of the network and add up over the images batch by batch, so memory does not grow with their
number. Where images carry no labels, the loss is that of the dense network's own answers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.activations.calibration import Batches, Calibration
from pruneport.compress.graph.groups import Group
from pruneport.compress.importance.group_scores import reduce_group, with_values
from pruneport.errors import ImageFolderError, PruningError
from pruneport.models.inputs import ExampleInputs, InputShape, changed, inputs_of, rows_of_inputs, run_on
from pruneport.models.outputs import main_output, tensor_leaves

__all__ = [
    "check_labels",
    "fisher",
    "grasp",
    "labels_for",
    "mean_gradient",
    "mean_squared_gradient",
    "snip",
    "synflow",
    "taylor",
]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_CHUNK = 16  # images a gradient of a gradient
Labels = Sequence[Tensor]


def labels_for(network: nn.Module, calibration: Calibration, wanted: str) -> list[Tensor]:
    """Class indices of every batch: from the folder, or the dense network's answers.

    Args:
        network: The dense network; its first output (B, classes, …) holds the logits.
        calibration: The images.
        wanted: ``folder``, ``predicted``, or ``auto``: the folder's where it has class folders.

    Raises:
        ImageFolderError: The folder has no classes, or not as many as the network.
    """
    with torch.no_grad():  # not inference_mode, whose tensors no loss can be differentiated with
        first = main_output(run_on(network, calibration.batches[0]()))
        check_labels(first, None if calibration.labels is None else calibration.classes, wanted)
        if calibration.labels is not None and wanted != "predicted":
            return list(calibration.labels)
        return [_logits(network, load()).argmax(1).cpu() for load in calibration.batches]


def check_labels(output: Tensor, classes: int | None, wanted: str) -> None:
    """Check that a loss can be taken of the main output, with the labels that are wanted.

    Args:
        output: Of any inputs.
        classes: How many class folders there are; None where images carry no labels.
        wanted: As in ``labels_for``.

    Raises:
        ImageFolderError: The folder has no classes, or not as many as the network.
        PruningError: The output is none of which a loss can be taken.
    """
    if wanted == "folder" and classes is None:
        raise ImageFolderError(
            "`calibration_labels=folder` needs FOLDER/CLASS/IMAGE; this folder has no class folders. "
            "Use `calibration_labels=predicted`."
        )
    outputs = _as_logits(output).shape[1]
    if classes is not None and wanted != "predicted" and outputs != classes:
        raise ImageFolderError(
            f"the calibration folder has {classes} classes, the network's head {outputs}; expected as many, in sorted "
            "order. Use `calibration_labels=predicted` to take the dense network's own answers."
        )


def taylor(network: nn.Module, groups: Sequence[Group], batches: Batches, labels: Labels) -> list[Tensor]:
    """Mean over batches of (sum of g w)^2: the squared first-order change of the loss without the unit.

    Molchanov et al. 2019, arXiv 1906.10771, equation 8.
    """
    shadow = copy.deepcopy(network)
    totals = [torch.zeros(group.width, dtype=torch.float64) for group in groups]
    for weights, gradients, _ in _gradients(network, batches, labels):
        with_values(shadow, {name: weight * gradients[name] for name, weight in weights.items()})
        for total, group in zip(totals, groups, strict=True):
            total += _reduced(shadow, group).square() / len(batches)
    return totals


def snip(network: nn.Module, groups: Sequence[Group], batches: Batches, labels: Labels) -> list[Tensor]:
    """Sum of |g w|, with g the gradient over all images (Lee et al. 2019, arXiv 1810.02340)."""
    weights, gradient = mean_gradient(network, batches, labels)
    return _scores(network, groups, {name: (weight * gradient[name]).abs() for name, weight in weights.items()})


def fisher(network: nn.Module, groups: Sequence[Group], batches: Batches, labels: Labels) -> list[Tensor]:
    """Sum of w^2 E[g^2] / 2: optimal brain damage (LeCun et al. 1990), the Fisher information as diagonal Hessian.

    g is the gradient of one image and the mean is over images (Theis et al. 2018, arXiv 1801.05787, section 3).
    """
    squares = mean_squared_gradient(network, batches, labels)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return _scores(network, groups, {name: weight.square() * squares[name] / 2 for name, weight in weights.items()})


def grasp(network: nn.Module, groups: Sequence[Group], batches: Batches, labels: Labels) -> list[Tensor]:
    """Sum of w (H g): the units that the gradient flow can lose go first.

    Wang et al. 2020, arXiv 2002.07376, equation 8, with the sign turned so that higher is kept. g is the gradient
    over all images; H g is added up over parts of 16 images, each the gradient of (its own gradient)' g.
    """
    weights, mean = mean_gradient(network, batches, labels)
    images = sum(len(part) for part in labels)
    products = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for _, gradients, (parameters, share) in _gradients(network, batches, labels, chunk=_CHUNK, second=True):
        flow = torch.stack([(gradient * mean[name]).sum() for name, gradient in gradients.items()]).sum()
        second = _finite(parameters, torch.autograd.grad(flow, list(parameters.values()), allow_unused=True))
        for name, product in second.items():
            products[name] += product * (share / images)
    return _scores(network, groups, {name: weight * products[name] for name, weight in weights.items()})


def synflow(network: nn.Module, groups: Sequence[Group], shape: InputShape) -> list[Tensor]:
    """Sum of |w dR/dw|, where R sums the outputs for an input of ones and every weight is made positive.

    Tanaka et al. 2020, arXiv 2006.05467, equation 2. In float64; BatchNorms keep their variance, with mean zero.
    """
    flow = copy.deepcopy(network).double()
    for norm in flow.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            norm.running_mean.zero_()
    for parameter in flow.parameters():
        parameter.data.abs_()
        parameter.requires_grad_()
    parameters: dict[str, Tensor] = dict(flow.named_parameters())
    ones = changed(inputs_of(shape).filled(1, 1), lambda given: given.double() if given.is_floating_point() else given)
    outputs = tensor_leaves(run_on(flow, ones))
    total = torch.stack([leaf.sum() for leaf in outputs if leaf.is_floating_point()]).sum()
    gradients = _finite(parameters, torch.autograd.grad(total, list(parameters.values()), allow_unused=True))
    return _scores(network, groups, {name: (p.detach() * gradients[name]).abs() for name, p in parameters.items()})


def _gradients(
    network: nn.Module, batches: Batches, labels: Labels, chunk: int | None = None, second: bool = False
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], tuple[dict[str, Tensor], int]]]:
    """Yield weights, the gradient of the mean loss of each part, and the parameters with the part's images."""
    work = copy.deepcopy(network)
    for parameter in work.parameters():
        parameter.requires_grad_()
    parameters: dict[str, Tensor] = dict(work.named_parameters())
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    for load, wanted in zip(batches, labels, strict=True):
        inputs = load()
        size = chunk or len(wanted)
        for start, answers in zip(range(0, len(wanted), size), torch.split(wanted, size), strict=True):
            part = rows_of_inputs(inputs, slice(start, start + size))
            logits = _logits(work, part)
            loss = F.cross_entropy(logits, answers.to(logits.device))
            derivatives = torch.autograd.grad(loss, list(parameters.values()), create_graph=second, allow_unused=True)
            yield weights, _finite(parameters, derivatives), (parameters, len(answers))


def mean_squared_gradient(network: nn.Module, batches: Batches, labels: Labels) -> dict[str, Tensor]:
    """Of every parameter the squared gradient of one image's loss, on the mean over images."""
    squares: dict[str, Tensor] = {}
    images = sum(len(part) for part in labels)
    for _, gradients, _ in _gradients(network, batches, labels, chunk=1):
        for name, gradient in gradients.items():
            squares[name] = squares.get(name, 0) + gradient.square() / images
    return squares


def mean_gradient(network: nn.Module, batches: Batches, labels: Labels) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights, and the gradient of the mean loss over all images."""
    images = sum(len(part) for part in labels)
    total: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for weights, gradients, (_, share) in _gradients(network, batches, labels):  # noqa: B007
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + gradient * (share / images)
    return weights, total


def _finite(parameters: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Gradients by name, zeros where the loss does not depend on a parameter."""
    filled = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        filled[name] = torch.zeros_like(parameter) if gradient is None else gradient
        if not bool(torch.isfinite(filled[name]).all()):
            raise PruningError(
                f"the gradient at {name} is not finite: the loss overflows. Check `mean` and `std`, or choose a "
                "criterion without gradients, such as l1 or block-hessian."
            )
    return filled


def _scores(network: nn.Module, groups: Sequence[Group], values: dict[str, Tensor]) -> list[Tensor]:
    shadow = copy.deepcopy(network)
    with_values(shadow, values)
    return [_reduced(shadow, group) for group in groups]


def _reduced(shadow: nn.Module, group: Group) -> Tensor:
    scores = reduce_group(shadow, group, lambda values: values.sum(1, dtype=torch.float64))
    return torch.zeros(group.width, dtype=torch.float64) if scores is None else scores


def _logits(network: nn.Module, inputs: ExampleInputs) -> Tensor:
    """The network's main output, which must be one that a loss can be taken of."""
    return _as_logits(main_output(run_on(network, inputs)))


def _as_logits(logits: Tensor) -> Tensor:
    """The same, once it is one that a loss can be taken of."""
    if logits.ndim < 2 or not logits.is_floating_point():
        raise PruningError(
            f"the network's main output has shape {tuple(logits.shape)}; a criterion with a loss expects logits "
            "(images, classes, …). Choose a criterion without a loss, such as l1 or block-hessian."
        )
    return logits
