"""Networks whose forward takes or returns the unusual, all the way; and what cannot be exported, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from pruneport.export.onnx.onnx_file import read_metadata
from tests.support.command_line import read_json

QUICK = ("--repeats", "2", "--warmup", "1")
PLAIN = ("--flops", "0.6", "--round-to", "1", "--criterion", "l1", "--ranking", "uniform", "--recover", "none")
MODULE = """
import dataclasses
import torch
from torch import nn


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    patches: int
    maps: dict


class Network(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        self.head = nn.Linear(8, 5)

    def forward(self, *args, is_training=False, **kwargs):
        maps = self.body(*args, **kwargs)
        logits = self.head(maps.mean((2, 3)))
        if self.kind == "scores":
            return Scores(logits, 4, {"last": maps, "top": logits.topk(2, 1)})
        if self.kind == "single":
            return logits.reshape(1, 5)
        if self.kind == "by value":
            return logits if bool(logits.sum() > 0) else -logits
        return logits


def make(kind="plain"):
    return Network(kind)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "users_strange.py"
    path.write_text(MODULE, encoding="utf-8")
    return path


def _asked(source: Path, kind: str) -> tuple[object, ...]:
    return f"{source}:make", "--model-arg", f"kind={kind}", "--input-shape", "1", "8", "8", *PLAIN


def _outputs(path: Path) -> list[str]:
    return [output.name for output in onnx.load(path).graph.output]


@pytest.mark.slow
def test_outputs_keep_their_names_all_the_way(source: Path, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("ship", *_asked(source, "scores"), *QUICK, "--batches", "1", "--out", out)
    assert ran.code == 0
    names = ["logits", "maps.last", "maps.top.values", "maps.top.indices"]
    assert _outputs(out / "model.onnx") == _outputs(out / "dense.onnx") == names
    assert "what the network returns besides tensors is not in its ONNX file: patches (int)" in ran.err
    assert "besides these torch returns patches (int)" in ran.out.replace("\n", " ")
    assert run("verify", out, "--factory", f"{source}:make").code == 0


@pytest.mark.slow
def test_a_fixed_batch_all_the_way(source: Path, run: Any, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("L", (8, 8), number * 50).save(tmp_path / "photos" / f"{number}.png")
    out, given = tmp_path / "out", ("--images", tmp_path / "photos", "--mean", "0.5", "--std", "0.5")
    asked = ("ship", *_asked(source, "plain"), *QUICK, "--batch-size-fixed", "2", "--out", out)
    assert run(*asked, *given).code == 0
    assert [entry["batch"] for entry in read_json(out / "bench.json")["batches"]] == [2]
    assert {entry["batch"] for entry in read_json(out / "verify.json")["parity"]} == {2}
    assert read_metadata(out / "model.onnx")["batch_size_fixed"] == "2"
    card, page = ((out / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    assert "takes batches of 2, and no others" in card
    assert "np.zeros((2, 1, 8, 8)" in card
    assert "it takes batches of 2, and no others." in page
    assert run("verify", out, "--factory", f"{source}:make", *given).code == 0
    ran = run("verify", out, "--factory", f"{source}:make", "--parity-batches", "2", "5")
    assert (ran.code, "--parity-batches 5: the networks are exported for a batch of 2 alone" in ran.err) == (2, True)
    assert run("bench", out, *QUICK).code == 0
    assert "takes batches of 2, and no others" in (out / "README.md").read_text(encoding="utf-8")
    ran = run("bench", out, *QUICK, "--batches", "4")
    assert (ran.code, "has the fixed batch 2" in ran.err) == (2, True)
    assert run("export", out, "--factory", f"{source}:make").code == 0  # and back to any batch
    assert "takes any batch size" in (out / "README.md").read_text(encoding="utf-8")
    assert run("bench", out, *QUICK, "--batches", "4").code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batches", "1", "4"), "batches must be 2 alone, for which the networks are exported; got 1 4"),
        (("--parity-batches", "3"), "--parity-batches 3: the networks are exported for a batch of 2 alone"),
        (("--batch-size-fixed", "0"), "--batch-size-fixed is 0; expected at least 1"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_met_before_any_work(
    flags: tuple[str, ...], said: str, source: Path, run: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = run("ship", *_asked(source, "plain"), "--batch-size-fixed", "2", *flags, "--out", out)
    assert ran.code == 2
    assert said in ran.err.replace("\n", " ")
    assert "exporting dense.onnx" not in ran.err
    assert not out.exists()


@pytest.mark.slow
def test_one_image_at_a_time_is_said_and_shipped_as_such(source: Path, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("ship", *_asked(source, "single"), "--out", out)
    assert ran.code == 2
    assert "Network takes one image at a time: its forward fails on a batch of two" in ran.err
    assert "--batch-size-fixed 1" in ran.err
    assert "removing filters" not in ran.err
    assert run("ship", *_asked(source, "single"), *QUICK, "--batch-size-fixed", "1", "--out", out).code == 0
    assert read_json(out / "plan.json")["masked_error"] < 1e-5
    assert run("compress", *_asked(source, "single"), "--out", tmp_path / "alone").code == 0
    ran = run("export", tmp_path / "alone", "--factory", f"{source}:make")
    assert (ran.code, "--batch-size-fixed 1" in ran.err) == (2, True)
    assert run("export", tmp_path / "alone", "--factory", f"{source}:make", "--batch-size-fixed", "1").code == 0


@pytest.mark.parametrize("verb", ["ship", "compress"])
def test_what_cannot_be_exported_is_found_first(verb: str, source: Path, run: Any, tmp_path: Path) -> None:
    first = ("--dry-export",) if verb == "compress" else ()
    ran = run(verb, *_asked(source, "by value"), *first, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "torch cannot export Network with a dynamic batch" in ran.err
    assert "control flow that depends on values" in ran.err
    assert "finding coupled groups" not in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--calibration", "nowhere"), "no image folder nowhere"),
        (("--recover", "bn"), "--recover bn needs images"),
        (("--criterion", "taylor"), "--criterion taylor needs images"),
    ],
)
def test_exporting_waits_for_what_is_checked_at_once(
    flags: tuple[str, ...], said: str, source: Path, run: Any, tmp_path: Path
) -> None:
    ran = run("ship", *_asked(source, "by value"), *flags, "--out", tmp_path / "out")
    assert (ran.code, said in ran.err) == (2, True)
    assert "exporting dense.onnx" not in ran.err


def test_exporting_first_is_left_out_on_request(source: Path, run: Any, tmp_path: Path) -> None:
    ran = run("ship", *_asked(source, "by value"), "--no-dry-export", "--out", tmp_path / "out")
    assert ran.code == 2
    assert ran.err.index("removing filters") < ran.err.index("exporting dense.onnx")
    assert not (tmp_path / "out").exists()
    assert run("compress", *_asked(source, "by value"), "--out", tmp_path / "out").code == 0


_WINDOWS = """
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        places = self.body(images).permute(0, 2, 3, 1)
        batch, height, width, channels = places.shape
        windows = places.view(batch, height // 5, 5, width // 5, 5, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
        windows = windows.view(-1, 25, channels).relu()
        windows = windows.view(windows.shape[0] // 4, 4, -1).mul(2).view(-1, 5, 5, channels)
        count = int(windows.shape[0] / (height * width / 5 / 5))
        again = windows.view(count, height // 5, width // 5, 5, 5, -1).permute(0, 1, 3, 2, 4, 5).contiguous()
        again = again.view(count, height, width, -1)
        return self.head(places.mean((1, 2)) + again.reshape(batch, -1, channels).mean(1))
"""


@pytest.mark.slow
def test_a_file_for_the_examples_batch_alone_is_met_before_any_work(run: Any, tmp_path: Path) -> None:
    """torch makes a number of the batch size without a word, as of official Swin's windows."""
    (tmp_path / "users_windows.py").write_text(_WINDOWS, encoding="utf-8")
    asked = (f"{tmp_path / 'users_windows.py'}:Network", "--input-shape", "1", "12", "12", *PLAIN)
    done = run("ship", *asked, *QUICK, "--out", tmp_path / "out")
    assert done.code == 2
    assert "is right for a batch of two alone" in done.err
    assert "choosing widths" not in done.err
    fixed = run("ship", *asked, *QUICK, "--batch-size-fixed", "2", "--batches", "2", "--out", tmp_path / "out")
    assert fixed.code == 0, fixed.err


RANDOM = """
import torch
from torch import nn
from torch.nn import functional


class Noisy(nn.Module):
    def __init__(self, kind="rand"):
        super().__init__()
        self.kind, self.runs = kind, 0
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.scores = nn.Linear(16, 4)

    def forward(self, images):
        features = torch.relu(self.second(torch.relu(self.first(images)))).mean((2, 3))
        if self.kind == "rand":
            features = features + torch.rand_like(features)
        if self.kind == "dropout":
            features = functional.dropout(features, 0.5, training=True)
        if self.kind == "state":
            self.runs += 1
            features = features * self.runs
        if self.kind == "rounding":
            features = features * (1 + 1e-7 * torch.rand_like(features))
        scores = self.scores(features)
        if self.kind == "noisy choice":
            return scores, (scores + torch.rand_like(scores)).argmax(1)
        return scores
"""


@pytest.mark.parametrize("kind", ["rand", "dropout", "state", "rounding", "noisy choice"])
def test_a_forward_that_is_random_is_said_before_pruning(kind: str, run: Any, tmp_path: Path) -> None:
    source = tmp_path / "users_noisy.py"
    source.write_text(RANDOM)
    given = (f"{source}:Noisy", "--model-arg", f"kind={kind}", "--input-shape", "3", "8", "8")
    done = run("compress", *given, *PLAIN, "--out", tmp_path / "out")
    if kind in ("rounding", "noisy choice"):  # which nothing that is compared depends on
        assert done.code == 0, done.err
        return
    assert (done.code, done.out) == (2, "")
    said = done.err[done.err.index("error: ") :]
    assert "gives other outputs when it is run again on the same inputs" in said
    assert "Take the noise out of its forward in eval mode" in said
    assert "scoring" not in done.err
    assert not (tmp_path / "out").exists()
