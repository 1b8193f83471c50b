"""ONNX Runtime sessions that run where they were asked to, or not at all.

What changes a latency by more than pruning does is fixed here and recorded:

- the provider: ONNX Runtime falls back to the CPU and only logs it; here that is an error naming the nodes.
- the batch: fixed in the session. Shape arithmetic, which GPU providers leave to the CPU, then folds into
  constants, and a CUDA graph or a TensorRT engine belongs to exactly one shape.
- copies: inputs and outputs stay at fixed addresses in the provider's own memory.
- convolution search, TF32 and channels-last on CUDA: provider options.
- spinning: idle threads of one session take the cores from the other, so they stop after each run.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from pruneport.bench.devices import available_cores
from pruneport.bench.latency.onnx_input import NetworkInputs, read_inputs
from pruneport.bench.options import RuntimeOptions
from pruneport.errors import ModelError, ProviderError
from pruneport.export.onnx.memory import within_free_memory

__all__ = ["BoundRun", "Session", "open_session", "provider_options"]

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_INSTALL = {
    "cpu": "Install onnxruntime.",
    "cuda": "Install 'onnxruntime-gpu[cuda,cudnn]', which brings the CUDA and cuDNN libraries it was built "
    "for, uninstall a plain 'onnxruntime' beside it, and check the driver with nvidia-smi.",
    "tensorrt": "Install 'onnxruntime-gpu[cuda,cudnn]' and the 'tensorrt' package of the major version that "
    "it was built for, and check the driver with nvidia-smi.",
}
_CONFIG = {
    "session.intra_op.allow_spinning": "1",
    # Seen without it: two interleaved sessions on two cores ran 1.7 times slower.
    "session.force_spinning_stop": "1",
    "session.record_ep_graph_assignment_info": "1",
}
_LISTED_NODES = 20
_WARNINGS, _FATAL = 2, 4  # severities of ONNX Runtime's logs


def provider_options(options: RuntimeOptions) -> dict[str, str]:
    """The provider's options as ONNX Runtime takes them, with every one that changes a latency set.

    Names and values: the CUDA and TensorRT pages of onnxruntime.ai/docs/execution-providers.
    """
    table = {
        "cpu": {},
        "cuda": {
            "device_id": str(options.device),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            "use_tf32": str(int(options.tf32)),
            "prefer_nhwc": str(int(options.nhwc)),
            "enable_cuda_graph": str(int(options.cuda_graph)),
        },
        # There is no option for TF32: TensorRT uses it unless NVIDIA_TF32_OVERRIDE=0 is in the environment.
        "tensorrt": {
            "device_id": str(options.device),
            "trt_fp16_enable": "0",
            "trt_engine_cache_enable": "0",
            "trt_timing_cache_enable": "0",
            "trt_cuda_graph_enable": str(int(options.cuda_graph)),
        },
    }
    return table[options.provider]


class BoundRun:
    """One batch of every input bound to one session at fixed addresses."""

    def __init__(
        self, session: Any, given: Mapping[str, npt.NDArray[Any]], device: tuple[str, int], graph_id: int
    ) -> None:
        # The first run only finds the outputs' shapes: it must not become the captured CUDA graph.
        outputs = session.run(None, dict(given), _run_options(-1))
        self._session = session
        self._run_options = _run_options(graph_id)
        self._binding = session.io_binding()
        # Kept here: on the CPU a value only borrows its array's memory.
        self._values = [
            ort.OrtValue.ortvalue_from_numpy(array, *device)
            for array in (*given.values(), *map(np.zeros_like, outputs))
        ]
        for name, value in zip(given, self._values[: len(given)], strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for meta, value in zip(session.get_outputs(), self._values[len(given) :], strict=True):
            self._binding.bind_ortvalue_output(meta.name, value)
        self._binding.synchronize_inputs()

    def run(self) -> None:
        """Run once and return when the result is there."""
        self._session.run_with_iobinding(self._binding, self._run_options)
        self._binding.synchronize_outputs()

    def outputs(self) -> list[npt.NDArray[Any]]:
        """Copy the latest result to the host."""
        return list(self._binding.copy_outputs_to_cpu())


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session that runs wholly on its provider."""

    inputs: NetworkInputs
    settings: dict[str, Any]
    """Everything that was fixed: threads, optimisation level, session configuration, provider options."""
    placement: dict[str, int]
    """Nodes on each execution provider, as ONNX Runtime reports them after its basic optimisations."""
    _ort: Any
    _device: tuple[str, int]
    _graph_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def bind(self, *values: npt.NDArray[Any]) -> BoundRun:
        """Bind a batch, one array for each input in the file's order, in the provider's memory.

        Raises:
            ProviderError: the network does not run on this batch, for example because memory is short.
        """
        given = {entry.name: array for entry, array in zip(self.inputs.inputs, values, strict=True)}
        try:
            with _bounded(self._device[0]):
                return BoundRun(self._ort, given, self._device, next(self._graph_ids))
        except Exception as error:  # ONNX Runtime's errors share no other base
            shapes = ", ".join(str(array.shape) for array in values)
            raise ProviderError(f"The network does not run on a batch of shape {shapes}: {error}") from error


