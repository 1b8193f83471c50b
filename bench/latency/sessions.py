"""ONNX Runtime sessions that run where they were asked to, or not at all.

What changes a latency by more than pruning does is fixed here and recorded:

- the provider: ONNX Runtime falls back to the CPU and only logs it; here that is an error naming the nodes.
- the batch: fixed in the session. Shape arithmetic, which GPU providers leave to the CPU, then folds into
  constants, and a CUDA graph or a TensorRT engine belongs to exactly one shape.
- copies: inputs and outputs stay at fixed addresses in the provider's own memory.
- choice of kernels, precisions and TF32: options of the providers (``providers``).
- spinning: idle threads of one session take the cores from the other, so they stop after each run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from pruneport.bench.devices import available_cores
from pruneport.bench.latency.bound import BoundRun, Plain
from pruneport.bench.latency.onnx_input import NetworkInputs, read_inputs
from pruneport.bench.latency.providers import (
    INSTALL,
    PROVIDERS,
    TF32,
    number_types,
    preload,
    provider_options,
    session_config,
    settle_tf32,
)
from pruneport.bench.options import RuntimeOptions
from pruneport.errors import ModelError, ProviderError
from pruneport.export.onnx.memory import within_free_memory
from pruneport.export.onnx.onnx_reader import read_onnx

__all__ = ["Session", "open_session"]

_CONFIG = {
    "session.intra_op.allow_spinning": "1",
    # Seen without it: two interleaved sessions on two cores ran 1.7 times slower.
    "session.force_spinning_stop": "1",
    "session.record_ep_graph_assignment_info": "1",
}
_LISTED_NODES = 20
_WARNINGS, _FATAL = 2, 4  # severities of ONNX Runtime's logs


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
    _plain: Plain | None = None
    """Where a CUDA graph is captured: runs the network without one."""
    _notes: str = ""
    """Libraries that could not be loaded; that may show only now."""
    _bound: list[None] = field(default_factory=list)

    def bind(self, *values: npt.NDArray[Any]) -> BoundRun:
        """Bind a batch, one array for each input in the file's order, in the provider's memory, and run it once.

        Raises:
            ProviderError: the network does not run on this batch, for example because memory is short; or it is the
                second batch of a session that captured a CUDA graph of the first one's addresses.
        """
        if self._plain is not None and self._bound:
            raise ProviderError(
                "This session has captured a CUDA graph of the batch that was bound first. Open another."
            )
        self._bound.append(None)
        given = {entry.name: array for entry, array in zip(self.inputs.inputs, values, strict=True)}
        try:
            with _bounded(self._device[0]):
                bound = BoundRun(self._ort, given, self._device, self._plain)
                bound.run()
        except Exception as error:  # ONNX Runtime's errors share no other base
            shapes = ", ".join(str(array.shape) for array in values)
            notes = f"\n{self._notes}" if self._notes else ""
            raise ProviderError(f"The network does not run on a batch of shape {shapes}: {error}{notes}") from error
        return bound


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
    types = number_types(read_onnx(path)) if options.provider != "cpu" else frozenset[str]()
    if batch is not None and isinstance(inputs.batch, int) and inputs.batch != batch:
        raise ModelError(
            f"{path} was exported with the fixed batch {inputs.batch} and cannot run batch {batch}. "
            "Export it with a dynamic batch, or ask for its own batch only."
        )
    fixed = inputs.named_sizes(batch)  # ONNX Runtime can only fix a dimension that has a name
    provider, available = PROVIDERS[options.provider], ort.get_available_providers()
    if provider not in available:
        raise ProviderError(
            f"The provider '{options.provider}' ({provider}) is not in this ONNX Runtime {ort.__version__}, "
            f"which has {', '.join(available)}. {INSTALL[options.provider]}"
        )
    config = _CONFIG | session_config(options, types)
    strict = {} if options.provider == "cpu" else {"session.disable_cpu_ep_fallback": "1"}
    settle_tf32(options)
    notes = preload(options)

    def create(options: RuntimeOptions, config: Mapping[str, str]) -> Any:
        return _create(path, options, types, fixed, config)

    def plain(given: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return list(create(replace(options, cuda_graph=False), config | strict).run(None, dict(given)))

    try:
        session = create(options, config | strict)
    except Exception as error:
        if options.provider == "cpu":
            raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error
        # A CUDA graph would itself refuse nodes on the CPU, and hide which.
        lenient = partial(create, replace(options, cuda_graph=False), config)
        raise ProviderError(_why_not(path, options, lenient, error, notes)) from error
    return Session(
        inputs=inputs,
        settings=_settings(session, options, types, config | strict, inputs, fixed),
        placement=dict(Counter(name for name, _ in _assignment(session))),
        _ort=session,
        _device=("cpu" if options.provider == "cpu" else "cuda", options.device if strict else 0),
        _plain=plain if options.cuda_graph else None,
        _notes=notes,
    )


def _create(
    path: Path, options: RuntimeOptions, types: frozenset[str], fixed: Mapping[str, int], config: Mapping[str, str]
) -> Any:
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
    providers = [(PROVIDERS[options.provider], provider_options(options, types))]
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
    session: Any,
    options: RuntimeOptions,
    types: frozenset[str],
    config: Mapping[str, str],
    inputs: NetworkInputs,
    fixed: Mapping[str, int],
) -> dict[str, Any]:
    """The settings that a session has, as bench.json records them."""
    used = session.get_session_options()
    return {
        "graph_optimization_level": used.graph_optimization_level.name,
        "execution_mode": used.execution_mode.name,
        "intra_op_threads": used.intra_op_num_threads,
        "inter_op_threads": used.inter_op_num_threads,
        "session_config": dict(config),
        "batch_fixed_in_session": inputs.batch in fixed,
        **_as_recorded(inputs),
        "provider_options": _used(session, options, types),
        "nvidia_tf32_override": os.environ.get(TF32),
        "inputs_and_outputs": "bound in the provider's memory",
    }


def _as_recorded(inputs: NetworkInputs) -> dict[str, Any]:
    """What the network takes: the shape of an image, or shapes and types of its inputs by name."""
    if len(inputs.inputs) == 1:
        return {"image_shape": list(inputs.inputs[0].shape)}
    return {"inputs": {entry.name: {"shape": list(entry.shape), "dtype": str(entry.dtype)} for entry in inputs.inputs}}


def _used(session: Any, options: RuntimeOptions, types: frozenset[str]) -> dict[str, str]:
    """The provider's options: what it reports wins over what was asked, it is what it uses."""
    used: dict[str, str] = provider_options(options, types) | session.get_provider_options().get(
        PROVIDERS[options.provider], {}
    )
    if "trt_timing_cache_path" in used:
        used["trt_timing_cache_path"] = "a temporary folder, the same for all networks of this process"
    return used


def _why_not(path: Path, options: RuntimeOptions, create: Callable[[], Any], error: Exception, notes: str) -> str:
    """Say why a strict session failed: with fallback allowed, who would run which node?"""
    provider = PROVIDERS[options.provider]
    try:
        lenient = create()
    except Exception:
        return f"{provider} did not start: {error}\n{notes}{INSTALL[options.provider]}"
    if provider not in lenient.get_providers():
        # A provider that is silently left out: the strict session only said that nodes were on the CPU.
        return (
            f"{provider} did not start, and ONNX Runtime would run everything on the CPU.\n"
            f"{notes}{INSTALL[options.provider]}"
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
