"""What can be asked of ONNX files, and what is wrong with what was asked, before any work."""

from __future__ import annotations

from typing import Any

import pytest

from pruneport.errors import InputError
from pruneport.export.onnx.form import check_form, file_names, names_in, other_size, shape_in
from pruneport.export.onnx.opsets import newest_opset
from pruneport.export.options import ExportOptions


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch_size_fixed": 0}, "`batch_size_fixed` is 0; expected at least 1"),
        ({"opset": 17}, rf"`opset` is 17; expected 18 to {newest_opset()}: torch's exporter has none below"),
        ({"opset": newest_opset() + 1}, r"the ONNX Runtime here takes none above\."),
        ({"dynamic": "width"}, "`dynamic` is 'width'; expected one of batch, or batch,height,width"),
        ({"dynamic": "batch,height,width", "batch_size_fixed": 2}, "open, and `batch_size_fixed` is 2; give one"),
        ({"input_names": ("a", "b")}, "`input_names` are 'a', 'b'; expected one: a network has one input"),
        ({"input_names": ("",)}, "`input_names` has ''; expected at most 200 letters"),
        (
            {"output_names": ("ok", "a b", "\x1b[31m", "né", "1st", "a" * 201)},
            r"has 'a b', '\\x1b\[31m', 'n\\xe9', '1st'",
        ),
        ({"output_names": ("a", "b", "a")}, "have a more than once; every name must be another"),
        ({"input_names": ("a",), "output_names": ("a",)}, "have a more than once"),
        ({"opset": 1, "input_names": ("-",)}, "`opset` is 1; .* `input_names` has '-'"),
    ],
)
def test_what_cannot_be_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_form(ExportOptions(**asked))


def test_what_can_be_passes() -> None:
    names = ExportOptions(input_names=("pixel_values",), output_names=("scores.top-1", "boxes/0:x"))
    for options in (ExportOptions(), names, ExportOptions(opset=18), ExportOptions(opset=newest_opset())):
        check_form(options)


def test_names_are_those_asked_for_or_torchs() -> None:
    assert file_names(ExportOptions(), ["logits", "maps"]) == (("input",), ("logits", "maps"))
    asked = ExportOptions(input_names=("pixels",), output_names=("scores", "features"))
    assert file_names(asked, ["logits", "maps"]) == (("pixels",), ("scores", "features"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"output_names": ("scores",)},
            "are scores: 1 for the 2 outputs logits, maps; give one for each, in this order",
        ),
        ({"output_names": ("a", "b", "c")}, "3 for the 2 outputs"),
        ({"input_names": ("a", "b")}, "`input_names` are a, b: 2 for the 1 input input; give one for each"),
        ({"input_names": ("maps",)}, "maps would be the name of an input and of an output"),
        ({"output_names": ("a", "input")}, "input would be the name of an input and of an output"),
    ],
)
def test_names_that_do_not_fit_the_network(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        file_names(ExportOptions(**asked), ["logits", "maps"])


@pytest.mark.parametrize("metadata", ["", "3", "[1]", '{"a": 1}', "[" * 100_000, "\ud800"])
def test_metadata_that_lists_no_names(metadata: str) -> None:
    assert names_in(metadata) == ()
    assert names_in('["a", "b"]') == ("a", "b")


def test_the_other_size_is_another_in_both() -> None:
    assert other_size((3, 224, 224)) == (3, 256, 288)


@pytest.mark.parametrize(
    "metadata", ["", "3", "[3, 8]", "[3, 0, 8]", "[3, 8, 8.5]", "[3, 100000, 100000]", "[1, 2, 3, 4]"]
)
def test_metadata_that_is_no_size_of_images(metadata: str) -> None:
    assert shape_in(metadata) is None
    assert shape_in("[3, 8, 9]") == (3, 8, 9)
