"""The first trials of a search, and the bounds of the space in bytes."""

import pytest

from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.errors import InputError
from budgetopt.methods.selection import Selector
from budgetopt.search.config import resolve
from budgetopt.search.design import GROWTH, Design, smallest_file
from budgetopt.search.run import _prepare
from budgetopt.trial import initial_bytes


def make(budget, **options):
    config, source = resolve(budget, **options)
    _, context, selector = _prepare(config, source)
    return config, context, selector


@pytest.mark.parametrize("budget", ["300", "1kb", "30kb"])
def test_design_goes_from_the_budget_to_the_smallest_sets(budget):
    config, context, selector = make(budget)
    found = Design(config, context, selector).allocations()
    assert len(set(found)) == len(found)
    coresets = [a for a in found if a.objective == "coreset"]
    assert coresets[0].ipc == max(a.ipc for a in found)
    assert coresets[-1].ipc == 1
    assert {a.objective for a in found} == {"coreset", "dm"}
    assert all(initial_bytes(context, a, selector) <= config.budget for a in found if a.ipc > 1)
    assert {a.levels for a in coresets} == {2}
    assert {a.levels for a in found if a.objective == "dm"} == {4}


def test_optimised_sets_have_room_to_grow():
    config, context, selector = make("1kb")
    largest = max(
        (a for a in Design(config, context, selector).allocations() if a.objective == "dm"), key=lambda a: a.ipc
    )
    assert initial_bytes(context, largest, selector) * GROWTH <= config.budget


@pytest.mark.parametrize("size", [50, 98, 150, 700, 2000, 7000, 10**6])
@pytest.mark.parametrize("levels", [2, 5])
def test_largest_ipc_is_that_of_a_linear_scan(size, levels):
    config, context, selector = make("30kb")
    allocation = Allocation(levels=levels)
    largest = max(context.spec.class_counts)
    sizes = [initial_bytes(context, Allocation(ipc=n, levels=levels), selector) for n in range(1, largest + 1)]
    first_over = next((n for n, s in enumerate(sizes) if s > size), largest)
    last_fitting = max((n for n, s in enumerate(sizes, start=1) if s <= size), default=1)
    found = Design(config, context, selector).largest_ipc(allocation, size)
    # random draws differ by allocation, so sizes are not quite monotone: between the two it is anyone's choice
    assert min(max(1, first_over), last_fitting) <= found <= max(1, last_fitting)


def test_smallest_file_is_the_smallest_and_is_enough():
    config, context, selector = make("30kb")
    smallest = smallest_file(config, context, selector)
    fewest = config.space.smallest("coreset", context.spec.shape)
    assert smallest == min(initial_bytes(context, a, Selector(context.train, context.spec)) for a in fewest)
    exact, *_ = make(Budget(smallest))
    assert smallest_file(exact, context, selector) == smallest
    tight, *_ = make(Budget(smallest - 1))
    with pytest.raises(InputError, match=f"takes {smallest} bytes"):
        smallest_file(tight, context, selector)
