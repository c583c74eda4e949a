import copy
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from budgetopt import augmentation, declarative, methods, objective, teacher, trial
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import Split
from budgetopt.errors import InputError
from budgetopt.methods import experts
from budgetopt.methods.base import TrainingData
from budgetopt.methods.experts import Experts
from budgetopt.methods.selection import Selector
from budgetopt.methods.trajectory_matching import Batch, Match, opened
from budgetopt.objective import DifficultyAlignedObjective, TrajectoryMatchingObjective
from budgetopt.packing import pack, unpack
from budgetopt.packing.soft_labels import SoftLabels
from budgetopt.protocol import Protocol
from budgetopt.representation import Representation
from budgetopt.seeding import generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=4, batch=32, augment={"shift": 0.1, "rotate": 10.0})
MTT = TrajectoryMatchingObjective(
    method="mtt", guard=0, steps=10, experts=2, expert_epochs=3, expert_steps=4, student_steps=4, max_start=2, batch=8
)
DATM = DifficultyAlignedObjective(**MTT.model_dump() | {"method": "datm", "first_max_start": 1})
ALLOCATION = Allocation(ipc=2, levels=4)
SOFT = Allocation(ipc=2, levels=4, label_bits=3)


@pytest.fixture(scope="module")
def data(digits):
    return TrainingData(digits.train, digits.spec, PROTOCOL, CPU)


@pytest.fixture(scope="module")
def trained(data):
    return experts.build(MTT, data, 0)


@pytest.fixture(scope="module")
def taught(data):
    return teacher.train(data, 0)


def represent(data, allocation=ALLOCATION, of=None):
    initial = Selector(data.train, data.spec).select("random", allocation.ipc, 0)
    return Representation(initial, allocation, data.spec, 0, CPU, teacher=of).train()


def changed(recipe, **changes):
    return declarative.validate(recipe.model_dump() | changes, "test", type(recipe))


def build(recipe, data, representation, trained, seed=0):
    return methods.build(recipe, data, representation, generator("test", seed), trained)


# --- the loss of one match -------------------------------------------------------------------------------------------


def toy(steps, start=3.0, target=1.0):
    """Loss ½(θ − x)², whose descent is θ_N = x + (1 − η)^N·(θ_0 − x)."""

    def loss(weights, x, labels, batch):
        return 0.5 * ((weights - x) ** 2).sum()

    def batches():
        return iter([Batch(torch.zeros(1), None)] * steps)

    return Match(torch.tensor([start]), torch.tensor([target]), loss, batches)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("x", "eta"), [(0.5, 0.3), (-2.0, 0.05), (4.0, 0.9)])
@pytest.mark.parametrize("way", ["unrolled", "separate"])
def test_loss_and_gradient_in_closed_form(way, steps, x, eta):
    start, target = 3.0, 1.0
    sample, size = torch.tensor([x], requires_grad=True), torch.tensor(eta, requires_grad=True)
    loss = getattr(toy(steps, start, target), way)(sample, torch.zeros(1, dtype=torch.long), size)
    loss.backward()
    residual = x + (1 - eta) ** steps * (start - x) - target
    scale = (start - target) ** 2
    if way == "unrolled":
        to_x, to_eta = 1 - (1 - eta) ** steps, -steps * (1 - eta) ** (steps - 1) * (start - x)
    else:  # Σ g_i at constant weights: each falls by 1 where x grows by 1
        to_x, to_eta = eta * steps, -(1 - (1 - eta) ** steps) / eta * (start - x)
    assert float(loss.detach()) == pytest.approx(residual**2 / scale, rel=1e-5, abs=1e-7)
    assert float(sample.grad) == pytest.approx(2 * residual * to_x / scale, rel=1e-4, abs=1e-6)
    assert float(size.grad) == pytest.approx(2 * residual * to_eta / scale, rel=1e-4, abs=1e-6)


