"""The rate–distortion sampler: Optuna's own suite where it knows no space, a search with a known law where it does."""

import functools
import math
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import TrialState, create_trial

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.front import hypervolume
from budgetopt.search import config as configuration
from budgetopt.search.candidates import BEST, MOST_KINDS, NEIGHBOURS, SAMPLED, SpaceCandidates
from budgetopt.search.explanation import explain
from budgetopt.search.problem import Coding, Problem
from budgetopt.search.sampler import CLOSE, RESCORED, Packed, RateDistortionSampler
from budgetopt.space import IpcRange, QuantizerChoice, SearchSpace, resolve

OBJECTIVES = {"coreset": 0, "dm": 50}
COUNTS = (150,) * 10
BUDGET, SMALLEST, CHANCE, VALIDATION, MOST_IPC = 4000, 60, 0.1, 200, 150
SPACE = SearchSpace(
    selection=("random", "herding"),
    transform=("identity", "standardize"),
    rate_weight=(0.0, 1.0),
    ipc=IpcRange(),
    quantizer=(
        QuantizerChoice(family="uniform", levels=(2, 3, 4, 8, 16, 64), clipping=("minmax", "p5")),
        QuantizerChoice(family="apot", levels=(2, 7, 31), clipping=("quadd", "half")),
    ),
)


def coding(kind):
    """64 values a sample; δ falls as 4^−b; apot and odd clipping are a little worse."""
    bits = math.log2(kind.levels)
    worse = 1.3 if kind.quantizer == "apot" else 1.0 + 0.2 * (kind.clipping != "minmax")
    return Coding(min(1.0, 0.9 * worse * 4.0**-bits), 64 * bits * 0.9, 64)


def initial_bytes(allocation):
    n = 10 * allocation.ipc
    return int(45 + 0.75 * n * coding(allocation).bits / 8 * (1.05 if allocation.transform == "identity" else 1.0))


def log_odds(allocation):
    """The law, and a misfit of each allocation that no model can know."""
    kind, n, better = coding(allocation), float(allocation.ipc), allocation.objective == "dm"
    own = np.random.default_rng(int(allocation.key, 16)).normal() * 0.07
    g = 4.4 - (2.6 if better else 3.4) * n ** (-0.5 if better else -0.4) - (1.8 - 0.5 * better) * kind.distortion**0.5
    return g + 0.15 * (allocation.selection == "herding") - 0.2 * (allocation.transform == "standardize") + own


def true_accuracy(allocation):
    return 1 / (1 + math.exp(-log_odds(allocation)))


def final_bytes(allocation):
    return initial_bytes(allocation) * (1.1 if allocation.objective == "dm" else 1.0)


def problem(space=SPACE, **changes):
    return Problem(
        **{
            "candidates": SpaceCandidates(space, OBJECTIVES, (1, 8, 8), MOST_IPC, 0),
            "budget": BUDGET,
            "chance": CHANCE,
            "class_counts": COUNTS,
            "validation": VALIDATION,
            "trained": frozenset({"dm"}),
            "measure": coding,
            "initial_bytes": functools.cache(initial_bytes),
        }
        | changes
    )


@functools.cache
def shared_problem():
    return problem()


def make_study(sampler):
    return optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)


def objective_of(known, seed, space=SPACE):
    """Measures with noise; what is over the budget is pruned with its size."""
    rng = np.random.default_rng(seed)

    def objective(trial):
        allocation = space.suggest(trial, list(OBJECTIVES), MOST_IPC)
        if not OBJECTIVES[allocation.objective]:
            allocation = replace(allocation, rate_weight=0.0)
        trial.set_user_attr("allocation", allocation.to_dict())
        trial.set_user_attr("initial_bytes", initial_bytes(allocation))
        if final_bytes(allocation) > BUDGET:
            raise optuna.TrialPruned
        accuracy = true_accuracy(allocation)
        error = math.sqrt(accuracy * (1 - accuracy) / VALIDATION / 2)
        return math.log2(final_bytes(allocation)), float(np.clip(accuracy + rng.normal() * error, 0, 1))

    return objective


def found_volume(study):
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    allocations = [Allocation.from_dict(t.user_attrs["allocation"]) for t in done]
    sizes, accuracies = [final_bytes(a) for a in allocations], [true_accuracy(a) for a in allocations]
    return hypervolume(np.array(sizes), np.array(accuracies), SMALLEST, BUDGET, CHANCE), max(accuracies)


