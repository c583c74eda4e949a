import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from budgetopt import api, evaluation
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, open_source
from budgetopt.data.dataset import Split
from budgetopt.errors import TrialFailure
from budgetopt.evaluation import (
    Standardize,
    TrainingSet,
    default_parallel,
    evaluate_file,
    evaluate_set,
    file_seeds,
    groups,
    score,
    train_network,
    train_networks,
)
from budgetopt.methods.selection import Selector
from budgetopt.packing import pack, unpack
from budgetopt.protocol import Protocol, to_field
from budgetopt.representation import Representation
from budgetopt.scores import Evaluation, Score

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


def of(accuracies, samples):
    return Evaluation(tuple(map(Score, accuracies)), samples)


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracies", [(0.5, 0.6), (0.81, 0.79, 0.83, 0.80, 0.82), (0.0, 1.0, 0.5), (0.7,) * 5])
def test_half_width_against_scipy(accuracies):
    evaluation = of(accuracies, 1000)
    assert evaluation.accuracy == pytest.approx(sum(accuracies) / len(accuracies))
    if len(set(accuracies)) == 1:
        assert evaluation.half_width == pytest.approx(0, abs=1e-12)
        return
    low, high = stats.t.interval(
        0.95, len(accuracies) - 1, loc=evaluation.accuracy, scale=stats.sem(np.array(accuracies))
    )
    assert evaluation.half_width == pytest.approx((high - low) / 2)


def test_half_width_of_one_training_is_unknown():
    assert math.isnan(of((0.5,), 100).half_width)


@pytest.mark.parametrize(("p", "n"), [(0.5, 100), (0.9, 540), (0.0, 10), (1.0, 10)])
def test_binomial_half_width(p, n):
    p_at_least = min(max(p, 0.5 / n), 1 - 0.5 / n)  # no part is so large that none of it being wrong means never
    found = of((p,), n)
    assert found.binomial_half_width == pytest.approx(1.96 * (p_at_least * (1 - p_at_least) / n) ** 0.5)
    assert found.standard_error > 0


def test_standard_error_by_hand():
    # variance of (0.5, 0.7) is 0.02, of their mean 0.01; 0.6 · 0.4 / 600 = 0.0004
    assert of((0.5, 0.7), 600).standard_error == pytest.approx(math.sqrt(0.01 + 0.0004))
    assert of((0.6,), 600).standard_error == pytest.approx(math.sqrt(0.0004))


# --- training --------------------------------------------------------------------------------------------------------


def test_accuracy_does_not_depend_on_parallel(data, test_part):
    seeds = [1, 2, 3]
    alone = evaluate_file(data, test_part, SMALL, seeds, CPU, parallel=1)
    together = evaluate_file(data, test_part, SMALL, seeds, CPU, parallel=3)
    assert alone == together
    assert alone.samples == 100
    assert len(alone.accuracies) == 3


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_callers_threads_are_put_back(data, test_part, parallel):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate_file(data, test_part, SMALL, range(6), CPU, parallel=parallel)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_batch_norm_of_one_value_a_channel_is_a_trial_failure(digits, test_part):
    one = evaluation.TrainingSet(digits.train.x[:1], digits.train.y[:1], 10, digits.spec.mean, digits.spec.std)
    protocol = Protocol(network="vgg11:norm=batch", width=4, steps=2)
    with pytest.raises(TrialFailure, match=r"vgg11:norm=batch cannot be trained on 1 sample\(s\) a step"):
        evaluation.evaluate_set(one, test_part, protocol, [1], CPU)


def test_one_seed_one_accuracy(data, test_part):
    first = evaluate_file(data, test_part, SMALL, [7, 8], CPU)
    torch.rand(5)  # the global generator is no part of it
    assert evaluate_file(data, test_part, SMALL, [7, 8], CPU) == first
    alone = evaluate_file(data, test_part, SMALL, [7], CPU).accuracy  # the same but for rounding
    assert alone == pytest.approx(first.accuracies[0], abs=0.03)
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


BATCH_NORM = SMALL.model_copy(update={"network": "convnet:norm=batch"})


