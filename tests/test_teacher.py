from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetopt import evaluation, networks, teacher, trial
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset
from budgetopt.data.dataset import Source, Split
from budgetopt.evaluation import TrainingSet, evaluate_file, evaluate_set
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import Selector
from budgetopt.objective import CoresetObjective, DistributionMatchingObjective
from budgetopt.packing import SoftLabels, pack, unpack
from budgetopt.protocol import Protocol
from budgetopt.seeding import generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=12, batch=64)
OBJECTIVES = {
    "coreset": CoresetObjective(method="coreset"),
    "dm": DistributionMatchingObjective(method="dm", steps=3, bank=0, real_batch=8),
}
SOFT = Allocation(ipc=4, levels=2, label_bits=3)


@pytest.fixture(scope="module")
def material(digits):
    return TrainingData(digits.train, digits.spec, PROTOCOL, CPU)


@pytest.fixture(scope="module")
def trained(material):
    return teacher.train(material, 0)


@pytest.fixture(scope="module")
def context(digits, trained):
    return trial.TrialContext(digits.train, digits.val, digits.spec, PROTOCOL, OBJECTIVES, teacher=trained)


def same(a, b):
    return all(np.array_equal(a.weights[name], b.weights[name]) for name in a.weights)


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_one_seed_one_teacher(material, trained):
    torch.rand(3)  # the global generator is no part of it
    assert same(teacher.train(material, 0), trained)
    assert not same(teacher.train(material, 1), trained)


def test_the_number_of_threads_changes_nothing(material, trained):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same(teacher.train(material, 0), trained)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_is_the_protocols_network_trained_longer(material, trained, digits):
    steps = []
    teacher.train(material, 0, lambda done, total: steps.append((done, total)))
    assert steps == [(k + 1, 60) for k in range(60)]
    assert (trained.network, trained.width) == ("convnet", 4)
    right = trained.probabilities(torch.from_numpy(digits.val.x)).argmax(1) == digits.val.y
    assert right.mean() > 0.5


def test_probabilities_against_a_naive_softmax(trained, digits):
    x = torch.from_numpy(digits.train.x[:200])  # more than are seen at once
    net = networks.build("convnet", digits.spec.shape, 10, 4, generator("any"))
    net.load_state_dict({name: torch.tensor(value) for name, value in trained.weights.items()})
    standardized = (digits.train.x[:200] - digits.spec.mean[:, None, None]) / digits.spec.std[:, None, None]
    logits = net(torch.from_numpy(standardized.astype(np.float32))).detach().double().numpy()
    for temperature in (1.0, teacher.TEMPERATURE):
        powers = np.exp(logits / temperature)
        wanted = powers / powers.sum(1, keepdims=True)
        assert np.allclose(trained.probabilities(x, temperature), wanted, atol=1e-5)


class Forbidden(Source):
    """Training arrays of the digits; a look at the test part is an error."""

    name, protocol = "forbidden", "glyph-1"

    def __init__(self, digits):
        self._arrays = digits.source.train_arrays()

    def train_arrays(self):
        return self._arrays

    def test_arrays(self):
        raise AssertionError("the test part was read")


def test_validation_and_test_parts_are_no_part_of_it(digits, tmp_path):
    """The test part raises when it is read; a poisoned validation part changes nothing."""
    clean = Dataset.prepare(Forbidden(digits), 0)
    made = teacher.cached(TrainingData(clean.train, clean.spec, PROTOCOL, CPU), 0, tmp_path)
    clean.val.x[:] = 255
    clean.val.y[:] = -1
    assert same(teacher.train(TrainingData(clean.train, clean.spec, PROTOCOL, CPU), 0), made)


