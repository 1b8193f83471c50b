"""What a verification takes over of a dense network compared before: everything of the same file, else nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pruneport.errors import ParityError
from pruneport.export.bundle.bundle import plan_hash
from pruneport.export.onnx.onnx_file import network_sha256, write_onnx
from pruneport.export.options import ParityOptions
from pruneport.export.verification import DenseSeen, Verification, require_parity
from pruneport.export.verify import verify_files
from pruneport.models.digits.train import write_images


@pytest.fixture
def exported(digits: Any, bundle: Path) -> Path:
    for name, network in (("dense.onnx", digits.dense), ("model.onnx", digits.pruned.network)):
        write_onnx(network, (1, 8, 8), bundle / name, {"plan_sha256": plan_hash(bundle)})
    return bundle


def _verify(folder: Path, digits: Any, images: Path, seen: DenseSeen | None, said: list[str]) -> Verification:
    options = ParityOptions(images=images, images_limit=40, mean=(0.5,), std=(0.5,), parity_batches=(1,))
    return verify_files(
        folder, digits.dense, digits.pruned.network, (1, 8, 8), options, seen=seen, progress=said.append
    )


@pytest.mark.slow
def test_a_dense_network_is_compared_once(digits: Any, exported: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    seen, said = DenseSeen(), list[str]()
    alone = _verify(exported, digits, images, None, said)
    first = _verify(exported, digits, images, seen, said)
    assert said.count("comparing dense.onnx with torch") == 2
    assert sum(len(batch) for batch in seen.choices.values()) == 40
    again = _verify(exported, digits, images, seen, said)
    assert said.count("comparing dense.onnx with torch") == 2
    assert said.count("comparing model.onnx with torch") == 3
    assert alone == first == again


@pytest.mark.slow
def test_another_dense_file_is_compared_anew(digits: Any, exported: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    seen = DenseSeen()
    require_parity(_verify(exported, digits, images, seen, []))
    before = network_sha256(exported / "dense.onnx")
    model = onnx.load(exported / "dense.onnx")
    model.metadata_props.add(key="more", value="words")
    onnx.save(model, exported / "dense.onnx")
    assert network_sha256(exported / "dense.onnx") == before  # metadata computes nothing
    weight = max(model.graph.initializer, key=lambda entry: int(np.prod(entry.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.9), weight.name))
    onnx.save(model, exported / "dense.onnx")
    with pytest.raises(ParityError, match="dense fp32 on seeded inputs"):
        require_parity(_verify(exported, digits, images, seen, []))
