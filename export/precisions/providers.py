"""Which execution provider runs which precision: one int8 file cannot serve all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pruneport.errors import InputError
from pruneport.export.options import ExportOptions, OnnxPrecision

__all__ = [
    "INT8_FOR",
    "PRECISION",
    "Int8Provider",
    "asked_precisions",
    "check_precisions",
    "int8_provider",
    "why_not_on",
]

Int8Provider = Literal["cpu", "tensorrt"]
PRECISION, INT8_FOR = "precision", "int8_for"
"""Keys in an ONNX file's metadata: its precision, and the provider that an int8 file is for."""

_NO_KERNELS = (
    "ONNX Runtime's CUDA provider has no int8 kernels for convolutions and matrix products: it would compute in "
    "float32 and convert on the way"
)


def check_precisions(precisions: Sequence[OnnxPrecision], provider: str, *, calibrated: bool = False) -> None:
    """Check that the precisions can be made for a provider, before any work.

    Args:
        precisions: That are asked for.
        provider: Of ONNX Runtime.
        calibrated: Whether calibration inputs are given for them alone.

    Raises:
        InputError: One stands there twice, the provider cannot run it, or calibration inputs have no use.
    """
    if twice := sorted({name for name in precisions if precisions.count(name) > 1}):
        raise InputError(f"`precisions` has {', '.join(twice)} twice; give each once.")
    if calibrated and set(precisions) <= {"fp32"}:
        raise InputError("`calibration` is for int8: add int8 to `precisions`, or leave out `calibration`.")
    if "int8" in precisions and provider == "cuda":
        raise InputError(
            f"`precisions` has int8, and `provider` is cuda: {_NO_KERNELS}. Give `provider=tensorrt` for GPUs, "
            "`provider=cpu` for processors, or fp16 in place of int8."
        )


def asked_precisions(form: ExportOptions) -> tuple[OnnxPrecision, ...]:
    """Those that files are written in: fp32 first, which always is there."""
    return ("fp32", *(precision for precision in form.precisions if precision != "fp32"))


def int8_provider(provider: str) -> Int8Provider:
    """The provider that an int8 file is made for; ``check_precisions`` has passed."""
    return "tensorrt" if provider == "tensorrt" else "cpu"


def why_not_on(provider: str, precision: OnnxPrecision, made_for: str | None) -> str:
    """Say why a file of a precision is not timed on a provider; nothing where it can be.

    Args:
        provider: That is asked for.
        precision: Of the file.
        made_for: The provider that an int8 file is for, by its metadata.
    """
    if precision != "int8" or provider == made_for:
        return ""
    if provider == "cuda":
        return _NO_KERNELS
    return (
        f"the int8 files are for the provider {made_for}: their form is not the one that {provider} runs as integers. "
        f"Make them for it: export the bundle with `precisions` fp32 int8 and `provider` {provider}"
    )
