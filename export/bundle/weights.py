"""The pruned network on disk: written as safetensors, and built again from its source, plan and weights."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from pruneport.compress.surgery.plan import Plan
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import BundleError
from pruneport.export.bundle.bundle import PLAN, PREPROCESSOR, WEIGHTS, Bundle, plan_hash
from pruneport.files import process_umask
from pruneport.models.preparation.huggingface import image_processor
from pruneport.models.record import Factory, Source

__all__ = ["check_reload", "read_weights", "rebuild", "same_bits", "write_network", "write_preprocessor"]


def write_network(folder: Path, network: nn.Module, plan: Plan) -> None:
    """Write plan.json, weights.safetensors and, where inputs are images, preprocessor.json.

    Tensors that share memory are stored once each by value.
    """
    (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")
    write_preprocessor(folder, plan.source)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt", "plan_sha256": plan_hash(folder)})
    (folder / WEIGHTS).chmod(0o666 & ~process_umask())


def write_preprocessor(folder: Path, source: Source, *, rescale: bool = True, normalise: bool = True) -> None:
    """Write preprocessor.json where inputs are images: what is to be done before the ONNX files take them.

    Args:
        folder: The bundle.
        source: Its network's.
        rescale: See ``image_processor``.
        normalise: See ``image_processor``.
    """
    if source.preprocessing is not None:
        content = image_processor(
            source.preprocessing,
            source.image_shape,
            source.class_names,
            rescale=rescale,
            normalise=normalise,
        )
        (folder / PREPROCESSOR).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def rebuild(bundle: Bundle, factory: Factory | None = None, *, trust_source: bool = False) -> nn.Module:
    """Build the dense network from its source, shrink it by the plan and load the weights.

    Nothing is traced or unpickled. Only torchvision's, timm's and our own networks are built from the name
    in the plan; any other needs the caller's factory, since building it runs its code.

    Raises:
        BundleError: The source is someone's own code, or plan and weights do not fit the network.
        SourceError: The factory fails.
    """
    source = bundle.plan.source
    if factory is None and source.live is not None:
        raise BundleError(
            f"{bundle.folder} was made from a network in memory, a {source.spec}, and does not say how it is built: "
            "give `factory`, which builds the dense network; in Python also one in memory, which is copied."
        )
    if factory is None and source.library is None and not trust_source:
        raise BundleError(
            f"{bundle.folder} was made from {source.spec}; building it runs that code. If you trust it, give "
            f"`factory` {source.spec}, or `trust_source=True` where it is taken."
        )
    try:
        return rebuild_network(bundle.plan, read_weights(bundle), factory)
    except RuntimeError as error:
        raise BundleError(
            f"{bundle.folder / WEIGHTS} does not fit the network of {source.spec} after its plan: {error}"
        ) from error


def read_weights(bundle: Bundle) -> dict[str, Tensor]:
    """The state dict of a bundle's pruned network.

    Raises:
        BundleError: The file is damaged.
    """
    try:
        return load((bundle.folder / WEIGHTS).read_bytes())
    except safetensors.SafetensorError as error:
        raise BundleError(
            f"{bundle.folder / WEIGHTS} is not a file of weights: {error}. Fetch the bundle again."
        ) from error


def check_reload(folder: Path, network: nn.Module, plan: Plan, factory: Factory | None = None) -> nn.Module:
    """Load the network back from disk, by its source or ``factory``, and compare it bit for bit with the one in memory.

    Args:
        folder: What ``write_network`` wrote.
        network: What was written.
        plan: Its plan.
        factory: Builds the dense architecture in place of the source.

    Returns:
        The network from disk.

    Raises:
        BundleError: They differ.
    """
    reloaded = rebuild(Bundle(folder=folder, plan=plan, files={}), factory, trust_source=True)
    if not same_bits(reloaded, network):
        raise BundleError(f"{plan.source.spec} does not build the same network twice; make its factory deterministic.")
    return reloaded


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same tensors under the same names."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
