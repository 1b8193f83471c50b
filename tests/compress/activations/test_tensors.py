"""Calibration from tensors: whatever a loader yields becomes the same inputs, or is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.activations.tensors import gather_calibration
from pruneport.compress.options import CalibrationOptions
from pruneport.errors import ImageFolderError

SHAPE = (1, 2, 2)


def numbered(count: int) -> Tensor:
    """Inputs that say their row in every pixel."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, *SHAPE).contiguous()


def gather(given: Any, **options: Any) -> Calibration:
    batch = options.pop("batch", 32)
    return gather_calibration(given, CalibrationOptions(**options), SHAPE, outputs=3, batch=batch)


def rows(batches: Any) -> list[int]:
    return [int(row) for load in batches for row in load()[:, 0, 0, 0]]


def as_dicts(inputs: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    return [{"id": "x", "pixel_values": inputs[:5], "labels": labels[:5]}, {"pixel_values": inputs[5:], "labels": None}]


@pytest.mark.parametrize(
    "given",
    [
        lambda x, y: x,
        lambda x, y: [x],
        lambda x, y: list(x),
        lambda x, y: tuple(x.split(3)),
        lambda x, y: iter(x.split(3)),
        lambda x, y: as_dicts(x, y),
        lambda x, y: TensorDataset(x, y),
        lambda x, y: DataLoader(x, batch_size=7),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
        lambda x, y: [[x.double().requires_grad_(), y]],
    ],
)
def test_every_kind_of_loader_gives_the_same_inputs(given: Any) -> None:
    inputs, labels = numbered(20), torch.arange(20) % 3
    found = gather(given(inputs, labels))
    assert sorted(rows(found.batches)) == list(range(20))
    assert found.record.count == 20
    assert not found.heldout  # fewer than 32
    batch = found.batches[0]()
    assert batch.dtype == torch.float32
    assert not batch.requires_grad


def test_labels_come_along_where_every_item_has_them() -> None:
    inputs, labels = numbered(20), torch.arange(20) % 3
    for given in (DataLoader(TensorDataset(inputs, labels), batch_size=6), TensorDataset(inputs, labels)):
        found = gather(given, batch=8)
        assert found.labels is not None
        assert found.classes == 3
        for load, of in zip(found.batches, found.labels, strict=True):
            assert (load()[:, 0, 0, 0] % 3).tolist() == of.tolist()
    for other in (labels.float(), labels + 1, labels - 1, torch.stack([labels, labels], 1), None, "names"):
        assert gather([(inputs, other)]).labels is None
    assert gather(as_dicts(inputs, labels)).labels is None


def test_inputs_are_held_out_as_of_a_folder() -> None:
    found = gather([numbered(100)], calibration_images=50)
    solving, heldout = rows(found.batches), rows(found.heldout)
    assert len(solving) == 50
    assert len(heldout) == 16
    assert not set(solving) & set(heldout)
    assert len(gather([numbered(40)]).heldout[0]()) == 16
    assert rows(found.batches) == solving  # the same every time


def test_a_loader_in_order_is_read_evenly_over_its_whole_data_set() -> None:
    inputs = numbered(1000)
    options: dict[str, Any] = {"calibration_images": 32}
    for given in (DataLoader(inputs, batch_size=10), list(inputs)):  # type: ignore[arg-type]
        found = gather(given, **options)
        seen = sorted(rows(found.batches) + rows(found.heldout))
        assert len(seen) == 48
        assert seen[0] < 50
        assert seen[-1] > 950
    assert max(rows(gather(iter(inputs.split(10)), **options).batches)) < 60  # whose end nobody knows


def test_a_loader_is_read_no_further_than_needed() -> None:
    read: list[int] = []

    def endless() -> Any:
        while True:
            read.append(len(read))
            yield numbered(4)

    assert gather(endless(), calibration_images=8).record.count == 8
    assert len(read) == 6  # 8 and the 16 that are held out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "a list that yields nothing; expected tensors of shape .B, 1, 2, 2."),
        (DataLoader([], batch_size=2), "a DataLoader that yields nothing"),  # type: ignore[arg-type]
        (iter(()), "read before is empty"),
        (3, "a int; expected a folder, a DataLoader or a list of tensors"),
        (
            [numbered(2), torch.zeros(2, 3, 2, 2)],
            r"at place 1, a tensor of shape \(2, 3, 2, 2\); expected \(B, 1, 2, 2\)",
        ),
        ([torch.zeros(2, 2)], r"at place 0, a tensor of shape \(2, 2\)"),
        ([torch.zeros(0, 1, 2, 2)], r"a tensor of shape \(0, 1, 2, 2\)"),
        ([{"x": torch.zeros(2, 2), "name": "a"}], r"a dict of x: a tensor of shape \(2, 2\), name: a str; expected"),
        ([{}], "a dict of nothing"),
        ([()], "a NoneType; expected a tensor"),
        (["a.png"], "a str; expected a tensor"),
        ([(numbered(2).byte(), 1)], "a tensor of torch.uint8; expected floating point"),
        ([numbered(2) / 0], "NaN or infinite"),
    ],
)
def test_what_a_network_does_not_take_is_named_with_its_place(given: Any, said: str) -> None:
    with pytest.raises(ImageFolderError, match=said):
        gather(given)


def test_an_error_of_the_loader_is_its_own() -> None:
    class Faulty(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> Tensor:
            raise TypeError("my own fault")

    with pytest.raises(TypeError, match="my own fault"):
        gather(DataLoader(Faulty()))
