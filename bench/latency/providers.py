"""ONNX Runtime's execution providers: their options, the libraries that they need, and TF32."""

from __future__ import annotations

import io
import os
import re
import tempfile
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import onnxruntime as ort
from onnx import ModelProto, TensorProto

from pruneport.bench.gpu_state import loaded_libraries
from pruneport.bench.options import RuntimeOptions
from pruneport.errors import ProviderError

__all__ = [
    "INSTALL",
    "PROVIDERS",
    "TF32",
    "number_types",
    "preload",
    "provider_options",
    "session_config",
    "settle_tf32",
]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
INSTALL = {
    "cpu": "Install onnxruntime.",
    "cuda": "Install 'onnxruntime-gpu[cuda,cudnn]', which brings the CUDA and cuDNN libraries it was built "
    "for, uninstall a plain 'onnxruntime' beside it, and check the driver with nvidia-smi.",
    # TensorRT 11 has no libnvinfer.so.10, and tensorrt-cu12 is built for another CUDA than the provider.
    "tensorrt": "Install 'onnxruntime-gpu[cuda,cudnn]' and 'tensorrt-cu13>=10.13.2,<11', which it was built for "
    "(pruneport's extra 'tensorrt' has both), and check the driver with nvidia-smi.",
}
TF32 = "NVIDIA_TF32_OVERRIDE"
"""0 turns TF32 off in cuBLAS, cuDNN and TensorRT, whatever is asked of them."""

_NEEDED = {
    "cuda": ("libcudart", "libcublas", "libcublasLt", "libcurand", "libcudnn"),
    "tensorrt": ("libcudart", "libcublas", "libcublasLt", "libcudnn", "libnvinfer", "libnvonnxparser"),
}
_HALVES = {"float16", "bfloat16"}
_BUILDER_LEVEL = 3  # TensorRT's own default, said so that it is recorded


def provider_options(options: RuntimeOptions, types: frozenset[str] = frozenset()) -> dict[str, str]:
    """The provider's options as ONNX Runtime takes them, with every one that changes a latency set.

    Names and values: the CUDA and TensorRT pages of onnxruntime.ai/docs/execution-providers.

    Args:
        options: Provider, device and switches.
        types: Of the network's numbers, from ``number_types``: TensorRT 10 uses no precision that is not allowed, and
            CUDA's convolutions in fp16 no tensor cores.
    """
    if options.provider == "cpu":
        return {}
    if options.provider == "cuda":
        return {
            "device_id": str(options.device),
            # Since ONNX Runtime 1.20 nothing is searched: this is cuDNN's heuristic mode B, the better of its two.
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": str(int(not options.small_workspace)),
            "fuse_conv_bias": str(int(options.fuse_conv_bias)),
            "do_copy_in_default_stream": "1",
            # Without it ONNX Runtime 1.31 strikes out every convolution on tensor cores, those of fp16 too
            # (CreateCudnnFeExecutionPlan). TF32 itself stays off by NVIDIA_TF32_OVERRIDE.
            "use_tf32": str(int(options.tf32 or bool(types & _HALVES))),
            "prefer_nhwc": str(int(options.nhwc)),
            "enable_cuda_graph": str(int(options.cuda_graph)),
        }
    return {
        "device_id": str(options.device),
        "trt_fp16_enable": str(int("float16" in types)),
        "trt_bf16_enable": str(int("bfloat16" in types)),
        "trt_int8_enable": str(int("quantised" in types)),
        "trt_builder_optimization_level": str(_BUILDER_LEVEL),
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": _timing_cache().name,
        "trt_cuda_graph_enable": str(int(options.cuda_graph)),
    }


def session_config(options: RuntimeOptions, types: frozenset[str]) -> dict[str, str]:
    """Entries of a session's configuration that belong to the provider.

    TensorRT reads the file's own pairs of QuantizeLinear and DequantizeLinear. ONNX Runtime moves and copies them for
    its own kernels, which breaks builds (onnxruntime issue 17312). The first entry alone would also fold the quantised
    weights into floats.
    """
    if options.provider == "tensorrt" and "quantised" in types:
        return {"session.disable_quant_qdq": "1", "session.disable_qdq_constant_folding": "1"}
    return {}


def number_types(model: ModelProto) -> frozenset[str]:
    """Which of float16, bfloat16 and quantised numbers a network computes with."""
    graph = model.graph
    kinds = {weight.data_type for weight in graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    kinds |= {
        attribute.i
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    found = {
        name for kind, name in ((TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")) if kind in kinds
    }
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        found.add("quantised")
    return frozenset(found)


def settle_tf32(options: RuntimeOptions) -> None:
    """Set NVIDIA_TF32_OVERRIDE as ``tf32`` says; it counts only where CUDA reads it, when it starts.

    The CUDA provider has an option of its own, ``use_tf32``; TensorRT has this variable alone, and uses TF32 without.
    torch in this process computes without TF32 then, too.

    Raises:
        ProviderError: The variable says the opposite already, or TensorRT has started without it.
    """
    if options.provider == "cpu":
        return
    given = os.environ.get(TF32)
    if given is not None and (given == "0") == options.tf32:
        asked = "`tf32` was asked for" if options.tf32 else "`tf32` was not asked for"
        raise ProviderError(
            f"{TF32} is {given} in this process, by its environment or since it first timed networks on a GPU, and "
            f"{asked}. Start a new process, without {TF32} in its environment."
        )
    if options.tf32 or given == "0":
        return
    if options.provider == "tensorrt" and "libnvinfer" in loaded_libraries():
        raise ProviderError(
            "TensorRT has started in this process with TF32, and keeps it; `tf32` was not asked for. Start a new "
            "process."
        )
    os.environ[TF32] = "0"


def preload(options: RuntimeOptions) -> str:
    """Load the GPU libraries from their Python packages; return what could not be loaded, in lines."""
    if options.provider == "cpu":
        return ""
    notes = io.StringIO()
    with redirect_stdout(notes):  # preload_dlls prints its failures
        ort.preload_dlls()
    if options.provider == "tensorrt":
        notes.write(_import_tensorrt())
    loaded = loaded_libraries()
    # preload_dlls takes cuDNN, which is only loaded when the first convolution runs, for optional.
    missing = [name for name in _NEEDED[options.provider] if loaded and name not in loaded]
    if missing:
        notes.write(f"Libraries that the provider needs and that are not loaded: {', '.join(missing)}.\n")
    return notes.getvalue()


def wanted_tensorrt() -> int | None:
    """Major version of the TensorRT that this ONNX Runtime was built for; None where it has no TensorRT provider."""
    place = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    found = re.search(rb"libnvinfer\.so\.(\d+)", place.read_bytes()) if place.is_file() else None
    return int(found[1]) if found else None


def _import_tensorrt() -> str:
    """Import TensorRT's package, which loads libnvinfer for this process; say why that does not help."""
    try:
        version = str(__import__("tensorrt").__version__)
    except Exception as error:  # its libraries may miss others
        return f"tensorrt cannot be imported: {error}\n"
    wanted = wanted_tensorrt()
    if wanted is None or version.partition(".")[0] == str(wanted):
        return ""
    return (
        f"TensorRT {version} is installed, and this ONNX Runtime {ort.__version__} was built for TensorRT {wanted}.\n"
    )


@cache
def _timing_cache() -> tempfile.TemporaryDirectory[str]:
    """Where TensorRT keeps how long its kernels took, until this process ends.

    Engines of dense and pruned then choose between kernels by the same timings.
    """
    return tempfile.TemporaryDirectory(prefix="pruneport-tensorrt-")
