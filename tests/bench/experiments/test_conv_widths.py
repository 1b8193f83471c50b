"""Single convolutions, tried on the CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from pruneport.bench.devices import ThrottleWatch
from pruneport.bench.experiments.latencies import conv_widths
from pruneport.bench.experiments.latencies.conv_widths import _printed, _timed
from pruneport.bench.experiments.networks import convolutions
from pruneport.bench.experiments.networks.convolutions import Layer, write_layers
from pruneport.bench.options import RuntimeOptions

_CPU = RuntimeOptions(repeats=1, warmup=1, threads=1)


def test_every_group_is_timed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.json"
    words = ["--provider", "cpu", "--batches", "1", "--precisions", "fp32", "--repeats", "1", "--groups", "search"]
    monkeypatch.setattr(sys, "argv", ["conv_widths", "--out", str(out), *words])
    monkeypatch.setattr(convolutions, "_SIZES", ((512, 7),))
    conv_widths.main()
    content = json.loads(out.read_text())
    assert content["device"]
    rows = content["rows"]
    assert len(rows) == 2 * 3 * 2 * 2  # tensor cores, options, kernels, widths
    assert all(row["p50_ms"] > 0 and row["tera_macs_per_s"] >= 0 for row in rows)
    assert {tuple(row["options"]) for row in rows} >= {("use_tf32", "cudnn_conv_algo_search")}


@pytest.mark.parametrize("widths", [(8, 8), (8, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_run_with_what_follows(widths: tuple[int, int], stride: int, tmp_path: Path) -> None:
    inputs, outputs = widths
    layer = Layer(inputs=inputs, outputs=outputs, kernel=3, stride=stride, after="bias add relu", options={})
    (figures,) = _timed([layer], "fp32", 2, _CPU, ThrottleWatch("cpu", 0), kernels=True)
    assert "failed" not in figures
    assert sum("Conv" in name for name in figures["operators"]) == 4
    assert "kernels" not in figures, "there is no GPU to ask"
    write_layers(layer, "fp32", 2, tmp_path / "layers.onnx")
    weights = {entry.name: tuple(entry.dims) for entry in onnx.load(tmp_path / "layers.onnx").graph.initializer}
    places = 2 * layer.made**2
    assert layer.macs(2) == sum(places * int(np.prod(dims)) for name, dims in weights.items() if name[0] == "w")


def test_a_layer_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_widths, "PROVIDERS", {"cpu": "NoExecutionProvider"})
    layer = Layer(inputs=8, outputs=8, kernel=1, options={})
    (figures,) = _timed([layer], "fp32", 1, _CPU, ThrottleWatch("cpu", 0), kernels=False)
    assert "NoExecutionProvider" in figures["failed"]


def test_what_libraries_print_is_caught() -> None:
    with _printed() as said:
        os.write(1, b"No execution plans support the graph.\n")
        os.write(2, b"a warning\n")
    assert said == ["No execution plans support the graph.", "a warning"]