def open_session(path: Path, options: RuntimeOptions, *, batch: int | None = None) -> Session:
    """Open a network on exactly the provider that was asked for.

    Args:
        path: ONNX file.
        options: provider, device, threads and CUDA switches.
        batch: fix the dynamic batch of the network to this size; None leaves it dynamic. Open sizes of images are fixed
            to those that the network was made for.

    Raises:
        ModelError: there is no such file, or it is no network that ONNX Runtime can load with this batch.
        ProviderError: the provider is not there, does not start or would not run every node.
    """
    inputs = read_inputs(path)
    if batch is not None and isinstance(inputs.batch, int) and inputs.batch != batch:
        raise ModelError(
            f"{path} was exported with the fixed batch {inputs.batch} and cannot run batch {batch}. "
            "Export it with a dynamic batch, or ask for its own batch only."
        )
    fixed = inputs.named_sizes(batch)  # ONNX Runtime can only fix a dimension that has a name
    provider, available = _PROVIDERS[options.provider], ort.get_available_providers()
    if provider not in available:
        raise ProviderError(
            f"The provider '{options.provider}' ({provider}) is not in this ONNX Runtime {ort.__version__}, "
            f"which has {', '.join(available)}. {_INSTALL[options.provider]}"
        )
    strict = {} if options.provider == "cpu" else {"session.disable_cpu_ep_fallback": "1"}
    notes = _preload(options)
    try:
        session = _create(path, options, fixed, _CONFIG | strict)
    except Exception as error:
        if options.provider == "cpu":
            raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error
        raise ProviderError(_why_not(path, options, fixed, error, notes)) from error
    return Session(
        inputs=inputs,
        settings=_settings(session, options, _CONFIG | strict, inputs, fixed),
        placement=dict(Counter(name for name, _ in _assignment(session))),
        _ort=session,
        _device=("cpu" if options.provider == "cpu" else "cuda", options.device if strict else 0),
    )


