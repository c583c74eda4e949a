"""Gradient matching (`dc`, `dsa`) beside the contract of all methods in test_methods.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from budgetopt import methods, objective
from budgetopt.allocation import Allocation
from budgetopt.augmentation import apply
from budgetopt.data.dataset import GLYPHS, DataSpec, Split
from budgetopt.errors import InputError
from budgetopt.methods import gradient_bank
from budgetopt.methods.base import TrainingData
from budgetopt.methods.gradient_bank import GradientBank, augmented_as, real_directions
from budgetopt.methods.gradient_matching import class_gradients, distances, groups
from budgetopt.methods.selection import Selector
from budgetopt.methods.target_bank import Condition
from budgetopt.objective import Augmentation, GradientMatchingObjective
from budgetopt.protocol import AUGMENTATIONS, Protocol
from budgetopt.representation import InitialSet, Representation
from budgetopt.seeding import generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=4, augment={"shift": 0.1, "rotate": 10.0})
DC = GradientMatchingObjective(method="dc", guard=0, bank=3, real_batch=16, lr_image=0.5)
DSA = DC.model_copy(update={"method": "dsa"})
LIVE = DSA.model_copy(update={"bank": 0})
LONG = LIVE.model_copy(update={"outer": 3, "inner": 4, "lr_network": 0.1})
EXACT = Allocation(ipc=2, quantizer="none", levels=256, clipping="none")


@pytest.fixture(scope="module")
def data(digits):
    return TrainingData(digits.train, digits.spec, PROTOCOL, CPU)


def with_network(data, name, **update):
    return replace(data, protocol=data.protocol.model_copy(update={"network": name, **update}))


def represent(data, allocation=EXACT):
    initial = Selector(data.train, data.spec).select("random", allocation.ipc, 0)
    return Representation(initial, allocation, data.spec, 0, CPU).train()


def build(objective, data, representation=None, bank=None, seed=0):
    return methods.build(objective, data, representation or represent(data), generator("test", seed), bank)


def naive_gradients(network, x, y):
    """By class, one sample at a time, with the parameters themselves: {class: [gradient of every weight]}."""
    network.requires_grad_()
    weights = [p for p in network.parameters() if p.dim() > 1]
    found = {}
    for c in y.unique().tolist():
        members = x[y == c]
        loss = sum(F.cross_entropy(network(one[None]), torch.tensor([c])) for one in members) / len(members)
        found[c] = torch.autograd.grad(loss, weights, create_graph=True)
    network.requires_grad_(False)
    return found


def naive_distance(ours, theirs):
    """Output unit by output unit."""
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for i in range(len(a)):
            total = total + 1 - (a[i] * b[i]).sum() / (a[i].norm() * b[i].norm())
    return total


# --- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet", "convnet:norm=none", "mlp", "lenet", "convnet:norm=batch"])
def test_class_gradients_against_one_sample_at_a_time(data, name):
    data = with_network(data, name)
    condition = Condition.from_seed(1, data)
    x, y = data.standardized(torch.from_numpy(data.train.x[:40])), torch.arange(5).repeat_interleave(8)
    network = condition.network
    fast = class_gradients(network, gradient_bank.matched_weights(network), x, y, 5)
    naive = naive_gradients(network, x, y)
    assert list(fast) == [n for n, p in network.named_parameters() if p.dim() > 1]
    for c in range(5):
        for a, b in zip(fast.values(), naive[c], strict=True):
            assert torch.allclose(a[c], b, atol=1e-6 + 1e-4 * float(b.detach().abs().max()))
    one = class_gradients(network, gradient_bank.matched_weights(network), x[:8], y[:8], 1)
    for name, g in one.items():
        assert torch.allclose(g[0], fast[name][0], atol=1e-6)


def test_distances_against_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    shapes = {"conv": (3, 2, 3, 3), "linear": (4, 5)}
    ours, theirs = ({n: torch.randn(2, *s, generator=g) for n, s in shapes.items()} for _ in range(2))
    target = torch.stack([gradient_bank.directions({n: t[c] for n, t in theirs.items()}) for c in range(2)])
    fast = distances(ours, target)
    for c in range(2):
        naive = naive_distance([t[c] for t in ours.values()], [t[c] for t in theirs.values()])
        assert float(fast[c]) == pytest.approx(float(naive), rel=1e-5)


def test_distance_of_known_gradients():
    """The same direction 0, the opposite 2, a right angle 1, and 1 for a unit without a gradient on either side."""
    target = gradient_bank.directions({"w": torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 0.0]])})
    assert target.tolist() == [1, 0, 1, 0, 1, 0, 0, 0]
    for row, distance in (([2.0, 0.0], 0), ([-1.0, 0.0], 2), ([0.0, 7.0], 1), ([0.0, 0.0], 1)):
        ours = torch.tensor([[row, [5.0, 0.0], [5.0, 0.0], [1.0, 1.0]]], requires_grad=True)
        found = distances({"w": ours}, target[None])
        assert found.tolist() == pytest.approx([distance + 1], abs=1e-5)
        (gradient,) = torch.autograd.grad(found.sum(), ours)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("counts", [(2,) * 10, (1,) * 10, (70, 70, 3, 3), (1, 3, 3, 3, 2), (40, 0, 0, 40), (5,)])
def test_groups_cover_all_classes_and_rows(counts):
    found = groups(counts)
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = [i for _, part in found for i in range(part.start, part.stop)]
    assert rows == list(range(len(labels)))
    for classes, part in found:
        size = counts[classes[0]]
        assert labels[part].tolist() == [c for c in classes for _ in range(size)]
        assert len(classes) == 1 or size * len(classes) <= gradient_bank.CHUNK
    assert [c for classes, _ in found for c in classes] == [c for c, n in enumerate(counts) if n]


@pytest.mark.parametrize("objective", [DC, DSA], ids=["dc", "dsa"])
@pytest.mark.parametrize("counts", [(2,) * 10, (1, 3, 2, 2, 1, 1, 4, 1, 1, 70)])
def test_loss_and_its_gradient_against_the_whole_in_one_graph(data, objective, counts):
    """Real and synthetic gradients by the naive loops, the augmentation drawn for the class, no groups, no bank."""
    index = np.concatenate([np.flatnonzero(data.train.y == c)[:n] for c, n in enumerate(counts)])
    initial = InitialSet(data.train.x[index].astype(np.float32), counts)
    representation = Representation(initial, EXACT, data.spec, 0, CPU).train()
    few = np.concatenate([np.flatnonzero(data.train.y == c)[:20] for c in range(10)])
    data = replace(data, train=Split(data.train.x[few], data.train.y[few]))
    matched = augmented_as(objective, data)
    condition = Condition.from_seed(5, matched)
    loss = build(objective, data, representation).loss(condition, real_directions(condition, 5, 10_000, matched))
    (fast,) = torch.autograd.grad(loss, representation.latent)

    def augmented(x, y):
        return x if condition.draw is None else apply(x, condition.draw[y])

    assert (condition.draw is None) == (objective is DC)
    x, y = data.standardized(representation()), representation.labels
    ours = naive_gradients(condition.network, augmented(x, y), y)
    naive = 0.0
    for c in range(10):
        real = data.standardized(torch.from_numpy(data.train.x[data.train.y == c]))
        label = torch.full((len(real),), c)
        theirs = naive_gradients(condition.network, augmented(real, label), label)[c]
        naive = naive + naive_distance(ours[c], [t.detach() for t in theirs])
    (slow,) = torch.autograd.grad(naive, representation.latent)
    assert float(loss.detach()) == pytest.approx(float(naive.detach()), rel=1e-3)
    assert torch.allclose(fast, slow, atol=2e-3 * float(slow.abs().max()))


# --- what matching does ----------------------------------------------------------------------------------------------


def test_the_real_set_itself_is_a_minimum(data):
    """With the whole class as the synthetic set gradients agree: no loss, and no wish to change."""
    keep = np.concatenate([np.flatnonzero(data.train.y == c)[:5] for c in range(10)])
    few = replace(data, train=Split(data.train.x[keep], data.train.y[keep]))
    same = Representation(InitialSet(few.train.x.astype(np.float32), (5,) * 10), EXACT, few.spec, 0, CPU).train()
    other = represent(data, replace(EXACT, ipc=5))
    found = []
    for representation in (same, other):
        matching = build(LIVE, few, representation)
        condition, target = matching._next_target()
        loss = matching.loss(condition, target)
        (gradient,) = torch.autograd.grad(loss, representation.latent)
        found.append((float(loss.detach()), float(gradient.norm())))
    assert found[0][0] < 1e-3 * found[1][0]
    assert found[0][1] < 0.05 * found[1][1]


@pytest.mark.parametrize("objective", [LIVE, LIVE.model_copy(update={"method": "dc"})], ids=["dsa", "dc"])
def test_loss_falls_on_conditions_that_no_step_used(data, objective):
    representation = represent(data, replace(EXACT, ipc=1))
    matching, matched = build(objective, data, representation), augmented_as(objective, data)
    held_out = [(c, real_directions(c, s, 100, matched)) for s in range(4) for c in [Condition.from_seed(s, matched)]]

    def loss():
        return sum(float(matching.loss(condition, target).detach()) for condition, target in held_out)

    before = loss()
    for _ in range(15):
        matching.step()
    assert loss() < 0.95 * before


def test_a_toy_problem_with_a_known_answer():
    """Two classes whose real samples are one point each: from elsewhere, synthetic samples come to lie in the direction
    of the points, since a linear unit's gradient is a multiple of its input. Units that no sample reaches count 1 each
    even there."""
    rng = np.random.default_rng(0)
    points, elsewhere = rng.normal(size=(2, 2, 6)).astype(np.float32)
    x, y = np.repeat(points, 8, 0), np.repeat(np.arange(2), 8)
    spec = data_spec(x)
    toy = TrainingData(Split(x, y), spec, Protocol(network="mlp", width=4, steps=1), CPU)
    answer, representation = (
        Representation(InitialSet(start, (1, 1)), EXACT, spec, 0, CPU).train() for start in (points, elsewhere)
    )
    held_out = Condition.from_seed(0, toy)
    target = real_directions(held_out, 0, 8, toy)

    def state():
        loss = build(LIVE, toy, representation).loss(held_out, target)
        return float(loss.detach()), F.cosine_similarity(representation().detach(), torch.from_numpy(points))

    least = float(build(LIVE, toy, answer).loss(held_out, target).detach())
    before, far = state()
    matching = build(LIVE.model_copy(update={"lr_image": 0.05}), toy, representation)
    for _ in range(100):
        matching.step()
    after, near = state()
    assert (far < 0.8).all()
    assert (near > 0.95).all()
    assert after - least < 0.15 * (before - least)


def data_spec(x):
    one = np.ones(1, np.float32)
    return DataSpec("toy", x.shape[1:], (8, 8), 0 * one, one, "0" * 16, "tabular-1")


# --- networks --------------------------------------------------------------------------------------------------------


def networks_met(matching, monkeypatch, steps):
    """(identity, weights) of the network of every step."""
    met, loss = [], matching.loss

    def watched(condition, target):
        met.append((id(condition.network), torch.cat([p.flatten() for p in condition.network.parameters()])))
        matching.kept = [*getattr(matching, "kept", []), condition.network]  # no other takes its identity
        return loss(condition, target)

    monkeypatch.setattr(matching, "loss", watched)
    for _ in range(steps):
        matching.step()
    return met


def test_a_network_lives_for_outer_matchings_and_is_trained_between(data, monkeypatch):
    met = networks_met(build(LONG, data), monkeypatch, 7)
    names = [name for name, _ in met]
    assert [names.index(name) for name in names] == [0, 0, 0, 3, 3, 3, 6]
    for i in (1, 2, 4, 5):
        assert not torch.equal(met[i][1], met[i - 1][1])
    still = networks_met(build(LONG.model_copy(update={"inner": 0}), data), monkeypatch, 3)
    assert torch.equal(still[0][1], still[2][1])


@pytest.mark.parametrize("levels", [2, 4])
def test_networks_are_trained_on_the_decoded_samples(data, levels):
    """A naive twin of the training: plain SGD on what a file would decode to."""
    plain = LONG.model_copy(update={"method": "dc"})
    representation = represent(data, Allocation(ipc=2, levels=levels))
    matching = build(plain, data, representation)
    matching.step()
    network = matching._condition.network
    start = {name: p.clone() for name, p in network.named_parameters()}
    x = data.standardized(torch.from_numpy(representation.packed().decode()))
    assert len(x.unique()) == levels
    matching._train(network, 1)
    trained = [p.clone() for p in network.parameters()]
    network.load_state_dict(start)
    network.requires_grad_()
    for _ in range(plain.inner):
        loss = F.cross_entropy(network(x), representation.labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, g in zip(network.parameters(), gradients, strict=True):
                p -= plain.lr_network * g
    for p, t in zip(network.parameters(), trained, strict=True):
        assert torch.allclose(p, t, atol=1e-5)
    assert representation.training
    assert all(m.training for m in representation.modules())


def test_training_lowers_the_networks_loss_on_the_set(data):
    representation = represent(data)
    matching = build(LONG.model_copy(update={"inner": 50}), data, representation)
    matching.step()
    network, x = matching._condition.network, data.standardized(representation()).detach()
    before = float(F.cross_entropy(network(x), representation.labels))
    matching._train(network, 1)
    assert float(F.cross_entropy(network(x), representation.labels)) < 0.9 * before


def test_batch_norm_is_frozen_at_real_statistics(data):
    """Of all classes together, the same for both sides, and again from the seed."""
    data = with_network(data, "convnet:norm=batch")
    first, second, other = (Condition.from_seed(seed, data).network for seed in (3, 3, 4))
    assert not first.training
    assert torch.equal(first.features[1].running_mean, second.features[1].running_mean)
    assert not torch.equal(first.features[1].running_mean, other.features[1].running_mean)
    x = data.standardized(torch.from_numpy(data.train.x))
    seen = first.features[1](first.features[0](x))
    assert seen.mean().abs() < 0.1
    assert abs(float(seen.std()) - 1) < 0.1
    state = first.features[1].running_mean.clone()
    first(x[:7])
    assert torch.equal(first.features[1].running_mean, state)
    matching = build(LONG, data)
    assert all(np.isfinite(matching.step()) for _ in range(3))


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_which_augmentation_is_matched_under(data):
    own = DSA.model_copy(update={"augment": Augmentation(flip=0.5)})
    assert augmented_as(DC, data).invariances == {}
    assert augmented_as(DSA, data).invariances == data.spec.invariances == GLYPHS
    assert augmented_as(own, data).invariances == {"flip": 0.5}
    assert augmented_as(DSA.model_copy(update={"augment": Augmentation()}), data).invariances == {}
    assert data.protocol == PROTOCOL
    assert Condition.from_seed(0, augmented_as(DC, data)).draw is None
    assert Condition.from_seed(0, augmented_as(own, data)).draw.brightness is None


def test_an_objective_knows_every_augmentation():
    assert set(Augmentation.model_fields) == set(AUGMENTATIONS)


def test_each_class_has_its_own_draw_in_every_step(data):
    matching = build(LONG, data)
    draws = [matching._next_target()[0].draw.affine for _ in range(3)]  # one network
    assert draws[0].shape == (10, 2, 3)
    assert len({tuple(row.flatten().tolist()) for drawn in draws for row in drawn}) == 30


# --- the bank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [DC, DSA], ids=["dc", "dsa"])
def test_bank_holds_what_is_computed_live(data, objective):
    bank, matched = gradient_bank.build(objective, data, 7), augmented_as(objective, data)
    assert bank.directions.dtype == np.float16
    assert len(set(bank.seeds.tolist())) == len(bank) == 3
    for seed, held in zip(bank.seeds.tolist(), bank.directions, strict=True):
        live = real_directions(Condition.from_seed(seed, matched), seed, objective.real_batch, matched)
        assert np.abs(live.numpy() - held).max() < 1e-3
    assert not np.array_equal(bank.directions, gradient_bank.build(objective, data, 8).directions)


def test_rounding_of_the_bank_hardly_moves_the_loss(data):
    matching, matched = build(DSA, data), augmented_as(DSA, data)
    for seed in range(3):
        condition = Condition.from_seed(seed, matched)
        target = real_directions(condition, seed, 16, matched)
        exact, rounded = (float(matching.loss(condition, t).detach()) for t in (target, target.half().float()))
        assert rounded == pytest.approx(exact, rel=1e-3)


def test_every_target_comes_once_before_any_comes_again(data):
    bank = gradient_bank.build(DC, data, 0)
    matching = build(DC, data, bank=bank)
    met = [float(matching._next_target()[1].sum()) for _ in range(6)]
    held = sorted(float(d.astype(np.float32).sum()) for d in bank.directions)
    assert sorted(met[:3]) == pytest.approx(held, rel=1e-3)
    assert sorted(met[3:]) == pytest.approx(held, rel=1e-3)


def test_condition_of_a_looked_up_target_is_the_one_it_was_made_under(data):
    bank = gradient_bank.build(DSA, data, 0)
    matching, matched = build(DSA, data, bank=bank), augmented_as(DSA, data)
    condition, target = matching._next_target()
    (seed,) = (s for s, d in zip(bank.seeds.tolist(), bank.directions, strict=True) if np.array_equal(d, target.half()))
    again = real_directions(condition, seed, DSA.real_batch, matched)
    assert torch.allclose(again, target, atol=1e-3)


def test_read_only_bank_works(data):
    bank = gradient_bank.build(DSA, data, 0)
    shared = GradientBank(bank.seeds.copy(), bank.directions.copy())
    shared.seeds.setflags(write=False)
    shared.directions.setflags(write=False)
    first, second = build(DSA, data, bank=bank), build(DSA, data, bank=shared)
    assert [first.step() for _ in range(4)] == [second.step() for _ in range(4)]


def test_bank_cache_is_read_the_second_time(data, tmp_path):
    calls = []
    first = methods.shared(DSA, data, 0, tmp_path, lambda *done: calls.append(done))
    assert calls == [(i, 30) for i in range(1, 31)]  # every class of three targets
    again = methods.shared(DSA, data, 0, tmp_path, lambda *done: calls.append(done))
    assert len(calls) == 30
    assert np.array_equal(first.directions, again.directions)
    assert np.array_equal(first.seeds, again.seeds)
    assert methods.shared(LIVE, data, 0, tmp_path) is None


def test_progress_may_interrupt(data, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        methods.shared(DSA, data, 0, tmp_path, stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["text", "other shape", "other numbers", "not finite"])
def test_damaged_bank_is_made_again(data, tmp_path, damage):
    first = methods.shared(DC, data, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    wrong = {
        "other shape": first.directions[:, :5],
        "other numbers": first.directions.astype(np.float32),
        "not finite": first.directions * np.float16(np.nan),
    }
    if damage == "text":
        path.write_bytes(b"hello")
    else:
        np.savez(path, seeds=first.seeds, directions=wrong[damage])
    assert np.array_equal(methods.shared(DC, data, 0, tmp_path).directions, first.directions)
    assert path.read_bytes() == good


CHANGES = {
    "split": lambda o, d, s: (o, replace(d, spec=replace(d.spec, split_hash="0" * 16)), s),
    "seed": lambda o, d, s: (o, d, s + 1),
    "real batch": lambda o, d, s: (o.model_copy(update={"real_batch": 8}), d, s),
    "size": lambda o, d, s: (o.model_copy(update={"bank": 2}), d, s),
    "method": lambda o, d, s: (o.model_copy(update={"method": "dc"}), d, s),
    "own augmentation": lambda o, d, s: (o.model_copy(update={"augment": Augmentation(flip=0.5)}), d, s),
    "dataset's augmentation": lambda o, d, s: (o, replace(d, spec=replace(d.spec, invariances={"flip": 0.5})), s),
    "network": lambda o, d, s: (o, with_network(d, "mlp"), s),
    "width": lambda o, d, s: (o, with_network(d, "convnet", width=5), s),
}
SAME = {
    "learning rate": lambda o, d, s: (o.model_copy(update={"lr_image": 9.0, "steps": 7}), d, s),
    "the protocol's steps": lambda o, d, s: (o, with_network(d, "convnet", steps=9), s),
    "the protocol's augmentation": lambda o, d, s: (o, with_network(d, "convnet", augment={"flip": 0.5}), s),
    "spelled out": lambda o, d, s: (o.model_copy(update={"augment": Augmentation(**GLYPHS)}), d, s),
}


@pytest.mark.parametrize("name", [*CHANGES, *SAME])
def test_what_shapes_a_target_is_in_the_key_and_nothing_else(data, tmp_path, name):
    methods.shared(DSA, data, 0, tmp_path)
    methods.shared(*(CHANGES | SAME)[name](DSA, data, 0), tmp_path)
    assert len(list(tmp_path.iterdir())) == (2 if name in CHANGES else 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((100, 10, 11_000_000), "set bank to at most 9, or to 0, or use a narrower network"),
        ((100, 200, 11_000_000), "set bank to 0, or use a narrower network"),
        ((100, 10, 1_000_001), "takes 2.0 GB: set bank to at most 99"),
    ],
)
def test_a_bank_that_is_too_large_is_refused(shape, words):
    with pytest.raises(InputError, match=words):
        gradient_bank.check_size(shape)
    gradient_bank.check_size((100, 10, 1_000_000))


def test_a_large_bank_is_refused_before_it_is_made(data, tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_bank, "MOST_BYTES", 20_000)
    with pytest.raises(InputError, match=r"a bank of 3 gradients of \d+ weights .* 0.0 GB: set bank to"):
        methods.shared(DC, data, 0, tmp_path, lambda *_: pytest.fail("made"))


# --- objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_shipped_objectives_are_the_defaults(name):
    assert objective.resolve(name) == (name, GradientMatchingObjective(method=name))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('method = "dc"\nouter = 10', "outer: a bank of 100 holds random networks only: set bank to 0, or outer to 1"),
        ('method = "dc"\nouter = 0', "outer: .* got 0"),
        ('method = "dc"\ninner = -1', "inner: .* got -1"),
        ('method = "dc"\nlr_network = 0.0', "lr_network: .* got 0.0"),
        ('method = "dc"\n[augment]\nflip = 0.5', "augment: dc matches without augmentation: take dsa"),
        ('method = "dsa"\n[augment]\nscale = 0.5', "augment.scale: .* got 0.5"),
        ('method = "dsa"\n[augment]\nshear = 0.5', "augment.shear: unknown key"),
        ('method = "dsa"\nlr_image = 0.0', "lr_image: .* got 0.0"),
    ],
)
def test_wrong_objectives_end_in_one_line(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        objective.resolve(str(path))
    assert "\n" not in str(caught.value)


def test_outer_loops_and_own_augmentation_are_accepted(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('method = "dsa"\nbank = 0\nouter = 10\ninner = 50\n[augment]\nflip = 1\n')
    parsed = objective.resolve(str(path))[1]
    assert (parsed.outer, parsed.inner, parsed.augment) == (10, 50, Augmentation(flip=1.0))
