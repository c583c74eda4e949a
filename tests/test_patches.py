"""PAQ and GAQ against loops over patches, and the search for the largest number of groups."""

import contextlib
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from sets import packed_set, sealed

from budgetopt.errors import InputError, PackedFileError
from budgetopt.options import canonical
from budgetopt.packing import PackedSet, Plane, UniformLevels, pack, unpack
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.patches import FRACTION_BITS, PatchLevels, patch_of
from budgetopt.quantizers import build
from budgetopt.quantizers.patch_groups import Groups, largest_groups
from budgetopt.quantizers.patches import Patches


def pictures(n=6, channels=1, height=11, width=9, seed=0):
    """Integers 0 … 255 that span the whole range, with flat and dark patches."""
    rng = np.random.default_rng(seed)
    x = rng.normal(128, 40, (n, channels, height, width)) + rng.normal(0, 60, (n, 1, 1, 1))
    x[0, :, :5, :5], x[1, :, :5, :5] = 7, 255
    x[0, 0, -1, -1] = 0
    return torch.from_numpy(x.round().clip(0, 255)).float()


def quantizer(x, levels=4, clipping="minmax", counts=None, **chosen):
    labels = torch.zeros(len(x), dtype=torch.int64)
    made = build("patches", levels, clipping, canonical(Patches.options, chosen, "patches"))
    made.fit(x.flatten(1), labels, (Plane(*x.shape[1:]),))
    return made.eval(), labels


def received(x, made, labels):
    """What a receiver decodes, through real bytes, and the side information."""
    symbols, side = made.encode(x.flatten(1), labels)
    data = pack(packed_set(symbols, (len(x),), side, shape=tuple(x.shape[1:])))
    read = unpack(data)
    assert pack(read) == data
    assert np.array_equal(read.symbols, symbols)
    return read.decode(), side


def patches(x, side, joint):
    """[(sample, index of the patch's values)] by loops, in the order of the file."""
    n, channels, height, width = x.shape
    found = []
    for sample in range(n):
        for channel in [slice(None)] if joint else [slice(c, c + 1) for c in range(channels)]:
            for top in range(0, height, side):
                for left in range(0, width, side):
                    found.append((sample, channel, slice(top, top + side), slice(left, left + side)))
    return found


def levels_of(low, high, count, grid):
    """Eq. 2–4 in fractions: low, high whole numbers of the parameters' grid."""
    unit = Fraction(1, 1 << FRACTION_BITS)
    if grid == "minimum":
        return [round_half_up(low + q * Fraction(high - low, count - 1), unit) for q in range(count)]
    if low == high:
        return [low + q * unit for q in range(count)]
    alpha = round_half_up(Fraction(high - low, count - 1), unit)
    z = round_half_up(-low / alpha, 1)
    return [(q - z) * alpha for q in range(count)]


def round_half_up(value, unit):
    return math.floor(Fraction(value) / unit + Fraction(1, 2)) * unit


@pytest.mark.parametrize("grid", ["minimum", "zero-point"])
@pytest.mark.parametrize("channels", ["joint", "each"])
@pytest.mark.parametrize(("side", "levels", "colours"), [(5, 4, 1), (4, 2, 3), (7, 3, 3), (14, 16, 1)])
def test_paq_is_the_formula_of_every_patch(side, levels, colours, channels, grid):
    x = pictures(channels=colours)
    made, labels = quantizer(x, levels, side=side, groups=0, channels=channels, grid=grid)
    decoded, _ = received(x, made, labels)
    for patch in patches(x, side, channels == "joint"):
        values = x[patch].flatten().tolist()
        table = levels_of(int(min(values)), int(max(values)), levels, grid)
        for value, got in zip(values, decoded[patch].flatten().tolist(), strict=True):
            assert Fraction(got) in table
            assert abs(Fraction(value) - Fraction(got)) == min(abs(Fraction(value) - t) for t in table)


@pytest.mark.parametrize("grid", ["minimum", "zero-point"])
def test_a_constant_patch_keeps_its_constant(grid):
    x = pictures()
    made, labels = quantizer(x, 2, groups=0, grid=grid)
    decoded, _ = received(x, made, labels)
    assert (decoded[0, 0, :5, :5] == 7).all()
    assert (decoded[1, 0, :5, :5] == 255).all()


@pytest.mark.parametrize("shift", [-400.0, -128.0, 300.0, 5000.0])
@pytest.mark.parametrize("groups", [0, 4])
def test_ranges_may_lie_on_either_side_of_zero(shift, groups):
    """z of eq. 3 is outside of the symbols' range where min > 0 or max < 0."""
    x = pictures() + shift
    for grid, steps in (("minimum", 0.51), ("zero-point", 1.02)):
        made, labels = quantizer(x, 16, groups=groups, grid=grid)
        decoded, _ = received(x, made, labels)
        assert np.abs(decoded - x.numpy()).max() <= steps * 255 / 15


