"""Bilevel distillation beside the contract of all methods in test_methods.py."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from budgetopt import augmentation, methods, objective, seeding, teacher
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.errors import InputError
from budgetopt.methods.base import TrainingData
from budgetopt.methods.bilevel import validation_rows
from budgetopt.methods.hypergradient import conjugate_gradient, descent, implicit, neumann, unrolled
from budgetopt.methods.selection import Selector
from budgetopt.objective import BilevelObjective
from budgetopt.protocol import Protocol
from budgetopt.representation import Representation

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=4, augment={"shift": 0.1, "rotate": 10.0})
SMALL = BilevelObjective(method="bilevel", guard=0, inner_steps=4, unroll=2, batch=16, val_batch=64, terms=4)
IMPLICIT = SMALL.model_copy(update={"gradient": "implicit"})
EXACT = Allocation(ipc=2, quantizer="none", levels=256, clipping="none")
RIDGE, STEP = 0.1, 0.5  # of the toy problem


@pytest.fixture(scope="module")
def data(digits):
    return TrainingData(digits.train, digits.spec, PROTOCOL, CPU)


def represent(data, allocation=EXACT, taught=None):
    initial = Selector(data.train, data.spec).select("random", allocation.ipc, 0)
    noise = seeding.generator("noise")
    return Representation(initial, allocation, data.spec, 0, CPU, noise, taught).train()


def build(objective, data, representation=None, seed=0):
    representation = represent(data) if representation is None else representation
    return methods.build(objective, data, representation, seeding.generator("test", seed))


# --- hypergradients of logistic regression with L2 on two Gaussians, in float64 --------------------------------------


def gaussians(n, seed):
    """→ x (n, 3), y (n,) ±1"""
    g = torch.Generator().manual_seed(seed)
    y = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    x = torch.randn(n, 3, generator=g, dtype=torch.float64) + y[:, None] * torch.tensor([1.0, -0.5, 0.2]).double()
    return x, y


SAMPLES, LABELS = gaussians(6, 1)
REAL, REAL_LABELS = gaussians(40, 2)


def inner(weights, samples):
    return F.softplus(-LABELS * (samples @ weights)).mean() + RIDGE / 2 * (weights**2).sum()


def outer(weights):
    return F.softplus(-REAL_LABELS * (REAL @ weights)).mean()


def solved(samples):
    """θ*, by Newton's method with the explicit Hessian."""
    weights = torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(-LABELS * (samples @ weights))
        slope = -(LABELS * p) @ samples / len(samples) + RIDGE * weights
        hessian = samples.T @ (samples * (p * (1 - p))[:, None]) / len(samples) + RIDGE * torch.eye(3)
        weights = weights - torch.linalg.solve(hessian, slope)
    return weights


def finite_differences(value, samples, size=1e-5):
    """Of a function of the samples, entry by entry."""
    found = torch.zeros_like(samples)
    for i in np.ndindex(*samples.shape):
        moved = torch.zeros_like(samples)
        moved[i] = size
        found[i] = (value(samples + moved) - value(samples - moved)) / (2 * size)
    return found