def test_batch_norm_learns_statistics_in_training_and_uses_them_in_tests(data, test_part):
    train = TrainingSet.of(unpack(data))
    net = train_network(train, BATCH_NORM, 0, CPU)
    assert net.training
    norm = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert float(norm.running_mean.abs().max()) > 0
    assert int(norm.num_batches_tracked) == BATCH_NORM.steps
    standardize = Standardize(train.mean, train.std, train.x.shape[1:], CPU)
    before = norm.running_mean.clone()
    whole = score(net, test_part, standardize, CPU, 10)
    assert torch.equal(norm.running_mean, before)
    assert net.training  # ready to be trained on
    one_by_one = [
        score(net, Split(test_part.x[i : i + 1], test_part.y[i : i + 1]), standardize, CPU, 10).accuracy
        for i in range(len(test_part))
    ]
    assert whole.accuracy == pytest.approx(np.mean(one_by_one))  # a batch of one would be all zeros in train mode
    assert not net.eval().training
    assert score(net, test_part, standardize, CPU, 10) == whole
    assert not net.training


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


# --- several at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet", "convnet:norm=none", "lenet", "mlp"])
@pytest.mark.parametrize("soft", [False, True])
def test_trainings_at_once_are_those_one_after_another(data, name, soft):
    """A few steps with augmentation, batches that do not divide the set, three seeds: logits agree but for rounding."""
    train = TrainingSet.of(unpack(data))
    if soft:
        targets = np.random.default_rng(0).dirichlet(np.ones(10), len(train.y)).astype(np.float32)
        train = replace(train, targets=targets)
    protocol = SMALL.model_copy(update={"network": name, "width": 8, "steps": 5})
    together = train_networks(train, protocol, [3, 1, 4], CPU)
    inputs = Standardize(train.mean, train.std, train.x.shape[1:], CPU)(torch.from_numpy(train.x))
    alone = [train_network(train, protocol, seed, CPU) for seed in (3, 1, 4)]
    with torch.no_grad():
        for net, expected in zip(together, alone, strict=True):
            assert torch.allclose(net(inputs), expected(inputs), atol=1e-4)
        assert not torch.allclose(together[0](inputs), together[1](inputs), atol=0.1)


def test_small_layers_are_trained_side_by_side():
    seeds, gpu = range(5), torch.device("cuda")
    digits, photographs = (1, 8, 8), (3, 32, 32)
    assert [list(g) for g in groups(seeds, digits, SMALL, CPU)] == [[0, 1, 2], [3, 4]]
    assert [list(g) for g in groups(seeds, (64,), SMALL, CPU)] == [[0, 1, 2], [3, 4]]
    wide = SMALL.model_copy(update={"width": 32})
    assert [list(g) for g in groups(seeds, photographs, wide, CPU)] == [[0], [1], [2], [3], [4]]
    assert [list(g) for g in groups(seeds, photographs, wide, gpu)] == [[0, 1, 2, 3, 4]]


def test_file_seeds_follow_from_the_file(data):
    assert file_seeds(data, 5) == file_seeds(bytes(data), 5)
    assert file_seeds(data, 5)[:3] == file_seeds(data, 3)
    assert len(set(file_seeds(data, 5))) == 5
    assert file_seeds(data[:-1], 5) != file_seeds(data, 5)


def test_a_file_whose_recipe_augments_what_cannot_be_is_trained_on_without(small_npz, tmp_path):
    """Files of versions that did not refuse such a recipe still give their figures."""
    source = open_source(str(small_npz))
    features = Dataset.prepare(source, 0)
    plain = Protocol(network="mlp", width=4, steps=30)
    recipe = to_field(plain.model_copy(update={"augment": {"shift": 0.3}}))
    initial = Selector(features.train, features.spec).select("random", 4, 0)
    data = pack(Representation(initial, Allocation(ipc=4, levels=16), features.spec, recipe, CPU).packed())
    (tmp_path / "a.bopt").write_bytes(data)
    found = api.evaluate(tmp_path / "a.bopt", str(small_npz))
    wanted = evaluate_file(data, source.checked_test((6,), 3), plain, file_seeds(data, 5), CPU)
    assert found == wanted
    assert found.accuracy > 0.5


def test_default_parallel():
    assert default_parallel(CPU) >= 1
    assert default_parallel(torch.device("cuda")) == 1
