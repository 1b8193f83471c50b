"""Which convolutions a GPU runs fast: single layers over widths, kernels, what follows, and the provider's options.

``python -m pruneport.bench.experiments.latencies.conv_widths --out FILE`` writes each layer as
an ONNX file, runs all of a group in the same rounds, and says for each: its latency, its multiply-accumulates per
second, the operators that ONNX Runtime makes of it, what ONNX Runtime and cuDNN print, and the kernels that ran. The
groups are questions: ``widths`` and ``one-sided`` ask for the multiple that widths must have, ``fusion`` for what
follows the convolution, ``stride`` for strides, ``layout`` for channels-last, ``search`` for how kernels are chosen.
Each is asked with tensor cores struck out (``use_tf32`` 0) and allowed (1); TF32 itself is off in both.
``--provider cpu`` tries the script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pruneport.bench.devices import ThrottleWatch, describe_device, latency_versions, sample_device
from pruneport.bench.experiments.networks.convolutions import DTYPES, LAYERS, Layer, write_layers
from pruneport.bench.gpu_state import gpu_library_versions
from pruneport.bench.latency.bound import BoundRun
from pruneport.bench.latency.providers import PROVIDERS, preload, provider_options, settle_tf32
from pruneport.bench.latency.stats import summarise
from pruneport.bench.latency.timer import SEED, take_turns, warm_up
from pruneport.bench.options import RuntimeOptions
from pruneport.files import write_whole

__all__ = ["main"]

_SQUARE = (64, 56, 60, 48, 40, 33, 128, 120, 96, 256, 248, 200)
_ONE_SIDED = ((64, 56), (56, 64), (64, 60), (60, 64), (64, 33), (33, 64), (256, 248), (248, 256), (256, 64), (64, 256))
_FEW = (64, 56, 60, 33)
_AFTER = ("bias", "bias relu", "bias add relu")
_TENSOR_CORES = ({"use_tf32": "0"}, {"use_tf32": "1"})
_WARM_UP_S = 0.4  # opening them took longer
_MARK = "run of layer "
_WARNINGS = 2  # a severity of ONNX Runtime's logs


def _groups() -> dict[str, list[Layer]]:
    """The layers of each question."""

    def layers(widths: Sequence[tuple[int, int]], *options: Mapping[str, str], **more: Any) -> list[Layer]:
        return [
            Layer(inputs=inputs, outputs=outputs, kernel=kernel, options={**cores, **changed}, **more)
            for cores, changed, kernel, (inputs, outputs) in itertools.product(
                _TENSOR_CORES, options or ({},), (1, 3), widths
            )
        ]

    few = [(width, width) for width in _FEW]
    return {
        "widths": layers([(width, width) for width in _SQUARE]),
        "one-sided": layers(_ONE_SIDED),
        "fusion": [layer for after in _AFTER for layer in layers(few, after=after)]
        + layers(few, {"fuse_conv_bias": "1"}, after="bias"),
        "stride": layers(few, stride=2),
        "layout": layers(few, {"prefer_nhwc": "1"}),
        "search": layers(
            few[:2],
            {"cudnn_conv_algo_search": "HEURISTIC"},
            {"cudnn_conv_algo_search": "DEFAULT"},
            {"cudnn_conv_use_max_workspace": "0"},
        ),
    }


def main() -> None:
    """Time, print and write JSON after every group, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = _groups()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--groups", nargs="+", choices=list(groups), default=list(groups))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 1])
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=["fp16", "fp32"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no group is begun")
    parser.add_argument("--kernels", action="store_true", help="also name the GPU's kernels, by torch's profiler")
    arguments = parser.parse_args()
    end = time.time() + 60 * arguments.minutes
    options = RuntimeOptions(provider=arguments.provider, repeats=arguments.repeats, warmup=3)
    settle_tf32(options)
    notes, device = preload(options), describe_device(options.provider, 0)
    rows: list[dict[str, Any]] = []
    # What is worth most comes first.
    for precision, batch, group in itertools.product(arguments.precisions, arguments.batches, arguments.groups):
        if time.time() > end:
            print("no time is left for another group")
            break
        start, watch = time.time(), ThrottleWatch(options.provider, 0)
        timed = _timed(groups[group], precision, batch, options, watch, kernels=arguments.kernels)
        for layer, figures in zip(groups[group], timed, strict=True):
            rows.append({"group": group, "precision": precision, "batch": batch, **_described(layer), **figures})
            print(_said(rows[-1]), flush=True)
        print(f"{group} {precision} batch {batch}: {time.time() - start:.1f} s", flush=True)
        content = {
            "provider": options.provider,
            "rows": rows,
            "layers_in_a_file": LAYERS,
            "provider_options": provider_options(options),
            "nvidia_tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
            "not_loaded": notes,
            "device": device,
            "at_end": sample_device(options.provider, 0) | watch.reasons(),
            "versions": {**latency_versions(), **(gpu_library_versions() if options.provider != "cpu" else {})},
        }
        write_whole(arguments.out, json.dumps(content, indent=1) + "\n")


def _described(layer: Layer) -> dict[str, Any]:
    """A layer as keys of a row."""
    return {**asdict(layer), "options": dict(layer.options), "size": layer.size}


def _timed(
    layers: Sequence[Layer], precision: str, batch: int, options: RuntimeOptions, watch: ThrottleWatch, *, kernels: bool
) -> list[dict[str, Any]]:
    """Open all, run them in turns, and say of each what it took."""
    figures: list[dict[str, Any]] = [{} for _ in layers]
    runs: dict[str, BoundRun] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, layer in enumerate(layers):
            path = Path(folder) / f"{index}.onnx"
            write_layers(layer, precision, batch, path)
            try:
                with _printed() as said:
                    runs[str(index)] = _opened(path, layer, batch, precision, options)
            except Exception as error:  # ONNX Runtime's errors share no other base
                figures[index]["failed"] = str(error)
            figures[index] |= {"said": sorted(set(said)), "operators": _operators(path)}
    if not runs:
        return figures
    warm_up(runs.values(), options, _WARM_UP_S)
    turns = take_turns(runs, options.repeats, options, watch.look, least_s=0.0)
    for name in runs:
        latency = summarise([sample.wall_ms for sample in turns.samples[name]], batch)
        macs = layers[int(name)].macs(batch)
        figures[int(name)] |= {
            **{key: round(getattr(latency, key), 5) for key in ("p50_ms", "p90_ms")},
            "tera_macs_per_s": round(macs / latency.p50_ms / 1e9, 3),
        }
    for name, ran in (_kernels(runs) if kernels else {}).items():
        figures[int(name)]["kernels"] = ran
    return figures


def _opened(path: Path, layer: Layer, batch: int, precision: str, options: RuntimeOptions) -> BoundRun:
    """A session with the layer's options, bound, and run once; ONNX Runtime prints its warnings."""
    settings = ort.SessionOptions()
    settings.log_severity_level = _WARNINGS
    settings.intra_op_num_threads = 1
    settings.optimized_model_filepath = str(_optimised(path))
    provider = PROVIDERS[options.provider]
    chosen = provider_options(options) | dict(layer.options) if options.provider == "cuda" else {}
    session = ort.InferenceSession(str(path), settings, providers=[(provider, chosen)], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} did not start")
    draw = np.random.default_rng(SEED).standard_normal
    values = {entry.name: draw(entry.shape).astype(DTYPES[precision]) for entry in session.get_inputs()}
    run = BoundRun(session, values, ("cpu" if options.provider == "cpu" else "cuda", 0), None)
    run.run()
    return run


def _optimised(path: Path) -> Path:
    """Where ONNX Runtime writes what it makes of a file."""
    return path.with_suffix(".optimised.onnx")


def _operators(path: Path) -> list[str] | None:
    """The operators that ONNX Runtime makes of a file, in their order."""
    made = _optimised(path)
    return [node.op_type for node in onnx.load(made).graph.node] if made.is_file() else None


@contextmanager
def _printed() -> Iterator[list[str]]:
    """Gather what libraries print meanwhile, to both streams, as lines."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as caught:
        kept = [os.dup(stream) for stream in (1, 2)]
        try:
            for stream in (1, 2):
                os.dup2(caught.fileno(), stream)
            yield lines
        finally:
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)
            caught.seek(0)
            text = caught.read().decode(errors="replace")
            lines += [line.strip()[:400] for line in text.splitlines() if line.strip()]


def _kernels(runs: Mapping[str, BoundRun]) -> dict[str, dict[str, float]]:
    """The GPU's kernels in one run of each, with their time in µs; none where there is no GPU to ask."""
    if not torch.cuda.is_available():
        return {}
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for name, run in runs.items():
            with record_function(f"{_MARK}{name}"):
                run.run()
    events = list(profiler.events() or [])
    marks = [(each.time_range, each.name) for each in events if each.device_type.name == "CPU"]
    times = {name.removeprefix(_MARK): passed for passed, name in marks if name.startswith(_MARK)}
    for each in events:
        if each.device_type.name == "CPU" or each.name.startswith(_MARK):
            continue
        for name, passed in times.items():  # a run ends when its kernels have
            if passed.start <= each.time_range.start <= passed.end:
                took = each.time_range.elapsed_us()
                found[name][each.name] = round(found[name].get(each.name, 0.0) + took, 1)
    return found


def _said(row: dict[str, Any]) -> str:
    """A row as text."""
    what = f"{row['inputs']:4} to {row['outputs']:4} {row['kernel']}x{row['kernel']}/{row['stride']} {row['after']:13}"
    options = " ".join(f"{name}={value}" for name, value in row["options"].items())
    if "failed" in row:
        return f"{what} {options}: {row['failed'].splitlines()[0]}"
    warned = "  no plan" if any("No execution plans" in line for line in row["said"]) else ""
    return f"{what} {row['p50_ms']:8.4f} ms {row['tera_macs_per_s']:8.2f} TMAC/s  {options}{warned}"


if __name__ == "__main__":
    main()
