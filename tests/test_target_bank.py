"""Targets of distribution matching beyond class means in random networks: trained networks and the Gaussian kernel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from budgetopt import evaluation, methods
from budgetopt.allocation import Allocation
from budgetopt.methods import target_bank
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import Selector
from budgetopt.methods.target_bank import Condition, Fourier, TargetBank, class_means
from budgetopt.objective import DistributionMatchingObjective
from budgetopt.protocol import Protocol
from budgetopt.representation import Representation
from budgetopt.seeding import derive, generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=4, augment={"shift": 0.1, "rotate": 10.0})
GAUSSIAN = DistributionMatchingObjective(method="dm", guard=0, bank=3, real_batch=16, kernel="gaussian")
TRAINED = DistributionMatchingObjective(method="dm", guard=0, bank=3, real_batch=16, trained=12)


@pytest.fixture(scope="module")
def data(digits):
    return TrainingData(digits.train, digits.spec, PROTOCOL, CPU)


@pytest.mark.parametrize("bandwidth", [0.5, 2.0, 10.0])
def test_inner_products_are_near_the_gaussian_kernel(bandwidth):
    a, b = (torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    draws = [Fourier.draw(5, bandwidth, torch.Generator().manual_seed(seed)) for seed in range(20)]
    near = torch.stack([kernel(a) @ kernel(b).T for kernel in draws]).mean(0)
    for i in range(8):
        for j in range(8):
            exact = np.exp(-float(((a[i] - b[j]) ** 2).sum()) / (2 * bandwidth**2))
            assert float(near[i, j]) == pytest.approx(exact, abs=0.03)


def test_the_kernel_tells_sets_of_equal_mean_apart():
    """Real samples at ±1: two synthetic ones at 0 have their mean, two at ±1 have their distribution."""
    real = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
    labels, kernel = torch.zeros(2, dtype=torch.int64), Fourier.draw(1, 1.0, torch.Generator().manual_seed(0))
    right, wrong = torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1)
    target = class_means(kernel(real), torch.zeros(100, dtype=torch.int64), 1)
    far, near = (float(((class_means(kernel(s), labels, 1) - target) ** 2).sum()) for s in (wrong, right))
    assert near < 1e-6
    assert far > 0.1
    assert float((right.mean() - real.mean()).abs()) == float((wrong.mean() - real.mean()).abs()) == 0


@pytest.mark.parametrize("objective", [GAUSSIAN, TRAINED], ids=["gaussian", "trained"])
def test_the_bank_meets_synthetic_samples_as_it_met_the_real_ones(data, objective):
    bank = target_bank.build(objective, data, 5)
    for k in range(3):
        condition = bank.condition(k, data)
        means = target_bank.real_means(condition, int(bank.seeds[k]), objective.real_batch, data)
        assert np.allclose(means.numpy(), bank.means[k], atol=1e-6)
    assert bank.means.shape[2] == (target_bank.FREQUENCIES if objective is GAUSSIAN else 4 * 2 * 2)


def test_trained_networks_are_those_of_the_protocol(data):
    bank = target_bank.build(TRAINED, data, 5)
    real = evaluation.TrainingSet(data.train.x, data.train.y, 10, data.spec.mean, data.spec.std)
    for k, seed in enumerate(bank.seeds.tolist()):
        found = []
        for steps in range(target_bank.LEAST_TRAINING, 13):
            protocol = PROTOCOL.model_copy(update={"steps": steps})
            network = evaluation.train_network(real, protocol, derive("matched network", seed), CPU)
            found.append(np.array_equal(parameters_to_vector(network.parameters()).detach().numpy(), bank.weights[k]))
        assert sum(found) == 1
    assert not np.array_equal(bank.weights[0], bank.weights[1])


def test_bandwidth_is_the_median_distance_within_a_class(data):
    bank = target_bank.build(GAUSSIAN, data, 5)
    seed = int(bank.seeds[0])
    features, labels = target_bank.real_features(Condition.from_seed(seed, data), seed, 16, data)
    distances = [
        float((features[i] - features[j]).norm())
        for i in range(len(labels))
        for j in range(i)
        if labels[i] == labels[j]
    ]
    assert bank.bandwidths[0] == pytest.approx(np.median(distances), rel=0.02)
    same = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    assert target_bank._median_distance(*same) == 1.0
    assert target_bank._median_distance(torch.zeros(2, 3), torch.tensor([0, 1])) == 1.0


@pytest.mark.parametrize("objective", [GAUSSIAN, TRAINED], ids=["gaussian", "trained"])
def test_matching_lowers_its_loss(data, objective):
    allocation = Allocation(ipc=3, levels=8)
    initial = Selector(data.train, data.spec).select("random", 3, 0)
    representation = Representation(initial, allocation, data.spec, 0, CPU).train()
    bank = target_bank.build(objective, data, 0)
    method = methods.build(objective, data, representation, generator("test"), bank)
    losses = [method.step() for _ in range(45)]
    assert np.mean(losses[-9:]) < 0.9 * np.mean(losses[:9])


@pytest.mark.parametrize("change", [{"kernel": "gaussian"}, {"trained": 12}, {"trained": 13}])
def test_the_cache_tells_targets_apart(data, tmp_path, change):
    plain = DistributionMatchingObjective(method="dm", guard=0, bank=2, real_batch=4)
    other = plain.model_copy(update=change)
    first, second = (methods.shared(o, data, 0, tmp_path) for o in (plain, other))
    again = methods.shared(other, data, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert isinstance(first, TargetBank)
    assert np.array_equal(second.means, again.means)
    assert np.array_equal(second.weights, again.weights)
    assert not np.array_equal(first.means[0][:, :4], second.means[0][:, :4])


def test_a_bank_of_another_network_is_made_again(data, tmp_path):
    first = methods.shared(TRAINED, data, 0, tmp_path)
    wider = replace(data, protocol=PROTOCOL.model_copy(update={"width": 5}))
    assert methods.shared(TRAINED, wider, 0, tmp_path).weights.shape[1] > first.weights.shape[1]


@pytest.mark.parametrize("objective", [GAUSSIAN, TRAINED], ids=["gaussian", "trained"])
def test_without_a_bank_one_is_made_where_it_is_needed(data, objective):
    """In `trial` and `compress --finetune`: plain matching in random networks is another objective."""
    plain = objective.model_copy(update={"kernel": "linear", "trained": 0})
    losses = []
    for chosen in (plain, objective, objective):
        initial = Selector(data.train, data.spec).select("random", 2, 0)
        representation = Representation(initial, Allocation(ipc=2, levels=4), data.spec, 0, CPU).train()
        method = methods.build(chosen, data, representation, generator("test"))
        losses.append([method.step() for _ in range(3)])
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize("change", [{"lr": 1e-4}, {"batch": 8}, {"weight_decay": 0.3}, {"augment": {"shift": 0.3}}])
def test_how_networks_are_trained_is_in_the_key(data, tmp_path, change):
    other = replace(data, protocol=PROTOCOL.model_copy(update=change))
    first, second = (methods.shared(TRAINED, d, 0, tmp_path) for d in (data, other))
    assert not np.array_equal(first.weights, second.weights)
    random = TRAINED.model_copy(update={"trained": 0})
    files = len(list(tmp_path.iterdir()))
    for one in (data, other):  # which random networks do not depend on
        methods.shared(random, one, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == files + 1


@pytest.mark.parametrize("objective", [TRAINED, GAUSSIAN], ids=["trained", "gaussian"])
def test_batch_norm_meets_both_sides_with_the_same_statistics(data, objective):
    """A synthetic set that is the real batch itself matches exactly, whatever passes of it there are."""
    normed = replace(data, protocol=PROTOCOL.model_copy(update={"network": "convnet:norm=batch"}))
    bank = target_bank.build(objective, normed, 5)
    condition = bank.condition(0, normed)
    features, labels = target_bank.real_features(condition, int(bank.seeds[0]), 16, normed)
    rng = np.random.default_rng(derive("real batch", int(bank.seeds[0])))
    rows = np.concatenate([rng.permutation(np.flatnonzero(data.train.y == c))[:16] for c in range(10)])
    whole = condition.embed(normed.standardized(torch.from_numpy(data.train.x[rows])), labels)
    torch.testing.assert_close(whole, features, rtol=1e-4, atol=1e-5)
    assert not condition.network.training


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_banks_do_not_depend_on_the_number_of_threads(data, method):
    from budgetopt.methods import gradient_bank
    from budgetopt.objective import GradientMatchingObjective

    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            if method == "dm":
                found.append(target_bank.build(TRAINED, data, 5).weights)
            else:
                own = GradientMatchingObjective(method="dsa", guard=0, bank=2, real_batch=64)
                found.append(gradient_bank.build(own, data, 5).directions)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("change", [{"kernel": "gaussian"}, {"trained": 5}])
def test_what_needs_a_bank_is_refused_without(change):
    with pytest.raises(ValueError, match="set bank to 1 or more"):
        DistributionMatchingObjective.model_validate({"method": "dm", "bank": 0} | change)