def _create(path: Path, options: RuntimeOptions, fixed: dict[str, int], config: dict[str, str]) -> Any:
    """Open a session on the provider that was asked for, or on none."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.intra_op_num_threads = options.threads or available_cores()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _FATAL
    for key, value in config.items():
        settings.add_session_config_entry(key, value)
    for dimension, size in fixed.items():
        settings.add_free_dimension_override_by_name(dimension, size)
    providers = [(_PROVIDERS[options.provider], provider_options(options))]
    with _bounded(options.provider), _errors_only_raised():
        # enable_fallback is onnxruntime's Python layer, which would retry on the CPU by itself.
        return ort.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)


def _bounded(provider: str) -> AbstractContextManager[None]:
    """GPU providers set aside addresses without end, of which they use few."""
    return within_free_memory() if provider == "cpu" else nullcontext()


@contextmanager
def _errors_only_raised() -> Iterator[None]:
    """Keep ONNX Runtime from printing what it raises, too: our errors say it in one place."""
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)


def _settings(
    session: Any, options: RuntimeOptions, config: dict[str, str], inputs: NetworkInputs, fixed: dict[str, int]
) -> dict[str, Any]:
    """The settings that a session has, as bench.json records them."""
    used = session.get_session_options()
    return {
        "graph_optimization_level": used.graph_optimization_level.name,
        "execution_mode": used.execution_mode.name,
        "intra_op_threads": used.intra_op_num_threads,
        "inter_op_threads": used.inter_op_num_threads,
        "session_config": config,
        "batch_fixed_in_session": inputs.batch in fixed,
        **_as_recorded(inputs),
        # What the provider reports wins over what was asked: it is what it uses.
        "provider_options": provider_options(options)
        | session.get_provider_options().get(_PROVIDERS[options.provider], {}),
        "nvidia_tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
        "inputs_and_outputs": "bound in the provider's memory",
    }


def _as_recorded(inputs: NetworkInputs) -> dict[str, Any]:
    """What the network takes: the shape of an image, or shapes and types of its inputs by name."""
    if len(inputs.inputs) == 1:
        return {"image_shape": list(inputs.inputs[0].shape)}
    return {"inputs": {entry.name: {"shape": list(entry.shape), "dtype": str(entry.dtype)} for entry in inputs.inputs}}


def _preload(options: RuntimeOptions) -> str:
    """Load the GPU libraries from their Python packages; return what could not be loaded."""
    if options.provider == "cpu":
        return ""
    notes = io.StringIO()
    with redirect_stdout(notes):  # preload_dlls prints its failures
        ort.preload_dlls()
    if options.provider == "tensorrt":
        with suppress(ImportError):
            __import__("tensorrt")  # loads libnvinfer for this process
    return notes.getvalue()


def _why_not(path: Path, options: RuntimeOptions, fixed: dict[str, int], error: Exception, notes: str) -> str:
    """Say why a strict session failed: with fallback allowed, who would run which node?"""
    provider = _PROVIDERS[options.provider]
    try:
        # A CUDA graph would itself refuse nodes on the CPU, and hide which.
        lenient = _create(path, replace(options, cuda_graph=False), fixed, _CONFIG)
    except Exception:
        return f"{provider} did not start: {error}\n{notes}{_INSTALL[options.provider]}"
    if provider not in lenient.get_providers():
        # A provider that is silently left out: the strict session only said that nodes were on the CPU.
        return (
            f"{provider} did not start, and ONNX Runtime would run everything on the CPU.\n"
            f"{notes}{_INSTALL[options.provider]}"
        )
    elsewhere = [f"{node} on {name}" for name, node in _assignment(lenient) if name != provider]
    if not elsewhere:
        return f"{provider} does not open {path}: {error}"
    more = f" and {len(elsewhere) - _LISTED_NODES} more" if len(elsewhere) > _LISTED_NODES else ""
    return (
        f"{provider} would not run all of {path}: {len(elsewhere)} nodes would run elsewhere, namely "
        f"{', '.join(elsewhere[:_LISTED_NODES])}{more}. A latency that hides this would mislead: "
        "replace these operators, or measure on another provider."
    )


def _assignment(session: Any) -> list[tuple[str, str]]:
    """Execution provider and 'name (operator)' of every node."""
    return [
        (subgraph.ep_name, f"{node.name or 'unnamed'} ({node.op_type})")
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    ]


def _run_options(graph_id: int) -> Any:
    """Run options with a CUDA graph id: -1 captures nothing; without CUDA graphs the id means nothing."""
    run_options = ort.RunOptions()
    run_options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return run_options
