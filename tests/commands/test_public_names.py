"""What others may build on: exactly these names, and options nobody can change or mix up."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pruneport
from pruneport import commands, errors

_CONFIGS = [getattr(commands, name) for name in commands.__all__ if name.endswith("Config")]


def test_the_package_exports_these() -> None:
    assert pruneport.__all__ == [
        "ChannelGraph",
        "ChannelPruner",
        "PruneportError",
        "__version__",
        "dependency_graph",
        "finetune",
        "inspect",
        "load",
        "prune",
        "save",
        "ship",
        "sweep",
    ]
    assert all(hasattr(pruneport, name) for name in pruneport.__all__)


def test_the_verbs_export_these() -> None:
    assert sorted(commands.__all__) == [
        "BenchConfig",
        "CompressConfig",
        "ExportConfig",
        "FinetuneConfig",
        "InspectConfig",
        "LatencyConfig",
        "PushConfig",
        "ShipConfig",
        "SweepConfig",
        "TransferConfig",
        "VerifyConfig",
        "bench",
        "compress",
        "export",
        "finetune",
        "inspect",
        "latency",
        "push",
        "ship",
        "sweep",
        "transfer",
        "verify",
    ]
    for config in _CONFIGS:
        verb = config.__name__.removesuffix("Config").lower()
        first, *others = inspect.signature(getattr(commands, verb)).parameters.values()
        assert first.annotation == config.__name__
        assert all(parameter.default is not parameter.empty for parameter in others)
    with pytest.raises(AttributeError, match="no attribute 'sink'"):
        commands.sink  # noqa: B018


def test_every_error_is_exported() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert sorted(errors.__all__) == errors.__all__ == sorted(kinds)
    assert all(issubclass(getattr(errors, name), pruneport.PruneportError) for name in kinds)
    assert {getattr(errors, name).exit_code for name in kinds} == {1, 2}


@pytest.mark.parametrize("config", _CONFIGS)
def test_options_are_frozen_and_named(config: Any) -> None:
    assert config.__dataclass_params__.frozen
    fields = dataclasses.fields(config)
    assert all(field.kw_only for field in fields)
    required = {field.name: Path("x") for field in fields if field.default is dataclasses.MISSING}
    made = config(**required)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, fields[0].name, None)
    with pytest.raises(TypeError):
        config(*required.values(), Path("x"))
    hash(made)  # no option can be changed in place


@pytest.mark.parametrize("arguments", [["--help"], ["ship", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "numpy", "scipy", "timm", "PIL", "jinja2"}
    program = (
        "import sys\nfrom pruneport.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', sorted(set(sys.modules) & {heavy!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_version_and_help(run: Any) -> None:
    assert run("--version") == (0, f"pruneport {pruneport.__version__}\n", "")
    for arguments in ((), ("--help",)):
        done = run(*arguments)
        assert done.code == 0
        for verb in ("ship", "inspect", "compress", "export", "verify", "bench", "sweep", "finetune", "transfer"):
            assert verb in done.out
