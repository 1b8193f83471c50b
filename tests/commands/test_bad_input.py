"""Bad input: exit code 2, a message that names the thing and the way out, and a disk as it was."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pruneport.models.digits.network import digits_resnet
from tests.support.slow_values import each_quick

_FACTORIES = """
import warnings
import torch
from torch import nn

def build(width=16):
    body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(8, 4))

def half():
    return build().half()

def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(build())

def scripted_part():
    return nn.Sequential(nn.Conv2d(3, 3, 1), scripted())

def without_values():
    with torch.device("meta"):
        return build()

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = build()

    def forward(self, x, mask):
        return self.body(x * mask)

class Gradless(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)

class Leaves(nn.Module):
    def forward(self, x):
        raise SystemExit(7)

class Chatty(nn.Sequential):
    def forward(self, x):
        print("chatting")
        return super().forward(x)

def chatty():
    print("chatting")
    return Chatty(*build())

def raises():
    raise RuntimeError("no weights today")

def no_module():
    return [1, 2]

number = 3
"""


class _Code:
    """Unpickling this would create a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory full of things that cannot be used."""
    place = tmp_path_factory.mktemp("place")
    (place / "users_nets.py").write_text(_FACTORIES)
    (place / "users_broken.py").write_text("import a_module_that_is_not_there\n")
    state = digits_resnet().state_dict()
    torch.save(state, place / "whole.pth")
    content = (place / "whole.pth").read_bytes()
    (place / "truncated.pth").write_bytes(content[: len(content) // 2])
    (place / "truncated.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    (place / "empty.pth").write_bytes(b"")
    (place / "page.pth").write_text("<!DOCTYPE html>\n<html>Sign in to download</html>")
    (place / "notes.pth").write_text("remember the milk")
    torch.save({"weight": _Code()}, place / "code.pth")
    (place / "raw_code.pth").write_bytes(pickle.dumps({"weight": _Code()}))
    torch.save({"epoch": 3, "best": 0.9}, place / "no_tensors.pth")
    other = {name: tensor for name, tensor in state.items() if name not in ("head.bias", "stem.1.weight")}
    other |= {"head.weight": torch.zeros(7, 64), "extra.one": torch.zeros(1), "extra.two": torch.zeros(1)}
    save_file(other, place / "misfit.safetensors")
    state["blocks.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, place / "nan.safetensors")
    (place / "taken").mkdir()
    (place / "taken/precious.txt").write_text("keep me")
    (place / "no_images/0").mkdir(parents=True)
    (place / "corrupt/0").mkdir(parents=True)
    (place / "corrupt/0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    for label in ("0", "1"):
        (place / "two_classes" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "two_classes" / label / "a.png")
    return place


_DIGITS = "pruneport:digits_resnet"
_HALF = ("--flops", "0.5", "--out", "out")
_SHIP = ("ship", _DIGITS, *_HALF, "--repeats", "2", "--warmup", "1", "--parity-batches", "1")
_USERS = ("compress", "users_nets.py:build", *_HALF)
_RGB = ("--input-shape", "3", "8", "8", "--recover", "none", *_HALF)


def _weights(*arguments: str) -> tuple[str, ...]:
    return ("compress", _DIGITS, *arguments, *_HALF)


_TABLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # sources
    "no such source": (
        ("inspect", "resnet50"),
        ("'resnet50' is not understood", "torchvision:NAME", "file.py:factory"),
    ),
    "unknown torchvision model": (
        ("inspect", "torchvision:resnet51"),
        ("torchvision has no model 'resnet51'", "Did you mean", "resnet50"),
    ),
    "unknown timm model": (("inspect", "timm:resnet51"), ("timm has no model 'resnet51'", "Did you mean", "resnet")),
    "unknown own model": (("inspect", "pruneport:digits"), ("no model 'digits'", "Did you mean digits_resnet")),
    "no such file": (("inspect", "nowhere.py:build"), ("no file nowhere.py", "path/to/file.py:factory")),
    "no such module": (("inspect", "users_nowhere:build"), ("no module 'users_nowhere'", "package.module:factory")),
    "a library misspelt": (("inspect", "torchvison:resnet18"), ("no module 'torchvison'", "Did you mean torchvision:")),
    "unknown factory": (("inspect", "users_nets.py:biuld"), ("has no factory 'biuld'", "Did you mean build")),
    "not a factory": (("inspect", "users_nets.py:number"), ("users_nets.py:number is a int", "returning a Module")),
    "a file that does not import": (
        ("inspect", "users_broken.py:build"),
        ("importing users_broken.py failed", "a_module_that_is_not_there"),
    ),
    "a factory that raises": (
        ("inspect", "users_nets.py:raises", "--input-shape", "3", "8", "8"),
        ("factory of users_nets.py:raises", "RuntimeError: no weights today"),
    ),
    "a factory that needs arguments": (
        ("inspect", "torch.nn:Conv2d", "--input-shape", "3", "8", "8"),
        ("missing 3 required positional arguments", "give them as --model-arg key=value"),
    ),
    "a library without a name": (
        ("inspect", "torchvision:"),
        ("torchvision has no model ''", "such as torchvision:resnet50"),
    ),
    "a factory that returns no module": (
        ("inspect", "users_nets.py:no_module", "--input-shape", "3", "8", "8"),
        ("users_nets.py:no_module returned a list", "torch.nn.Module"),
    ),
    "an argument the factory does not take": (
        ("inspect", "users_nets.py:build", "--model-arg", "depth=3", "--input-shape", "3", "8", "8"),
        ("'depth': 3", "unexpected keyword argument", "--model-arg"),
    ),
    "an argument that is none": (("inspect", _DIGITS, "--model-arg", "classes"), ("'classes'", "expected key=value")),
    "a network in half precision": (
        ("ship", "users_nets.py:half", *_RGB),
        ("weights are torch.float16; expected torch.float32", ".float()"),
    ),
    "a scripted network": (
        ("ship", "users_nets.py:scripted", *_RGB),
        ("torch.jit has scripted or traced cannot be pruned", "give the one before torch.jit.script"),
    ),
    "a network with a scripted part": (
        ("ship", "users_nets.py:scripted_part", *_RGB),
        ("compiled modules cannot be pruned: 1.", "Give the network as it is before torch.compile"),
    ),
    "a network without values": (
        ("compress", "users_nets.py:without_values", *_RGB),
        ("without values (lazy, or on the meta device): 0.0.weight", "load its weights"),
    ),
    "a network that needs a mask": (
        ("ship", "users_nets.py:Masked", *_RGB),
        ("does not take one image alone", "missing 1 required positional argument: 'mask'", "as example_inputs"),
    ),
    "synthetic inputs without gradients": (
        ("compress", "users_nets.py:Gradless", "--input-shape", "3", "8", "8", *_HALF, "--recover", "data-free"),
        ("no gradient goes through the network to its input", "--calibration FOLDER"),
    ),
    "a network that ends the process": (
        ("inspect", "users_nets.py:Leaves", "--input-shape", "3", "8", "8"),
        ("the network's own code ended the process (SystemExit: 7)", "take that out of it"),
    ),
    "an argument without an end": (
        ("compress", "users_nets.py:build", "--model-arg", "width=1e999", *_RGB),
        ("'width=1e999'", "expected a finite number of 64 bits"),
    ),
    "an argument that no plan holds": (
        ("compress", "users_nets.py:build", "--model-arg", f"width={10**20}", *_RGB),
        ("width=100000000000000000000", "expected a finite number of 64 bits"),
    ),
    "an input larger than memory": (
        ("inspect", _DIGITS, "--input-shape", "1", "999999999", "999999999"),
        ("a batch of 1 of input float32 (B, 1, 999999999, 999999999) takes", "TB of memory", "choose a smaller one"),
    ),
    "a batch larger than memory": (
        ("ship", _DIGITS, *_HALF, "--recover", "none", "--batch-size-fixed", "1000000000"),
        ("error: a batch of 1000000000 of input float32 (B, 1, 8, 8) takes 256.00 GB of memory",),
    ),
    "a batch larger than a file can say": (
        (*_SHIP, "--batch-size-fixed", f"{10**20}"),
        ("--batch-size-fixed is 100000000000000000000; expected less than 2147483648",),
    ),
    "a timed batch larger than a file can say": (
        (*_SHIP, "--batches", f"{10**20}"),
        ("batches must be below 2147483648; got 100000000000000000000",),
    ),
    "an argument twice": (
        ("inspect", _DIGITS, "--model-arg", "num_classes=3", "--model-arg", "num_classes=4"),
        ("--model-arg num_classes is given twice", "leave one of them out"),
    ),
    "a seed too large": (
        _weights("--seed", "9" * 25),
        ("--seed is 9999999999999999999999999", "expected a whole number from -9223372036854775808"),
    ),
    # weights
    "unknown weight name": (_weights("--weights", "V9"), ("has no weights 'V9'", "expected DEFAULT")),
    "unknown torchvision weights": (
        ("inspect", "torchvision:resnet18", "--weights", "V9"),
        ("no weights 'V9'", "IMAGENET1K_V1"),
    ),
    "weight name for a user's factory": ((*_USERS, "--weights", "V1"), ("--weights V1", "--checkpoint")),
    "both": (_weights("--weights", "DEFAULT", "--checkpoint", "whole.pth"), ("both given", "one of the two")),
    "no checkpoint there": (
        _weights("--checkpoint", "gone.pth"),
        ("gone.pth does not exist", ".safetensors or a torch"),
    ),
    "a folder": (_weights("--checkpoint", "taken"), ("taken is a folder", "expected")),
    "a name too long": (
        _weights("--checkpoint", "x" * 300),
        ("File name too long", "expected a .safetensors or a torch file"),
    ),
    "truncated": (_weights("--checkpoint", "truncated.pth"), ("truncated.pth is truncated", "fetch it again")),
    "truncated safetensors": (
        _weights("--checkpoint", "truncated.safetensors"),
        ("truncated.safetensors cannot be read", "fetch it again"),
    ),
    "empty": (_weights("--checkpoint", "empty.pth"), ("empty.pth is empty", "download it again")),
    "a web page": (_weights("--checkpoint", "page.pth"), ("page.pth is a web page", "download the file itself")),
    "not a checkpoint": (_weights("--checkpoint", "notes.pth"), ("notes.pth is not a checkpoint", "torch.save")),
    "code": (_weights("--checkpoint", "code.pth"), ("code.pth", "nothing was run", "torch.save(network.state_dict()")),
    "code, not by torch": (_weights("--checkpoint", "raw_code.pth"), ("raw_code.pth", "torch.save")),
    "no tensors": (_weights("--checkpoint", "no_tensors.pth"), ("no_tensors.pth holds", "expected tensors by name")),
    "keys": (
        _weights("--checkpoint", "misfit.safetensors"),
        (
            "missing (2): stem.1.weight, head.bias",
            "unexpected (2): extra.one, extra.two",
            "head.weight (network (10, 64)",
        ),
    ),
    "NaN": (_weights("--checkpoint", "nan.safetensors"), ("blocks.0.conv1.weight", "undamaged checkpoint")),
    # targets
    "no target": (
        ("compress", _DIGITS, "--out", "out"),
        ("exactly one of --flops, --params, --ratio, --latency and --latency-ms", "none"),
    ),
    "two targets": (_weights("--params", "0.5"), ("exactly one of", "--flops and --params")),
    "per cent": (("compress", _DIGITS, "--flops", "50", "--out", "out"), ("--flops is 50", "Did you mean 0.5?")),
    "zero": (("compress", _DIGITS, "--ratio", "0", "--out", "out"), ("--ratio is 0", "between 0 and 1")),
    "negative": (("compress", _DIGITS, "--params", "-1", "--out", "out"), ("--params is -1", "between 0 and 1")),
    "not a number": (("compress", _DIGITS, "--flops", "nan", "--out", "out"), ("--flops is nan", "between 0 and 1")),
    "out of reach": (
        ("compress", _DIGITS, "--flops", "0.01", "--out", "out"),
        ("--flops 0.01 cannot be reached", "the lowest is 0.", "--scope channels", "--round-to"),
    ),
    "ratio out of reach": (
        ("compress", _DIGITS, "--ratio", "0.95", "--out", "out"),
        ("--ratio 0.95 cannot be reached", "at most 0.", "prunable filters can be removed", "--round-to"),
    ),
    "nothing prunable": (_weights("--keep", "*"), ("nothing can be pruned", "blocks.0.conv1", "kept by --keep *")),
    "keep matches nothing": (_weights("--keep", "layer9.*"), ("--keep layer9.* matches no module", "inspect")),
    "inspect in steps of zero": (("inspect", _DIGITS, "--round-to", "0"), ("--round-to is 0", "such as 8")),
    "steps of zero": (_weights("--round-to", "0"), ("--round-to is 0", "such as 8")),
    "remove all": (_weights("--max-pruning-ratio", "1.5"), ("--max-pruning-ratio is 1.5", "between 0 and 1")),
    "shape refused": (_weights("--input-shape", "3", "8", "8"), ("shape (1, 3, 8, 8)", "--input-shape C H W")),
    "shape of nothing": (_weights("--input-shape", "1", "0", "8"), ("--input-shape is (1, 0, 8)", "such as 3 224 224")),
    "shape not known": (_USERS, ("input shape of users_nets.py:build is not known", "--input-shape C H W")),
    # output
    "taken": (("compress", _DIGITS, "--flops", "0.5", "--out", "taken"), ("taken is not empty", "--overwrite")),
    "taken, not a bundle": (
        ("compress", _DIGITS, "--flops", "0.5", "--out", "taken", "--overwrite"),
        ("taken is not empty and is not a bundle", "Choose another folder"),
    ),
    "a file": (
        ("compress", _DIGITS, "--flops", "0.5", "--out", "whole.pth"),
        ("whole.pth is a file", "expected a folder"),
    ),
    "below a file": (
        ("compress", _DIGITS, "--flops", "0.5", "--out", "whole.pth/out"),
        ("whole.pth is not writable", "choose a folder"),
    ),
    "not writable": (("compress", _DIGITS, "--flops", "0.5", "--out", "/proc/out"), ("/proc/out cannot be written",)),
    # a cluster
    "memory without end": (
        ("sweep", _DIGITS, "--flops", "0.5", "--executor", "ray", "--memory", "inf", "--out", "out"),
        ("--memory is inf; expected GiB above 0", "such as 8"),
    ),
    # ship's own
    "no images there": ((*_SHIP, "--images", "nowhere"), ("no image folder nowhere", "FOLDER/CLASS/IMAGE")),
    "no images in it": ((*_SHIP, "--images", "no_images"), ("no images in no_images", ".png")),
    "no calibration folder": ((*_SHIP, "--calibration", "nowhere"), ("no image folder nowhere", "FOLDER/CLASS/IMAGE")),
    "no calibration images in it": ((*_SHIP, "--calibration", "no_images"), ("no images in no_images", ".png")),
    "corrupt calibration image": (
        (*_SHIP, "--calibration", "corrupt"),
        ("corrupt/0/broken.png cannot be read", "replace it"),
    ),
    "too few calibration images": (
        (*_SHIP, "--calibration", "two_classes", "--calibration-images", "1"),
        ("too few to solve", "Give at least", "--recover bn"),
    ),
    "no calibration image at all": (
        (*_SHIP, "--calibration", "two_classes", "--calibration-images", "0"),
        ("--calibration-images is 0", "at least 1"),
    ),
    "recovery of both kinds": (
        (*_SHIP, "--calibration", "two_classes", "--recover", "data-free"),
        ("data-free uses no images", "leave out --calibration"),
    ),
    "nothing to recover from": (
        (*_USERS, "--input-shape", "3", "8", "8", "--recover", "data-free"),
        ("no BatchNorm statistics", "--calibration FOLDER", "--recover none"),
    ),
    "a criterion without its images": (
        (*_SHIP, "--criterion", "taylor"),
        ("--criterion taylor needs images", "--calibration FOLDER", "block-hessian"),
    ),
    "an unknown criterion": ((*_SHIP, "--criterion", "magnitude"), ("magnitude", "l1")),
    "labels that do not match the head": (
        (*_SHIP, "--criterion", "snip", "--calibration", "two_classes"),
        ("2 classes, the network's head 10", "--calibration-labels predicted"),
    ),
    "bn-scale without norms": (
        (*_USERS, "--input-shape", "3", "8", "8", "--criterion", "bn-scale"),
        ("bn-scale needs a BatchNorm", "--keep"),
    ),
    "a plot of another kind": (
        ("inspect", _DIGITS, "--sensitivity", "--plot", "curves.jpg"),
        ("curves.jpg", "ending in .svg"),
    ),
    "a plot nowhere": (
        ("inspect", _DIGITS, "--sensitivity", "--plot", "nowhere/curves.svg"),
        ("there is no folder nowhere", "make it first"),
    ),
    "recovery without images": ((*_SHIP, "--recover", "reconstruct"), ("needs images", "--calibration FOLDER")),
    "corrupt image": ((*_SHIP, "--images", "corrupt"), ("corrupt/0/broken.png cannot be read", "replace it")),
    "other classes": ((*_SHIP, "--images", "two_classes"), ("two_classes has 2 class folders", "(10,)")),
    "a deviation that is no number": (
        (*_SHIP, "--calibration", "two_classes", "--mean", "0.5", "--std", "nan"),
        ("--std is (nan,)", "expected numbers above 0"),
    ),
    "a mean that is no number": (
        (*_SHIP, "--calibration", "two_classes", "--mean", "nan", "--std", "0.5"),
        ("--mean is (nan,)", "expected numbers from 0 to 1"),
    ),
    "too many means": (
        (*_SHIP, "--calibration", "two_classes", "--mean", "0.1", "0.2", "0.3"),
        ("--mean has 3 numbers; expected 1, as the input has channels",),
    ),
    "no image at all": (
        (*_SHIP, "--images", "two_classes", "--images-limit", "0"),
        ("--images-limit is 0", "at least 1"),
    ),
    "images smaller than the input": (
        (*_SHIP, "--images", "two_classes", "--resize", "4"),
        ("--resize 4 is smaller than the input of 8 x 8",),
    ),
    "parity on nothing": ((*_SHIP, "--parity-batches", "0"), ("--parity-batches is (0,)", "at least 1")),
    "batch of nothing": ((*_SHIP, "--batches", "0"), ("batches must be different sizes of at least 1; got 0",)),
    "the same batch twice": ((*_SHIP, "--batches", "1", "1"), ("batches must be different sizes", "got 1 1")),
    "all faults at once": (
        (*_SHIP, "--repeats", "1", "--warmup", "0", "--tf32"),
        (
            "repeats must be at least 2; got 1",
            "warmup must be at least 1",
            "tf32 needs the provider 'cuda' or 'tensorrt'",
        ),
    ),
    "more threads than there can be": ((*_SHIP, "--threads", "100000000"), ("threads must be from 1 to 1024",)),
    # the other verbs' own
    "a table below a file": (
        ("latency", _DIGITS, "--out", "whole.pth/table.json"),
        ("--out whole.pth/table.json: nothing can be written there", "give another place"),
    ),
    "timings kept in a file": (
        ("compress", _DIGITS, "--latency", "0.5", "--latency-cache", "whole.pth/cache", "--out", "out"),
        ("--latency-cache whole.pth/cache is a file, or lies below one", "expected a folder"),
    ),
    "more workers than help": (
        ("finetune", _DIGITS, "--task", "two_classes", "--workers", "100000", "--out", "out"),
        ("--workers is 100000", "at most 256"),
    ),
    "a folder for a study": (("transfer", "taken"), ("study taken is a folder", "expected a .yaml file")),
    "no bundle": (("verify", "taken"), ("taken is not a bundle: it has no manifest.json", "written by pruneport ship")),
    # what the command line itself refuses
    "unknown flag": (("compress", _DIGITS, "--flop", "0.5", "--out", "out"), ("--flop", "--help")),
    "unknown verb": (("shrink", _DIGITS), ("shrink", "--help")),
    "a word for a number": (("compress", _DIGITS, "--flops", "half", "--out", "out"), ("half", "--help")),
    "too few numbers": (_weights("--input-shape", "3", "8"), ("--input-shape", "--help")),
    "unknown criterion": (_weights("--criterion", "l7"), ("--criterion", "l1", "--help")),
    "no output": (("compress", _DIGITS, "--flops", "0.5"), ("--out", "--help")),
    "no source": (
        ("compress", "--out", "out"),
        ("pruneport compress lacks SOURCE", "Example: pruneport compress torchvision:", "--help"),
    ),
}


_AT_ONCE = (
    *("a network in half precision", "a scripted network", "a network with a scripted part"),
    "keep matches nothing",  # before inputs are made, which takes minutes of a large network
)


@pytest.mark.parametrize("name", each_quick(_TABLE, 2))
def test_bad_input(name: str, place: Path, run: Any, listing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, expected = _TABLE[name]
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    before = listing(place)
    done = run(*arguments)
    assert done.code == 2, done.err
    missing = [text for text in expected if text not in done.err]
    assert not missing, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert name not in _AT_ONCE or not any(late in done.err for late in ("exporting", "gathering"))
    assert listing(place) == before


@pytest.mark.parametrize(
    "faulty",
    [
        ("--images", "corrupt"),
        ("--images", "two_classes"),
        ("--images", "two_classes", "--resize", "4"),
        ("--parity-batches", "0"),
    ],
)
def test_parity_inputs_are_checked_before_any_work(
    faulty: tuple[str, ...], place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    done = run(*_SHIP, *faulty)
    assert done.code == 2
    progress = done.err[: done.err.index("error: ")].splitlines()
    assert progress == ["loading torch", f"[1/11] building {_DIGITS}"], done.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("verb", ["ship", "bench"])
def test_a_provider_that_is_not_here(
    provider: str, verb: str, bundle: Path, run: Any, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    before = listing(bundle.parent)
    done = run(*(_SHIP if verb == "ship" else ("bench", bundle)), "--provider", provider)
    assert (done.code, done.out) == (2, "")
    assert "ExecutionProvider" in done.err or "No NVIDIA GPU can be used here" in done.err
    assert "Install" in done.err
    assert "building" not in done.err  # found out before any work
    assert listing(bundle.parent) == before


def _changed(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def _edited_plan(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        change(plan)
        (folder / "plan.json").write_text(json.dumps(plan))

    return damage


def _out_of_range(plan: Any) -> None:
    group = next(group for group in plan["groups"] if group["kept"])
    group["kept"][-1] = group["width"]


def _climb(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../precious.txt"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _looping(folder: Path) -> None:
    """Add a loop without end."""
    model = onnx.load(folder / "model.onnx")
    values = [onnx.helper.make_tensor_value_info(name, kind, []) for name, kind in (("turn", 7), ("on", 9), ("off", 9))]
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["on"], ["off"])], "body", values[:2], values[2:])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(True), "go_on"))
    model.graph.node.append(onnx.helper.make_node("Loop", ["", "go_on"], [], body=body))
    onnx.save(model, folder / "model.onnx")


_DAMAGE: dict[str, tuple[Callable[[Path], Any], bool, str]] = {
    "changed plan": (_changed("plan.json"), False, "plan.json was changed"),
    "changed weights": (_changed("weights.safetensors"), False, "weights.safetensors was changed"),
    "missing weights": (
        lambda folder: (folder / "weights.safetensors").unlink(),
        False,
        "weights.safetensors is missing",
    ),
    "newer plan": (_edited_plan(lambda plan: plan.update(format_version=9)), True, "pip install --upgrade pruneport"),
    "indices out of range": (_edited_plan(_out_of_range), True, "are not ascending numbers from 0 to"),
    "climbing path": (_climb, True, "'../precious.txt', which lies outside the bundle"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), False, "is not a bundle"),
    "nothing": (shutil.rmtree, False, "no bundle at"),
    "changed ONNX": (_changed("model.onnx"), False, "model.onnx was changed"),
    "ONNX with a loop": (
        _looping,
        True,
        "model.onnx is not opened, since no export of pruneport has such parts: the operator Loop; a graph ",
    ),
}


@pytest.mark.parametrize("verb", ["export", "verify", "bench"])
@pytest.mark.parametrize("name", _DAMAGE)
def test_a_damaged_bundle(name: str, verb: str, bundle: Path, run: Any, rehash: Any, listing: Any) -> None:
    if "ONNX" in name and verb == "export":
        pytest.skip("export replaces it")
    damage, forged, message = _DAMAGE[name]
    (bundle.parent / "precious.txt").write_text("keep me")
    damage(bundle)
    if forged:
        rehash(bundle)
    before = listing(bundle.parent)
    done = run(verb, bundle)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert str(bundle) in done.err or "plan.json" in done.err
    assert "Traceback" not in done.err
    assert listing(bundle.parent) == before


@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_a_bundle_that_was_not_exported(verb: str, run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    assert run("compress", _DIGITS, "--flops", "0.5", "--out", folder).code == 0
    done = run(verb, folder)
    assert done.code == 2
    assert f".onnx; make it with: pruneport export {folder}" in done.err


@pytest.mark.parametrize("verb", ["export", "verify"])
def test_a_checkpoint_that_is_not_wanted(verb: str, bundle: Path, run: Any, place: Path, listing: Any) -> None:
    before = listing(bundle)
    done = run(verb, bundle, "--checkpoint", place / "whole.pth")
    assert done.code == 2
    assert "was not made from a checkpoint; leave out --checkpoint" in done.err
    assert listing(bundle) == before


@pytest.mark.slow
def test_a_moved_checkpoint(place: Path, run: Any, tmp_path: Path) -> None:
    checkpoint, folder = Path(shutil.copy(place / "whole.pth", tmp_path)), tmp_path / "bundle"
    asked = ("--flops", "0.5", "--recover", "none", "--checkpoint", checkpoint)
    assert run("compress", _DIGITS, *asked, "--out", folder).code == 0
    assert str(tmp_path) not in (folder / "README.md").read_text()
    assert "whole.pth" in (folder / "README.md").read_text()
    moved = checkpoint.rename(tmp_path / "moved.pth")
    done = run("export", folder)
    assert done.code == 2
    assert f"{checkpoint} does not exist" in done.err
    assert run("export", folder, "--checkpoint", moved).code == 0
    done = run("verify", folder, "--parity-batches", "1")
    assert done.code == 0
    assert f"dense.onnx not compared: checkpoint {checkpoint} does not exist" in done.out
    done = run("verify", folder, "--parity-batches", "1", "--checkpoint", moved)
    assert done.code == 0
    assert "not compared" not in done.out
    torch.save(digits_resnet().state_dict(), moved)
    for verb in ("export", "verify"):
        done = run(verb, folder, "--checkpoint", moved)
        assert done.code == 2
        assert "is not the file that was compressed" in done.err
    moved.rename(checkpoint)  # as a later training would overwrite it
    done = run("verify", folder, "--parity-batches", "1")
    assert done.code == 0
    assert f"dense.onnx not compared: checkpoint {checkpoint} is not the file that was compressed" in done.out


def test_interrupting_keeps_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pruneport.commands.compressing.write_card", interrupted)
    done = run("compress", _DIGITS, "--flops", "0.5", "--out", tmp_path / "out")
    assert (done.code, done.out) == (130, "")
    assert "interrupted; nothing was kept" in done.err
    assert list(tmp_path.iterdir()) == []


def test_what_a_network_prints_is_not_on_standard_output(
    place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    done = run("inspect", "users_nets.py:chatty", "--input-shape", "3", "8", "8", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["groups"]
    assert "chatting" in done.err