EXACTLY = finite_differences(lambda x: float(outer(solved(x))), SAMPLES)
SOLVERS = {
    "cg": partial(conjugate_gradient, terms=10),
    "neumann": partial(neumann, terms=600, scale=STEP),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_implicit_gradient_is_that_of_the_solved_problem(name):
    value, gradient = implicit(inner, outer, solved(SAMPLES), SAMPLES, 0.0, SOLVERS[name])
    assert value == pytest.approx(float(outer(solved(SAMPLES))))
    assert EXACTLY.abs().max() > 0.01
    assert torch.allclose(gradient, EXACTLY, atol=1e-7)


def test_fully_unrolled_gradient_is_that_of_the_solved_problem():
    start = torch.zeros(3, dtype=torch.float64)
    value, gradient, end = unrolled([inner] * 600, outer, start, SAMPLES, STEP)
    assert torch.allclose(end, solved(SAMPLES))
    assert value == pytest.approx(float(outer(end)))
    assert torch.allclose(gradient, EXACTLY, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_unrolled_gradient_of_few_steps_against_finite_differences(steps):
    """Of the weights after the steps, far from solved, from where the steps without a graph have left them."""
    start = descent([inner] * 3, torch.ones(3, dtype=torch.float64), SAMPLES, STEP)

    def value(samples):
        return float(outer(descent([inner] * steps, start, samples, STEP)))

    found, gradient, end = unrolled([inner] * steps, outer, start, SAMPLES, STEP)
    assert found == pytest.approx(value(SAMPLES))
    assert torch.allclose(end, descent([inner] * steps, start, SAMPLES, STEP))
    assert torch.allclose(gradient, finite_differences(value, SAMPLES), atol=1e-8)
    assert not torch.allclose(gradient, EXACTLY, atol=1e-3)


@pytest.mark.parametrize("terms", [1, 2, 5, 12])
def test_neumann_terms_are_unrolled_steps_at_the_solution(terms):
    at = solved(SAMPLES)
    _, through, _ = unrolled([inner] * terms, outer, at, SAMPLES, STEP)
    _, series = implicit(inner, outer, at, SAMPLES, 0.0, partial(neumann, terms=terms, scale=STEP))
    assert torch.allclose(series, through, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_damping_is_added_to_the_diagonal(name):
    """As much as a ridge of the same size would be, at the same weights."""
    at, damping = solved(SAMPLES), 0.3

    def stronger(weights, samples):
        return inner(weights, samples) + damping / 2 * (weights**2).sum()

    _, damped = implicit(inner, outer, at, SAMPLES, damping, SOLVERS[name])
    _, expected = implicit(stronger, outer, at, SAMPLES, 0.0, SOLVERS[name])
    assert torch.allclose(damped, expected, atol=1e-9)
    assert not torch.allclose(damped, EXACTLY, atol=1e-3)


def test_every_step_has_its_own_loss():
    """Batches: a sample that only the first step sees has a gradient through the second step all the same."""

    def first(weights, samples):
        return inner(weights, torch.cat([samples[:1], SAMPLES[1:]]))

    def second(weights, samples):
        return inner(weights, torch.cat([SAMPLES[:1], samples[1:]]))

    start = torch.zeros(3, dtype=torch.float64)

    def value(samples):
        return float(outer(descent([first, second], start, samples, STEP)))

    _, gradient, _ = unrolled([first, second], outer, start, SAMPLES, STEP)
    assert torch.allclose(gradient, finite_differences(value, SAMPLES), atol=1e-8)


def test_arguments_stay_as_they_are():
    start, samples = torch.zeros(3, dtype=torch.float64), SAMPLES.clone().requires_grad_()
    descent([inner], start, samples, STEP)
    unrolled([inner], outer, start, samples, STEP)
    implicit(inner, outer, start, samples, 0.1, SOLVERS["cg"])
    assert samples.grad is None
    assert not start.requires_grad
    assert torch.equal(start, torch.zeros(3))
    assert torch.equal(samples, SAMPLES)


# --- solvers ---------------------------------------------------------------------------------------------------------


def counted(matrix):
    calls = []

    def product(vector):
        calls.append(vector)
        return matrix @ vector

    return product, calls


def definite(size, seed):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size + 0.5 * torch.eye(size), torch.arange(1.0, size + 1).double()


@pytest.mark.parametrize("size", [1, 2, 9])
def test_solvers_against_a_direct_solution(size):
    matrix, b = definite(size, size)
    product, calls = counted(matrix)
    direct = torch.linalg.solve(matrix, b)
    assert torch.allclose(conjugate_gradient(product, b, 2 * size), direct)
    assert len(calls) <= size + 1  # in exact arithmetic it is done after `size` products
    scale = float(1 / torch.linalg.eigvalsh(matrix).max())
    assert torch.allclose(neumann(product, b, 400, scale), direct)


def test_neumann_against_powers_of_a_matrix():
    matrix, b = definite(4, 0)
    product, calls = counted(matrix)
    shrink = torch.eye(4) - 0.2 * matrix
    naive = 0.2 * sum(torch.linalg.matrix_power(shrink, j) @ b for j in range(5))
    assert torch.allclose(neumann(product, b, 5, 0.2), naive)
    assert len(calls) == 4


def test_conjugate_gradients_fall_in_the_energy_norm():
    """Each term brings the solution closer; so many products, no more."""
    matrix, b = definite(8, 3)
    direct, errors = torch.linalg.solve(matrix, b), []
    for terms in range(1, 7):
        product, calls = counted(matrix)
        error = conjugate_gradient(product, b, terms) - direct
        errors.append(float(error @ matrix @ error))
        assert len(calls) == terms
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_conjugate_gradients_end_before_negative_curvature():
    b = torch.tensor([1.0, 1.0, 0.1]).double()
    product, calls = counted(torch.diag(torch.tensor([1.0, 1.0, -20.0]).double()))
    first = (b @ b) / (b @ product(b)) * b  # curvature 1.8 along b
    assert torch.allclose(conjugate_gradient(product, b, 10), first)
    assert len(calls) == 3
    assert torch.equal(conjugate_gradient(lambda v: -v, b, 10), b)
    assert torch.equal(conjugate_gradient(lambda v: v, torch.zeros(3), 10), torch.zeros(3))


# --- the method ------------------------------------------------------------------------------------------------------


def naive_step(objective, data, representation, generator):
    """L_val and its gradient to the samples, by a loop over named weights that keeps the graph of all steps and cuts
    it before the last `unroll`."""
    network = data.random_network(generator)
    names = [name for name, _ in network.named_parameters()]
    weights = [p.detach().requires_grad_() for p in network.parameters()]
    x = data.standardized(representation()).detach().requires_grad_()
    n, batches = len(x), []
    for _ in range(objective.inner_steps):
        rows = torch.randperm(n, generator=generator)[: objective.batch]
        batches.append((rows, augmentation.draw(data.protocol.augment, len(rows), generator)))
    members = validation_rows(data.train, data.spec, objective.val_share)
    chosen = members[torch.randperm(len(members), generator=generator)[: objective.val_batch].numpy()]
    for i, (rows, drawn) in enumerate(batches):
        if i == objective.inner_steps - objective.unroll:
            weights = [w.detach().requires_grad_() for w in weights]
        logits = torch.func.functional_call(
            network, dict(zip(names, weights, strict=True)), (augmentation.apply(x[rows], drawn),)
        )
        loss = F.cross_entropy(logits, representation.labels[rows])
        loss = loss + sum(objective.weight_decay / 2 * w.square().sum() for w in weights)
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - objective.lr_network * slope for w, slope in zip(weights, slopes, strict=True)]
    real = data.standardized(torch.from_numpy(data.train.x[chosen]))
    logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (real,))
    value = F.cross_entropy(logits, torch.from_numpy(data.train.y[chosen]))
    return float(value), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("unroll", [1, 3, 5])
def test_truncated_unrolling_against_a_naive_loop(data, unroll):
    objective = SMALL.model_copy(update={"inner_steps": 5, "unroll": unroll, "weight_decay": 0.1, "batch": 12})
    representation = represent(data)
    method = build(objective, data, representation)
    expected, gradient = naive_step(objective, data, representation, seeding.generator("test", 0))
    scale = representation.unit / torch.from_numpy(data.spec.std)
    before = representation.latent.detach().clone()
    assert method.step() == pytest.approx(expected, rel=1e-5)
    found = representation.latent.grad.view_as(gradient) / scale
    assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-6 * gradient.abs().max())
    moved = representation.latent.detach() - before
    assert float(moved.abs().max()) == pytest.approx(objective.lr_image, rel=1e-3)  # Adam's first step


