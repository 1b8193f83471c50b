"""What tests of all rooms share; one thread a test process, so that two of them fill two cores, and times do not depend
on who else is at work.
"""

from __future__ import annotations

import copy
import functools
import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.quiet import told_noise

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

_DATA = Path(__file__).parent / "data"


def pytest_collection_finish() -> None:
    """What has been imported stays, so collecting garbage need not look through it time and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _exporter_reads_its_tables_once() -> None:
    """torch's exporter finds its functions and operators anew for each network: a fifth of a small one's time."""
    import torch._export.utils
    from onnxscript.values import TracedOnnxFunction
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if isinstance(read := getattr(TracedOnnxFunction, "function_ir", None), property):
        once = functools.cached_property(read.fget)
        once.__set_name__(TracedOnnxFunction, "function_ir")
        TracedOnnxFunction.function_ir = once
    found = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*versions: int, **named: int) -> ONNXRegistry:
        """Functions are added to those of an operator, or take their place."""
        registry = copy.copy(found(*versions, **named))
        registry.functions = {target: [*functions] for target, functions in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(copied)
    torch._export.utils._materialize_cpp_cia_ops = functools.cache(torch._export.utils._materialize_cpp_cia_ops)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip a test whose fixture met a machine too noisy for a latency target."""
    yield from _skipped_if_noisy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip a test that met a machine too noisy for a latency target; what expects that error has met it itself."""
    yield from _skipped_if_noisy()


def _skipped_if_noisy() -> Iterator[None]:
    try:
        return (yield)
    except Exception as error:
        if type(error).__name__ == "TargetError" and (told := told_noise(str(error))):
            pytest.skip(told)
        raise


@pytest.fixture(scope="session", autouse=True)
def _no_seeds_for_absent_devices() -> None:
    """torch writes down the whole stack, for three kinds of device, each time that a seed is set where they are not."""
    import torch

    for backend, seeds in ((torch.cuda, torch.cuda.random), (torch.xpu, torch.xpu.random), (torch.mtia, torch.mtia)):
        if not backend.is_available() and hasattr(seeds, "_lazy_call"):
            seeds._lazy_call = lambda *_, **__: None


@pytest.fixture
def plan() -> Any:
    """What a plan.json says."""
    return json.loads((_DATA / "sample_plan.json").read_text(encoding="utf-8"))


@pytest.fixture
def bench() -> Any:
    """What a bench.json says."""
    return json.loads((_DATA / "sample_bench.json").read_text(encoding="utf-8"))


@pytest.fixture
def verify() -> Any:
    """What a verify.json says."""
    return json.loads((_DATA / "sample_verify.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def rehash() -> Callable[..., None]:
    """Make a bundle's manifest agree with its files, as a forger would."""

    def write(folder: Path, **changes: Any) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in manifest["files"]:
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return write


@pytest.fixture(scope="session")
def listing() -> Callable[[Path], dict[str, Any]]:
    """Everything below a folder, hidden files too: kind and permissions, when it was written, content."""

    def entry(path: Path) -> Any:
        mode = oct(path.lstat().st_mode)
        if path.is_symlink():
            return mode, path.readlink()
        return (mode, path.lstat().st_mtime_ns, path.read_bytes()) if path.is_file() else mode

    return lambda folder: {str(path.relative_to(folder)): entry(path) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine, which huggingface_hub asks in place of the real one, with a token that it takes."""
    from huggingface_hub import constants

    from hub_server import TOKEN, running_hub

    with running_hub() as server:
        # What HF_ENDPOINT and its like would have set, had they been there when huggingface_hub was imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_ASSETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
            monkeypatch.setattr(constants, name, str(tmp_path / "hf" / name))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
