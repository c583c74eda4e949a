import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetopt.front import best, hypervolume, near_front, non_dominated, ranks

# few distinct values, so that ties and duplicates are common
SIZES = st.integers(1, 6)
ACCURACIES = st.integers(0, 5).map(lambda a: a / 5)
POINTS = st.lists(st.tuples(SIZES, ACCURACIES), max_size=14)


def columns(points):
    table = np.array(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def dominates(p, q):
    return p[0] <= q[0] and p[1] >= q[1] and p != q


def naive_front(points):
    """Members; of equal points the first."""
    return [
        not any(dominates(q, p) for q in points) and points.index(p) == position for position, p in enumerate(points)
    ]


def naive_ranks(points):
    found, left, rank = [-1] * len(points), set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            found[i] = rank
        left, rank = left - front, rank + 1
    return found


def naive_hypervolume(points, smallest, budget, chance):
    """Sum over the steps of the staircase, in the units of the rectangle."""
    width = math.log2(budget) - math.log2(smallest)
    inside = [p for p in points if p[0] <= budget and p[1] > chance]
    edges = [*sorted({max(p[0], smallest) for p in inside}), budget]
    area = 0.0
    for left, right in itertools.pairwise(edges):
        height = max(a for s, a in inside if s <= left) - chance
        area += (math.log2(right) - math.log2(left)) / width * height / (1 - chance)
    return area


# ----------------------------------------------------------------------------------------------------------------------
# dominance
# ----------------------------------------------------------------------------------------------------------------------
@given(POINTS)
def test_front_against_all_pairs(points):
    assert non_dominated(*columns(points)).tolist() == naive_front(points)


@given(POINTS)
def test_ranks_against_peeling(points):
    assert ranks(*columns(points)).tolist() == naive_ranks(points)


def test_front_of_nothing_and_of_one():
    for found in (non_dominated(np.array([]), np.array([])), ranks(np.array([]), np.array([]))):
        assert found.shape == (0,)
    assert non_dominated(np.array([5]), np.array([0.1])).tolist() == [True]
    assert ranks(np.array([5]), np.array([0.1])).tolist() == [0]


def test_equal_bytes_or_equal_accuracy_do_not_both_stay():
    assert non_dominated(np.array([10, 10, 20]), np.array([0.5, 0.6, 0.6])).tolist() == [False, True, False]


def test_of_equal_points_the_first_stays_but_all_have_its_rank():
    size, accuracy = np.array([10, 10, 10]), np.array([0.5, 0.5, 0.5])
    assert non_dominated(size, accuracy).tolist() == [True, False, False]
    assert ranks(size, accuracy).tolist() == [0, 0, 0]


# ----------------------------------------------------------------------------------------------------------------------
# hypervolume
# ----------------------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(50, 5000), st.floats(0, 1)), max_size=10))
def test_hypervolume_against_the_staircase(points):
    expected = naive_hypervolume(points, 100, 3000, 0.1) if points else 0.0
    assert hypervolume(*columns(points), 100, 3000, 0.1) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(100, 1.0)], 1.0),  # the whole rectangle
        ([(200, 0.55)], 0.5 * 0.5),  # half of the octaves, half of the way from chance to 1
        ([(400, 1.0)], 0.0),  # on the budget's edge
        ([(200, 0.1)], 0.0),  # chance
        ([(200, 0.02)], 0.0),  # below chance
        ([(401, 1.0)], 0.0),  # over the budget
        ([(25, 0.55)], 0.5),  # smaller than the smallest adds nothing beyond the edge
        ([(200, 0.55), (200, 0.55)], 0.25),
        ([(100, 0.55), (200, 1.0)], 0.5 * 0.5 + 0.5 * 1.0),
    ],
)
def test_hypervolume_in_closed_form(points, area):
    assert hypervolume(*columns(points), 100, 400, 0.1) == pytest.approx(area)


@given(st.lists(st.tuples(st.integers(50, 5000), st.floats(0, 1)), min_size=1, max_size=8))
def test_another_point_never_lowers_the_hypervolume(points):
    volumes = [hypervolume(*columns(points[:n]), 100, 3000, 0.1) for n in range(len(points) + 1)]
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(volumes))
    assert all(0.0 <= v <= 1.0 + 1e-12 for v in volumes)


