"""Names of classes: from a file, or from the weights where they fit the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pruneport.errors import SourceError
from pruneport.models.options import SourceOptions
from pruneport.models.record import Source
from pruneport.models.source import open_source


def opened(**options: Any) -> Source:
    return open_source(SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT", **options))[1]


def test_the_weights_bring_them() -> None:
    assert opened().class_names == tuple("0123456789")
    assert open_source(SourceOptions(source="pruneport:digits_resnet"))[1].class_names == ()


def test_a_file_has_the_last_word(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\ufeffnull\neins\nzwei\ndrei\nvier\nfünf\nsechs\nsieben\nacht\nneun \r\n\n", encoding="utf-8")
    assert opened(class_names=file).class_names[4:6] == ("vier", "fünf")
    assert opened(class_names=file).class_names[-1] == "neun"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\nc\n", r"names.txt has 3 names; the network's main output has scores of 10 classes"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "lines 1 and 3 are both 'a'"),
        (b"\n", "is empty; expected one name a line"),
        (b"\xff\xfe\x00", "cannot be read .*expected text in UTF-8"),
        (None, r"there are no `class_names` in .*names\.txt"),
    ],
)
def test_files_that_are_none(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        opened(class_names=tmp_path / "names.txt")


def test_a_network_that_scores_no_classes(tmp_path: Path) -> None:
    (tmp_path / "users_flat.py").write_text("from torch import nn\ndef flat():\n    return nn.Flatten(0)\n")
    (tmp_path / "names.txt").write_text("a\nb\n")
    options = SourceOptions(
        source=f"{tmp_path / 'users_flat.py'}:flat", input_shape=(3, 4, 4), class_names=tmp_path / "names.txt"
    )
    with pytest.raises(SourceError, match="main output has no scores of classes"):
        open_source(options)
