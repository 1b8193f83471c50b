"""The networks of ``gpu.py`` as ONNX files: dense, pruned by pruneport, and by torch-pruning's uniform recipe.

Architectures alone, with seeded random weights: latency does not depend on what they are. Both recipes are asked for
the same shares of the multiply-accumulates; the shares that they reach are counted by the same function.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch_pruning as tp
from torch import nn

from pruneport.compress.allocation.cost import count_cost
from pruneport.compress.graph.output_layers import find_output_layers
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.errors import PruneportError
from pruneport.export.onnx.exporter import export_network
from pruneport.files import write_whole
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source
from pruneport.progress import silent

__all__ = ["DENSE", "NETWORKS", "Entry", "files_of", "write_networks"]

NETWORKS = {
    "resnet50": ("torchvision:resnet50", (3, 224, 224)),
    "mobilenet_v2": ("torchvision:mobilenet_v2", (3, 224, 224)),
    "convnext_tiny": ("torchvision:convnext_tiny", (3, 224, 224)),
    "vit_b_16": ("torchvision:vit_b_16", (3, 224, 224)),
    "digits": ("pruneport:digits_resnet", (1, 8, 8)),  # to try the script
}
DENSE = "dense"
_SEARCHES = 12  # for torch-pruning's ratio, which it takes in place of a share of the compute
_CLOSE = 0.005  # of the dense compute


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network that is timed, or that could not be made.

    Attributes:
        name: dense, or recipe and share, as "pruneport 0.5".
        macs: Multiply-accumulates of an image; of the dense one in an entry that has no network.
        macs_kept: Share of the dense network's.
        failed: Why there is none.
    """

    name: str
    macs: int
    macs_kept: float
    failed: str | None = None

    def file(self, folder: Path, precision: str) -> Path:
        """Its ONNX file; TF32 is no property of one."""
        return folder / f"{self.name.replace(' ', '-')}.{'fp16' if precision == 'fp16' else 'fp32'}.onnx"


def write_networks(
    network: str, shares: list[float], precisions: list[str], folder: Path, options: PruneOptions
) -> None:
    """Write all files and ``networks.json``, which says what they are; what is there already is left.

    Args:
        network: One of ``NETWORKS``.
        shares: Of the multiply-accumulates.
        precisions: fp32, tf32, fp16.
        folder: For the files.
        options: Of pruneport's recipe, but for the share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {entry.name: entry for entry in files_of(folder)}
    spec, shape = NETWORKS[network]
    torch.manual_seed(0)
    dense, source = open_source(SourceOptions(source=spec, input_shape=shape))
    takes, macs = source.takes, count_cost(dense, source.takes).macs

    def made() -> Iterator[tuple[str, nn.Module | str]]:
        if DENSE not in found:
            yield DENSE, dense
        for share in shares:
            if (name := f"pruneport {share:g}") not in found:
                try:
                    yield name, prune(dense, source, replace(options, flops=share), silent).network
                except PruneportError as error:
                    yield name, str(error)
            if (name := f"torch-pruning {share:g}") not in found:
                yield name, _uniform(dense, shape, share * macs)

    for name, each in made():
        print(f"writing {name}", flush=True)
        entry = Entry(name=name, macs=macs, macs_kept=1.0, failed=each if isinstance(each, str) else None)
        if isinstance(each, nn.Module):
            kept = count_cost(each, takes).macs
            entry = Entry(name=name, macs=kept, macs_kept=kept / macs)
            for precision in sorted({"fp16" if asked == "fp16" else "fp32" for asked in precisions}):
                exported = export_network(each, takes, precision=precision)
                exported.save(entry.file(folder, precision), {})
        found[name] = entry
        content = [asdict(entry) for entry in found.values()]
        write_whole(folder / "networks.json", json.dumps(content, indent=1) + "\n")


def files_of(folder: Path) -> list[Entry]:
    """What ``write_networks`` wrote."""
    place = folder / "networks.json"
    return [Entry(**entry) for entry in json.loads(place.read_text(encoding="utf-8"))] if place.is_file() else []


def _uniform(dense: nn.Module, shape: tuple[int, int, int], macs: float) -> nn.Module | str:
    """torch-pruning's own recipe, at the ratio that comes the nearest to so much compute; or why it fails."""
    example = torch.zeros(1, *shape)
    best, low, high = None, 0.0, 1.0
    least, whole = float("inf"), count_cost(dense, shape).macs
    for _ in range(_SEARCHES):
        ratio, network = (low + high) / 2, copy.deepcopy(dense).eval()
        modules = dict(network.named_modules())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tp.pruner.MagnitudePruner(
                    network,
                    example,
                    importance=tp.importance.MagnitudeImportance(p=1),
                    pruning_ratio=ratio,
                    round_to=8,
                    ignored_layers=[modules[name] for name in find_output_layers(dense, shape)],
                ).step()
            kept = count_cost(network, shape).macs
        except Exception as error:  # torch-pruning raises what it meets
            return f"torch-pruning fails: {type(error).__name__}: {str(error)[:300]}"
        if abs(kept - macs) < least:
            best, least = network, abs(kept - macs)
        if least <= _CLOSE * whole:
            break
        low, high = (ratio, high) if kept > macs else (low, ratio)
    return best if best is not None else "torch-pruning makes no network"