@pytest.mark.parametrize(("smallest", "budget", "chance"), [(100, 100, 0.1), (100, 50, 0.1), (10, 100, 1.0)])
def test_an_empty_rectangle_is_an_error(smallest, budget, chance):
    with pytest.raises(ValueError, match="empty rectangle"):
        hypervolume(np.array([50]), np.array([0.5]), smallest, budget, chance)


# ----------------------------------------------------------------------------------------------------------------------
# best and candidates
# ----------------------------------------------------------------------------------------------------------------------
def test_best_is_the_most_accurate_and_ties_go_to_fewer_bytes():
    assert best(np.array([10, 30, 20]), np.array([0.5, 0.9, 0.8])) == 1
    assert best(np.array([10, 30, 20]), np.array([0.5, 0.9, 0.9])) == 2


@given(POINTS.filter(bool), st.floats(0, 0.5))
def test_candidates_are_those_within_one_standard_error(points, error):
    size, accuracy = columns(points)
    found = near_front(size, accuracy, np.full(len(points), error), most=len(points))
    expected = {i for i, (s, a) in enumerate(points) if max(b for t, b in points if t <= s) - a <= error}
    assert set(found.tolist()) == expected
    assert len(found) == len(expected)
    assert set(np.flatnonzero(non_dominated(size, accuracy)).tolist()) <= expected


def test_every_point_has_its_own_standard_error():
    size, accuracy = np.array([10, 20, 30]), np.array([0.8, 0.75, 0.75])
    assert near_front(size, accuracy, np.array([0.01, 0.01, 0.06]), 10).tolist() == [0, 2]


def test_the_front_comes_first_then_the_nearest():
    size, accuracy = np.array([10, 20, 30, 40]), np.array([0.7, 0.66, 0.69, 0.9])
    error = np.full(4, 0.1)
    assert near_front(size, accuracy, error, 10).tolist() == [0, 3, 2, 1]
    assert near_front(size, accuracy, error, 3).tolist() == [0, 3, 2]
    assert near_front(size, accuracy, error, 2).tolist() == [0, 3]


@pytest.mark.parametrize("most", [2, 3, 5, 16, 39])
def test_members_over_the_cap_are_spread_and_hold_the_most_accurate(most):
    rng = np.random.default_rng(0)
    order = rng.permutation(40)
    size, accuracy = 100.0 * 1.2**order, 0.1 + order / 50  # all of them on the front
    found = near_front(size, accuracy, np.full(40, 0.01), most)
    assert len(set(found.tolist())) == len(found) == most
    assert np.argmax(accuracy) in found
    assert np.argmin(size) in found
    gaps = np.diff(np.sort(np.log2(size[found])))
    assert gaps.max() <= 2.01 * gaps.min()  # 40 places in equal steps, rounded to whole places


def test_rivals_of_the_best_take_up_to_half_of_the_places():
    """Which of them is the most accurate is what a search is asked, and one short look at each does not say."""
    size = np.concatenate([100.0 * 2.0 ** np.arange(10), [60_000, 61_000, 62_000]])
    accuracy = np.concatenate([np.linspace(0.1, 0.7, 10), [0.695, 0.694, 0.69]])  # the last three are not on the front
    found = near_front(size, accuracy, np.full(13, 0.02), 6).tolist()
    assert found[:3] == [9, 10, 11]
    assert set(found[3:]) < set(range(9))
    assert 0 in found
    assert near_front(size, accuracy, np.full(13, 0.001), 6).tolist()[:2] != [9, 10]


def test_a_single_place_goes_to_the_most_accurate():
    found = near_front(np.array([10, 20, 30]), np.array([0.5, 0.6, 0.7]), np.full(3, 0.01), 1)
    assert found.tolist() == [2]


def test_no_place_near_the_front_is_lost_where_sizes_crowd():
    """Members of nearly the same size are nearest to the same places: each takes its own."""
    size = np.concatenate([np.arange(1000, 1015), [1_000_000]])
    accuracy, error = np.linspace(0.5, 0.9, 16), np.zeros(16)
    for most in range(1, 16):
        found = near_front(size, accuracy, error, most)
        assert len(found) == len(set(found.tolist())) == most
        assert found[0] == 15