def searched(sampler, seed, trials=30):
    study = make_study(sampler)
    study.optimize(objective_of(None, seed), n_trials=trials)
    return study


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


# ----------------------------------------------------------------------------------------------------------------------
# Optuna's suite, in studies whose space it does not know
# ----------------------------------------------------------------------------------------------------------------------
class TestWithoutProblem(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: RateDistortionSampler(fallback=TPESampler(n_startup_trials=0, seed=0))


class TestOfAnotherProblem(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: RateDistortionSampler(shared_problem(), fallback=TPESampler(n_startup_trials=0, seed=0))


# ----------------------------------------------------------------------------------------------------------------------
# where it knows the space
# ----------------------------------------------------------------------------------------------------------------------
def test_it_beats_random_and_tpe_on_a_known_law():
    ours, random, tpe = (
        np.array([found_volume(searched(make(seed), seed)) for seed in range(2)]).mean(0)
        for make in (
            lambda seed: RateDistortionSampler(shared_problem(), seed=seed),
            lambda seed: optuna.samplers.RandomSampler(seed=seed),
            lambda seed: TPESampler(seed=seed),
        )
    )
    assert ours[0] > max(random[0], tpe[0]) + 0.02
    assert ours[1] > max(random[1], tpe[1])


def test_nothing_is_proposed_twice_or_over_the_budget():
    study = searched(RateDistortionSampler(shared_problem()), 0, 25)
    allocations = [Allocation.from_dict(t.user_attrs["allocation"]) for t in study.trials]
    assert len(set(allocations)) == 25
    assert all(initial_bytes(a) <= BUDGET for a in allocations)
    coresets = [t.state for t, a in zip(study.trials, allocations, strict=True) if a.objective == "coreset"]
    assert set(coresets) == {TrialState.COMPLETE}  # their sizes are known before


def test_proposals_are_a_function_of_the_study():
    """Also after a restart: a fresh sampler on the same trials goes on as the old one would, past the first and the
    second fit of the Gaussian process."""
    study = searched(RateDistortionSampler(shared_problem()), 3, 34)
    for number in (5, 22, 25, 33):
        again = make_study(RateDistortionSampler(problem()))
        again.add_trials(study.trials[:number])
        assert (
            again.ask(shared_problem().candidates.distributions).params.items() >= study.trials[number].params.items()
        )


def test_proposals_of_several_workers_differ():
    study = searched(RateDistortionSampler(shared_problem()), 0, 8)
    asked = [SPACE.suggest(study.ask(), list(OBJECTIVES), MOST_IPC) for _ in range(8)]
    assert len(set(asked)) == 8
    sizes = np.log2([final_bytes(a) for a in asked])
    assert np.ptp(sizes) > 1.0  # not eight neighbours


def test_what_waits_is_not_proposed():
    study = make_study(RateDistortionSampler(shared_problem()))
    first = SPACE.suggest(study.ask(), list(OBJECTIVES), MOST_IPC)
    other = make_study(RateDistortionSampler(shared_problem()))
    other.enqueue_trial(SPACE.parameters(first, MOST_IPC))
    proposal = RateDistortionSampler(shared_problem()).propose(other, 1)
    assert proposal != first


def test_families_that_fail_are_left():
    study = make_study(RateDistortionSampler(shared_problem()))
    measure = objective_of(None, 0)
    tried = []
    for _ in range(30):
        trial = study.ask()
        try:
            values = measure(trial)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        fails = trial.params["objective"] == "dm"
        tried.append(fails)
        study.tell(trial, state=TrialState.FAIL) if fails else study.tell(trial, values)
    assert 0 < sum(tried) <= 9  # of 30; without failures it proposes little else


def test_growth_is_learned():
    """Optimised files outgrow the budget by 10 %: after a few, proposals leave room for it."""
    study = searched(RateDistortionSampler(shared_problem()), 1, 40)
    late = [Allocation.from_dict(t.user_attrs["allocation"]) for t in study.trials[20:]]
    grown = [final_bytes(a) <= BUDGET for a in late if a.objective == "dm"]
    assert len(grown) > 3
    assert np.mean(grown) > 0.7


def test_rungs_of_stopped_trials_teach():
    """A stopped trial whose rung says that `dm` is bad moves the model as a finished one would, only less."""

    def accuracy_of(state, accuracy):
        study = searched(RateDistortionSampler(shared_problem()), 0, 3)
        for ipc in (5, 10, 20):
            allocation = Allocation("dm", "random", ipc, levels=4)
            rung = {"step": 1, "bytes": 500, "samples": 10 * ipc, "accuracy": accuracy, "error": 0.02}
            attributes = {"allocation": allocation.to_dict(), "rung/0": rung}
            if state == TrialState.PRUNED:
                attributes["reason"] = "stopped"
            values = [9.0, accuracy] if state == TrialState.COMPLETE else None
            study.add_trial(create_trial(state=state, values=values, user_attrs=attributes))
        view = RateDistortionSampler(shared_problem()).view(study, -1)
        points, ipc = view.candidates()
        kinds = [view.table.kinds[k] for k in points.kind]
        mine = np.array([k.objective == "dm" and k.levels == 4 for k in kinds]) & (ipc > 8) & (ipc < 15)
        return view.model.predict(points[mine]).accuracy.mean()

    good, bad = accuracy_of(TrialState.PRUNED, 0.9), accuracy_of(TrialState.PRUNED, 0.3)
    finished = accuracy_of(TrialState.COMPLETE, 0.3)
    assert finished < bad < good - 0.1


def test_rungs_of_children_are_their_own():
    """Sets made anew gain much after their first rung, children little: the same stopped rung says more of a child."""

    def expected(child):
        study = searched(RateDistortionSampler(shared_problem()), 0, 3)

        def add(ipc, child, state, *accuracies):
            attributes = {"allocation": Allocation("dm", "random", ipc, levels=4).to_dict(), "reason": "stopped"}
            if child:
                attributes["parent"] = {"trial": 0, "file": "a.bopt", "steps": 9}
            held = {"step": 1, "bytes": 500, "samples": 10 * ipc, "error": 0.02}
            attributes |= {f"rung/{i}": held | {"accuracy": a} for i, a in enumerate(accuracies)}
            values = [9.0, accuracies[-1]] if state == TrialState.COMPLETE else None
            study.add_trial(create_trial(state=state, values=values, user_attrs=attributes))

        for ipc in (2, 3, 40, 50):
            add(ipc, False, TrialState.COMPLETE, 0.4, 0.7)
            add(ipc + 4, True, TrialState.COMPLETE, 0.66, 0.7)
        for ipc in range(9, 15):
            add(ipc, child, TrialState.PRUNED, 0.5)
        view = RateDistortionSampler(shared_problem()).view(study, -1)
        points, ipc = view.candidates()
        kinds = [view.table.kinds[k] for k in points.kind]
        mine = np.array([k.objective == "dm" and k.levels == 4 for k in kinds]) & (ipc > 8) & (ipc < 15)
        return view.model.predict(points[mine]).accuracy.mean()

    assert expected(child=True) < expected(child=False) - 0.01  # were they pooled, there would be no difference


def test_an_exhausted_space_falls_back():
    narrow = SearchSpace(
        selection=("random",),
        transform=("identity",),
        ipc=IpcRange(min=1, max=2),
        quantizer=(QuantizerChoice(family="uniform", levels=(2,), clipping=("minmax",)),),
    )
    known = problem(narrow, candidates=SpaceCandidates(narrow, {"coreset": 0}, (1, 8, 8), 2, 0))
    study = make_study(RateDistortionSampler(known, seed=0))
    asked = [narrow.suggest(study.ask(), ["coreset"], 2).ipc for _ in range(2)]
    assert sorted(asked) == [1, 2]
    assert narrow.suggest(study.ask(), ["coreset"], 2).ipc in (1, 2)


def test_without_a_problem_there_is_no_model():
    with pytest.raises(ValueError, match="no problem"):
        RateDistortionSampler().view(make_study(RateDistortionSampler()), 0)


def filled_study(count, space, known):
    rng = np.random.default_rng(0)
    kinds = known.candidates.kinds([], 0)
    study = make_study(RateDistortionSampler(known))
    for _ in range(count):
        a = replace(kinds[rng.integers(len(kinds))], ipc=int(np.exp(rng.uniform(0, 6))))
        attributes = {"allocation": a.to_dict(), "initial_bytes": initial_bytes(a)}
        values = [math.log2(final_bytes(a)), true_accuracy(a)]
        study.add_trial(
            create_trial(
                params=known.candidates.parameters(a),
                distributions={n: known.candidates.distributions[n] for n in known.candidates.parameters(a)},
                values=values,
                user_attrs=attributes,
            )
        )
    return study


def test_packed_sizes_decide_between_the_best():
    """Two kinds that the model takes for equally large: the one whose file turns out shorter gains more, and what turns
    out too large gains nothing."""
    known = shared_problem()
    study = filled_study(30, SPACE, known)
    view = RateDistortionSampler(known).view(study, 30)
    kind = next(i for i, k in enumerate(view.table.kinds) if k.objective == "coreset" and k.levels == 2)
    allocation = view.allocation(kind, 60)
    sizes = (known.initial_bytes(allocation) // 2, known.initial_bytes(allocation), BUDGET + 1)
    gains = RateDistortionSampler._gains(view, [Packed(allocation, kind, size) for size in sizes], at_budget=False)
    assert gains[0] > gains[1] > gains[2] == 0.0


@pytest.mark.parametrize("at_budget", [True, False])
def test_of_equal_gains_the_cheaper_trial_is_proposed(at_budget):
    """With optimisation a hundred times as dear as an evaluation, optimised sets are left alone; what is expected of
    the proposal is its gain all the same, not that by cost."""
    number = 40 if at_budget else 41
    found = {}
    for work in (0.0, 100.0):
        known = problem(work={"coreset": 0.0, "dm": work})
        study = filled_study(number, SPACE, known)
        sampler = RateDistortionSampler(known)
        view = sampler.view(study, number)
        found[work] = sampler.propose(study, number)
        size = known.initial_bytes(found[work])
        kind = view.table.kinds.index(replace(found[work], ipc=1))
        gain = RateDistortionSampler._gains(view, [Packed(found[work], kind, size)], at_budget)[0]
        assert sampler.expected_gain == pytest.approx(gain / (1.0 if at_budget else view.log_rectangle))
    assert found[0.0].objective == "dm"
    assert found[100.0].objective == "coreset"


def test_of_large_sets_only_one_is_packed():
    """Packing 30 kB of pictures takes a second: as much as rescoring may cost."""
    packed = {}
    for values in (64, 10**6):
        packed[values] = []

        def size(allocation, seen=packed[values]):
            seen.append(allocation)
            return initial_bytes(allocation)

        known = problem(measure=lambda kind, n=values: replace(coding(kind), values=n), initial_bytes=size)
        # an odd number: small files that are close to each other, of which several are packed where that is cheap
        assert RateDistortionSampler(known).propose(filled_study(30, SPACE, known), 31) is not None
    assert len(packed[10**6]) < len(packed[64])
    assert len(packed[10**6]) <= 2  # the second where the first was cut to size


def test_packing_ends_with_one_that_has_as_much_as_the_next_may_gain(monkeypatch):
    packed = []

    def size(allocation):
        packed.append(allocation)
        return initial_bytes(allocation)

    known = problem(initial_bytes=size)
    study, counts, chosen = filled_study(30, SPACE, known), [], []
    for close in (0.0, CLOSE, np.inf):
        packed.clear()
        monkeypatch.setattr("budgetopt.search.sampler.CLOSE", close)
        chosen.append(RateDistortionSampler(known).propose(study, 30))
        counts.append(len(packed))
    assert counts[0] <= 2 <= counts[2]
    assert counts[0] <= counts[1] <= counts[2]
    assert counts[2] >= RESCORED


def test_a_proposal_is_fast():
    space = SPACE.model_copy(
        update={
            "rate_weight": (0.0,),
            "quantizer": (
                QuantizerChoice(family="uniform", levels=tuple(range(2, 28, 2)), clipping=("minmax", "p1", "p5")),
                QuantizerChoice(family="lloyd-max", levels=tuple(range(2, 18, 2)), clipping=("minmax",)),
                QuantizerChoice(family="apot", levels=(2, 3, 7, 15, 31, 63, 127, 255), clipping=("quadd", "half")),
            ),
        }
    )
    large = SpaceCandidates(space, OBJECTIVES, (1, 8, 8), 6000, 0)
    known = problem(space, candidates=large, budget=1_000_000, class_counts=(6000,) * 10)
    study = filled_study(1000, space, known)
    sampler = RateDistortionSampler(known)
    view = sampler.view(study, 1000)  # reads the trials and fits the hyperparameters once, as a search does on its way
    points, _ = view.candidates()
    assert 15_000 <= len(points) <= 21_000
    seconds = []
    for number in range(1000, 1004):
        started = time.process_time()
        assert sampler.propose(study, number) is not None
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.0  # a fifth of it on an idle core; loose, since machines differ


# ----------------------------------------------------------------------------------------------------------------------
# candidates
# ----------------------------------------------------------------------------------------------------------------------
def test_all_kinds_of_a_small_space():
    found = problem().candidates.kinds([], 0)
    uniform, apot = 6 * 2, 3 * 2
    per_objective = 2 * 2 * (uniform + apot)
    assert len(found) == len(set(found)) == per_objective * 3  # rate weights count where something is optimised
    assert all(k.ipc == 1 for k in found)


def test_parameters_and_allocations_are_inverse():
    candidates = problem().candidates
    for kind in candidates.kinds([], 0):
        assert candidates.allocation(candidates.parameters(kind)) == kind
    with pytest.raises(KeyError):
        candidates.allocation({"objective": "dm"})


def test_a_large_space_is_sampled_evenly_and_its_front_has_neighbours():
    large = SpaceCandidates(resolve("everything"), OBJECTIVES, (1, 8, 8), MOST_IPC, 0)
    pool = large.kinds([], 0)
    assert len(pool) == SAMPLED
    families = {k.quantizer for k in pool}
    assert families == {c.family for c in resolve("everything").quantizer}
    member = replace(pool[0], ipc=7)
    near = large.kinds([member], 1)
    extra = near[SAMPLED:]
    assert 0 < len(extra) <= NEIGHBOURS
    assert large.kinds([member], 1) == near != large.kinds([member], 2)
    assert len(near) <= MOST_KINDS
    assert SpaceCandidates(resolve("everything"), OBJECTIVES, (1, 8, 8), MOST_IPC, 1).kinds([], 0) != pool


def test_half_of_the_neighbours_are_of_the_most_accurate():
    """Many small files are on a front; what is proposed at the budget should be near those that are best there."""
    large = SpaceCandidates(resolve("everything"), OBJECTIVES, (1, 8, 8), MOST_IPC, 0)
    pool = large.kinds([], 0)
    front = pool[::40]
    extra = large.kinds(front, 1)[SAMPLED:]

    def changes(kind, other):
        one, two = large.parameters(kind), large.parameters(other)
        return sum(one.get(name) != two.get(name) for name in one.keys() | two.keys())

    nearest = [min(range(len(front)), key=lambda i, k=kind: changes(k, front[i])) for kind in extra]
    assert len(front) > 4 * BEST
    assert NEIGHBOURS / 3 <= sum(i < BEST for i in nearest) <= NEIGHBOURS * 0.8


# ----------------------------------------------------------------------------------------------------------------------
# the setting
# ----------------------------------------------------------------------------------------------------------------------
def test_the_sampler_is_a_setting_of_the_run():
    guided, _ = configuration.resolve("1kb", sampler="rate-distortion")
    tpe, _ = configuration.resolve("1kb", sampler="tpe")
    assert (guided.sampler, tpe.sampler) == ("rate-distortion", "tpe")
    assert configuration.resolve("1kb")[0].sampler == "rate-distortion"
    assert guided.identity != tpe.identity
    stored = tpe.model_dump(mode="json")
    del stored["sampler"]  # as earlier versions wrote it
    assert configuration.SearchConfig.model_validate(stored).identity == tpe.identity
    with pytest.raises(InputError, match="unknown sampler 'rate-distorsion': did you mean 'rate-distortion'"):
        configuration.resolve("1kb", sampler="rate-distorsion")


# ----------------------------------------------------------------------------------------------------------------------
# explanation
# ----------------------------------------------------------------------------------------------------------------------
def test_the_model_explains_itself():
    sampler = RateDistortionSampler(shared_problem())
    before = explain(sampler.view(make_study(sampler), 0), SMALLEST)
    study = searched(sampler, 0, 40)
    found = explain(sampler.view(study, 40), SMALLEST)
    assert (before.trials, found.trials) == (0, sum(t.state == TrialState.COMPLETE for t in study.trials))
    accuracy = [s.accuracy for s in found.spots]
    assert accuracy == sorted(accuracy)
    for spot in found.spots:
        assert spot.low <= spot.accuracy <= spot.high
        assert final_bytes(spot.allocation) <= 1.25 * spot.bytes
    right = [s.low - 0.01 <= true_accuracy(s.allocation) <= s.high + 0.01 for s in found.spots]
    assert np.mean(right) > 0.8
    assert any(s.tried for s in found.spots)
    # the more bytes, the more levels are worth it
    assert found.sweet_levels[0][1] <= 3
    assert found.sweet_levels[-1][1] >= found.sweet_levels[0][1]
    assert [law.method for law in found.laws] == ["coreset", "dm"]
    assert all(min(law.a, law.b, law.d) >= 0 for law in found.laws)
    assert 0 < found.gain_volume < before.gain_volume < 1
    assert 0 < found.gain_accuracy < before.gain_accuracy < 1
