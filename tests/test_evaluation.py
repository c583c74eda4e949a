import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from budgetopt.allocation import Allocation
from budgetopt.data.dataset import Split
from budgetopt.errors import TrialFailure
from budgetopt.evaluation import Evaluation, TrainingSet, default_parallel, evaluate_file, evaluate_set, file_seeds
from budgetopt.methods.selection import Selector
from budgetopt.packing import pack, unpack
from budgetopt.protocol import Protocol
from budgetopt.representation import Representation

CPU = torch.device("cpu")
SMALL = Protocol(network="convnet", width=4, steps=12, batch=32, augment={"shift": 0.1})


@pytest.fixture(scope="module")
def data(digits):
    """A packed set of 5 digits a class."""
    allocation = Allocation(ipc=5, levels=4)
    initial = Selector(digits.train, digits.spec).select("random", 5, 0)
    return pack(Representation(initial, allocation, digits.spec, 0, CPU).packed())


@pytest.fixture(scope="module")
def test_part(digits):
    return Split(digits.val.x[:100], digits.val.y[:100])


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracies", [(0.5, 0.6), (0.81, 0.79, 0.83, 0.80, 0.82), (0.0, 1.0, 0.5), (0.7,) * 5])
def test_half_width_against_scipy(accuracies):
    evaluation = Evaluation(accuracies, 1000)
    assert evaluation.accuracy == pytest.approx(sum(accuracies) / len(accuracies))
    if len(set(accuracies)) == 1:
        assert evaluation.half_width == pytest.approx(0, abs=1e-12)
        return
    low, high = stats.t.interval(
        0.95, len(accuracies) - 1, loc=evaluation.accuracy, scale=stats.sem(np.array(accuracies))
    )
    assert evaluation.half_width == pytest.approx((high - low) / 2)


def test_half_width_of_one_training_is_unknown():
    assert math.isnan(Evaluation((0.5,), 100).half_width)


@pytest.mark.parametrize(("p", "n"), [(0.5, 100), (0.9, 540), (0.0, 10), (1.0, 10)])
def test_binomial_half_width(p, n):
    assert Evaluation((p,), n).binomial_half_width == pytest.approx(1.96 * (p * (1 - p) / n) ** 0.5)


def test_standard_error_by_hand():
    # variance of (0.5, 0.7) is 0.02, of their mean 0.01; 0.6 · 0.4 / 600 = 0.0004
    assert Evaluation((0.5, 0.7), 600).standard_error == pytest.approx(math.sqrt(0.01 + 0.0004))
    assert Evaluation((0.6,), 600).standard_error == pytest.approx(math.sqrt(0.0004))


# --- training --------------------------------------------------------------------------------------------------------


def test_accuracy_does_not_depend_on_parallel(data, test_part):
    seeds = [1, 2, 3]
    alone = evaluate_file(data, test_part, SMALL, seeds, CPU, parallel=1)
    together = evaluate_file(data, test_part, SMALL, seeds, CPU, parallel=3)
    assert alone == together
    assert alone.samples == 100
    assert len(alone.accuracies) == 3


def test_one_seed_one_accuracy(data, test_part):
    first = evaluate_file(data, test_part, SMALL, [7, 8], CPU)
    torch.rand(5)  # the global generator is no part of it
    assert evaluate_file(data, test_part, SMALL, [7], CPU).accuracies == first.accuracies[:1]
    many = evaluate_file(data, test_part, SMALL, range(6), CPU).accuracies
    assert len(set(many)) > 1


def test_training_leaves_the_global_generator_alone(data, test_part):
    before = torch.get_rng_state()
    evaluate_file(data, test_part, SMALL, [1], CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_and_what_it_decodes_to_give_the_same(data, test_part):
    packed = unpack(data)
    whole = TrainingSet(packed.decode(), packed.labels(), 10, packed.mean, packed.std)
    assert evaluate_set(whole, test_part, SMALL, [1], CPU) == evaluate_file(data, test_part, SMALL, [1], CPU)


def test_training_learns(data, digits):
    untrained = SMALL.model_copy(update={"lr": 1e-9})
    trained = SMALL.model_copy(update={"steps": 80, "width": 8})
    low = evaluate_file(data, digits.val, untrained, range(4), CPU).accuracy
    assert low < 0.3 < 0.6 < evaluate_file(data, digits.val, trained, [0], CPU).accuracy


@pytest.mark.parametrize("steps", [*range(1, 12), 15, 20, 25])
def test_any_number_of_steps(data, test_part, steps):
    protocol = Protocol(network="mlp", width=2, steps=steps)
    assert 0 <= evaluate_file(data, test_part, protocol, [0], CPU).accuracy <= 1


def test_the_receivers_statistics_are_the_files(data, digits):
    """Test samples are standardised by the mean and std of the file, not by those of the data at hand."""
    packed = unpack(data)
    protocol = SMALL.model_copy(update={"steps": 40, "augment": {}})
    moved = replace(packed, mean=packed.mean + np.float32(200))
    assert evaluate_file(pack(moved), digits.val, protocol, [0], CPU).accuracy < (
        evaluate_file(data, digits.val, protocol, [0], CPU).accuracy
    )


@pytest.mark.parametrize("lr", [1e30, 1e12])
def test_divergence_is_a_trial_failure(data, test_part, lr):
    protocol = SMALL.model_copy(update={"lr": lr, "network": "mlp", "steps": 60})
    with pytest.raises(TrialFailure, match="diverged"):
        evaluate_file(data, test_part, protocol, [0, 1], CPU, parallel=2)


def test_file_seeds_follow_from_the_file(data):
    assert file_seeds(data, 5) == file_seeds(bytes(data), 5)
    assert file_seeds(data, 5)[:3] == file_seeds(data, 3)
    assert len(set(file_seeds(data, 5))) == 5
    assert file_seeds(data[:-1], 5) != file_seeds(data, 5)


def test_feature_vectors_are_not_augmented(small_npz):
    from budgetopt.data import Dataset, open_source

    features = Dataset.prepare(open_source(str(small_npz)), 0)
    train = TrainingSet(features.train.x, features.train.y, 3, features.spec.mean, features.spec.std)
    plain, with_shift = (
        evaluate_set(train, features.val, Protocol(network="mlp", width=4, steps=30, augment=a), [0], CPU)
        for a in ({}, {"shift": 0.3})
    )
    assert plain == with_shift
    assert plain.accuracy > 0.9


def test_default_parallel():
    assert default_parallel(CPU) >= 1
    assert default_parallel(torch.device("cuda")) == 1
