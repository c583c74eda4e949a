import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetopt import trial
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import DataSpec
from budgetopt.errors import OverBudget, TrialFailure
from budgetopt.methods import target_bank
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import Selector
from budgetopt.objective import CoresetObjective, DistributionMatchingObjective
from budgetopt.packing import pack, unpack
from budgetopt.protocol import Protocol
from budgetopt.representation import InitialSet, Representation

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=8, batch=32)
OBJECTIVES = {
    "coreset": CoresetObjective(method="coreset"),
    "refined": CoresetObjective(method="coreset", steps=4),
    "dm": DistributionMatchingObjective(method="dm", steps=4, bank=0, real_batch=8),
    "banked": DistributionMatchingObjective(method="dm", steps=5, bank=2, real_batch=8),
}


@pytest.fixture(scope="module")
def context(digits):
    data = TrainingData(digits.train, digits.spec, PROTOCOL, CPU)
    banks = {"banked": target_bank.build(OBJECTIVES["banked"], data, 0)}
    return trial.TrialContext(digits.train, digits.val, digits.spec, PROTOCOL, OBJECTIVES, shared=banks)


def allocate(objective, **changes):
    return replace(Allocation(objective=objective, ipc=2, levels=4), **changes)


def outcome(context, allocation):
    return [(r.rung, r.last, r.step, r.data, r.evaluation, r.loss) for r in trial.run(context, allocation, CPU)]


# --- one trial -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("quantizer", "clipping"), [("uniform", "minmax"), ("apot", "half")])
def test_a_trial_is_a_pure_function(context, objective, quantizer, clipping):
    """Equal bytes, accuracies and losses, whatever ran before and in between."""
    allocation = allocate(objective, quantizer=quantizer, clipping=clipping, levels=3, transform="standardize")
    first = outcome(context, allocation)
    torch.rand(3)
    list(trial.run(context, allocate("coreset", ipc=1), CPU))
    again = outcome(context, allocation)
    assert repr(first) == repr(again)  # repr: NaN losses of a coreset are equal
    assert [a[3] for a in first] == [a[3] for a in again]


@pytest.mark.parametrize("change", [{"seed": 1}, {"ipc": 3}, {"selection": "herding"}])
def test_another_seed_or_allocation_is_another_trial(context, change):
    plain = outcome(context, allocate("coreset"))
    if "seed" in change:
        other = outcome(replace(context, seed=1), allocate("coreset"))
    else:
        other = outcome(context, allocate("coreset", **change))
    assert plain[-1][3] != other[-1][3]


def test_seeds_are_hashes_of_run_seed_and_allocation():
    a, b = allocate("dm"), allocate("dm", ipc=3)
    assert trial.trial_seed(0, a) == trial.trial_seed(0, allocate("dm"))
    assert len({trial.trial_seed(s, x) for s in (0, 1) for x in (a, b)}) == 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reports(context, objective):
    reports = list(trial.run(context, allocate(objective), CPU))
    steps = OBJECTIVES[objective].steps
    assert [r.step for r in reports] == trial.rung_steps(steps)
    assert reports[-1].step == steps
    assert [r.rung for r in reports] == list(range(len(reports)))
    assert [r.last for r in reports] == [False] * (len(reports) - 1) + [True]
    assert [len(r.evaluation.accuracies) for r in reports] == [1] * (len(reports) - 1) + [PROTOCOL.search_seeds]
    for report in reports:
        assert unpack(report.data).counts == (2,) * 10
        assert report.evaluation.samples == len(context.val)
        assert math.isnan(report.loss) == (steps == 0)
    assert (len({r.data for r in reports}) == 1) == (steps == 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 150])
def test_rung_steps_end_at_the_last_step(steps):
    targets = trial.rung_steps(steps)
    assert targets == sorted(targets)
    assert targets[-1] == steps
    assert targets[0] >= 1


def test_rung_protocol(context):
    assert trial.rung_protocol(PROTOCOL, last=True) is PROTOCOL
    lower = trial.rung_protocol(PROTOCOL, last=False)
    assert lower.steps == 4
    assert lower == PROTOCOL.model_copy(update={"steps": 4})