def test_zero_point_misses_the_ends_by_at_most_half_a_step():
    x = torch.tensor([[200.0, 255.0, 0.0, 255.0]]).reshape(1, 1, 1, 4)
    made, labels = quantizer(x, 2, side=2, groups=0, grid="zero-point")
    decoded, _ = received(x, made, labels)
    assert decoded.flatten().tolist() == [220, 275, 0, 255]  # α = 55, z = −4: levels 4·55 and 5·55


def test_edge_patches_are_smaller():
    of = patch_of((Plane(1, 28, 28),), 5, True).reshape(28, 28)
    sizes = np.bincount(of.ravel()).reshape(6, 6)
    assert (sizes[:5, :5] == 25).all()
    assert (sizes[5, :5] == 15).all()
    assert sizes[5, 5] == 9


@pytest.mark.parametrize("joint", [True, False])
def test_patch_of_is_the_loop(joint):
    layout, side = (Plane(3, 7, 5), Plane(2, 4, 3)), 3
    expected, before = [], 0
    for plane in layout:
        down, across = -(-plane.height // side), -(-plane.width // side)
        for c in range(plane.channels):
            for y in range(plane.height):
                for x in range(plane.width):
                    first = before + (0 if joint else c * down * across)
                    expected.append(first + y // side * across + x // side)
        before += down * across * (1 if joint else plane.channels)
    assert patch_of(layout, side, joint).tolist() == expected


@pytest.mark.parametrize(("groups", "cluster"), [(1, "range"), (3, "range"), (8, "range"), (5, "scaled")])
def test_gaq_is_the_loop(groups, cluster):
    """Eq. 6–7: nearest centre, then min and max of all values of the group."""
    x = pictures(n=8, channels=3)
    made, labels = quantizer(x, 4, groups=groups, cluster=cluster)
    decoded, side = received(x, made, labels)
    centres = made._groups.centres.tolist()
    of_patch = {}
    for patch in patches(x, 5, True):
        low, high = x[patch].min().item(), x[patch].max().item()
        if cluster == "scaled":
            alpha = max(high - low, 1.0)  # a constant patch has α = 1
            low, high = alpha, round(-low / alpha)
        point = [v / s for v, s in zip((low, high), made._groups._scale.tolist(), strict=True)]
        group = min(range(len(centres)), key=lambda g: math.dist(centres[g], point))
        of_patch.setdefault(group, []).append(patch)
    for members in of_patch.values():
        values = torch.cat([x[p].flatten() for p in members])
        table = levels_of(int(values.min()), int(values.max()), 4, "minimum")
        for p in members:
            for value, got in zip(x[p].flatten().tolist(), decoded[p].flatten().tolist(), strict=True):
                assert Fraction(got) in table
                assert abs(Fraction(value) - Fraction(got)) == min(abs(Fraction(value) - t) for t in table)
    assert len(of_patch) == side.low.size


def test_k_means_is_better_than_any_single_move():
    """Eq. 6: every patch is in the group of the nearest centre, every centre the mean of its patches."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 2)))
    low, high = points.min(1).values, points.max(1).values
    groups = Groups(low, high, 6, "range", 1.0, seed=3)
    member = groups.of(low, high)
    for g in range(6):
        mean = torch.stack([low, high], 1)[member == g].mean(0)
        assert torch.allclose(mean, groups.centres[g], atol=0.05)
    assert (groups.centres.sum(1).diff() > 0).all()  # in order of brightness


def test_samples_may_be_left_out():
    """Groups that lose their last patch are not stored; the others are calibrated on what is left."""
    x = pictures(n=20)
    made, labels = quantizer(x, 4, groups=40)
    decoded, side = received(x[:2], made, labels[:2])
    assert side.low.size <= 12  # patches
    assert np.array_equal(made(x[:2].flatten(1), labels[:2]).numpy(), decoded.reshape(2, -1))


@pytest.mark.parametrize("clipping", ["minmax", "mse"])
@pytest.mark.parametrize("chosen", [{"groups": 0}, {"groups": 0, "precision": 3}, {"groups": 1}, {"groups": 9}])
@pytest.mark.parametrize("colours", [1, 3])
def test_training_sees_what_the_file_holds(chosen, clipping, colours):
    x = pictures(channels=colours)
    made, labels = quantizer(x, 3, clipping, **chosen)
    decoded, _ = received(x, made, labels)
    z = x.flatten(1).requires_grad_()
    trained = made.train()(z, labels)
    assert np.array_equal(trained.detach().numpy(), decoded.reshape(len(x), -1))
    trained.sum().backward()
    assert (z.grad == 1).all()


@pytest.mark.parametrize("groups", [0, 16])
def test_parameters_follow_the_values(groups):
    """Training moves the values; levels are of the values as they are, not as they were at the fit."""
    x = pictures()
    made, labels = quantizer(x, 256, groups=groups)
    moved = 255 - x
    assert np.abs(received(moved, made, labels)[0] - moved.numpy()).max() <= 1


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("groups", [0, 20])
def test_least_squares_beats_the_range(digits, levels, groups):
    x = torch.from_numpy(digits.train.x[:100].astype(np.float32))
    errors = {}
    for clipping in ("minmax", "mse"):
        made, labels = quantizer(x, levels, clipping, groups=groups, side=4)
        errors[clipping] = float(((made(x.flatten(1), labels) - x.flatten(1)) ** 2).mean())
    assert errors["mse"] < 0.9 * errors["minmax"]


def test_least_squares_of_two_levels_are_the_means_of_both_halves():
    x = torch.tensor([0.0, 10, 20, 200, 205, 255]).reshape(1, 1, 2, 3)
    made, labels = quantizer(x, 2, "mse", groups=0)
    assert received(x, made, labels)[0].flatten().tolist() == [10, 10, 10, 220, 220, 220]


# --- the largest number of groups --------------------------------------------------------------------------------


class Sizes:
    """Counts how often a size is asked for."""

    def __init__(self, of):
        self.of, self.asked = of, []

    def __call__(self, groups):
        self.asked.append(groups)
        return self.of(groups)


def exhaustive(size, budget, most):
    return max((g for g in range(1, most + 1) if size(g) <= budget), default=1)


@pytest.mark.parametrize("budget", [0, 1100, 1200, 1300, 1400, 1500, 1600, 10_000])
@pytest.mark.parametrize("noise", [0, 5])
def test_largest_groups_of_a_smooth_size(budget, noise):
    bumps = np.random.default_rng(0).integers(-noise, noise + 1, 257)
    size = Sizes(lambda g: round(1000 + 30 * math.log2(g)) + 2 * g + int(bumps[g]))
    found = largest_groups(size, lambda g: 2 * g, budget)
    assert len(size.asked) <= 4
    best = exhaustive(size.of, budget, 256)
    assert found == 1 or size.of(found) <= budget
    assert found <= best
    assert found >= (0.8 if noise else 0.99) * best - 1


def test_largest_groups_packs_once_where_all_fit():
    size = Sizes(lambda g: 10 * g)
    assert largest_groups(size, lambda g: 10 * g, 10_000, most=64) == 64
    assert size.asked == [64]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("budget", range(0, 70, 10))
def test_largest_groups_of_few(most, budget):
    size = Sizes(lambda g: 10 * g)
    assert largest_groups(size, lambda g: 10 * g, budget, most) == exhaustive(size.of, budget, most)


def test_largest_groups_of_real_files(digits):
    """At least half of what packing every candidate finds (one bit of an assignment), with four packs."""
    x = torch.from_numpy(digits.train.x[:200].astype(np.float32))

    def size(groups):
        made, labels = quantizer(x, 4, "mse", side=4, groups=groups)
        symbols, side = made.encode(x.flatten(1), labels)
        return len(pack(packed_set(symbols, (len(x),), side, shape=(1, 8, 8))))

    all_sizes = {g: size(g) for g in range(1, 65)}
    for share in (0.2, 0.5, 0.8):
        budget = round(all_sizes[1] + share * (all_sizes[64] - all_sizes[1]))
        asked = Sizes(all_sizes.get)
        found = largest_groups(asked, lambda g: 2 * g, budget, most=64)
        best = max(g for g in all_sizes if all_sizes[g] <= budget)
        assert len(asked.asked) <= 4
        assert all_sizes[found] <= budget
        assert found >= 0.5 * best


def test_groups_fill_the_budget(digits):
    x = torch.from_numpy(digits.train.x[:200].astype(np.float32))
    labels, sizes = torch.zeros(len(x), dtype=torch.int64), {}
    for budget in (1500, 2600, 100_000):
        made = build("patches", 4, "mse", canonical(Patches.options, {"groups": -1, "side": 4}, "patches"))
        made.budget = budget
        made.fit(x.flatten(1), labels, (Plane(1, 8, 8),))
        symbols, side = made.encode(x.flatten(1), labels)
        sizes[budget] = made.groups, len(pack(packed_set(symbols, (len(x),), side, shape=(1, 8, 8))))
    assert sizes[1500][0] == 1  # nothing fits: the fewest there are
    assert 1 < sizes[2600][0] < sizes[100_000][0] == 256
    assert 2400 < sizes[2600][1] <= 2600


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(("transform", "shape"), [("dct", (1, 8, 8)), ("pca", (3, 8, 8)), ("identity", (64,))])
def test_only_pictures(transform, shape):
    with pytest.raises(InputError, match="needs pictures"):
        Patches.check_transform(transform, shape)


def side_of(**changes):
    grid = UniformLevels(256, 0, 1, 0)
    given = {"low": np.array([0, 9], np.uint8), "high": np.array([5, 9], np.uint8)}
    group = np.array([[0, 1], [1, 1]], np.uint8)
    fields = {"count": 4, "side": 2, "joint": True, "zero_point": False, "grid": grid, "group": group} | given
    return PatchLevels(**(fields | changes))


def file_of(side):
    return packed_set(np.zeros((2, 1, 2, 4), np.uint8), (2,), side)


def test_made_by_hand():
    read = unpack(pack(file_of(side_of())))
    assert read.decode().reshape(2, 8).tolist() == [[0, 0, 9, 9, 0, 0, 9, 9], [9] * 8]


def test_an_upside_down_range_is_refused():
    with pytest.raises(BadHeader, match="upside down"):
        unpack(pack(file_of(side_of(low=np.array([6, 9], np.uint8)))))


def test_a_group_that_is_not_there_is_refused():
    body = bytearray(pack(file_of(side_of()))[4:-4])
    at = bytes(body).index(bytes([0, 9, 5, 9]))  # low and high of both groups; then length, coder, 4 groups
    assert body[at + 5] == 0  # raw bits
    with pytest.raises(BadHeader, match="unknown coder"):
        unpack(sealed(bytes(body[: at + 5] + b"\x63" + body[at + 6 :])))
    three = side_of(low=np.arange(3, dtype=np.uint8), high=np.full(3, 9, np.uint8))
    body = bytearray(pack(file_of(three))[4:-4])
    at = bytes(body).index(bytes([0, 1, 2, 9, 9, 9]))
    body[at + 8] = 0xFF  # four groups of two bits: 3 is not below 3
    with pytest.raises(BadPayload):
        unpack(sealed(bytes(body)))


def test_every_cut_and_flip_is_an_error_or_a_set():
    for side in (side_of(), side_of(low=np.zeros((2, 2), np.uint8), high=np.ones((2, 2), np.uint8), group=None)):
        body = pack(file_of(side))[4:-4]
        bad = [body[:cut] for cut in range(len(body))]
        bad += [body[:i] + bytes([body[i] ^ 1 << bit]) + body[i + 1 :] for i in range(len(body)) for bit in range(8)]
        for changed in bad:
            with contextlib.suppress(PackedFileError):
                unpack(sealed(changed)).decode(slice(0, 2))


@pytest.mark.parametrize("groups", [None, 1])
def test_a_small_file_cannot_ask_for_much_memory(groups):
    """2^28 values a sample, in a file of some bytes: refused before any array of that size is made."""
    shape = (1, 1 << 14, 1 << 14)
    side = side_of(side=256, low=np.zeros(1, np.uint8), high=np.ones(1, np.uint8), group=np.zeros((1, 4096), np.uint8))
    small = packed_set(
        np.zeros((1, 1, 2, 2), np.uint8), (1,), side_of(group=None, low=side.low[None], high=side.low[None])
    )
    data = pack(small) if groups is None else pack(packed_set(np.zeros((1, 1, 2, 2), np.uint8), (1,), side))
    body = data[4:-4]
    old = bytes([3, 1, 2, 2])
    assert body.count(old) == 1
    tracemalloc.start()
    try:
        with pytest.raises(PackedFileError):
            unpack(sealed(body.replace(old, bytes([3, 1, 0x80, 0x80, 1, 0x80, 0x80, 1]))))
        assert tracemalloc.get_traced_memory()[1] < 1 << 22, shape
    finally:
        tracemalloc.stop()


def test_unknown_forms_are_refused():
    for bits in (8, 16, 128):
        body = bytearray(pack(file_of(side_of()))[4:-4])
        at = bytes(body).index(bytes([3, 1, 5]))  # 4 levels, side 2, joint and grouped
        body[at + 2] |= bits
        with pytest.raises(BadHeader, match="unknown form"):
            unpack(sealed(bytes(body)))
    assert isinstance(file_of(side_of()), PackedSet)
