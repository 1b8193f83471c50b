"""The pruned network on disk: written as safetensors, and built again from its source, plan and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from pruneport.compress.plan import Plan, apply_plan
from pruneport.errors import BundleError
from pruneport.export.bundle import PLAN, WEIGHTS, Bundle, plan_hash, process_umask
from pruneport.models.checkpoint import with_versions
from pruneport.models.record import Factory
from pruneport.models.source import build

__all__ = ["rebuild", "same_bits", "write_network"]


def write_network(folder: Path, network: nn.Module, plan: Plan) -> None:
    """Write plan.json and weights.safetensors; tensors that share memory are stored once each by value."""
    (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")
    state = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt", "plan_sha256": plan_hash(folder)})
    (folder / WEIGHTS).chmod(0o666 & ~process_umask())


def rebuild(bundle: Bundle, factory: Factory | None = None, *, trust_source: bool = False) -> nn.Module:
    """Build the dense network from its source, shrink it by the plan and load the weights.

    Nothing is traced or unpickled. Only torchvision's, timm's and our own networks are built from the name
    in the plan; any other needs the caller's factory, since building it runs its code.

    Raises:
        BundleError: The source is someone's own code, or plan and weights do not fit the network.
        SourceError: The factory fails.
    """
    source = bundle.plan.source
    if factory is None and source.library is None and not trust_source:
        raise BundleError(
            f"{bundle.folder} was made from {source.spec}; building it runs that code. If you trust it, pass "
            "factory= (--factory on the command line), or trust_source=True (--trust-source)."
        )
    network = build(source, factory, initialise=False)
    _drop_values(network)
    apply_plan(network, bundle.plan.groups, bundle.plan.attributes)
    try:
        _take_values(network, load((bundle.folder / WEIGHTS).read_bytes()))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise BundleError(
            f"{bundle.folder / WEIGHTS} does not fit the network of {source.spec} after its plan: {error}"
        ) from error
    return network.eval()


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same tensors under the same names."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _drop_values(network: nn.Module) -> None:
    """Leave only the shapes of what the weights file holds: shrinking then moves no memory; ties are kept."""
    saved = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    shells: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, so that no other tensor gets its id
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in saved:
                    shells.setdefault(id(tensor), (tensor, _shell(tensor)))
                    tensors[name] = shells[id(tensor)][1]  # type: ignore[assignment]


def _shell(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _take_values(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make ``state``'s tensors the network's own; what was one parameter under two names stays one."""
    names: dict[int, list[str]] = {}
    tied = list(network.named_parameters(remove_duplicate=False))
    for name, parameter in tied:
        names.setdefault(id(parameter), []).append(name)
    network.load_state_dict(with_versions(network, state), assign=True)
    for first, *others in names.values():
        for other in others:
            owner, _, attribute = other.rpartition(".")
            setattr(network.get_submodule(owner), attribute, network.get_parameter(first))
