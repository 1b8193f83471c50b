"""``pruneport.load``: bit for bit what was compressed, without running a stranger's code or any tracer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pruneport
from pruneport.errors import BundleError, SourceError

_USERS = """
from pathlib import Path
import torch
from torch import nn

Path(__file__).with_name("ran").touch()

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
            nn.Conv2d(width, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
        self.head = nn.Linear(16, 16)
        self.tail = nn.Linear(16, 16)
        self.tail.weight = self.head.weight
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x):
        return self.tail(self.head(self.body(x)) * self.scale)

def build(width=32):
    return Net(width)
"""


@pytest.fixture(scope="module")
def users(make_bundle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle of a user's own factory, whose file notes when it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        file = tmp_path_factory.mktemp("users") / "users_own_network.py"
        file.write_text(_USERS)
        made = make_bundle(f"{file}:build", input_shape=(3, 8, 8), model_arg=("width=48",))
    (file.parent / "ran").unlink()
    return made


@pytest.fixture
def ran(users: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists where the user's code ran."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    mark = Path(users.pruned.plan.source.spec.rpartition(":")[0]).with_name("ran")
    mark.unlink(missing_ok=True)
    return mark


@pytest.fixture(scope="module")
def resnet18(make_bundle: Callable[..., Any]) -> Any:
    return make_bundle("torchvision:resnet18", input_shape=(3, 32, 32))


def test_our_own_network_comes_back_bit_for_bit(digits: Any, same: Any) -> None:
    loaded = pruneport.load(str(digits.folder))
    assert same(loaded, digits.pruned.network, (1, 8, 8))
    assert not any(module.training for module in loaded.modules())
    assert sum(p.numel() for p in loaded.parameters()) == digits.pruned.plan.pruned.params
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())


def test_torchvisions_network_comes_back_bit_for_bit(resnet18: Any, same: Any) -> None:
    assert same(pruneport.load(resnet18.folder), resnet18.pruned.network, (3, 32, 32))


def test_a_loaded_network_can_be_trained(digits: Any) -> None:
    loaded = pruneport.load(digits.folder).train()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    optimiser = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(torch.randn(4, 1, 8, 8)).square().sum().backward()
    optimiser.step()
    changed = [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])]
    assert set(before) == set(changed)


def test_a_users_network_needs_his_factory(users: Any, ran: Path, same: Any) -> None:
    loaded = pruneport.load(users.folder, factory=lambda width: type(users.dense)(width))
    assert same(loaded, users.pruned.network, (3, 8, 8))
    assert not ran.exists()
    assert loaded.tail.weight is loaded.head.weight
    assert torch.equal(loaded.scale, torch.full((1,), 0.5))


def test_a_users_network_is_built_where_its_source_is_trusted(users: Any, ran: Path, same: Any) -> None:
    loaded = pruneport.load(users.folder, trust_source=True)
    assert same(loaded, users.pruned.network, (3, 8, 8))
    assert ran.exists()


def test_a_users_code_is_not_run_unasked(users: Any, ran: Path) -> None:
    with pytest.raises(
        BundleError, match=r"building it runs that code. If you trust it, give `factory` .*, or `trust_source=True`"
    ):
        pruneport.load(users.folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    "spec", ["os:system", "FILE:build", "subprocess:run", "builtins:exec", "torch:load", "TIMM:x", "torchvision.io:x"]
)
def test_a_strangers_source_is_not_run(spec: str, bundle: Path, rehash: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bundle / "evil.py"
    file.write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\nbuild = None\n")
    monkeypatch.chdir(bundle)
    plan = json.loads((bundle / "plan.json").read_text())
    plan["source"] |= {"spec": spec.replace("FILE", str(file)), "model_args": {"command": "touch ran"}}
    (bundle / "plan.json").write_text(json.dumps(plan))
    rehash(bundle)
    with pytest.raises(BundleError, match="building it runs that code"):
        pruneport.load(bundle)
    assert not (bundle / "ran").exists()


def test_a_strangers_arguments_fetch_nothing(bundle: Path, rehash: Any) -> None:
    plan = json.loads((bundle / "plan.json").read_text())
    plan["source"] |= {"spec": "torchvision:resnet18", "model_args": {"weights": "IMAGENET1K_V1"}}
    (bundle / "plan.json").write_text(json.dumps(plan))
    rehash(bundle)
    with pytest.raises(SourceError, match="`model_arg` weights would fetch files"):
        pruneport.load(bundle)


def test_a_factory_of_another_network_is_refused(digits: Any) -> None:
    with pytest.raises(BundleError, match="does not fit the network"):
        pruneport.load(digits.folder, factory=lambda: nn.Sequential(nn.Conv2d(1, 4, 3)))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshaped", "truncated", "halved"])
def test_weights_that_do_not_fit_are_refused(fault: str, bundle: Path, rehash: Any) -> None:
    path = bundle / "weights.safetensors"
    state = load_file(path)
    if fault == "missing":
        del state["head.weight"]
    elif fault == "unexpected":
        state["head.more"] = torch.zeros(2)
    elif fault == "misshaped":
        state["head.weight"] = torch.zeros(10, 63)
    elif fault == "halved":
        state["head.weight"] = state["head.weight"].half()
    save_file(state, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    rehash(bundle)
    with pytest.raises(
        BundleError,
        match=r"weights\.safetensors (does not fit the network of pruneport:digits|is not a file)|do not fit.*float16",
    ):
        pruneport.load(bundle)


_LIGHT = """
import sys
import pruneport
pruneport.load(sys.argv[1])
print(sorted({*sys.modules} & set(sys.argv[2:])))
"""


def test_loading_imports_no_tracer(digits: Any) -> None:
    heavy = ["torch_pruning", "fvcore", "onnx", "onnxruntime", "onnxscript", "matplotlib", "scipy", "timm", "jinja2"]
    heavy.append("torch._dynamo")  # three seconds of the CPU, to load what loads in a tenth of one
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT, digits.folder, *heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
