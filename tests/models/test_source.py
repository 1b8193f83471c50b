"""Sources: each kind is found, its arguments and weights are checked, the user's code stays the user's."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from pruneport.errors import CheckpointError, ModelError, SourceError
from pruneport.models.options import SourceOptions
from pruneport.models.record import Source
from pruneport.models.source import build, build_dense, open_source

FACTORY = """
import torch
from torch import nn

WIDTH = 4
not_callable = 3

def tiny(width=WIDTH, bias=True):
    return nn.Sequential(nn.Conv2d(1, width, 3, bias=bias), nn.Flatten())

def failing():
    raise RuntimeError("the factory's own words")

def number():
    return 3

def infinite():
    network = tiny()
    network[0].weight.data[0, 0, 0, 0] = float("inf")
    network[0].bias.data[1] = float("nan")
    return network
"""


@pytest.fixture(autouse=True)
def _imports_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if not name.startswith(("torch", "timm", "PIL", "numpy", "pruneport", "sympy", "huggingface")):
            del sys.modules[name]


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_networks.py"
    path.write_text(FACTORY)
    return path


def options(source: str, **fields: Any) -> SourceOptions:
    return SourceOptions(source=source, **fields)


# Kinds


def test_torchvision() -> None:
    network, source = open_source(options("torchvision:resnet18", model_arg=("num_classes=7",)))
    assert isinstance(network, torchvision.models.ResNet)
    assert not network.training
    assert network.fc.out_features == 7
    expected = Source(spec="torchvision:resnet18", model_args={"num_classes": 7}, input_shape=(3, 224, 224), seed=0)
    assert replace(source, preprocessing=None) == expected
    assert source.library == "torchvision"
    assert not source.trained


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    network, source = open_source(options("timm:resnet18", model_arg=("num_classes=3",)))
    assert isinstance(network, timm.models.resnet.ResNet)
    assert network.fc.out_features == 3
    assert source.input_shape == (3, 224, 224)
    _, other = open_source(options("timm:mobilenetv3_small_050.lamb_in1k"))
    assert other.spec == "timm:mobilenetv3_small_050.lamb_in1k"


def test_pruneport_with_its_weights() -> None:
    network, source = open_source(options("pruneport:digits_resnet", weights="DEFAULT"))
    other, _ = open_source(options("pruneport:digits_resnet", weights="DEFAULT", seed=5))
    fresh, _ = open_source(options("pruneport:digits_resnet"))
    assert source.input_shape == (1, 8, 8)
    assert source.trained
    assert torch.equal(network.head.weight, other.head.weight)
    assert not torch.equal(network.head.weight, fresh.head.weight)


def test_a_module_and_a_file(factory_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factory_file.parent)
    for spec in ("my_networks:tiny", "my_networks.py:tiny", f"{factory_file}:tiny"):
        network, source = open_source(options(spec, input_shape=(1, 8, 8), model_arg=("width=6",)))
        assert network[0].out_channels == 6
        assert source.library is None
        assert source.spec == spec


def test_an_installed_package() -> None:
    network, _ = open_source(options("torchvision.models.resnet:resnet18", input_shape=(3, 32, 32)))
    assert isinstance(network, torchvision.models.ResNet)


# Names


@pytest.mark.parametrize(
    ("spec", "suggestion"),
    [
        ("torchvision:resnet8", "resnet18"),
        ("timm:resnet_18", "resnet18"),
        ("pruneport:digit_resnet", "digits_resnet"),
    ],
)
def test_unknown_models_suggest_near_names(spec: str, suggestion: str) -> None:
    library, _, name = spec.partition(":")
    with pytest.raises(SourceError, match=rf"{library} has no model '{name}'\. Did you mean .*\b{suggestion}\b.*\?"):
        open_source(options(spec))


@pytest.mark.parametrize(
    ("spec", "offered"),
    [
        ("torchvision:resnet50", ["DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2"]),
        ("timm:resnet18", ["DEFAULT", "a1_in1k", "tv_in1k"]),
        ("pruneport:digits_resnet", ["DEFAULT"]),
    ],
)
def test_unknown_weights_list_what_there_is(spec: str, offered: list[str]) -> None:
    with pytest.raises(SourceError, match=f"{spec} has no weights 'IMAGENET_V9'; expected") as caught:
        open_source(options(spec, weights="IMAGENET_V9"))
    for name in offered:
        assert name in str(caught.value)


@pytest.mark.parametrize("spec", ["resnet18", "my.module:", ":factory", ""])
def test_a_source_that_is_not_understood(spec: str) -> None:
    with pytest.raises(SourceError, match=r"is not understood; expected one of torchvision:NAME, .*file\.py:factory"):
        open_source(options(spec))


def test_missing_file_and_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"no file gone\.py \(looked in {tmp_path}\)"):
        open_source(options("gone.py:tiny"))
    with pytest.raises(SourceError, match=r"no module 'gone_package\.networks' .*expected package\.module:factory"):
        open_source(options("gone_package.networks:tiny"))


def test_factory_faults(factory_file: Path) -> None:
    def fails(name: str, message: str, **fields: Any) -> None:
        with pytest.raises(SourceError, match=message):
            open_source(options(f"{factory_file}:{name}", input_shape=(1, 8, 8), **fields))

    fails("tyni", r"has no factory 'tyni'\. Did you mean .*tiny")
    fails("not_callable", r"not_callable is a int; expected a function or class returning a Module")
    fails("failing", r"factory of .*:failing raised RuntimeError: the factory's own words")
    fails("number", r"returned a int, not a torch\.nn\.Module")
    fails("tiny", r"called with \{'depth': 3\} raised TypeError: .*depth", model_arg=("depth=3",))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
        ("def broken(:", "SyntaxError"),
        ("raise ValueError('half way')", "ValueError: half way"),
    ],
)
def test_errors_while_importing_a_file(code: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(code)
    with pytest.raises(SourceError, match=rf"importing .*breaks\.py failed: {message}"):
        open_source(options(f"{tmp_path}/breaks.py:tiny"))
    assert "breaks" not in sys.modules


def test_errors_while_importing_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_package_here")
    (tmp_path / "raises.py").write_text("1 / 0")
    with pytest.raises(SourceError, match="importing needs_more failed: it needs no_such_package_here, which is not"):
        open_source(options("needs_more:tiny"))
    with pytest.raises(SourceError, match="importing raises failed: ZeroDivisionError: division by zero"):
        open_source(options("raises:tiny"))


# Arguments


def test_model_args_become_python_values() -> None:
    given = ("a=3", "b=0.5", "c=true", "d=False", "e=hello", "f='12'", "g=none", "h=a=b", "i=", "j=-1e-3")
    received: dict[str, Any] = {}

    def factory(**arguments: Any) -> nn.Module:
        received.update(arguments)
        return nn.Identity()

    from pruneport.models.source import _parse_model_args

    build(Source(spec="any:factory", model_args=_parse_model_args(given), input_shape=(1, 1, 1)), factory)
    expected = {
        "a": 3,
        "b": 0.5,
        "c": True,
        "d": False,
        "e": "hello",
        "f": "12",
        "g": None,
        "h": "a=b",
        "i": "",
        "j": -0.001,
    }
    assert received == expected
    assert {key: type(value) for key, value in received.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize("item", ["num_classes", "=3", "num classes=3", "3x=1", ""])
def test_bad_model_args(item: str) -> None:
    with pytest.raises(SourceError, match=r"`model_arg` .* is not understood; expected key=value"):
        open_source(options("torchvision:resnet18", model_arg=(item,)))


@pytest.mark.parametrize("item", ["layers=[2, 2]", "layers={'a': 1}", "layers=(1,)", "layers=b'a'"])
def test_model_args_that_are_no_scalars(item: str) -> None:
    with pytest.raises(SourceError, match="the value must be a number, a string, true, false or none"):
        open_source(options("torchvision:resnet18", model_arg=(item,)))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    "item", ["weights=DEFAULT", "pretrained=true", "checkpoint_path=/tmp/x.pth", "pretrained_cfg=x", "cache_dir=/tmp"]
)
def test_model_args_that_fetch_are_refused(library: str, item: str) -> None:
    with pytest.raises(SourceError, match=f"`model_arg` {item.partition('=')[0]} would fetch files behind the plan's"):
        open_source(options(f"{library}:resnet18", model_arg=("num_classes=3", item)))


def test_checkpoint_and_weights_together(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="`checkpoint` and `weights` were both given"):
        open_source(options("pruneport:digits_resnet", weights="DEFAULT", checkpoint=tmp_path / "a.pth"))


def test_weight_names_belong_to_libraries(factory_file: Path) -> None:
    with pytest.raises(SourceError, match=r"`weights` DEFAULT cannot be used with .*Give the file with `checkpoint`"):
        open_source(options(f"{factory_file}:tiny", weights="DEFAULT", input_shape=(1, 8, 8)))


def test_own_factories_need_an_input_shape(factory_file: Path) -> None:
    with pytest.raises(ModelError, match=r"the input shape of .*:tiny is not known; give `input_shape` C H W"):
        open_source(options(f"{factory_file}:tiny"))


@pytest.mark.parametrize("shape", [(3, 0, 224), (-3, 224, 224), (3, 224)])
def test_input_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(ModelError, match=r"`input_shape` is .* expected three positive numbers"):
        open_source(options("pruneport:digits_resnet", input_shape=shape))


def test_weights_that_are_not_finite_are_named(factory_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"NaN or infinite weights in 0\.weight, 0\.bias; expected finite"):
        open_source(options(f"{factory_file}:infinite", input_shape=(1, 8, 8)))
    network, _ = open_source(options("pruneport:digits_resnet"))
    state = network.state_dict()
    for key in [key for key in state if key.endswith("running_var")]:
        state[key][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ModelError, match=r"in stem\.1\.running_var, .* and \d+ more"):
        open_source(options("pruneport:digits_resnet", checkpoint=tmp_path / "nan.pth"))


# Weights


def test_the_seed_decides_fresh_weights_and_nothing_else() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, _ = open_source(options("torchvision:squeezenet1_1", seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    again, source = open_source(options("torchvision:squeezenet1_1", seed=4))
    other, _ = open_source(options("torchvision:squeezenet1_1", seed=5))
    rebuilt = build_dense(source)
    name = "classifier.1.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert torch.equal(first.state_dict()[name], rebuilt.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_torch_is_as_random_as_before_after_a_factory_fails(factory_file: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(SourceError):
        open_source(options(f"{factory_file}:failing", input_shape=(1, 8, 8)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """Put a state dict, or an error, in place of torchvision's downloads; return the addresses asked for."""

    def set_answer(answer: Any) -> list[str]:
        asked: list[str] = []

        def load(url: str, *_: Any, **__: Any) -> Any:
            asked.append(url)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
        return asked

    return set_answer