# --- going on from a checkpoint --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reports", [1, 2])
def test_a_trial_goes_on_from_its_last_rung(context, objective, reports, tmp_path, monkeypatch):
    """The same reports as without an interruption, bit for bit, and no rung is worked for twice."""
    allocation = allocate(objective, quantizer="apot", clipping="half", levels=3)
    whole = outcome(context, allocation)
    if len(whole) <= reports:
        pytest.skip("a coreset has no second rung to be interrupted after")
    first = trial.run(context, allocation, CPU, trial.checkpoint(context, allocation, tmp_path))
    earlier = [next(first) for _ in range(reports)]
    evaluated, evaluate = [], trial.evaluate_file
    monkeypatch.setattr(trial, "evaluate_file", lambda *args: evaluated.append(args) or evaluate(*args))
    again = list(trial.run(context, allocation, CPU, trial.checkpoint(context, allocation, tmp_path)))
    assert repr([(r.rung, r.last, r.step, r.data, r.evaluation, r.loss) for r in again]) == repr(whole)
    assert len(evaluated) == len(whole) - reports
    assert [r.seconds for r in again[:reports]] == [r.seconds for r in earlier]
    assert again[-1].seconds > earlier[-1].seconds  # the time of both processes


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"budget": 400}, {"protocol": PROTOCOL.model_copy(update={"lr": 0.02})}]
)
def test_a_checkpoint_of_other_circumstances_is_not_taken(context, change, tmp_path):
    allocation, other = allocate("dm"), replace(context, **change)
    next(trial.run(context, allocation, CPU, trial.checkpoint(context, allocation, tmp_path)))
    (path,) = tmp_path.iterdir()
    kept = trial.checkpoint(other, allocation, tmp_path)
    if "seed" not in change:  # which is in the name
        assert kept.path == path
    path.rename(kept.path)
    assert kept.load() is None


