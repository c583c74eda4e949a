"""The first trials of a search, and the bounds of the space in bytes."""

import pytest

import budgetopt
from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.errors import BudgetoptError, InputError
from budgetopt.search.config import resolve
from budgetopt.search.design import GROWTH, SLACK, Design, smallest_file
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
    assert {a.levels for a in coresets if not a.label_bits} == {2}
    assert {a.levels for a in found if a.objective == "dm" or a.label_bits} == {4}


def test_soft_labels_are_in_the_design_where_the_space_has_them(tmp_path):
    """Coresets and optimised sets of all sizes, with the finest labels at the lowest temperature."""
    lines = ['selection = ["herding"]', 'transform = ["identity"]', "label_bits = [0, 2, 3]"]
    lines += ["label_temperature = [4.0, 2.0]", 'balance = ["sqrt", "equal"]', "[[quantizer]]", 'family = "uniform"']
    (tmp_path / "soft.toml").write_text("\n".join([*lines, "levels = [2, 3, 5]"]))
    config, context, selector = make("300", space_name=str(tmp_path / "soft.toml"))
    found = Design(config, context, selector).allocations()
    soft = [a for a in found if a.label_bits]
    assert {(a.label_bits, a.label_temperature, a.levels) for a in soft} == {(3, 2.0, 5)}
    assert {a.objective for a in soft} == {"coreset", "dm"}
    assert {a.label_bits for a in found if a.levels == 2} == {0}
    assert {a.balance for a in found} == {"sqrt"}
    parameters = [config.space.parameters(a, 100) for a in soft]
    assert {(p["label_bits"], p["label_temperature"], p["balance"]) for p in parameters} == {(2, 0, "sqrt")}


@pytest.mark.parametrize("budget", ["500", "30kb"])
def test_a_sampler_with_a_model_starts_from_one_of_each_kind(budget):
    config, context, selector = make(budget)
    design = Design(config, context, selector)
    found = design.few()
    assert found[0] == design.allocations()[0]  # a file that uses the budget comes first
    assert [(a.objective, bool(a.label_bits)) for a in found] == [
        ("coreset", False), ("coreset", True), ("dm", True), ("coreset", False),
    ]  # fmt: skip
    assert len({a.selection for a in found}) == 2
    sizes = [initial_bytes(context, a, selector) for a in found]
    assert max(sizes) <= config.budget
    assert sizes[2] < config.budget / 8 or found[2].ipc == 1


@pytest.mark.parametrize(
    ("sampler", "limits", "few"),
    [
        ("rate-distortion", {"trials": 1}, True),
        ("rate-distortion", {"time_limit": 60}, True),
        ("rate-distortion", {"trials": 100}, False),
        ("rate-distortion", {}, False),
        ("tpe", {"trials": 1}, False),
    ],
)
def test_a_search_with_a_model_and_little_room_starts_from_few(sampler, limits, few, tmp_path, monkeypatch):
    """As told to the study before the first trial."""
    enqueued = []
    monkeypatch.setattr(Design, "enqueue", lambda self, study, chosen: enqueued.append((self, chosen)))
    monkeypatch.setattr("budgetopt.search.searcher.StudySearcher.suggest", lambda self, trial_id: "FINISHED")
    with pytest.raises(BudgetoptError, match="no trial finished"):
        budgetopt.search("500", sampler=sampler, workers=1, out=tmp_path / "run", **limits)
    ((design, chosen),) = enqueued
    assert chosen == (design.few() if few else design.allocations())


def test_optimised_sets_have_room_to_grow():
    config, context, selector = make("1kb")
    largest = max(
        (a for a in Design(config, context, selector).allocations() if a.objective == "dm"), key=lambda a: a.ipc
    )
    assert initial_bytes(context, largest, selector) * GROWTH <= config.budget


@pytest.mark.parametrize("size", [50, 150, 700, 10**6])
@pytest.mark.parametrize("levels", [2, 5])
def test_the_largest_ipc_fits_and_leaves_little_of_the_size(size, levels):
    config, context, selector = make("30kb")
    found = Design(config, context, selector).largest_ipc(Allocation(levels=levels), size)
    used = initial_bytes(context, Allocation(ipc=found, levels=levels), selector)
    assert used <= size or found == 1
    one_more = initial_bytes(context, Allocation(ipc=found + 1, levels=levels), selector)
    assert used >= (1 - SLACK) * size or one_more > size or found == max(context.spec.class_counts)


def test_smallest_file_is_what_the_budget_is_held_against():
    config, context, selector = make("30kb")
    fewest = [initial_bytes(context, a, selector) for a in config.space.smallest("coreset", context.spec.shape)]
    assert min(fewest) <= smallest_file(config, context, selector) <= min(fewest) + 10  # of the first choices only
    exact, *_ = make(Budget(min(fewest)))
    assert smallest_file(exact, context, selector) == min(fewest)
    tight, *_ = make(Budget(min(fewest) - 1))
    with pytest.raises(InputError, match=f"takes {min(fewest)} bytes"):
        smallest_file(tight, context, selector)
