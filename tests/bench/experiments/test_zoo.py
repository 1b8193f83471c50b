"""The zoo: one network of every kind all the way, and a sweep that resumes. ``zoo.py`` runs all of
them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pruneport.bench.experiments import zoo
from pruneport.bench.experiments.networks.all_the_way import compress_one
from pruneport.bench.experiments.networks.zoo import NETWORKS, family, input_size

_SHALLOW = Path(__file__).parents[2] / "support" / "shallow_networks.py"
SAMPLE = [
    "torchvision:squeezenet1_1",  # branches, a convolution as head
    "torchvision:mnasnet0_5",  # insists on the version of its state
    f"{_SHALLOW}:shufflenet",  # splits and shuffles
    f"{_SHALLOW}:regnet",  # narrow channel groups, squeeze and excite
    f"{_SHALLOW}:convnext",  # layer norm, layer scale
    f"{_SHALLOW}:vit",  # fused queries, keys and values
    f"{_SHALLOW}:levit",  # attention with norms and tables of biases
    f"{_SHALLOW}:repvgg",  # re-parametrised branches: all streams
    f"{_SHALLOW}:nf_resnet",  # standardised weights with gains
    f"{_SHALLOW}:lraspp",  # segmentation by a depthwise backbone with two outputs: a dict of maps
]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.rpartition(":")[2]) for spec in SAMPLE])
def test_all_the_way(spec: str) -> None:
    row = compress_one(spec)
    assert row["outcome"] == "ok", row.get("error")
    assert row["macs_kept"] == pytest.approx(0.6, abs=0.02)
    assert row["masked_error"] is None or row["masked_error"] < 1e-4
    assert row["parity_error"] < 1e-4
    assert row["pruned_groups"] > 0


@pytest.mark.slow
def test_a_sweep_notes_a_timeout_resumes_and_sums_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "zoo.jsonl", tmp_path / "zoo.md"

    def sweep(*networks: str, timeout: str = "300") -> list[dict[str, object]]:
        arguments = ["--out", str(out), "--summary", str(table), "--timeout", timeout, "--networks", *networks]
        monkeypatch.setattr(sys, "argv", ["zoo.py", *arguments])
        zoo.main()
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    first = sweep("torchvision:alexnet", timeout="0.1")
    assert [(row["network"], row["outcome"]) for row in first] == [("torchvision:alexnet", "timeout")]
    both = sweep("torchvision:alexnet", "torchvision:squeezenet1_1")
    assert [(row["network"], row["outcome"]) for row in both[1:]] == [("torchvision:squeezenet1_1", "ok")]
    assert sweep("torchvision:squeezenet1_1") == both, "what is in the file is not run again"
    text = table.read_text(encoding="utf-8")
    assert "torchvision: 1 of 1 networks." in text
    capsys.readouterr()


def test_a_network_that_does_not_exist_fails_by_name() -> None:
    row = compress_one("torchvision:resnet19")
    assert row["outcome"] == "build"
    assert "resnet19" in row["error"]


def test_the_zoo_holds_all_of_torchvision_and_enough_of_timm() -> None:
    assert len(NETWORKS["torchvision"]) == 80
    assert len(NETWORKS["timm"]) >= 120
    named = {"resnet", "densenet", "byobnet", "vision_transformer", "swin_transformer", "xcit", "mlp_mixer", "levit"}
    assert named <= {family(spec) for spec in NETWORKS["timm"]}
    assert input_size("timm:swinv2_tiny_window8_256") == 256
    assert input_size("torchvision:inception_v3") == 299
