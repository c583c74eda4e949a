"""Which real samples a set starts from: orders, what they learn by training, and how budgets cut them."""

import io
import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetopt import cache_folder, cli, space, trial
from budgetopt.allocation import SELECTIONS, Allocation, canonical_selection
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.errors import BudgetoptError, InputError
from budgetopt.methods import crops, forgetting, selection
from budgetopt.methods.base import TrainingData
from budgetopt.methods.crops import Crops
from budgetopt.methods.forgetting import Forgetting
from budgetopt.methods.orders import herding_order, k_centre_order
from budgetopt.methods.seen import Receiver
from budgetopt.methods.selection import DECODED, FIXED, LEARNED, TYPICAL, Selector
from budgetopt.objective import CoresetObjective
from budgetopt.packing import PackedSet, pack, unpack
from budgetopt.packing.layout import first_of_each
from budgetopt.protocol import Protocol
from budgetopt.representation import InitialSet, Representation
from budgetopt.search import config as configs
from budgetopt.search import run as runs
from budgetopt.search.design import Design, smallest_file
from budgetopt.search.progress import Progress
from budgetopt.seeding import generator
from budgetopt.teacher import Teacher

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=4, steps=8, batch=64)
TWO = Allocation(levels=2, selection=DECODED)


@pytest.fixture(scope="module")
def data(digits):
    """The first 400 digits of the train part."""
    y = digits.train.y[:400]
    spec = replace(digits.spec, class_counts=tuple(np.bincount(y).tolist()), split_hash="first 400")
    return TrainingData(Split(digits.train.x[:400], y), spec, PROTOCOL, CPU)


@pytest.fixture(scope="module")
def counts(data):
    return forgetting.train(data, 0)


@pytest.fixture(scope="module")
def context(data, digits, counts):
    objectives = {"coreset": CoresetObjective(method="coreset")}
    known = {"forgetting": counts, "memorable": counts}
    return trial.TrialContext(data.train, digits.val, data.spec, PROTOCOL, objectives, learned=known)


# ----------------------------------------------------------------------------------------------------------------------
# orders
# ----------------------------------------------------------------------------------------------------------------------
def naive_herding(x, count, mean):
    """Every step tries every free sample."""
    chosen = []
    for _ in range(count):
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(free, key=lambda i: np.linalg.norm(mean - x[[*chosen, i]].mean(0))))
    return chosen


def naive_k_centre(x, count):
    """Every step looks at every distance to every chosen sample."""
    chosen = [min(range(len(x)), key=lambda i: np.linalg.norm(x[i] - x.mean(0)))]
    while len(chosen) < count:
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(free, key=lambda i: min(np.linalg.norm(x[i] - x[j]) for j in chosen)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "d", "count"), [(1, 3, 1), (12, 2, 12), (40, 5, 15)])
def test_orders_against_naive_loops(n, d, count, seed):
    rng = np.random.default_rng(seed)
    x, mean = rng.normal(size=(n, d)), rng.normal(size=d) / 3
    assert herding_order(x, count).tolist() == naive_herding(x, count, x.mean(0))
    assert herding_order(x, count, mean).tolist() == naive_herding(x, count, mean)
    assert k_centre_order(x, count).tolist() == naive_k_centre(x, count)