def naive(method, match, x, labels, eta, constant):
    """One tensor per weight of a module, a graph of everything; with `constant` every θ_i is cut off from it."""
    network, data = method._network, method._data
    names = [name for name, _ in network.named_parameters()]
    module = copy.deepcopy(network)

    def split(flat):
        vector_to_parameters(flat, module.parameters())
        return [p.detach().clone() for p in module.parameters()]

    start, target, total = split(match.start), split(match.target), None
    weights = [w.requires_grad_() for w in start]
    for batch in match.batches():
        inputs = data.standardized(x[batch.index])
        if batch.draw is not None:
            inputs = augmentation.apply(inputs, batch.draw)
        logits = functional_call(network, dict(zip(names, weights, strict=True)), (inputs,))
        wanted = labels[batch.index]
        log = torch.log_softmax(logits, 1)
        loss = -(log[range(len(wanted)), wanted] if wanted.dim() == 1 else (wanted * log).sum(1)).mean()
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
        weights = [w - eta * g for w, g in zip(weights, gradients, strict=True)]
        if constant:
            weights = [w.detach().requires_grad_() for w in weights]
    if constant:
        weights = [w.detach() - eta * g for w, g in zip(start, total, strict=True)]
    pairs = list(zip(weights, start, target, strict=True))
    return sum(((w - t) ** 2).sum() for w, _, t in pairs) / sum(((s.detach() - t) ** 2).sum() for _, s, t in pairs)


CASES = pytest.mark.parametrize(
    ("network", "batch", "soft"),
    [("convnet", 0, False), ("convnet", 8, True), ("mlp", 8, False), ("convnet:norm=none", 5, True)],
)


def one_match(digits, network, batch, soft, steps=4):
    data = TrainingData(digits.train, digits.spec, PROTOCOL.model_copy(update={"network": network}), CPU)
    window = {"first_max_start": 0} if soft else {}
    recipe = changed(DATM if soft else MTT, batch=batch, student_steps=steps, expert_epochs=1, max_start=0, **window)
    representation = represent(data, SOFT if soft else ALLOCATION)
    method = build(recipe, data, representation, None)
    leaves = [representation.latent, *([representation.label_logits] if soft else []), method._log_eta]
    return method, method.next_match(), leaves


def gradients(method, leaves, loss_of):
    representation = method._representation
    loss = loss_of(representation(), representation.targets(), method._log_eta.exp())
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@CASES
@pytest.mark.parametrize("way", ["unrolled", "separate"])
def test_gradient_against_a_naive_loop(digits, way, network, batch, soft):
    method, match, leaves = one_match(digits, network, batch, soft)
    fast = gradients(method, leaves, getattr(match, way))

    def slow_loss(x, labels, eta):
        return naive(method, match, x, labels, eta, way == "separate")

    slow = gradients(method, leaves, slow_loss)
    assert float(fast[1].abs().max()) > 0
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@CASES
def test_one_student_step_leaves_nothing_to_unroll(digits, network, batch, soft):
    method, match, leaves = one_match(digits, network, batch, soft, steps=1)
    for a, b in zip(gradients(method, leaves, match.unrolled), gradients(method, leaves, match.separate), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_both_ways_give_the_same_loss_and_different_gradients(digits):
    method, match, leaves = one_match(digits, "convnet", 8, False)
    exact, constant = (gradients(method, leaves, way) for way in (match.unrolled, match.separate))
    assert float(exact[0]) == pytest.approx(float(constant[0]), rel=1e-4)
    assert not torch.allclose(exact[1], constant[1], rtol=1e-2)
    assert float(torch.cosine_similarity(exact[1].flatten(), constant[1].flatten(), dim=0)) > 0.5


def test_the_student_is_a_network_under_plain_sgd(digits):
    """θ_N of a torch module and a torch optimiser."""
    method, match, _ = one_match(digits, "convnet", 8, False)
    x, labels, eta = method._representation().detach(), method._representation.labels, method.step_size
    network = copy.deepcopy(method._network).requires_grad_(True)
    vector_to_parameters(match.start.clone(), network.parameters())
    sgd = torch.optim.SGD(network.parameters(), eta)
    for batch in match.batches():
        sgd.zero_grad()
        inputs = augmentation.apply(method._data.standardized(x[batch.index]), batch.draw)
        F.cross_entropy(network(inputs), labels[batch.index]).backward()
        sgd.step()
    end = parameters_to_vector(network.parameters()).detach()
    wanted = ((end - match.target) ** 2).sum() / ((match.start - match.target) ** 2).sum()
    got = match.separate(x.requires_grad_(), labels, torch.tensor(eta, requires_grad=True))
    assert float(got.detach()) == pytest.approx(float(wanted), rel=1e-4)


class Saved:
    """Most bytes that autograd held at once for backward passes."""

    def __init__(self):
        self.now, self.peak = 0, 0

    def pack(self, tensor):
        box, size = Box(tensor.detach()), tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(box, self.release, size)
        return box

    def release(self, size):
        self.now -= size


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


def peak_bytes(digits, way, steps):
    method, match, leaves = one_match(digits, "convnet", 8, False, steps)
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda box: box.tensor):
        gradients(method, leaves, getattr(match, way))
    return saved.peak