def test_more_graph_than_steps_is_all_steps(data):
    objectives = [SMALL.model_copy(update={"unroll": unroll}) for unroll in (4, 5, 100)]
    losses = [[method.step() for _ in range(3)] for method in (build(o, data) for o in objectives)]
    assert losses[0] == losses[1] == losses[2]


def fresh_loss(data, representation, networks=6):
    """Mean cross entropy on T_val of networks that no step has seen, trained on the set."""
    with torch.no_grad():
        x = data.standardized(representation())
    real, y = data.standardized(torch.from_numpy(data.train.x)), torch.from_numpy(data.train.y)
    losses = []
    for seed in range(networks):
        network = data.random_network(seeding.generator("fresh", seed)).requires_grad_(True)
        optimizer = torch.optim.SGD(network.parameters(), 0.5)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(network(x), representation.labels).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(float(F.cross_entropy(network(real), y)))
    return float(np.mean(losses))


@pytest.mark.parametrize("ways", [{"lr_image": 0.05}, {"gradient": "implicit", "solver": "cg"}], ids=str)
def test_validation_loss_of_freshly_trained_networks_falls(data, ways):
    settings = {"inner_steps": 10, "unroll": 10, "terms": 10, "batch": 50, "lr_image": 0.02, "restart": 4, **ways}
    settings |= {"lr_network": 0.5, "augment": False}
    representation = represent(data, Allocation(ipc=1, quantizer="none", levels=256, clipping="none"))
    method = build(BilevelObjective(method="bilevel", guard=0, **settings), data, representation)
    before = fresh_loss(data, representation)
    for _ in range(40):
        method.step()
    assert fresh_loss(data, representation) < 0.9 * before


