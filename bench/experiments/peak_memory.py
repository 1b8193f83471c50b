"""Peak memory of ``compress`` above that of torch itself, in multiples of the dense weights.

Torch's own is measured in a process that builds the same network and runs it once; its weights are subtracted. Each
figure is the peak resident size of a process of its own. Run: ``python bench/experiments/peak_memory.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["main"]

_PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
_COMPRESS = """
from pathlib import Path
from pruneport.commands import CompressConfig, compress
compress(CompressConfig(source={source!r}, flops=0.5, out=Path({out!r})))
"""
_IMPORTS = """
import torch, torchvision
import pruneport.commands.compressing, pruneport.commands.deploying
"""
_TORCH = (
    _IMPORTS
    + """
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source
network, source = open_source(SourceOptions(source={source!r}))
network(torch.randn(1, *source.image_shape)).sum()
print(sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()))
"""
)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of compress.")
    parser.add_argument("--sources", nargs="+", default=["torchvision:resnet50", "torchvision:vgg16"])
    print(json.dumps([_measure(source) for source in parser.parse_args().sources], indent=1))


def _measure(source: str) -> dict[str, object]:
    """Measure one network."""
    with tempfile.TemporaryDirectory() as folder:
        (compressing,) = _run(_COMPRESS.format(source=source, out=str(Path(folder) / "bundle")))
    (imports,) = _run(_IMPORTS)
    weights, forward = _run(_TORCH.format(source=source))
    return {
        "source": source,
        "dense_weights_bytes": weights,
        "peak_bytes": {"compress": compressing, "imports": imports, "dense_forward": forward},
        "beyond_torch_in_dense_weights": round((compressing - (forward - weights)) / weights, 2),
    }


def _run(code: str) -> list[int]:
    """Run code in a process of its own; return the numbers it printed, then its peak memory in bytes."""
    # A child inherits its parent's peak, so this process imports nothing large.
    done = subprocess.run([sys.executable, "-c", code + _PEAK], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


if __name__ == "__main__":
    main()
