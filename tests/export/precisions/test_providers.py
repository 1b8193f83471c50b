"""Which provider runs which precision, said before any work."""

from __future__ import annotations

from typing import Any

import pytest

from pruneport.errors import InputError
from pruneport.export.options import ExportOptions
from pruneport.export.precisions.providers import asked_precisions, check_precisions, int8_provider, why_not_on


def test_what_cannot_be_made_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"CUDA provider has no int8 kernels.*`provider=tensorrt` for GPUs"):
        check_precisions(("fp32", "int8"), "cuda")
    with pytest.raises(InputError, match="`precisions` has fp16 twice"):
        check_precisions(("fp16", "fp32", "fp16"), "cpu")
    check_precisions(("fp32", "fp16"), "cuda")
    check_precisions(("fp32", "fp16", "int8"), "tensorrt")


@pytest.mark.parametrize(
    ("provider", "precision", "made_for", "said"),
    [
        ("cpu", "int8", "cpu", ""),
        ("cpu", "fp16", None, ""),
        ("cuda", "fp16", None, ""),
        ("cuda", "int8", "cpu", "no int8 kernels"),
        ("tensorrt", "int8", "cpu", "are for the provider cpu"),
        ("cpu", "int8", "tensorrt", "with `precisions` fp32 int8 and `provider` cpu"),
    ],
)
def test_why_a_file_is_not_timed(provider: str, precision: Any, made_for: str | None, said: str) -> None:
    why = why_not_on(provider, precision, made_for)
    assert said in why
    assert bool(said) == bool(why)


def test_fp32_is_always_there_and_first() -> None:
    assert asked_precisions(ExportOptions(precisions=("int8",))) == ("fp32", "int8")
    assert asked_precisions(ExportOptions(precisions=("fp16", "fp32"))) == ("fp32", "fp16")
    assert (int8_provider("cpu"), int8_provider("tensorrt")) == ("cpu", "tensorrt")