def test_every_damaged_checkpoint_is_one_that_is_not_there(context, tmp_path):
    allocation = allocate("dm")
    kept = trial.checkpoint(context, allocation, tmp_path)
    next(trial.run(context, allocation, CPU, kept))
    good = kept.path.read_bytes()
    assert kept.load() is not None
    for end in range(0, len(good), len(good) // 60):
        kept.path.write_bytes(good[:end])
        assert kept.load() is None
    kept.path.write_bytes(pickle.dumps({"identity": "", "state": Forbidden()}, protocol=2))
    assert kept.load() is None
    assert len(list(trial.run(context, allocation, CPU, kept))) == 3


def test_where_no_checkpoint_can_be_written_the_trial_runs_all_the_same(context, tmp_path):
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    allocation = allocate("dm")
    kept = trial.checkpoint(context, allocation, blocked)
    assert [r.rung for r in trial.run(context, allocation, CPU, kept)] == [0, 1, 2]
    assert kept.load() is None
    kept.remove()


def test_the_last_rung_leaves_the_checkpoint_to_the_one_who_records_it(context, tmp_path):
    """It is not written again at the last rung, and there is one file a trial."""
    allocation = allocate("dm")
    kept = trial.checkpoint(context, allocation, tmp_path)
    list(trial.run(context, allocation, CPU, kept))
    assert list(tmp_path.iterdir()) == [kept.path]
    assert len(kept.load()["reports"]) == 2
    kept.remove()
    assert list(tmp_path.iterdir()) == []


# --- validation is not touched ---------------------------------------------------------------------------------------


class Touched(Exception):
    pass


class Forbidden:
    """A validation part that no one may look at."""

    def __getattr__(self, name):
        raise Touched(name)

    def __len__(self):
        raise Touched("len")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_validation_is_first_touched_by_the_evaluation(context, objective, monkeypatch):
    """All steps up to the first rung run without it; what fails is the evaluation."""
    reached = []
    evaluate = trial.evaluate_file

    def spied(data, *rest, **more):
        reached.append(data)
        return evaluate(data, *rest, **more)

    monkeypatch.setattr(trial, "evaluate_file", spied)
    with pytest.raises(Touched):
        next(trial.run(replace(context, val=Forbidden()), allocate(objective), CPU))
    assert len(reached) == 1
    wanted = next(trial.run(context, allocate(objective), CPU)).data
    assert reached[0] == wanted


# --- the budget ------------------------------------------------------------------------------------------------------


def noisy(counts, shape=(1, 2, 3), levels=16, **changes):
    """A representation of samples without structure: every one costs about the same."""
    x = np.random.default_rng(0).integers(0, levels, (sum(counts), *shape)).astype(np.float32)
    channels, allocation = shape[0], replace(Allocation(objective="coreset", levels=levels), **changes)
    unit = np.ones(channels, np.float32)
    spec = DataSpec("noise", shape, counts, 0 * unit, unit, "", "glyph-1")
    return Representation(InitialSet(x, counts), allocation, spec, 0, CPU)


FAMILIES = [("uniform", "minmax"), ("apot", "half")]


@pytest.mark.parametrize(("quantizer", "clipping"), FAMILIES)
@pytest.mark.parametrize("counts", [(3, 0, 2, 1), (5, 5), (1,)])
def test_packing_a_part_keeps_the_first_samples_of_each_class(counts, quantizer, clipping):
    made = noisy(counts, quantizer=quantizer, clipping=clipping, levels=15)
    whole = made.packed()
    assert whole.counts == made.packed(max(counts)).counts == counts
    for most in range(1, max(counts) + 1):
        part = made.packed(most)
        keep = [i for c in range(len(counts)) for i in np.flatnonzero(whole.labels() == c)[:most]]
        assert part.counts == tuple(min(c, most) for c in counts)
        assert part.labels().tolist() == whole.labels()[keep].tolist()
        assert np.array_equal(part.symbols, whole.symbols[keep])
        assert part.dequantizer == whole.dequantizer
        assert part.inverse == whole.inverse


@pytest.mark.parametrize("counts", [(14,) * 4, (24, 3, 9), (1, 30), (1, 1, 1)])
def test_fit_to_budget_is_the_largest_even_prefix(counts):
    """Of all prefixes, counted up one by one. Sizes grow with the samples but for a byte or two: between the first that
    does not fit and the last that does, what is found fits and one more sample a class does not."""
    made = noisy(counts)
    packed = made.packed()
    whole = len(pack(packed))
    caps = {m: pack(made.packed(m)) for m in range(1, max(counts) + 1)}
    for budget in {whole, whole - 1, whole // 2, whole // 3, len(caps[1]), len(caps[1]) + 5}:
        fitting = [m for m, data in caps.items() if len(data) <= budget]
        if not fitting:
            with pytest.raises(OverBudget, match=f"the budget is {budget}"):
                made.fit_to_budget(budget)
            continue
        data = made.fit_to_budget(budget)
        assert len(data) <= budget
        first_over = next((m for m in caps if m not in fitting), max(counts) + 1)
        (found,) = {m for m in caps if caps[m] == data}
        assert first_over - 1 <= found <= max(fitting)
        assert found == max(counts) or len(caps[found + 1]) > budget
        if first_over > max(fitting):  # nothing to choose
            assert data == caps[max(fitting)]
        kept = unpack(data)
        starts, kept_starts = np.cumsum([0, *counts]), np.cumsum([0, *kept.counts])
        for c, count in enumerate(kept.counts):  # the most useful first
            original = packed.symbols[starts[c] : starts[c] + count]
            assert np.array_equal(kept.symbols[kept_starts[c] : kept_starts[c + 1]], original)


def test_no_budget_is_no_limit():
    made = noisy((4, 4))
    whole = pack(made.packed())
    assert made.fit_to_budget(None) == whole == made.fit_to_budget(len(whole))


@pytest.mark.parametrize("budget", [1, 20, 60])
def test_what_cannot_fit_is_over_budget(budget):
    made = noisy((3,) * 10, (1, 4, 4))
    with pytest.raises(OverBudget, match=f"the budget is {budget}") as raised:
        made.fit_to_budget(budget)
    assert str(len(pack(made.packed(1)))) in str(raised.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_report_exceeds_the_budget(context, objective):
    free = max(len(r.data) for r in trial.run(context, allocate(objective, ipc=6), CPU))
    budget = free * 2 // 3
    for report in trial.run(replace(context, budget=budget), allocate(objective, ipc=6), CPU):
        assert len(report.data) <= budget
        counts = unpack(report.data).counts
        assert len(set(counts)) == 1
        assert 1 <= counts[0] < 6


def test_infeasible_trial(context):
    with pytest.raises(OverBudget):
        next(trial.run(replace(context, budget=50), allocate("coreset"), CPU))


def test_initial_bytes_are_exact_for_coresets(context):
    selector = Selector(context.train, context.spec)
    for how in ("random", "herding"):
        allocation = allocate("coreset", selection=how)
        reports = list(trial.run(context, allocation, CPU))
        assert {len(r.data) for r in reports} == {trial.initial_bytes(context, allocation, selector)}


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["refined", "dm", "banked"])
@pytest.mark.parametrize(
    ("quantizer", "clipping", "change"),
    [
        ("uniform", "p1", {"lr_image": 1e30}),
        ("apot", "half", {"lr_image": 1e30}),
        ("apot", "half", {"lr_quantizer": 1e20}),
        ("apot", "half", {"lr_quantizer": 1e30}),
    ],
)
def test_divergence_is_a_trial_failure(context, objective, change, quantizer, clipping):
    wild = OBJECTIVES[objective].model_copy(update=change | {"steps": 12})
    allocation = allocate(objective, quantizer=quantizer, clipping=clipping, levels=3, transform="standardize")
    reports = []
    try:
        for report in trial.run(replace(context, objectives={objective: wild}), allocation, CPU):
            reports.append(report)
    except TrialFailure:
        return
    # a set that survives must be a valid one: a quantizer clamps what runs away
    assert all(np.isfinite(unpack(r.data).decode()).all() for r in reports)
    assert all(math.isfinite(r.loss) for r in reports)


def test_values_that_are_not_finite_cannot_be_packed(context):
    initial = trial.initial_set(context, allocate("dm"))
    representation = Representation(initial, allocate("dm"), context.spec, 0, CPU)
    with torch.no_grad():
        representation.latent[0, 0] = math.nan
    with pytest.raises(TrialFailure, match="diverged"):
        representation.packed()


def test_a_loss_that_is_not_finite_is_a_trial_failure(context):
    wild = OBJECTIVES["dm"].model_copy(update={"lr_image": 1e38, "steps": 12})
    with pytest.raises(TrialFailure, match="diverged"):
        list(trial.run(replace(context, objectives={"dm": wild}), allocate("dm"), CPU))


# --- where a trial starts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_method_starts_from_the_given_set(context, objective):
    x = np.random.default_rng(0).integers(0, 17, (30, 1, 8, 8)).astype(np.float32)
    given = replace(context, init=InitialSet(x, (3,) * 10))
    allocation = allocate(objective, ipc=2, levels=17)
    initial = trial.initial_set(given, allocation)
    assert initial.counts == (2,) * 10
    assert np.array_equal(initial.x, x.reshape(10, 3, 1, 8, 8)[:, :2].reshape(20, 1, 8, 8))
    start = trial.initial_representation(given, allocation, CPU).packed().decode()
    assert np.allclose(start, initial.x, atol=1e-4)
    without_steps = allocate("coreset", ipc=2, levels=17)
    assert np.array_equal(unpack(next(trial.run(given, without_steps, CPU)).data).decode(), initial.x)
    trained = list(trial.run(given, allocation, CPU))[-1]
    assert unpack(trained.data).counts == (2,) * 10


def test_given_set_with_fewer_samples_gives_all(context):
    given = replace(context, init=InitialSet(np.zeros((12, 1, 8, 8), np.float32), (3, *(1,) * 9)))
    assert trial.initial_set(given, allocate("coreset", ipc=2)).counts == (2, *(1,) * 9)


def test_initial_set_is_real_training_data(context):
    for how in ("random", "herding"):
        initial = trial.initial_set(context, allocate("dm", selection=how, ipc=3))
        real = {x.tobytes() for x in context.train.x.astype(np.float32)}
        assert all(x.tobytes() in real for x in initial.x)
