"""One network of random weights taken all the way: pruned, applied by its plan, reloaded, exported, compared."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.bench.devices import latency_versions
from pruneport.bench.experiments.networks.zoo import input_size
from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.graph.groups import group_units
from pruneport.compress.graph.module_attributes import rescale_keys
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.structure import example_inputs
from pruneport.compress.surgery.apply import apply_plan
from pruneport.errors import InputError, ParityError, PruneportError
from pruneport.export.bundle.weights import check_reload, write_network
from pruneport.export.cpu_session import open_cpu_session
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.parity import check_seeded
from pruneport.models.options import SourceOptions
from pruneport.models.outputs import tensor_leaves
from pruneport.models.record import Source
from pruneport.models.source import open_source

__all__ = ["compress_one", "enliven"]

_KEPT = 0.6
_BATCHES = (1, 3)


def compress_one(spec: str) -> dict[str, Any]:
    """Take one network all the way; the outcome names the step that failed, if one did.

    Returns:
        ``outcome`` is ``ok``, or the step that failed, with ``error``; then what was measured.
    """
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"outcome": "build", "versions": latency_versions()}
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        """Do a step: note its name first, in case it fails, and then its seconds."""
        row["outcome"], start = step, time.monotonic()
        result = work()
        seconds[step] = round(time.monotonic() - start, 2)
        return result

    try:
        size = input_size(spec)
        options = SourceOptions(source=spec, input_shape=(3, size, size))
        network, source = timed("build", lambda: open_source(options))
        enliven(network, source.image_shape, source.seed)
        seconds["forward"] = _forward_seconds(network, source.image_shape)
        pruned = timed("compress", lambda: _prune(network, source))
        plan = pruned.plan
        row |= {
            "scope": plan.request.scope,
            "macs": plan.dense.macs,
            "params": plan.dense.params,
            "macs_kept": round(plan.macs_kept, 4),
            "masked_error": plan.masked_error,
            "groups": len(plan.groups),
            "pruned_groups": sum(group.kept is not None for group in plan.groups),
            "left_dense": dict(Counter(_reason(group.reason) for group in plan.groups if group.kept is None)),
        }
        timed("same bits", lambda: _check_same_bits(network, pruned))
        with tempfile.TemporaryDirectory() as folder:
            timed("reload", lambda: _reload(Path(folder), pruned.network, plan))
            file = Path(folder) / "model.onnx"
            timed("export", lambda: write_onnx(pruned.network, source.image_shape, file, {}))
            checks = timed(
                "parity",
                lambda: check_seeded("pruned", pruned.network, open_cpu_session(file), source.image_shape, _BATCHES),
            )
        errors = [check.max_rel_error for check in checks]
        row["parity_error"] = max(error for error in errors if error is not None) if None not in errors else None
        if not all(check.ok for check in checks):
            faults = "; ".join(check.fault for check in checks if not check.ok)
            raise ParityError(f"torch and ONNX Runtime disagree: {faults}.")
        row["outcome"] = "ok"
    except PruneportError as error:
        row["error"] = str(error)
    row["step_s"] = seconds
    return row


def _prune(network: nn.Module, source: Source) -> Pruned:
    """Filters inside blocks; where a network has too few, its residual streams too."""
    asked = PruneOptions(flops=_KEPT, criterion="l1", ranking="uniform")
    try:
        return prune(network, source, asked)
    except InputError as error:
        try:
            return prune(network, source, replace(asked, scope="channels"))
        except InputError:
            raise error from None


def _check_same_bits(network: nn.Module, pruned: Pruned) -> None:
    """Raise where the plan, applied without a trace, gives other weights than the groups of the graph did.

    Keys of attention, whose scale a plan leaves to the weights, are scaled here by themselves.
    """
    plan = pruned.plan
    again = copy.deepcopy(network)
    apply_plan(again, plan.groups, plan.attributes, plan.sizes)
    coupling = find_coupling(network, example_inputs(plan.source, 1), plan.request.attention == "heads")
    by_name = {group.name: group for group in plan.groups}
    lost = {
        group.units[unit]
        for group in group_units(network, coupling)
        if (kept := by_name[group.name].kept) is not None
        for unit in set(range(group.width)).difference(kept)
    }
    rescale_keys(again, coupling, lambda unit: unit not in lost)
    ours, theirs = pruned.network.state_dict(), again.state_dict()
    apart = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    if apart or ours.keys() != theirs.keys():
        raise ParityError(f"applying the plan gives other weights than the graph: {', '.join(apart[:10])}.")


def enliven(network: nn.Module, shape: tuple[int, int, int], seed: int) -> None:
    """Draw norms and scales at random, since fresh ones do nothing, and measure statistics that keep outputs alive.

    The statistics of each BatchNorm are those of random inputs (4, C, H, W), times random factors; freely drawn ones
    would let a deep network blow up until float32 says nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    norms: list[Any] = []
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            norms.append(module)
        for name, parameter in module.named_parameters(recurse=False):
            flat = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if flat and bool(parameter.flatten()[0] == 1):
                parameter.data.uniform_(0.5, 1.5, generator=generator)
            elif flat and name != "weight":
                parameter.data += torch.empty_like(parameter).uniform_(-0.2, 0.2, generator=generator)
            elif flat:
                parameter.data += torch.empty_like(parameter).uniform_(0.05, 0.2, generator=generator)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, *shape, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(len(norm.running_mean), generator=generator)
        norm.running_var *= torch.empty(len(norm.running_var)).uniform_(0.7, 1.4, generator=generator)


def _forward_seconds(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Seconds of one forward pass, after one that is not timed."""
    inputs = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network(inputs)
        start = time.monotonic()
        network(inputs)
    return round(time.monotonic() - start, 3)


def _reload(folder: Path, network: nn.Module, plan: Any) -> None:
    """Write the network, read it back, and compare weights and outputs bit for bit."""
    write_network(folder, network, plan)
    again = check_reload(folder, network, plan)
    inputs = torch.randn(2, *plan.source.image_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = tensor_leaves(network(inputs)), tensor_leaves(again(inputs))
        if not all(map(torch.equal, ours, theirs)):
            raise ParityError("the network read back from disk does not compute what the pruned one does, bit for bit.")


def _reason(text: str) -> str:
    """A group's reason for staying dense, without the name of the group."""
    known = ("relies on this width", "residual stream", "outputs always stay", "representation", "leaves no smaller")
    for words in known:
        if words in text:
            return words
    return " ".join(text.split()[1:])[:80]