class Untouchable:
    """A validation part that no one may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"validation was touched: {name}")

    def __len__(self):
        raise AssertionError("validation was touched")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_soft_labels_are_made_without_validation(context, objective):
    blind, allocation = replace(context, val=Untouchable()), replace(SOFT, objective=objective)
    made = trial.initial_representation(blind, allocation, CPU).packed()
    assert made == trial.initial_representation(context, allocation, CPU).packed()


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_spares_the_training(material, trained, tmp_path):
    steps = []

    def told(done, total):
        steps.append(done)

    assert same(teacher.cached(material, 0, tmp_path, told), trained)
    assert len(steps) == 60
    assert same(teacher.cached(material, 0, tmp_path, told), trained)
    assert len(steps) == 60
    others = [
        (material, 1),
        (replace(material, protocol=PROTOCOL.model_copy(update={"lr": 0.02})), 0),
        (replace(material, spec=replace(material.spec, split_hash="another")), 0),
    ]
    for number, (other, seed) in enumerate(others, start=2):
        assert not same(teacher.cached(other, seed, tmp_path, told), trained)
        assert len(steps) == 60 * number
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "shape", "nan", "missing", "pickle"])
def test_a_damaged_cache_is_made_again(material, trained, tmp_path, damage):
    teacher.cached(material, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    weights = dict(trained.weights)
    name = next(iter(weights))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        changed = {
            "shape": weights | {name: weights[name][:1]},
            "nan": weights | {name: weights[name] * np.nan},
            "missing": {n: w for n, w in weights.items() if n != name},
            "pickle": weights | {name: np.array([{}], object)},
        }[damage]
        np.savez(path, **changed)
    assert same(teacher.cached(material, 0, tmp_path), trained)


def test_a_cache_that_cannot_be_written(material, trained, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert same(teacher.cached(material, 0, tmp_path / "file"), trained)


# --- soft labels of a trial ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["identity", "standardize"])
def test_the_teacher_sees_originals(context, trained, transform):
    """Labels of a coreset are those of the real samples, however coarsely these are stored."""
    allocation = replace(SOFT, transform=transform)
    initial = trial.initial_set(context, allocation)
    wanted = SoftLabels.nearest(trained.probabilities(torch.from_numpy(initial.x)), 3)
    found = trial.initial_representation(context, allocation, CPU).packed().soft
    assert np.array_equal(found.symbols, wanted.symbols)
    assert (found.bits, found.smoothing) == (3, wanted.smoothing)


def test_labels_follow_the_samples(context):
    representation = trial.initial_representation(context, SOFT, CPU)
    before = representation.packed().soft
    with torch.no_grad():
        representation.latent[:4] = representation.latent[20:24]  # of another class
    after = representation.packed().soft
    assert not np.array_equal(after.symbols[:4], before.symbols[:4])
    assert np.array_equal(after.symbols[4:], before.symbols[4:])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_trial_writes_soft_labels_and_is_a_pure_function(context, objective):
    allocation = replace(SOFT, objective=objective)
    first = [(r.data, r.evaluation) for r in trial.run(context, allocation, CPU)]
    assert all(unpack(data).soft.bits == 3 for data, _ in first)
    assert [(r.data, r.evaluation) for r in trial.run(context, allocation, CPU)] == first


def test_hard_labels_are_as_without_a_teacher(context):
    hard = replace(SOFT, label_bits=0)
    with_teacher, without = (
        [(r.data, r.evaluation) for r in trial.run(c, hard, CPU)] for c in (context, replace(context, teacher=None))
    )
    assert with_teacher == without
    assert unpack(with_teacher[0][0]).soft is None


def test_labels_count_in_the_budget_and_stay_with_their_samples(context):
    allocation = replace(SOFT, ipc=20)
    whole = next(trial.run(context, allocation, CPU)).data
    cut = next(trial.run(replace(context, budget=len(whole) // 2), allocation, CPU)).data
    assert len(cut) <= len(whole) // 2
    whole, cut = unpack(whole), unpack(cut)
    kept = np.concatenate([20 * c + np.arange(n) for c, n in enumerate(cut.counts)])
    assert 1 <= min(cut.counts) < 20
    assert np.array_equal(cut.soft.symbols, whole.soft.symbols[kept])
    assert cut.soft.smoothing == whole.soft.smoothing


def test_without_a_teacher(context):
    blind = replace(context, teacher=None)
    with pytest.raises(ValueError, match="3-bit labels need a teacher"):
        next(trial.run(blind, SOFT, CPU))
    selector = Selector(context.train, context.spec)
    soft = replace(SOFT, selection="herding")  # the same samples, whatever the labels are
    least = trial.initial_bytes(blind, replace(soft, label_bits=0), selector)
    guess, exact = (trial.initial_bytes(c, soft, selector) for c in (blind, context))
    assert least < guess < exact
    assert exact == len(next(trial.run(context, soft, CPU)).data)


# --- training on them ------------------------------------------------------------------------------------------------


def test_certain_targets_train_like_labels(digits):
    x, y = digits.train.x[:100], digits.train.y[:100]
    protocol = PROTOCOL.model_copy(update={"augment": {"shift": 0.1}})
    hard = TrainingSet(x, y, 10, digits.spec.mean, digits.spec.std)
    soft = replace(hard, targets=np.eye(10, dtype=np.float32)[y])
    one, other = (evaluation.train_network(s, protocol, 3, CPU) for s in (hard, soft))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_evaluation_trains_towards_the_targets_of_the_file(digits):
    """Labels that name another class: the network learns them, not the class."""
    index = np.concatenate([np.flatnonzero(digits.train.y == c)[:20] for c in range(10)])
    protocol = PROTOCOL.model_copy(update={"steps": 80, "width": 8})
    context = trial.TrialContext(digits.train, digits.val, digits.spec, protocol, OBJECTIVES)
    hard = trial.initial_representation(context, replace(SOFT, ipc=20, levels=17, label_bits=0), CPU).packed()
    assert len(index) == len(hard)
    wrong = SoftLabels.nearest(np.eye(10)[(hard.labels() + 1) % 10], 3)
    shifted = Split(digits.val.x, (digits.val.y + 1) % 10)
    right = evaluate_file(pack(hard), digits.val, protocol, [0], CPU).accuracy
    data = pack(replace(hard, soft=wrong))
    assert right > 0.8
    assert evaluate_file(data, digits.val, protocol, [0], CPU).accuracy < 0.2
    assert evaluate_file(data, shifted, protocol, [0], CPU).accuracy > 0.8
    assert evaluate_set(TrainingSet.of(unpack(data)), shifted, protocol, [0], CPU).accuracy > 0.8