def test_named_weights_are_those_of_the_library(downloaded: Callable[[Any], list[str]]) -> None:
    torch.manual_seed(9)
    state = torchvision.models.efficientnet_b1().state_dict()
    asked = downloaded(state)
    network, source = open_source(options("torchvision:efficientnet_b1", weights="IMAGENET1K_V2"))
    assert asked == [torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V2.url]
    assert torch.equal(network.features[0][0].weight, state["features.0.0.weight"])
    assert source.input_shape == (3, 240, 240), "IMAGENET1K_V2 of EfficientNet-B1 is for crops of 240"
    assert source.trained
    fresh = build(source, initialise=False)
    assert len(asked) == 1, "a network whose weights are all replaced needs no download"
    assert fresh.features[0][0].weight.shape == state["features.0.0.weight"].shape


def test_a_failed_download_says_what_to_do(downloaded: Callable[[Any], list[str]]) -> None:
    downloaded(urllib.error.URLError("no route to host"))
    with pytest.raises(SourceError, match=r"weights DEFAULT of torchvision:resnet18 could not be .*`checkpoint`"):
        open_source(options("torchvision:resnet18", weights="DEFAULT"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_checkpoint_is_recorded_and_found_again(suffix: str, tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import save_file

    saved, _ = open_source(options("pruneport:digits_resnet", seed=8))
    path = tmp_path / f"mine.{suffix}"
    (torch.save if suffix == "pth" else save_file)(saved.state_dict(), path)
    network, source = open_source(options("pruneport:digits_resnet", checkpoint=path))
    assert torch.equal(network.head.weight, saved.head.weight)
    assert source.trained
    assert source.checkpoint == str(path)
    assert source.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(build_dense(source).head.weight, saved.head.weight)


def test_a_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    saved, _ = open_source(options("pruneport:digits_resnet", seed=8))
    torch.save(saved.state_dict(), path)
    _, source = open_source(options("pruneport:digits_resnet", checkpoint=path))
    changed, _ = open_source(options("pruneport:digits_resnet", seed=9))
    torch.save(changed.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"is not the file that was compressed: its sha256 is .*Restore the orig"):
        build_dense(source)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        build_dense(source)


def test_a_checkpoint_of_another_network_lists_the_keys(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(\d+\): stem\.0\.weight.*unexpected \(2\): weight, bias"):
        open_source(options("pruneport:digits_resnet", checkpoint=tmp_path / "linear.pth"))


def test_a_callers_factory_replaces_the_recorded_one() -> None:
    source = Source(spec="gone.py:tiny", model_args={"width": 3}, input_shape=(1, 8, 8))
    network = build_dense(source, lambda width: nn.Sequential(nn.Conv2d(1, width, 1)))
    assert network[0].out_channels == 3
    with pytest.raises(SourceError, match=r"no file gone\.py"):
        build_dense(source)
    assert replace(source, spec="torchvision:resnet18").library == "torchvision"


# The user's folder

USER_PROGRAM = """
import sys
import pruneport.models.source as source
network, record = source.open_source(source.SourceOptions(source={spec!r}, input_shape=(1, 8, 8)))
import pruneport.models, pruneport.export, pruneport.bench, pruneport.compress
import models, export, compress, bench
print(network.origin)
for room in (models, export, compress, bench):
    assert room.__file__.startswith({folder!r}), room.__file__
for room in (pruneport.models, pruneport.export, pruneport.compress, pruneport.bench):
    assert not room.__file__.startswith({folder!r}), room.__file__
    assert room.__name__.startswith("pruneport."), room.__name__
"""


@pytest.mark.parametrize("kind", ["file", "module"])
def test_folders_with_our_rooms_names_are_the_users_own(kind: str, tmp_path: Path) -> None:
    for room in ("models", "export", "compress", "bench"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(f"ORIGIN = 'user {room}'\n")
    (tmp_path / "models" / "blocks.py").write_text(
        "from torch import nn\n\ndef block():\n    return nn.Conv2d(1, 2, 3)\n"
    )
    (tmp_path / "factories").mkdir()
    factory = """
        from torch import nn
        import bench, compress, export, models
        from models.blocks import block

        def make():
            network = nn.Sequential(block())
            network.origin = ", ".join([models.ORIGIN, export.ORIGIN, compress.ORIGIN, bench.ORIGIN])
            return network
        """
    (tmp_path / "networks.py").write_text(textwrap.dedent(factory))
    elsewhere = tmp_path / "factories"
    spec, cwd = ("networks:make", tmp_path) if kind == "module" else (f"{tmp_path}/networks.py:make", elsewhere)
    program = USER_PROGRAM.format(spec=spec, folder=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "user models, user export, user compress, user bench"


def test_a_file_that_exits_on_import_does_not_end_the_program(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(SourceError, match=r"importing .*script\.py failed: SystemExit: 3"):
        open_source(SourceOptions(source=f"{file}:build", input_shape=(3, 8, 8)))