def test_memory_does_not_grow_with_student_steps(digits):
    few, many = peak_bytes(digits, "separate", 2), peak_bytes(digits, "separate", 10)
    assert many <= 1.01 * few
    assert peak_bytes(digits, "unrolled", 6) > 2.5 * peak_bytes(digits, "unrolled", 2)
    assert many < peak_bytes(digits, "unrolled", 4)


# --- learning --------------------------------------------------------------------------------------------------------


def planted(data, eta):
    """One expert whose only epoch is what a student does on the start samples with step size `eta`; no augmentation."""
    plain = replace(data, protocol=PROTOCOL.model_copy(update={"augment": {}}))
    recipe = changed(MTT, student_lr=eta, student_steps=4, expert_epochs=1, max_start=0, lr_image=1e-30, lr_step=1e-30)
    representation = represent(plain, Allocation(ipc=1, levels=256, quantizer="none", clipping="none"))
    start = experts.build(recipe, plain, 0).weights[0, 0]
    match = build(recipe, plain, representation, Experts(np.stack([start, 0 * start])[None])).next_match()
    network = copy.deepcopy(experts.template(plain)).requires_grad_(True)
    vector_to_parameters(match.start.clone(), network.parameters())
    sgd = torch.optim.SGD(network.parameters(), eta)
    for _ in range(recipe.student_steps):
        sgd.zero_grad()
        F.cross_entropy(network(plain.standardized(representation().detach())), representation.labels).backward()
        sgd.step()
    end = parameters_to_vector(network.parameters()).detach().numpy()
    return recipe, plain, representation, Experts(np.stack([start, end])[None])


EXACT = pytest.mark.parametrize("exact", [False, True])


@EXACT
def test_samples_and_step_size_of_the_expert_itself_have_no_loss(data, exact):
    recipe, plain, representation, expert = planted(data, 0.2)
    assert build(changed(recipe, exact=exact, batch=0), plain, representation, expert).step() < 1e-8


@EXACT
@pytest.mark.parametrize("first", [0.08, 0.5])
def test_the_step_size_of_the_expert_is_found(data, exact, first):
    recipe, plain, representation, expert = planted(data, 0.2)
    recipe = changed(recipe, exact=exact, student_lr=first, lr_step=0.05, batch=0)
    method = build(recipe, plain, representation, expert)
    assert method.step_size == pytest.approx(first)
    losses = [method.step() for _ in range(60)]
    assert method.step_size == pytest.approx(0.2, rel=0.1)
    assert min(losses[-10:]) < 0.02 < losses[0]


@EXACT
def test_samples_are_drawn_back_to_what_the_expert_saw(data, exact):
    recipe, plain, representation, expert = planted(data, 0.2)
    with torch.no_grad():
        representation.latent += 0.3 * torch.randn(representation.latent.shape, generator=generator("noise"))
    method = build(changed(recipe, exact=exact, lr_image=0.005, batch=0), plain, representation, expert)
    losses = [method.step() for _ in range(40)]
    assert losses[-1] < 0.4 * losses[0]


def test_a_step_size_stays_positive(data):
    """A rate at which it would cross zero at once if it were no logarithm."""
    recipe, plain, representation, expert = planted(data, 0.2)
    method = build(changed(recipe, student_lr=0.9, lr_step=3.0), plain, representation, expert)
    for _ in range(5):
        method.step()
        assert method.step_size > 0


