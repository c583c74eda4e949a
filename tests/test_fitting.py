"""The largest set that fits: against counting up one by one."""

import math

from hypothesis import given
from hypothesis import strategies as st

from budgetopt.fitting import largest_fitting


def counted_up(size, limit, least, most):
    found = None
    for m in range(least, most + 1):
        if size(m) <= limit:
            found = m
    return found


@given(
    slope=st.floats(0.1, 50),
    overhead=st.integers(0, 200),
    bend=st.floats(0.6, 1.2),
    limit=st.integers(1, 5000),
    least=st.integers(1, 5),
    more=st.integers(0, 400),
)
def test_the_largest_that_fits_is_found_for_every_increasing_size(slope, overhead, bend, limit, least, more):
    def size(m):
        return overhead + math.ceil(slope * m**bend)

    expected = counted_up(size, limit, least, least + more)
    assert largest_fitting(size, limit, least, least + more) == expected


@given(jumps=st.lists(st.integers(0, 40), min_size=2, max_size=60), limit=st.integers(0, 800))
def test_steps_and_plateaus(jumps, limit):
    sizes = [sum(jumps[: i + 1]) for i in range(len(jumps))]
    assert largest_fitting(lambda m: sizes[m - 1], limit, 1, len(jumps)) == counted_up(
        lambda m: sizes[m - 1], limit, 1, len(jumps)
    )


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(0, 100))
def test_where_sizes_are_not_monotone_the_found_one_fits_and_its_successor_does_not(sizes, limit):
    found = largest_fitting(lambda m: sizes[m - 1], limit, 1, len(sizes))
    if found is None:
        assert sizes[0] > limit
    else:
        assert sizes[found - 1] <= limit
        assert found == len(sizes) or sizes[found] > limit


def test_few_packings_and_none_much_too_large():
    asked = []

    def size(m):
        asked.append(m)
        return 40 + round(25.4 * m - 0.002 * m * m)

    assert size(largest_fitting(size, 30_000, 1, 5000)) <= 30_000
    assert len(asked) <= 12
    assert max(asked) <= 8 * asked[-1]


@given(slope=st.floats(1, 50), limit=st.integers(100, 5000), slack=st.floats(0.01, 0.5))
def test_with_slack_little_of_the_limit_is_left(slope, limit, slack):
    def size(m):
        return math.ceil(slope * m)

    found = largest_fitting(size, limit, 1, 400, slack)
    assert size(found) <= limit
    assert found == counted_up(size, limit, 1, 400) or size(found) >= (1 - slack) * limit
