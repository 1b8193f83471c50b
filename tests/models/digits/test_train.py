"""The embedded network: its weights are as good as said, its images are what it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pruneport.models.digits.network import WEIGHTS, digits_resnet
from pruneport.models.images.images import open_images
from pruneport.models.options import ImageOptions, SourceOptions
from pruneport.models.source import open_source

datasets = pytest.importorskip("sklearn.datasets")
selection = pytest.importorskip("sklearn.model_selection")


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """The quarter that was never trained on, from scikit-learn alone."""
    digits = datasets.load_digits()
    _, images, _, labels = selection.train_test_split(
        digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    inputs = torch.tensor(images / 16 * (16 * 15 / 255) * 2 - 1, dtype=torch.float32)
    return inputs[:, None], torch.tensor(labels)


def test_the_embedded_weights_know_the_held_out_digits() -> None:
    network, _ = open_source(SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT"))
    inputs, labels = held_out()
    assert len(labels) == 450
    with torch.inference_mode():
        assert (network(inputs).argmax(1) == labels).double().mean().item() >= 0.99


def test_accuracy_is_the_share_of_right_answers() -> None:
    from pruneport.models.digits.train import accuracy

    inputs, labels = held_out()

    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert torch.allclose(x, inputs, atol=1e-6)
            answers = labels.clone()
            answers[::2] = (answers[::2] + 1) % 10
            return torch.nn.functional.one_hot(answers, 10).float()

    assert accuracy(Half()) == pytest.approx(0.5)


def test_the_file_is_small_and_holds_tensors_only() -> None:
    assert 300_000 < WEIGHTS.stat().st_size < 900_000
    with safe_open(WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == set(digits_resnet().state_dict())


def test_held_out_images_on_disk_give_the_same_inputs(tmp_path: Path) -> None:
    from pruneport.models.digits.train import split, write_images

    images = open_images(ImageOptions(images=write_images(tmp_path), mean=(0.5,), std=(0.5,)), (1, 8, 8))
    assert images is not None
    assert images.classes == tuple("0123456789")
    _, _, inputs, labels = split()
    rows = [int(path.stem) for path in images.paths]
    assert sorted(rows) == list(range(450))
    found = list(images.batches(100))
    assert torch.equal(torch.cat([batch for batch, _ in found]), inputs[rows])
    assert torch.equal(torch.cat([batch for _, batch in found if batch is not None]), labels[rows])


def test_train_and_test_rows_are_apart_and_stratified() -> None:
    from pruneport.models.digits.train import split

    train, train_labels, test, test_labels = split()
    assert len(train) + len(test) == 1797
    shares = torch.bincount(test_labels) / (torch.bincount(test_labels) + torch.bincount(train_labels))
    assert np.allclose(shares.numpy(), 0.25, atol=0.01)
    expected, labels = held_out()
    assert torch.equal(test_labels, labels)
    torch.testing.assert_close(test, expected, rtol=0, atol=1e-6)


def test_training_is_repeatable_and_learns() -> None:
    from pruneport.models.digits.train import accuracy, train

    first, again, other = train(epochs=1), train(epochs=1), train(epochs=1, seed=1)
    assert not first.training
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert not torch.equal(first.head.weight, other.head.weight)
    assert accuracy(first) > 0.5
