"""Replay: passes from the middle of a network against whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruneport.compress.activations import carried
from pruneport.compress.activations.carried import Carried
from pruneport.compress.activations.cuts import find_cuts
from pruneport.compress.activations.replay import Replay
from recovery_cases import batches_of, images, network


def test_cuts_are_where_one_output_decides_the_rest() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(2, 2, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            out: Tensor = self.third(self.second(first) + first)
            return out

    assert find_cuts(Around().eval(), torch.randn(2, 2, 4, 4)) == ["first", "third"]
    cuts = find_cuts(network(), images(2))
    assert cuts == ["stem.0", "stem.1", "stem.2", "blocks.0", "blocks.1", "blocks.2", "pool", "head"]


def test_cuts_of_a_network_that_writes_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.first(x).relu_()
            out: Tensor = self.second(first).relu_()
            return out

    assert find_cuts(InPlace().eval(), torch.randn(2, 2, 4, 4)) == ["first", "second"]


def test_replay_from_any_frontier_gives_the_same_activations() -> None:
    dense, inputs = network(), images(10)
    batches = batches_of(inputs, 4)
    caught: list[Tensor] = []
    handle = dense.blocks[2].conv2.register_forward_hook(lambda m, i, output: caught.append(output.clone()))
    with torch.inference_mode():
        dense(inputs)
    expected = caught.pop()
    loads = 0

    def counted(load: Any) -> Any:
        def call() -> Tensor:
            nonlocal loads
            loads += 1
            return load()

        return call

    with Replay(dense, find_cuts(dense, inputs[:2]), [counted(load) for load in batches]) as replay:
        caught.clear()
        for frontier in ("stem.0", "blocks.1.conv1", "blocks.2.conv1"):
            replay.advance(frontier)
            before = loads
            list(replay.passes())
            torch.testing.assert_close(torch.cat(caught[-3:]), expected, atol=0, rtol=0)
        assert loads == before  # behind the first frontier nothing is loaded again
    handle.remove()
    assert all("forward" not in vars(module) for module in dense.modules())


def test_what_is_kept_ahead_is_not_run_again() -> None:
    dense, inputs = network(), images(10)
    calls: list[str] = []
    for name in ("blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"):
        dense.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: calls.append(name))
    with torch.inference_mode():
        expected = dense(inputs)
    calls.clear()
    with Replay(dense, find_cuts(dense, inputs[:2]), batches_of(inputs, 5)) as replay:
        calls.clear()
        stopped = dense.blocks[0].conv1.register_forward_hook(
            lambda *_: replay.stop()
        )  # but block 0 is still to be run
        assert list(replay.passes(ahead="blocks.1.conv1")) == [None, None]
        stopped.remove()
        assert calls == ["blocks.0.conv2"] * 2
        replay.advance("blocks.1.conv2")
        assert calls == ["blocks.0.conv2"] * 2
        assert all(output is not None for output in replay.passes(ahead="blocks.2.conv1", seen=lambda: False))
        calls.clear()
        replay.advance("blocks.2")
        torch.testing.assert_close(torch.cat(list(replay.passes())), expected, atol=0, rtol=0)
        assert calls == ["blocks.2.conv2"] * 2
    assert not any(module._forward_hooks for name, module in dense.named_modules() if not name.endswith("conv2"))


def test_what_is_kept_ahead_serves_a_module_further_on() -> None:
    dense, inputs = network(), images(4)
    with torch.inference_mode():
        expected = dense(inputs)
    with Replay(dense, find_cuts(dense, inputs[:2]), batches_of(inputs, 4)) as replay:
        list(replay.passes(ahead="blocks.1"))
        replay.advance("blocks.2")
        torch.testing.assert_close(next(replay.passes()), expected, atol=0, rtol=0)


def test_passes_that_end_early_leave_no_hooks() -> None:
    dense, inputs = network(), images(4)
    with Replay(dense, find_cuts(dense, inputs[:2]), batches_of(inputs, 2)) as replay:
        passes = replay.passes(ahead="blocks.1")
        next(passes)
    assert not any(module._forward_hooks for module in dense.modules())


class _Made(TorchDispatchMode):
    """Counts the numbers that operators write into new memory."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in args if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and id(result.untyped_storage()) not in given and not function.is_view:
            self.count += result.numel()
        return result


def test_what_a_pass_skips_is_not_made() -> None:
    wide = [nn.Conv2d(1, 512, 3), nn.ReLU(inplace=True), nn.Conv2d(512, 1, 1), nn.Conv2d(1, 1, 1)]
    dense, inputs = nn.Sequential(*wide).eval(), torch.randn(4, 1, 8, 8)
    expected = dense(inputs).detach()
    with Replay(dense, find_cuts(dense, inputs[:2]), batches_of(inputs, 4)) as replay:
        replay.advance("3")
        (first,) = replay.passes()
        with _Made() as made:
            (second,) = replay.passes()
    torch.testing.assert_close(first, expected, atol=0, rtol=0)
    assert torch.equal(first, second)
    assert made.count < 4 * 512  # the first layer alone would make 4 x 512 x 6 x 6


def test_a_network_that_writes_into_what_is_skipped_reads_zeros_again() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
            self.sums: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            self.sums.append(float(hidden.sum()))
            hidden += 1
            out: Tensor = self.second(hidden)
            return out

    dense, inputs = Counting().eval(), torch.randn(4, 1, 3, 3)
    with Replay(dense, ["first", "second"], batches_of(inputs, 4)) as replay:
        replay.advance("second.weight")
        replay._move(1)  # behind the last layer, so that the first is a stand-in
        dense.sums.clear()
        list(replay.passes())
        list(replay.passes())
    assert dense.sums == [0, 0]


@pytest.mark.parametrize("room", [0.0, 1e9])
def test_what_is_carried_is_a_copy_on_the_device_or_in_a_file(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "room_on", lambda device: room)
    held, rows = Carried(2), torch.randn(2, 5)
    for index, row in enumerate(rows):
        held.put(index, row)
    before = rows.clone()
    rows.zero_()
    held.get(0).zero_()
    assert torch.equal(torch.stack([held.get(0), held.get(1)]), before)
    files = list(Path(held._folder.name).iterdir())
    assert len(files) == (0 if room else 2)
    held.put(0, before[1])
    assert torch.equal(held.get(0), before[1])
    held.clear()
    assert not Path(held._folder.name).exists()