# --- which matches ---------------------------------------------------------------------------------------------------


def numbered(data, count=3, epochs=6):
    """Experts whose weights say where they come from: 100 · expert + epoch."""
    size = sum(p.numel() for p in experts.template(data).parameters())
    places = 100 * np.arange(count)[:, None] + np.arange(epochs + 1)
    return Experts(np.repeat(places[:, :, None].astype(np.float32), size, 2))


@pytest.mark.parametrize("ahead", [1, 2])
def test_every_expert_and_start_is_met_and_the_target_lies_ahead(data, ahead):
    recipe = changed(MTT, expert_epochs=6, match_epochs=ahead, max_start=3)
    method = build(recipe, data, represent(data), numbered(data))
    found = [method.next_match() for _ in range(200)]
    starts = [int(match.start[0]) for match in found]
    assert {(s // 100, s % 100) for s in starts} == {(k, t) for k in range(3) for t in range(4)}
    assert min(starts.count(s) for s in starts) > 5  # of 17 on average
    assert all(float(match.target[0] - match.start[0]) == ahead for match in found)


def test_the_window_of_starts_opens(data):
    recipe = changed(
        DATM, steps=40, expert_epochs=6, min_start=1, first_max_start=2, max_start=4, growth=0.5, student_steps=1
    )
    method = build(recipe, data, represent(data), numbered(data))
    method.step = lambda: None
    ends = []
    for done in range(recipe.steps):
        method._done = done
        ends.append(method.window()[1])
        assert method.window()[0] == 1
        assert all(1 <= int(method.next_match().start[0]) % 100 <= ends[-1] for _ in range(5))
    assert ends == [2] * 10 + [3] * 10 + [4] * 20


def test_steps_open_the_window(data, trained):
    recipe = changed(DATM, steps=4, growth=0.5, min_start=0, first_max_start=0, max_start=2)
    method = build(recipe, data, represent(data), trained)
    ends = []
    for _ in range(4):
        ends.append(method.window()[1])
        method.step()
    assert ends == [0, 1, 2, 2]


@pytest.mark.parametrize(("first", "last", "growth"), [(0, 7, 0.3), (2, 2, 0.5), (1, 4, 1.0), (0, 5, 0.0)])
def test_opening_against_a_count(first, last, growth):
    """The end grows by one in equal parts of the growth, never falls, and is `last` afterwards."""
    for share in np.linspace(0, 1, 41):
        passed = sum(growth * (k + 1) <= share * (last - first) + 1e-12 for k in range(last - first))
        assert opened(float(share), first, last, growth) == first + passed


@pytest.mark.parametrize(("batch", "sizes"), [(0, [20] * 5), (50, [20] * 5), (20, [20] * 5), (6, [6] * 5)])
def test_batches_of_a_student(data, trained, batch, sizes):
    method = build(changed(MTT, batch=batch, student_steps=5), data, represent(data), trained)
    match, other = method.next_match(), method.next_match()
    first, again, others = ([b.index.tolist() for b in m.batches()] for m in (match, match, other))
    assert [len(index) for index in first] == sizes
    assert first == again != others
    met = [i for index in first for i in index]
    assert sorted(met[:20]) == list(range(20))  # every sample once before any comes again


def test_one_draw_a_student_step(data, trained):
    method = build(MTT, data, represent(data), trained)
    match = method.next_match()
    draws = [batch.draw.affine for batch in match.batches()]
    assert all(draw.shape == (1, 2, 3) for draw in draws)
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)
    for a, b in zip(draws, match.batches(), strict=True):
        assert torch.equal(a, b.draw.affine)
    bare = replace(data, protocol=PROTOCOL.model_copy(update={"augment": {}}))
    assert all(b.draw is None for b in build(MTT, bare, represent(bare), trained).next_match().batches())


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_start_from_the_teacher_and_are_learned(data, trained, taught):
    representation = represent(data, SOFT, taught)
    before = representation.soft_labels()
    method = build(DATM, data, representation, trained)
    assert np.array_equal(representation.soft_labels().symbols, before.symbols)
    for _ in range(10):
        method.step()
    after = representation.soft_labels()
    assert not np.array_equal(after.targets(), before.targets())
    received = unpack(pack(representation.packed()))
    assert np.array_equal(received.targets(), after.targets())
    assert np.array_equal(received.targets(), representation.targets().detach().numpy())


def test_labels_without_a_teacher_start_from_an_expert(data, trained):
    representation = represent(data, SOFT)
    method = build(DATM, data, representation, trained)
    network = copy.deepcopy(method._network)
    vector_to_parameters(torch.tensor(trained.weights[0, -1]), network.parameters())
    x = torch.from_numpy(Selector(data.train, data.spec).select("random", 2, 0).x)
    with torch.no_grad():
        assert torch.allclose(representation.label_logits, network(data.standardized(x)), atol=1e-4)


def test_labels_fall_to_lower_loss(data, trained):
    """Samples as good as fixed, one match for all steps."""
    recipe = changed(DATM, lr_image=1e-30, lr_step=1e-30, first_max_start=2)
    representation, g = represent(data, SOFT), generator("test")
    method = methods.build(recipe, data, representation, g, trained)
    losses = []
    for _ in range(20):
        g.manual_seed(3)
        losses.append(method.step())
    assert losses[-1] < 0.8 * losses[0]


def test_learned_targets_pass_straight_through_the_quantization(data):
    representation = represent(data, SOFT)
    g = torch.Generator().manual_seed(0)
    logits = representation.learn_labels(torch.randn(20, 10, generator=g))
    weights = torch.randn(20, 10, generator=g)
    probabilities = torch.softmax(logits, 1)
    stored = SoftLabels.nearest(probabilities.detach().double().numpy(), 3).targets()
    targets = representation.targets()
    assert np.allclose(targets.detach().numpy(), stored, atol=1e-6)
    assert np.abs(stored - probabilities.detach().numpy()).max() > 0.01
    through, straight = (torch.autograd.grad((t * weights).sum(), logits)[0] for t in (targets, probabilities))
    assert torch.equal(through, straight)


def test_labels_are_cut_with_the_samples(data, trained):
    representation = represent(data, SOFT)
    build(DATM, data, representation, trained).step()
    whole = representation.soft_labels().targets()
    received = unpack(representation.fit_to_budget(len(pack(representation.packed())) - 1))
    assert received.counts == (1,) * 10
    assert np.array_equal(received.targets(), whole[::2])


def test_hard_labels_are_not_learned(data, trained):
    representation = represent(data)
    build(DATM, data, representation, trained).step()
    assert representation.label_logits is None
    assert representation.targets() is representation.labels
    with pytest.raises(ValueError, match="label_bits is 0"):
        representation.learn_labels(torch.zeros(20, 10))


def test_a_student_trains_on_the_labels_of_the_file(data, trained, taught):
    """Those of the teacher, where a method does not learn them."""
    representation = represent(data, SOFT, taught)
    build(MTT, data, representation, trained).step()
    assert representation.label_logits is None
    stored = unpack(pack(representation.packed())).targets()
    assert np.array_equal(representation.targets().numpy(), stored)


def test_a_trial_of_datm_is_a_pure_function(digits, data, trained, taught):
    recipe = changed(DATM, steps=6)
    context = trial.TrialContext(
        digits.train, digits.val, digits.spec, PROTOCOL, {"datm": recipe}, shared={"datm": trained}, teacher=taught
    )
    allocation = replace(SOFT, objective="datm")
    first, again = (list(trial.run(context, allocation, CPU)) for _ in range(2))
    assert [r.data for r in first] == [r.data for r in again]
    assert [r.loss for r in first] == [r.loss for r in again]
    untaught = trial.initial_representation(context, allocation, CPU).soft_labels()
    assert not np.array_equal(unpack(first[-1].data).targets(), untaught.targets())
    with pytest.raises(ValueError, match="need a teacher"):
        next(trial.run(replace(context, teacher=None), allocation, CPU))


# --- experts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_experts_against_a_naive_loop(data, momentum):
    """Two epochs of two steps by hand: v ← μ·v + g, θ ← θ − lr·v."""
    recipe = changed(MTT, experts=1, expert_epochs=2, expert_steps=2, max_start=0, expert_momentum=momentum)
    weights = experts.build(recipe, data, 5).weights
    g = generator("expert", 5, 0)
    network = data.random_network(g).requires_grad_(True)
    found, velocity = [parameters_to_vector(network.parameters()).detach()], 0.0
    order = torch.randperm(len(data.train), generator=g)
    for step in range(4):
        index = order[32 * step : 32 * step + 32].numpy()
        x = data.standardized(torch.from_numpy(data.train.x[index]))
        x = augmentation.apply(x, augmentation.draw(PROTOCOL.augment, 32, g))
        loss = F.cross_entropy(network(x), torch.from_numpy(data.train.y[index]))
        slope = torch.cat([s.flatten() for s in torch.autograd.grad(loss, list(network.parameters()))])
        velocity = momentum * velocity + slope
        flat = parameters_to_vector(network.parameters()).detach() - recipe.expert_lr * velocity
        vector_to_parameters(flat.clone(), network.parameters())
        if step % 2:
            found.append(flat)
    assert weights.shape == (1, 3, len(flat))
    assert weights.dtype == np.float32
    assert np.allclose(weights[0], torch.stack(found).numpy(), atol=1e-5)


def test_experts_are_different_networks_and_reproduce(data, trained):
    again = experts.build(MTT, data, 0)
    assert np.array_equal(trained.weights, again.weights)
    assert not np.array_equal(trained.weights[0, 0], trained.weights[1, 0])
    assert not np.array_equal(trained.weights[:, 0], trained.weights[:, 1])
    assert not np.array_equal(trained.weights, experts.build(MTT, data, 1).weights)


def test_experts_learn(data):
    recipe = changed(MTT, experts=1, expert_epochs=4, expert_steps=25)
    network = experts.template(data)
    x, y = data.standardized(torch.from_numpy(data.train.x)), torch.from_numpy(data.train.y)
    losses = []
    for flat in experts.build(recipe, data, 0).weights[0]:
        vector_to_parameters(torch.tensor(flat), network.parameters())
        losses.append(float(F.cross_entropy(network(x), y)))
    assert losses[-1] < 0.7 * losses[0]


def test_an_epoch_is_a_pass_or_so_many_steps(data):
    assert experts.epoch_steps(changed(MTT, expert_steps=0), data) == len(data.train) // 32
    assert experts.epoch_steps(MTT, data) == 4
    few = replace(data, train=Split(data.train.x[:20], data.train.y[:20]))
    assert experts.epoch_steps(changed(MTT, expert_steps=0), few) == 1
    assert np.isfinite(experts.build(MTT, few, 0).weights).all()


def test_the_number_of_threads_decides_nothing(data, trained, monkeypatch):
    monkeypatch.setattr(experts, "default_parallel", lambda device: 3)
    assert np.array_equal(experts.build(MTT, data, 0).weights, trained.weights)


def test_progress_is_told_and_may_end_the_training(data):
    calls = []
    experts.build(MTT, data, 0, lambda *call: calls.append(call))
    assert calls[-1] == (24, 24)
    assert calls == sorted(calls)

    class Pressed(Exception):
        pass

    def press(done, total):
        calls.append(done)
        raise Pressed

    calls.clear()
    with pytest.raises(Pressed):
        experts.build(changed(MTT, expert_steps=100_000), data, 0, press)
    assert calls[0] < 600_000


def test_cache_is_read_the_second_time_and_shared_by_both_methods(data, tmp_path):
    calls = []
    first = methods.shared(MTT, data, 0, tmp_path, lambda *call: calls.append(call))
    count = len(calls)
    again = methods.shared(DATM, data, 0, tmp_path, lambda *call: calls.append(call))
    assert count == len(calls) > 0
    assert np.array_equal(first.weights, again.weights)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda o, d, s: (o, replace(d, spec=replace(d.spec, split_hash="0" * 16)), s),
        lambda o, d, s: (o, d, s + 1),
        *(
            lambda o, d, s, c=c: (changed(o, **c), d, s)
            for c in (
                {"experts": 1},
                {"expert_epochs": 4},
                {"expert_steps": 3},
                {"expert_lr": 0.2},
                {"expert_momentum": 0.5},
            )
        ),
        *(
            lambda o, d, s, c=c: (o, replace(d, protocol=PROTOCOL.model_copy(update=c)), s)
            for c in ({"width": 5}, {"augment": {}}, {"network": "mlp"}, {"batch": 16})
        ),
    ],
)
def test_whatever_shapes_an_expert_is_in_the_key(data, tmp_path, change):
    experts.cached(MTT, data, 0, tmp_path)
    experts.cached(*change(MTT, data, 0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"lr_image": 9.0}, {"student_steps": 2}, {"match_epochs": 2, "max_start": 0}]
)
def test_what_shapes_no_expert_is_not_in_the_key(data, tmp_path, change):
    experts.cached(MTT, data, 0, tmp_path)
    experts.cached(changed(MTT, **change), data, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["text", "other shape", "not finite", "other type", "other name"])