def test_network_goes_on_and_is_renewed(data, monkeypatch):
    """Its weights after a step are those that the next one starts from."""
    made, real = [], TrainingData.random_network

    def noted(self, g):
        made.append(real(self, g))
        return made[-1]

    monkeypatch.setattr(TrainingData, "random_network", noted)
    method = build(SMALL.model_copy(update={"restart": 3}), data)
    lengths, norms = [], []
    for _ in range(7):
        method.step()
        lengths.append(len(made))
        norms.append(float(method._weights.norm()))
    assert lengths == [1, 1, 1, 2, 2, 2, 3]
    assert len(set(norms)) == 7


def test_network_is_trained_on_the_samples(data):
    """With the samples held still the loss that it is trained by falls from step to step, and so does L_val."""
    still = SMALL.model_copy(
        update={"lr_image": 1e-9, "restart": 100, "augment": False, "batch": 100, "lr_network": 0.3}
    )
    method = build(still, data, represent(data, replace(EXACT, ipc=10)))
    losses = [method.step() for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


@pytest.mark.parametrize("ways", [SMALL, IMPLICIT], ids=["unrolled", "implicit"])
@pytest.mark.parametrize("network", ["convnet:norm=batch", "lenet", "alexnet:norm=batch", "mlp"])
def test_every_kind_of_network(data, network, ways):
    other = replace(data, protocol=Protocol(network=network, width=4, steps=4))
    representation = represent(other)
    before = representation.latent.detach().clone()
    method = build(ways, other, representation)
    assert all(np.isfinite(method.step()) for _ in range(3))
    assert torch.isfinite(representation.latent).all()
    assert not torch.equal(representation.latent, before)


def test_tables_have_no_augmentation():
    g = np.random.default_rng(0)
    y = np.arange(60) % 3
    train = Split((g.normal(size=(60, 5)) + y[:, None]).astype(np.float32), y)
    spec = DataSpec("table", (5,), (20, 20, 20), np.zeros(1, np.float32), np.ones(1, np.float32), "0" * 16, "tabular-1")
    table = TrainingData(train, spec, Protocol(network="mlp", width=4, steps=4, augment={"flip": 0.5}), CPU)
    losses = [build(SMALL.model_copy(update={"augment": on}), table).step() for on in (False, True)]
    assert losses[0] == losses[1]


def test_augmentation_can_be_switched_off(data):
    with_it, without = ([build(SMALL.model_copy(update={"augment": on}), data).step()] for on in (True, False))
    assert with_it != without
    plain = replace(data, protocol=data.protocol.model_copy(update={"augment": {}}))
    assert without == [build(SMALL, plain).step()]


# --- T_val -----------------------------------------------------------------------------------------------------------


def test_validation_part_is_stratified_and_follows_from_the_split(digits):
    keep = np.concatenate([np.flatnonzero(digits.train.y == c)[: 3 + 8 * c] for c in range(10)])
    train = Split(digits.train.x[keep], digits.train.y[keep])
    rows = validation_rows(train, digits.spec, 0.3)
    assert np.bincount(train.y[rows]).tolist() == [max(1, round(0.3 * (3 + 8 * c))) for c in range(10)]
    assert len(set(rows.tolist())) == len(rows)
    assert np.array_equal(rows, validation_rows(train, digits.spec, 0.3))
    assert not np.array_equal(rows, validation_rows(train, replace(digits.spec, split_hash="other"), 0.3))
    assert validation_rows(train, digits.spec, 1.0).tolist() == list(range(len(train)))
    assert np.bincount(train.y[validation_rows(train, digits.spec, 1e-9)]).tolist() == [1] * 10


def test_no_other_real_sample_is_looked_at(data):
    rows = validation_rows(data.train, data.spec, 0.2)
    x = np.full_like(data.train.x, np.nan, np.float32)
    x[rows] = data.train.x[rows]
    blind = replace(data, train=Split(x, data.train.y))
    objective = SMALL.model_copy(update={"val_share": 0.2, "val_batch": 1000})
    seen = [build(objective, d, represent(data)) for d in (data, blind)]
    for _ in range(3):
        losses = [method.step() for method in seen]
        assert np.isfinite(losses[0])
        assert losses[0] == losses[1]
    one = SMALL.model_copy(update={"val_share": 0.1, "val_batch": 1000})
    assert build(one, data).step() != build(objective, data).step()


# --- labels, quantizers, objective -----------------------------------------------------------------------------------


def test_soft_labels_are_trained_towards(data):
    """They are those of the file, as they were at the last restart."""
    taught = teacher.train(replace(data, protocol=PROTOCOL.model_copy(update={"steps": 20})), 0)
    soft = replace(EXACT, label_bits=4)
    representation = represent(data, soft, taught)
    method = build(SMALL.model_copy(update={"restart": 2, "lr_image": 0.5}), data, representation)
    losses = [method.step()]
    first = method._targets.clone()
    assert torch.equal(first, torch.from_numpy(represent(data, soft, taught).soft_labels().targets()))
    assert not torch.equal(first.argmax(1).float(), first.max(1).values)
    losses.append(method.step())
    assert torch.equal(method._targets, first)
    method.step()
    assert not torch.equal(method._targets, first)
    hard = build(SMALL.model_copy(update={"restart": 2, "lr_image": 0.5}), data)
    assert [hard.step(), hard.step()] != losses


def test_penalty_and_rate_are_added(data):
    """Of the quantizer and of λ: the set moves otherwise with them."""
    sets = []
    for allocation in (
        Allocation(ipc=2, levels=4),
        Allocation(ipc=2, levels=4, rate_weight=0.5),
        Allocation(ipc=2, levels=4, quantizer="ddq", clipping="minmax"),
    ):
        representation = represent(data, allocation)
        method = build(SMALL, data, representation)
        for _ in range(3):
            method.step()
        sets.append(representation.latent.detach().clone())
    assert not torch.equal(sets[0], sets[1])
    assert not torch.equal(sets[0], sets[2])


def test_shipped_objective_states_the_defaults():
    name, shipped = objective.resolve("bilevel")
    assert name == "bilevel"
    assert shipped == BilevelObjective(method="bilevel")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('gradient = "exact"', "gradient"),
        ('solver = "newton"', "solver"),
        ("unroll = 0", "unroll"),
        ("inner_steps = 0", "inner_steps"),
        ("restart = 0", "restart"),
        ("val_share = 0.0", "val_share"),
        ("val_share = 1.5", "val_share"),
        ("terms = 0", "terms"),
        ("damping = -0.1", "damping"),
        ("lr_network = 0.0", "lr_network"),
        ("batch = 0", "batch"),
        ('augment = "no"', "augment"),
    ],
)
def test_wrong_fields_are_named(tmp_path, line, wrong):
    path = tmp_path / "mine.toml"
    path.write_text(f'method = "bilevel"\n{line}\n')
    with pytest.raises(InputError, match=f"{wrong}: "):
        objective.resolve(str(path))
