"""Picks against every network by hand, and searches against networks that obey a law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sweep_points import make_point

from pruneport.bench.sweep.picks import CLOSE, best_within, next_kept, pareto_front, unbeaten, within
from pruneport.bench.sweep.records import Limit, Point

DROP, SPEED = Limit(rule="max_drop", value=1.0), Limit(rule="min_speedup", value=1.5)


def _name(point: Point | None) -> str | None:
    return point and point.name


def test_the_fastest_within_a_drop_and_the_most_accurate_as_fast() -> None:
    points = [make_point(0.9, 1.1), make_point(0.7, 1.4, 10), make_point(0.6, 1.6, 11), make_point(0.5, 2.0, 40)]
    assert _name(best_within(points, DROP)) == "flops-0.7"  # 10 of 1000 images are the point that may go
    assert _name(best_within(points, SPEED)) == "flops-0.6"
    assert best_within(points, replace(SPEED, value=3.0)) is None
    assert _name(best_within(points, replace(DROP, value=0.0))) == "flops-0.9"


def test_a_speed_up_must_be_sure_and_a_network_sound() -> None:
    assert not within(make_point(0.6, 1.54), SPEED)  # the interval begins at 1.49
    assert within(make_point(0.6, 1.55), SPEED)
    assert not within(make_point(0.6, 2.0, error="ONNX Runtime and torch disagree"), SPEED)
    assert not within(make_point(0.6, None, error="cannot be reached"), DROP)
    unlabelled = make_point(0.6, 2.0)
    assert unlabelled.figures is not None
    assert not within(replace(unlabelled, figures=replace(unlabelled.figures, accuracy=None)), DROP)


def _search(
    network: Callable[[float], Point], limit: Limit, asked: list[float], lowest: float | None = None
) -> list[Point]:
    points = [network(kept) for kept in asked]
    while (kept := next_kept(points, limit, lowest)) is not None:
        assert 0 < kept < 1
        assert kept not in [point.kept for point in points]
        points.append(network(kept))
    return points


@pytest.mark.parametrize("edge", [0.31, 0.5, 0.55, 0.74, 0.87, 0.97])
def test_a_search_ends_close_to_the_edge(edge: float) -> None:
    """Networks with less than ``edge`` kept lose too much; those below 0.2 cannot be made."""

    def network(kept: float) -> Point:
        return make_point(kept, None if kept < 0.2 else 1 / kept, 0 if kept >= edge else 50)

    points = _search(network, DROP, [], lowest=0.0)
    best = best_within(points, DROP)
    assert best is not None
    assert edge <= best.kept <= edge + CLOSE
    assert len(points) <= 6
    between = _search(network, DROP, [0.9, 0.3])
    if edge > 0.3:
        found = best_within(between, DROP)
        assert (found.kept if found else 1) <= edge + CLOSE


@pytest.mark.parametrize("edge", [0.31, 0.5, 0.74, 0.9])
def test_a_search_for_a_speed_up_ends_close_to_it(edge: float) -> None:
    points = _search(lambda kept: make_point(kept, 1.6 if kept <= edge else 1.2, int(100 * (1 - kept))), SPEED, [0.3])
    best = best_within(points, SPEED)
    assert best is not None
    assert edge - CLOSE <= best.kept <= edge


def test_a_search_stays_between_the_points() -> None:
    assert next_kept([make_point(0.9, 1.1), make_point(0.5, 2.0)], DROP) is None  # all hold it
    assert next_kept([make_point(0.9, 1.1), make_point(0.5, 1.2)], SPEED) is None  # none does
    assert next_kept([make_point(0.9, 1.1), make_point(0.5, 2.0, 50)], DROP) == pytest.approx(0.7)
    assert next_kept([make_point(0.5, 2.0, 50)], DROP) == pytest.approx(0.75)  # dense loses nothing
    assert next_kept([make_point(0.5, 2.0)], SPEED) == pytest.approx(0.75)  # and is not faster


def test_a_search_never_tries_twice_where_a_smaller_network_is_slower() -> None:
    points = [make_point(0.875, 1.1, 50), make_point(0.9375, 1.3), make_point(0.9062, 1.2)]
    assert _name(best_within(points, DROP)) == "flops-0.9375"
    assert next_kept(points, DROP) == pytest.approx(0.8906)


def test_two_shares_that_give_the_same_network_end_a_search() -> None:
    one, other = make_point(0.6, 1.6), make_point(0.5, 1.4, 50)
    assert one.figures is not None
    assert other.figures is not None
    same = replace(other, figures=replace(other.figures, pruned=one.figures.pruned))
    assert next_kept([one, other], DROP) == pytest.approx(0.55)
    assert next_kept([one, same], DROP) is None


def test_ratios_count_from_the_other_end() -> None:
    points = [replace(make_point(0.9, 1.1), target="ratio", value=0.1), replace(make_point(0.5, 2, 50), target="ratio")]
    assert [point.kept for point in points] == [0.9, 0.5]
    assert next_kept(points, DROP) == pytest.approx(0.7)


def test_the_front_is_what_no_other_beats() -> None:
    points = [
        make_point(0.9, 0.95, 1),  # slower and worse than dense
        make_point(0.8, 1.2, 5),
        make_point(0.7, 1.1, 9),  # beaten
        make_point(0.6, 1.5, 5),  # beats 0.8
        make_point(0.5, 2.0, 90),
        make_point(0.4, 2.5, 0, error="disagrees"),
        make_point(0.01, None),
    ]
    assert pareto_front(points) == ("flops-0.6", "flops-0.5")
    assert pareto_front([]) == ()
    assert unbeaten([(1, 1), (1, 1), (2, 1), (0.5, 0.5)]) == [True, True, False, True]  # twins beat nobody
