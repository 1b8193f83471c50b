"""Where sizes stand in calls, what they measure, and how they are replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.resize.hardcoded_widths import replace_sizes
from pruneport.compress.sizes.call_sites import call_site
from pruneport.compress.sizes.size_calls import SIZE_CALLS
from pruneport.compress.sizes.size_queries import QUERIES
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import parse_plan
from pruneport.models.record import Source

X = torch.arange(48.0).reshape(2, 12, 2)
FILTERS = torch.ones(12, 1, 1, 1)


class Recorded(TorchFunctionMode):
    """What the slots of every call say."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: list[list[tuple[int, int, int, int, int]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if (call := SIZE_CALLS.get(function)) is not None:
            parts = call.measure(args, kwargs or {}, output)
            self.slots.append([(part.slot, int(part.value), part.dim, part.start, part.stop) for part in parts])
        return output


CALLS: dict[str, tuple[Callable[[Tensor], Any], list[tuple[int, int, int, int, int]]]] = {
    "reshape": (lambda x: x.reshape(2, 3, -1), [(0, 2, 0, 0, 2), (1, 3, 1, 0, 3), (2, -1, 2, 0, 8)]),
    "a reshape by a tuple": (lambda x: torch.reshape(x, (24, 2)), [(0, 24, 0, 0, 24), (1, 2, 1, 0, 2)]),
    "a reshape by a keyword": (lambda x: x.reshape(shape=(24, 2)), [(0, 24, 0, 0, 24), (1, 2, 1, 0, 2)]),
    "view": (lambda x: x.view(2, 24), [(0, 2, 0, 0, 2), (1, 24, 1, 0, 24)]),
    "a view of another type": (lambda x: x.view(torch.int32), []),
    "unflatten": (lambda x: x.unflatten(1, (3, 4)), [(0, 3, 1, 0, 3), (1, 4, 2, 0, 4)]),
    "unflatten from behind": (lambda x: x.unflatten(-2, (3, 4)), [(0, 3, 1, 0, 3), (1, 4, 2, 0, 4)]),
    "split": (lambda x: x.split((5, 7), dim=1), [(0, 5, 1, 0, 5), (1, 7, 1, 0, 7)]),
    "equal parts": (lambda x: torch.split(x, 6, 1), [(0, 6, 1, 0, 6), (1, 6, 1, 0, 6)]),
    "slices": (lambda x: x[:, 2:9], [(2, 2, 1, 0, 2), (3, 9, 1, 0, 9)]),
    "a slice behind an ellipsis": (lambda x: x[..., :-4, :], [(3, -4, 1, 0, 8)]),
    "a slice behind a number": (lambda x: x[0, :4], [(3, 4, 0 + 1, 0, 4)]),
    "a slice behind a new dimension": (lambda x: x[None, :, :4], [(5, 4, 1, 0, 4)]),
    "a slice that is written": (
        lambda x: x.clone().__setitem__((slice(None), slice(2, 9)), 1.0),
        [(2, 2, 1, 0, 2), (3, 9, 1, 0, 9)],
    ),
    "every second": (lambda x: x[:, 0:8:2], []),
    "an index by a tensor": (lambda x: x[:, torch.tensor([1]), :1], []),
    "narrow": (lambda x: x.narrow(1, 3, 6), [(0, 3, 1, 0, 3), (1, 6, 1, 3, 9)]),
    "a layer norm": (lambda x: F.layer_norm(x, (2,)), [(0, 2, 2, 0, 2)]),
    "a filter for each channel": (
        lambda x: F.conv2d(x[:, :, None], FILTERS, groups=12),
        [(0, 12, 1, 0, 12)],
    ),
    "a made tensor": (lambda x: torch.ones(12, 1), [(0, 12, 0, 0, 12), (1, 1, 1, 0, 1)]),
    "a tensor made like another": (lambda x: x.new_full((3, 4), 0.5), [(0, 3, 0, 0, 3), (1, 4, 1, 0, 4)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_slot_measures(name: str) -> None:
    call, expected = CALLS[name]
    with Recorded() as seen:
        call(X)
    assert [slots for slots in seen.slots if slots] == ([expected] if expected else [])


class Calls(nn.Module):
    """One call after the other, and a module inside that makes calls of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Shaped()

    def forward(self, x: Tensor) -> Any:
        sizes = x.shape  # the first line of code
        inner = self.inner(x)

        first, rest = x.split((4, 8), 1)
        return sizes, inner, first, rest, x[:, 2:6], x.reshape(2, 3, 4, 2), x.size(1), len(x), x.numel()


class Shaped(nn.Module):
    """Asks for a shape twice."""

    def forward(self, x: Tensor) -> Any:
        return x.shape, x.reshape(2, 24)


def test_sizes_are_replaced_call_by_call() -> None:
    network = Calls()
    changed = {
        "Calls.forward 1 shape 0": {1: 30},
        "Calls.forward 3 split 0": {0: 5, 1: 7},
        "Calls.forward 4 getitem 0": {2: 1, 3: 4},
        "Calls.forward 4 reshape 0": {1: 4, 2: 3},
        "Calls.forward 4 size 0": {0: 31},
        "Calls.forward 4 len 0": {0: 9},
        "Calls.forward 4 numel 0": {0: 99},
    }
    replace_sizes(network, {"": changed})
    for _ in range(2):  # calls are numbered anew in every forward
        sizes, inner, first, rest, part, shaped, width, length, count = network(X)
        assert tuple(sizes) == (2, 30, 2)
        assert (tuple(inner[0]), tuple(inner[1].shape)) == ((2, 12, 2), (2, 24)), "calls of modules inside are theirs"
        assert (first.shape[1], rest.shape[1], shaped.shape) == (5, 7, (2, 4, 3, 2))
        assert torch.equal(part, X[:, 1:4])
        assert (width, length, count) == (31, 9, 99)
    replace_sizes(network, {"": {"Calls.forward 4 size 0": {0: 32}}, "inner": {"Shaped.forward 1 shape 0": {1: 7}}})
    sizes, inner, *_, width, _, _ = copy.deepcopy(network)(X)
    assert (sizes[1], inner[0][1], width) == (30, 7, 32), "further replacements leave the others as they were"
    assert isinstance(network, Calls)


def test_a_call_is_told_by_the_module_and_the_function_that_make_it() -> None:
    seen: list[tuple[nn.Module | None, str]] = []

    def helper() -> None:
        """Comments do not count."""

        # nor do these
        seen.append(call_site(Tensor.size))

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(call_site(Tensor.shape.__get__))  # type: ignore[attr-defined]
            helper()
            return x

    outer = nn.Sequential(Inner(), nn.Unflatten(1, (3, 4)))
    with Recorded() as calls:
        outer(X)
    assert calls.slots
    name = "test_a_call_is_told_by_the_module_and_the_function_that_make_it.<locals>."
    assert seen == [(outer[0], f"{name}Inner.forward 1 shape"), (outer[0], f"{name}helper 1 size")]
    assert call_site(Tensor.reshape)[0] is None


class Caching(nn.Module):
    """Asks for more sizes in its first forward than in those that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.table = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.table is None or self.table.shape[0] != y.shape[-1]:
            self.table = torch.ones(y.shape[-1]).reshape(-1)
        out: Tensor = self.b(y.reshape(len(x), 12, 4, 16) * y.shape[1] ** -0.5).mean((2, 3))
        return out


def test_what_is_cached_in_the_first_forward_changes_no_other_call() -> None:
    torch.manual_seed(0)
    source = Source(spec="tests:caching", model_args={}, seed=0, input_shape=(3, 8, 8))
    dense = nn.Sequential(Caching(), nn.Linear(6, 4)).eval()
    pruned = prune(dense, source, PruneOptions(ratio=0.5, round_to=1))
    assert pruned.network[0].a.out_channels == 6  # type: ignore[union-attr,index]
    again = nn.Sequential(Caching(), nn.Linear(6, 4)).eval()
    apply_plan(again, pruned.plan.groups, pruned.plan.attributes, parse_plan(pruned.plan.to_json()).sizes)
    again.load_state_dict(pruned.network.state_dict())
    inputs = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = pruned.network(inputs)
        for _ in range(2):
            assert torch.equal(again(inputs), expected)


def test_the_tables_know_the_usual_names() -> None:
    for function in (Tensor.reshape, torch.split, Tensor.__getitem__, F.layer_norm):
        assert function in SIZE_CALLS
    for function in (Tensor.size, Tensor.numel, Tensor.shape.__get__):  # type: ignore[attr-defined]
        assert function in QUERIES
