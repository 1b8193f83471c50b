"""Bundles of networks that no factory is known of, or that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from pruneport.commands.api.keywords import PathName
from pruneport.commands.artifacts import write_card
from pruneport.commands.records import bundle_at
from pruneport.compress.surgery.plan import Plan
from pruneport.errors import BundleError
from pruneport.export.bundle.weights import read_weights, write_network
from pruneport.export.bundle.writing import new_bundle
from pruneport.models.live.copying import copy_network
from pruneport.progress import silent

__all__ = ["COMMAND", "Layout", "check_fits", "layout_of", "save", "write_bundle"]

COMMAND = "in Python"  # what the manifest says where there was no command line
_MOST_NAMED = 10

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor of a state dict, by name."""


def save(network: nn.Module, folder: PathName, *, like: PathName, overwrite: bool = False) -> Path:
    """Write a pruned network that was trained elsewhere as a bundle, whose plan says ``training``: ``outside``.

    Args:
        network: A bundle's network after a training of your own: in any mode, on any device, inside DataParallel,
            DistributedDataParallel or torch.compile. It is left as it is.
        folder: The new bundle; it must not exist yet, or be empty.
        like: The bundle that the network was loaded from, or that it was saved to before the training.
        overwrite: Replace the bundle that is at ``folder``.

    Returns:
        The folder.

    Raises:
        BundleError: The network's tensors are not those of ``like``; all are named, or the first ten.
        ModelError: Its weights are not finite, or it cannot be copied.
        OutputError: The folder is taken or cannot be written.

    Example:
        >>> network = pruneport.load("half")  # doctest: +SKIP
        >>> my_training(network)  # doctest: +SKIP
        >>> pruneport.save(network, "half-trained", like="half")  # doctest: +SKIP
    """
    bundle = bundle_at(Path(like), silent)
    copied = copy_network(network).network
    check_fits(copied, layout_of(read_weights(bundle)), str(like))
    plan = replace(bundle.plan, training="outside", dense_onnx="original")  # the new bundle has no dense.onnx yet
    return write_bundle(Path(folder), copied, plan, overwrite=overwrite)


def write_bundle(
    folder: Path, network: nn.Module, plan: Plan, check: Callable[[Path], object] | None = None, *, overwrite: bool
) -> Path:
    """Write plan, weights and model card as a new bundle; ``check`` looks at what was written."""
    with new_bundle(folder, overwrite, COMMAND) as staging:
        write_network(staging, network, plan)
        if check is not None:
            check(staging)
        write_card(staging, plan)
    return folder


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Type and shape of each tensor."""
    return {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in state.items()}


def check_fits(network: nn.Module, wanted: Layout, like: str) -> None:
    """Raise where a network's tensors are not those that a plan makes."""
    present = layout_of(network.state_dict())
    faults = [
        f"{name} is {_said(present.get(name))}, expected {_said(wanted.get(name))}"
        for name in dict.fromkeys((*wanted, *present))
        if present.get(name) != wanted.get(name)
    ]
    if faults:
        more = f"; and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        raise BundleError(
            f"the network does not fit {like}: {'; '.join(faults[:_MOST_NAMED])}{more}. Give the network that was "
            "loaded from there, with the layers that it had; for other classes there is pruneport finetune."
        )


def _said(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if entry is None else f"{entry[0].removeprefix('torch.')} {entry[1]}"