def test_k_centre_of_a_line():
    """From the middle to one end, to the other, then to the middle of the widest gap."""
    line = np.array([0.0, 1.0, 5.0, 6.5, 12.0])[:, None]
    assert line[k_centre_order(line, 5)].ravel().tolist() == [5.0, 12.0, 0.0, 6.5, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_k_centre_covers_within_twice_the_best_radius(seed):
    x = np.random.default_rng(seed).normal(size=(14, 2))
    distances = np.linalg.norm(x[:, None] - x, axis=2)

    def radius(chosen):
        return distances[:, list(chosen)].min(1).max()

    order = k_centre_order(x, 4)
    for m in range(1, 5):
        best = min(radius(chosen) for chosen in itertools.combinations(range(14), m))
        assert radius(order[:m]) <= 2 * best + 1e-9


def test_identical_samples_are_taken_once():
    assert sorted(k_centre_order(np.ones((6, 3)), 6).tolist()) == list(range(6))


# ----------------------------------------------------------------------------------------------------------------------
# forgetting
# ----------------------------------------------------------------------------------------------------------------------
def test_forgetting_counts_a_script(monkeypatch, data):
    """What the network says, batch by batch: sample → right or wrong."""
    script = [
        {0: 1, 1: 0, 2: 1, 3: 1},
        {0: 0, 1: 0, 2: 1, 3: 1},  # 0 forgotten
        {0: 1, 1: 0, 2: 1, 3: 0},  # 3 forgotten
        {0: 0, 1: 0, 2: 1, 3: 0},  # 0 forgotten again, 3 still wrong
    ]

    def said(batch):
        labels = data.train.y[list(batch)]
        named = [y if right else (y + 1) % 10 for y, right in zip(labels, batch.values(), strict=True)]
        return torch.tensor(list(batch)), torch.eye(10)[torch.tensor(named)]

    def train(subject, protocol, seed, device, progress, watch):
        assert protocol.steps == -(-forgetting.EPOCHS * 400 // 64)
        for batch in script:
            watch(*said(batch))
        rows, logits = said({2: 1, 3: 1})
        watch(torch.cat([rows, rows]), torch.cat([logits, -logits]))  # in one batch twice: the first counts

    monkeypatch.setattr(forgetting, "train_network", train)
    found = forgetting.train(data, 0)
    assert found.events[:4].tolist() == [2, 0, 0, 1]
    assert found.wrong[:4].tolist() == [2, 4, 0, 2]
    assert found.seen[:5].tolist() == [4, 4, 5, 5, 0]
    # never right, forgotten twice, once, never
    assert found.most_first(np.arange(4)).tolist() == [1, 0, 3, 2]


def test_most_and_least_forgotten_first():
    """Five samples that were learned, one never: forgotten for ever."""
    found = Forgetting(*(np.array(v, np.int32) for v in ([1, 1, 0, 3, 0, 0], [2, 5, 9, 4, 10, 0], [10] * 6)))
    rows = np.array([5, 4, 3, 2, 1, 0])
    assert found.most_first(rows).tolist() == [4, 3, 1, 0, 2, 5]
    assert found.least_first(rows).tolist() == [5, 2, 1, 0, 3, 4]  # equals as they come
    assert found.most_first(rows[:2]).tolist() == [4, 5]


def test_forgetting_of_a_training(data, counts):
    assert set(counts.seen.tolist()) <= {forgetting.EPOCHS - 1, forgetting.EPOCHS, forgetting.EPOCHS + 1}
    assert (counts.events <= counts.wrong).all()
    assert counts.events.max() >= 1
    again, other = forgetting.train(data, 0), forgetting.train(data, 1)
    assert all(np.array_equal(getattr(again, name), getattr(counts, name)) for name in ("events", "wrong", "seen"))
    assert not np.array_equal(other.wrong, counts.wrong)


def test_wrong_labels_are_never_learned_or_forgotten_most(data):
    y = data.train.y.copy()
    spoilt = np.arange(0, 400, 20)
    y[spoilt] = (y[spoilt] + 3) % 10
    wider = replace(data, train=Split(data.train.x, y), protocol=PROTOCOL.model_copy(update={"width": 16}))
    found = forgetting.train(wider, 0)
    assert np.isin(spoilt, found.most_first(np.arange(400))[:100]).mean() >= 0.8  # by chance 0.25
    assert np.isin(spoilt, found.least_first(np.arange(400))[:200]).mean() <= 0.1  # by chance 0.5


# ----------------------------------------------------------------------------------------------------------------------
# what is learned, on disk
# ----------------------------------------------------------------------------------------------------------------------
def test_counts_are_read_the_second_time(data, counts, tmp_path):
    calls = []
    both = ["random", "forgetting", "memorable"]  # one training for the two
    first, second = selection.learned(both, data, 0, tmp_path, lambda *d: calls.append(d)).values()
    assert calls[-1][0] == calls[-1][1] == len(calls)
    assert np.array_equal(first.events, second.events)
    again = forgetting.cached(data, 0, tmp_path, lambda *d: calls.append(d))
    assert len(calls) == calls[0][1]
    for name in ("events", "wrong", "seen"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert np.array_equal(getattr(first, name), getattr(counts, name))
    (path,) = tmp_path.iterdir()
    np.savez(path, events=counts.events[:9], wrong=counts.wrong, seen=counts.seen)  # damaged: made again
    assert np.array_equal(forgetting.cached(data, 0, tmp_path).events, counts.events)


@pytest.mark.parametrize(
    "change",
    [
        lambda d, s: (replace(d, spec=replace(d.spec, split_hash="0" * 16)), s),
        lambda d, s: (replace(d, protocol=d.protocol.model_copy(update={"lr": 0.02})), s),
        lambda d, s: (d, s + 1),
    ],
    ids=["split", "protocol", "seed"],
)
@pytest.mark.parametrize("family", [forgetting, crops])
def test_the_key_of_the_cache(family, change, data, pictures, tmp_path, monkeypatch):
    source = data if family is forgetting else pictures
    monkeypatch.setattr(forgetting, "train", lambda *_: Forgetting(*[np.zeros(400, np.int32)] * 3))
    monkeypatch.setattr(crops.teacher, "cached", lambda *_: None)
    n = len(pictures.train) * crops.CANDIDATES
    made = Crops(np.zeros(n, np.int32), np.zeros((n, 4), np.int32), np.zeros(2, np.int32))
    monkeypatch.setattr(crops, "score", lambda *_: made)
    family.cached(source, 0, tmp_path)
    family.cached(source, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    family.cached(*change(source, 0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", LEARNED)
def test_interrupted_while_learning(name, data, pictures, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selection.learned([name], pictures if name == "crops" else data, 0, tmp_path, stop)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# the selector
# ----------------------------------------------------------------------------------------------------------------------
ORDERED = ["random", "herding", DECODED, "k-centre", "forgetting", "memorable"]


def selector(context):
    return Selector(context.train, context.spec, context.learned)


@pytest.mark.parametrize("how", ORDERED)
def test_selections_are_real_samples_in_class_order_and_nested(how, context):
    chosen = selector(context).select(how, 7, 3, TWO)
    assert chosen.counts == (7,) * 10
    assert chosen.x.dtype == np.float32
    grown = selector(context)
    for c in range(10):
        few = grown.order(how, c, 3, 3, TWO)
        many = grown.order(how, c, 7, 3, TWO)
        assert many[:3].tolist() == few.tolist() == selector(context).order(how, c, 3, 3, TWO).tolist()
        assert many.tolist() == selector(context).order(how, c, 7, 3, TWO).tolist()
        assert len(set(many.tolist())) == 7
        assert (context.train.y[many] == c).all()
        assert np.array_equal(chosen.x[7 * c : 7 * c + 7], context.train.x[many])
    everything = grown.select(how, 10_000, 3, TWO)
    assert everything.counts == context.spec.class_counts
    assert np.array_equal(everything.x.sum(0), context.train.x.astype(np.float32).sum(0))


@pytest.mark.parametrize("how", ORDERED[1:])
def test_only_random_orders_depend_on_the_seed(how, context):
    made = selector(context)
    assert np.array_equal(made.select(how, 4, 1, TWO).x, selector(context).select(how, 4, 2, TWO).x)
    assert not np.array_equal(made.select(how, 4, 1, TWO).x, made.select("random", 4, 1).x)
    assert not np.array_equal(made.select("random", 4, 1).x, made.select("random", 4, 2).x)


def test_k_centre_and_forgetting_follow_their_orders(context, counts):
    made = selector(context)
    for c in (0, 7):
        members = np.flatnonzero(context.train.y == c)
        flat = context.train.x[members].reshape(len(members), -1).astype(np.float64)
        assert made.order("k-centre", c, 9, 0).tolist() == members[naive_k_centre(flat, 9)].tolist()
        worst = sorted(members, key=lambda i: (counts.wrong[i] < counts.seen[i], -counts.events[i], -counts.wrong[i]))
        assert made.order("forgetting", c, 9, 0).tolist() == worst[:9]
        drawn = made.order("random", c, 10_000, FIXED).tolist()
        never = {i: counts.wrong[i] == counts.seen[i] for i in drawn}
        easiest = sorted(drawn, key=lambda i: (never[i], counts.events[i], drawn.index(i)))
        assert made.order("memorable", c, 9, 0).tolist() == easiest[:9]


def test_long_samples_are_projected_alike_for_every_class():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 600)).astype(np.float32), np.arange(40) % 2
    spec = DataSpec("long", (600,), (20, 20), np.zeros(1, np.float32), np.ones(1, np.float32), "x", "tabular-1")
    matrix = (np.random.default_rng(FIXED).standard_normal((600, 128)) / 128**0.5).astype(np.float32)
    for c in range(2):
        members = np.flatnonzero(y == c)
        projected = x[members] @ matrix
        found = Selector(Split(x, y), spec).order("k-centre", c, 8, 0)
        assert found.tolist() == members[naive_k_centre(projected, 8)].tolist()


def test_a_selection_that_learns_needs_what_it_learned(context):
    blind = replace(context, learned={})
    allocation = Allocation(selection="forgetting", ipc=3, levels=4)
    with pytest.raises(ValueError, match="forgetting needs"):
        next(trial.run(blind, allocation, CPU))
    with pytest.raises(ValueError, match="crops needs"):
        selector(blind).select("crops", 1, 0)
    with pytest.raises(ValueError, match="no order"):
        selector(blind).order("crops", 0, 1, 0)
    with pytest.raises(ValueError, match="needs an allocation"):
        selector(context).select(DECODED, 1, 0)
    # sizes are asked for before anything is trained
    guess = trial.initial_bytes(blind, allocation, selector(blind))
    assert guess == trial.initial_bytes(blind, replace(allocation, selection="random"), selector(blind))
    last = list(trial.run(context, allocation, CPU))[-1]
    assert len(last.data) == trial.initial_bytes(context, allocation, selector(context))
    given = replace(blind, init=InitialSet(context.train.x[:10].astype(np.float32), (1,) * 10))
    assert trial.initial_set(given, allocation).counts == (1,) * 10


# ----------------------------------------------------------------------------------------------------------------------
# herding of decoded samples
# ----------------------------------------------------------------------------------------------------------------------
CODINGS = [
    Allocation(levels=2),
    Allocation(levels=3, clipping="p5", quantizer_options=(("granularity", "class"),)),
    Allocation(levels=7, quantizer="apot", clipping="half", transform="standardize"),
    Allocation(levels=5, transform="dct", transform_options=(("keep", 0.25),)),
    Allocation(levels=4, transform="pca", transform_options=(("components", 8),)),
    Allocation(levels=2, transform="resize", transform_options=(("scale", 0.5),)),
    Allocation(levels=2, quantizer="patches", quantizer_options=(("groups", 16), ("side", 4))),
    Allocation(levels=4, quantizer="palette", clipping="none", quantizer_options=(("scope", "class"),)),
    Allocation(levels=256, quantizer="jpeg", clipping="none", quantizer_options=(("quality", 25),)),
]


@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_a_receiver_sees_what_the_file_decodes_to(coding, context):
    """The samples of one class, through a file of them that has the levels of the typical set."""
    typical = selector(context).select("random", 10, 0)
    x = context.train.x[context.train.y == 4][:6]
    seen = Receiver(typical, coding, context.spec).sees(x, 4)
    fitted = Representation(typical, coding, context.spec, 0, CPU, generator("seen"))
    values = fitted.transform.forward(torch.from_numpy(x.astype(np.float32)))
    symbols, side = fitted.quantizer.encode(values, torch.full((6,), 4))
    packed = PackedSet(
        symbols=symbols,
        shape=context.spec.shape,
        counts=(0, 0, 0, 0, 6, 0, 0, 0, 0, 0),
        dequantizer=side,
        inverse=fitted.transform.side_information(),
        mean=context.spec.mean,
        std=context.spec.std,
        protocol=0,
    )
    assert np.allclose(seen, unpack(pack(packed)).decode(), rtol=0, atol=1e-3)
    assert seen.shape == x.shape
    assert not np.array_equal(seen, x)


def seen_by(context, coding, label, rows):
    """Decoded samples of a class, flat, by levels that are fitted as the selector's are."""
    typical = selector(context).select("random", TYPICAL // 10, FIXED)
    return Receiver(typical, coding, context.spec).sees(context.train.x[rows], label).reshape(len(rows), -1)


@pytest.mark.parametrize("coding", [CODINGS[0], CODINGS[3]], ids=str)
def test_decoded_herding_against_a_naive_loop(coding, context):
    made = selector(context)
    for c in (3, 8):
        members = made.order("random", c, 10_000, FIXED)
        mean = context.train.x[members].reshape(len(members), -1).astype(np.float64).mean(0)
        decoded = seen_by(context, coding, c, members).astype(np.float64)
        expected = members[naive_herding(decoded, 6, mean)].tolist()
        assert made.order(DECODED, c, 6, 0, coding).tolist() == expected


def test_decoded_samples_come_nearer_to_the_mean_of_the_class(context):
    made = selector(context)
    errors = {}
    for how in ("herding", DECODED):
        for c in range(10):
            members = np.flatnonzero(context.train.y == c)
            mean = context.train.x[members].reshape(len(members), -1).mean(0)
            decoded = seen_by(context, CODINGS[0], c, made.order(how, c, 8, 0, CODINGS[0]))
            errors[how] = errors.get(how, 0.0) + np.linalg.norm(decoded.mean(0) - mean)
    assert errors[DECODED] < 0.9 * errors["herding"]


def test_what_does_not_change_decoded_samples_does_not_change_their_order(context, monkeypatch):
    made = selector(context)
    order = made.order(DECODED, 5, 6, 0, TWO).tolist()
    same = replace(TWO, objective="dm", ipc=40, label_bits=3, rate_weight=1.0)
    with monkeypatch.context() as without:
        without.setattr(selection, "Receiver", None)  # the order is known: nothing is decoded anew
        assert made.order(DECODED, 5, 6, 9, same).tolist() == order
    orders = [made.order(DECODED, 5, 6, 0, coding).tolist() for coding in CODINGS]
    assert len({tuple(o) for o in orders}) > 4
    assert made.order(DECODED, 5, 6, 0, TWO).tolist() == order  # after all the others


def test_large_classes_are_chosen_from_candidates(context, monkeypatch):
    monkeypatch.setattr(selection, "CANDIDATES", 5)
    drawn = selector(context).order("random", 2, 10_000, FIXED)
    many = selector(context).order(DECODED, 2, 9, 0, TWO)
    assert sorted(many[:5].tolist()) == sorted(drawn[:5].tolist())
    assert many[5:].tolist() == drawn[5:9].tolist()
    assert selector(context).order(DECODED, 2, 3, 0, TWO).tolist() == many[:3].tolist()


# ----------------------------------------------------------------------------------------------------------------------
# crops
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pictures():
    """Two classes of 64×72 noise: upright or level stripes in one corner, a random one."""
    rng = np.random.default_rng(0)
    x = rng.integers(100, 156, size=(24, 1, 64, 72))
    y = np.repeat([0, 1], 12)
    corners = []
    for picture, label in zip(x, y, strict=True):
        top, left = 40 * rng.integers(2), 48 * rng.integers(2)
        rows, columns = np.mgrid[:24, :24]
        picture[0, top : top + 24, left : left + 24] = 255 * ((rows if label else columns) // 4 % 2)
        corners.append((top, left))
    mean, std = np.float32([x.mean()]), np.float32([x.std()])
    spec = DataSpec("stripes", (1, 64, 72), (12, 12), mean, std, "stripes", "image-2")
    found = TrainingData(Split(x.astype(np.uint8), y), spec, Protocol(network="convnet", width=8, steps=8), CPU)
    found.__dict__["corners"] = np.array(corners)
    return found


class Brightest(Teacher):
    """Sure of the second class where crops are bright, of the first where they are dark."""

    def __init__(self):
        pass

    def probabilities(self, x, temperature):
        bright = (x.mean((1, 2, 3)) / 255).double().numpy()
        return np.stack([1 - bright, bright], 1)


@pytest.mark.parametrize("shape", [(1, 63, 64), (3, 128, 32), (1, 8, 8), (64,)])
def test_small_samples_have_no_crops(shape):
    with pytest.raises(InputError, match="at least 64 pixels a side") as raised:
        selection.check_shape("crops", shape)
    assert str(shape) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    for how in ORDERED:
        selection.check_shape(how, shape)
    selection.check_shape("crops", (3, 64, 64))


def test_boxes_lie_inside_and_keep_the_proportions():
    found = crops.boxes(500, 64, 96, np.random.default_rng(0))
    assert (found[:, :2] >= 0).all()
    assert (found[:, 0] + found[:, 2]).max() == 64
    assert (found[:, 1] + found[:, 3]).max() == 96
    assert np.abs(found[:, 3] - 1.5 * found[:, 2]).max() <= 1.25
    assert found[:, 2].min() in (32, 33)
    assert found[:, 2].max() in (63, 64)


def test_every_picture_gives_its_best_crop_first():
    confidence = np.array([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3], [0.95, 0.94, 0.93]])
    names = [(picture, crop) for picture in range(3) for crop in range(3)]
    found = [names[i] for i in crops.ranked(confidence)]
    assert found == [(2, 0), (0, 1), (1, 0), (2, 1), (0, 2), (1, 2), (2, 2), (1, 1), (0, 0)]


def test_tiles_are_the_crops_side_by_side():
    x = np.arange(2 * 64 * 64, dtype=np.uint16).reshape(2, 1, 64, 64).astype(np.uint8)
    whole, corner = [0, 0, 64, 64], [32, 0, 32, 32]
    found = Crops(
        rows=np.array([1, 0, 0, 1, 1, 1, 0, 0, 0], np.int32),
        boxes=np.array([corner, corner, whole, whole, corner, whole, corner, corner, corner], np.int32),
        counts=np.array([0, 9], np.int32),
    )
    tiles = found.tiles(x, 1, 5)
    assert tiles.shape == (2, 1, 64, 64)  # the ninth crop is left over
    assert found.tiles(x, 0, 5).shape == (0, 1, 64, 64)
    assert np.array_equal(found.tiles(x, 1, 1), tiles[:1])
    assert np.array_equal(tiles[0, :, :32, :32], x[1, :, 32:, :32])
    assert np.array_equal(tiles[0, :, :32, 32:], x[0, :, 32:, :32])
    half = crops.resized(x[0], np.array(whole), (32, 32))
    assert np.array_equal(tiles[0, :, 32:, :32], np.rint(half))
    assert np.array_equal(tiles, np.rint(tiles))
    assert np.array_equal(tiles[1, :, :32, :32], x[1, :, 32:, :32])
    odd = found.tiles(np.ones((2, 3, 65, 71), np.float32) * 0.3, 1, 1)
    assert odd.shape == (1, 3, 65, 71)
    assert np.allclose(odd, 0.3)


def test_the_surest_crops_come_first(pictures):
    """Bright crops of the one class, dark crops of the other."""
    calls = []
    found = crops.score(pictures, Brightest(), 0, lambda *done: calls.append(done))
    assert calls[-1] == (120, 120)
    assert found.counts.tolist() == [60, 60]

    def brightness(crop):
        box, picture = found.boxes[crop], pictures.train.x[found.rows[crop]]
        return crops.resized(picture, box, (64, 72)).mean()

    for label, sign in ((0, 1), (1, -1)):
        own = np.arange(60) + 60 * label
        assert (pictures.train.y[found.rows[own]] == label).all()
        assert len(set(found.rows[own[:12]].tolist())) == 12  # every picture's best
        values = np.array([sign * brightness(crop) for crop in own])
        assert (np.diff(values[:12]) >= 0).all()
        for row in np.unique(found.rows[own]):
            of_row = values[found.rows[own] == row]
            assert (np.diff(of_row) >= 0).all()
    again = crops.score(pictures, Brightest(), 0)
    assert np.array_equal(again.boxes, found.boxes)
    assert not np.array_equal(crops.score(pictures, Brightest(), 1).boxes, found.boxes)


def test_a_trained_network_prefers_crops_that_show_the_class(pictures):
    (found,) = selection.learned(["crops"], pictures, 0, None).values()
    corners = pictures.__dict__["corners"]

    def shown(crop):
        """Share of the stripes that is in the crop."""
        (top, left), (y, x, height, width) = corners[found.rows[crop]], found.boxes[crop]
        down = min(top + 24, y + height) - max(top, y)
        across = min(left + 24, x + width) - max(left, x)
        return max(0, down) * max(0, across) / 24**2

    best, worst = (np.mean([shown(c) for first in (0, 60) for c in range(first + a, first + b)]) for a, b in ENDS)
    assert best > 2 * worst
    chosen = Selector(pictures.train, pictures.spec, {"crops": found}).select("crops", 3, 0)
    assert chosen.counts == (3, 3)
    assert chosen.x.shape == (6, 1, 64, 72)
    allocation = Allocation(selection="crops", ipc=3, levels=4)
    part = Split(pictures.train.x[::3], pictures.train.y[::3])
    objectives = {"coreset": CoresetObjective(method="coreset")}
    context = trial.TrialContext(
        pictures.train, part, pictures.spec, pictures.protocol, objectives, learned={"crops": found}
    )
    last = list(trial.run(context, allocation, CPU))[-1]
    assert last.samples == 6


ENDS = ((0, 12), (48, 60))  # the best crop of every picture, and the worst


# ----------------------------------------------------------------------------------------------------------------------
# search spaces, designs, command lines
# ----------------------------------------------------------------------------------------------------------------------
MINE = """
selection = ["crops", "random", "forgetting", "herding", "herding:seen=original", "herding:seen=decoded"]
transform = ["identity"]
[[quantizer]]
family = "uniform"
levels = [2, 4]
clipping = ["minmax"]
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


def test_selections_are_spelled_in_one_way(mine):
    assert canonical_selection("herding:seen=original") == "herding"
    assert Allocation(selection="herding:seen=original") == Allocation(selection="herding")
    found = space.resolve(mine)
    assert found.selection == ("crops", "random", "forgetting", "herding", DECODED)
    assert found.selections((1, 8, 8)) == ["random", "forgetting", "herding", DECODED]
    assert found.selections((3, 64, 64)) == list(found.selection)
    assert space.resolve("everything").selections((3, 64, 64))[0] == "random"
    assert {name.partition(":")[0] for name in space.resolve("everything").selection} == set(SELECTIONS)
    # what takes long is not asked for the smallest file, unless there is nothing else
    assert {a.selection for a in found.smallest("coreset", (1, 8, 8))} == {"random", "herding"}
    only = found.model_copy(update={"selection": ("forgetting",)})
    assert {a.selection for a in only.smallest("coreset", (1, 8, 8))} == {"forgetting"}


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ("k-center", ["'k-center'", "did you mean 'k-centre'?"]),
        ("herding:seen=twice", ["seen must be one of original, decoded", "'twice'"]),
        ("herding:look=decoded", ["'look'", "seen"]),
        ("random:seen=decoded", ["random has no options", "'seen'"]),
        ("herding:decoded", ["'decoded'", "option=value"]),
    ],
)
def test_wrong_selections(wrong, parts, tmp_path):
    with pytest.raises(InputError) as raised:
        Allocation(selection=wrong)
    assert all(part in str(raised.value) for part in parts)
    path = tmp_path / "wrong.toml"
    path.write_text(MINE.replace('"crops"', f'"{wrong}"'))
    with pytest.raises(InputError, match=r"wrong\.toml: selection: "):
        space.resolve(str(path))


def test_crops_of_small_pictures_are_refused_in_one_line(monkeypatch):
    err = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["budgetopt", "trial", "--selection", "crops"])
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert len(err.getvalue().splitlines()) == 1
    assert "crops need pictures of at least 64 pixels a side, got samples of shape (1, 8, 8)" in err.getvalue()


def prepared(mine, **options):
    config, source = configs.resolve("1kb", space_name=mine, **options)
    return config, *runs._prepare(config, source)


def test_nothing_is_trained_before_the_search(mine, monkeypatch):
    monkeypatch.setattr(selection, "LEARNED", dict.fromkeys(LEARNED))  # a call would fail
    config, _, context, made = prepared(mine)
    assert 20 < smallest_file(config, context, made) < 200


def test_only_what_the_space_offers_is_learned(mine, tmp_path, monkeypatch):
    """Once, through the cache; crops not at all, since digits are too small for them."""
    asked = []
    for name in LEARNED:
        monkeypatch.setitem(selection.LEARNED, name, lambda *given, name=name: asked.append((name, *given[1:3])))
    monkeypatch.setattr(cache_folder, "part", lambda name: tmp_path)
    config, dataset, context, _ = prepared(mine, objectives=["coreset"])
    run = runs._Run(config, dataset, context, None, None, Progress(1.0, 1), None, lambda: False)
    assert runs.with_shared(run).learned.keys() == {"forgetting"}
    assert asked == [("forgetting", 0, tmp_path)]
    given = replace(run, context=replace(context, init=InitialSet(np.zeros((10, 1, 8, 8)), (1,) * 10)))
    assert runs.with_shared(given).learned == {}
    shipped, dataset, context, _ = prepared("image", objectives=["coreset"])
    assert runs.with_shared(replace(run, config=shipped, context=context)).learned == {}
    assert len(asked) == 1


@pytest.mark.parametrize(("total", "late"), [(10**12, True), (2, False)])
def test_what_would_take_longer_than_the_search_is_not_begun_in_vain(mine, tmp_path, monkeypatch, total, late):
    """A run without a file ends after twice its limit: it ends at once where no trial could begin before."""
    monkeypatch.setattr(runs, "PATIENCE", 0.0)
    monkeypatch.setattr(cache_folder, "part", lambda name: tmp_path)
    monkeypatch.setitem(selection.LEARNED, "forgetting", lambda *_: None)

    def shared(chosen, material, seed, folder, told):
        told(1, total)
        return {}

    monkeypatch.setattr(runs.methods, "shared", shared)
    config, dataset, context, _ = prepared(mine, objectives=["dm"])
    run = runs._Run(config, dataset, context, None, None, Progress(60.0, 1), None, lambda: False)
    if late:
        with pytest.raises(BudgetoptError, match="the time limit is 60 s: raise --time-limit, or search without"):
            runs.with_shared(run)
    else:
        assert "dm" in runs.with_shared(run).shared


def test_the_design_takes_every_selection_that_is_possible(mine, monkeypatch):
    config, _, context, _ = prepared(mine, objectives=["coreset"])
    n = len(context.train)
    known = {"forgetting": Forgetting(*[np.zeros(n, np.int32)] * 3)}
    context = replace(context, learned=known)
    found = Design(config, context, selector(context)).allocations()
    by_selection = {name: [a.ipc for a in found if a.selection == name] for name in config.space.selection}
    assert by_selection["crops"] == []
    most = by_selection[DECODED]  # the last one of the space goes first
    others = [name for name in by_selection if name not in ("crops", DECODED)]
    assert all(by_selection[name] for name in others)
    assert sum(len(by_selection[name]) for name in others) <= max(len(most), len(others))
    only = config.space.model_copy(update={"selection": ("crops",)})
    with pytest.raises(InputError, match="no selection, transform and quantizer"):
        smallest_file(config.model_copy(update={"space": only}), context, selector(context))


# ----------------------------------------------------------------------------------------------------------------------
# budgets
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["random", DECODED, "memorable"])
def test_the_budget_keeps_the_first_of_the_order(how, context):
    """The file decides how many fit: the most of every class, and these are the first that were chosen."""
    allocation = Allocation(selection=how, ipc=4, levels=17)
    representation = trial.initial_representation(context, allocation, CPU)
    whole = pack(representation.packed())
    assert representation.fit_to_budget(len(whole)) == whole
    budget = round(0.7 * len(whole))
    cut = representation.fit_to_budget(budget)
    assert len(cut) <= budget
    (kept,) = set(unpack(cut).counts)
    assert 1 <= kept < 4
    first = first_of_each((4,) * 10, kept)
    decoded = unpack(cut).decode()
    assert np.array_equal(decoded, unpack(whole).decode()[first])
    assert np.array_equal(decoded, trial.initial_set(context, allocation).x[first])
    seed = trial.trial_seed(context.seed, allocation)
    assert np.array_equal(decoded, selector(context).select(how, kept, seed, allocation).x)
    assert len(pack(representation.packed(kept + 1))) > budget