def test_damaged_experts_are_made_again(data, trained, tmp_path, damage):
    experts.cached(MTT, data, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "text":
        path.write_text("hello")
    else:
        weights = {
            "other shape": trained.weights[:, :2],
            "not finite": trained.weights * np.nan,
            "other type": trained.weights.astype(np.float64),
            "other name": trained.weights,
        }[damage]
        np.savez(path, **{"other" if damage == "other name" else "weights": weights})
    assert np.array_equal(experts.cached(MTT, data, 0, tmp_path).weights, trained.weights)


def test_read_only_experts_work(data, trained):
    shared = Experts(trained.weights.copy())
    shared.weights.setflags(write=False)
    outcomes = []
    for weights in (trained, shared):
        method = build(DATM, data, represent(data), weights)
        outcomes.append([method.step() for _ in range(3)])
    assert outcomes[0] == outcomes[1]


def test_a_method_without_experts_makes_its_own(data):
    first, second = (build(MTT, data, represent(data), None) for _ in range(2))
    assert first.step() == second.step()


def test_batch_norm_is_refused(digits, tmp_path):
    data = TrainingData(digits.train, digits.spec, PROTOCOL.model_copy(update={"network": "convnet:norm=batch"}), CPU)
    with pytest.raises(InputError, match=r"without batch norm, got 'convnet:norm=batch': use norm=instance") as error:
        methods.shared(MTT, data, 0, tmp_path)
    assert "\n" not in str(error.value)


def test_a_diverging_expert_is_told(data):
    with pytest.raises(InputError, match=r"an expert diverged in epoch 1: expert_lr 1e\+30 is too large"):
        experts.build(changed(MTT, expert_lr=1e30), data, 0)


def test_trajectories_too_large_for_memory_are_refused(data, monkeypatch):
    monkeypatch.setattr(experts, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"2 experts with 4 × .* bytes, at most 1,000 are allowed: use fewer experts"):
        experts.build(MTT, data, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "mtt"\nmax_start = 6', "max_start: must be at most expert_epochs - match_epochs = 5, got 6"),
        ('method = "mtt"\nmatch_epochs = 7', "max_start: must be at most expert_epochs - match_epochs = -1, got 3"),
        ('method = "mtt"\nlr_label = 1.0', "lr_label: unknown key"),
        ('method = "datm"\nfirst_max_start = 6', "first_max_start: must be in min_start..max_start, 0..3, got 6"),
        ('method = "datm"\nmin_start = 3', "first_max_start: must be in min_start..max_start, 3..3, got 1"),
        ('method = "datm"\ngrowth = 1.5', "growth: Input should be less than or equal to 1, got 1.5"),
        ('method = "mtt"\nstudent_steps = 0', "student_steps: Input should be greater than or equal to 1, got 0"),
        ('method = "mtt"\nstudent_lr = 0.0', "student_lr: Input should be greater than 0, got 0.0"),
    ],
)
def test_wrong_objectives_are_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        objective.resolve(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mtt", "datm"])
def test_the_shipped_files_hold_the_defaults(name):
    _, shipped = objective.resolve(name)
    assert shipped == type(shipped)(method=name)
    text = declarative.read("objective", name, "budgetopt.objectives")[1]
    assert all(f"\n{field} = " in f"\n{text}" for field in type(shipped).model_fields)
