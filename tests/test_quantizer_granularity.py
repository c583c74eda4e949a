"""Groups of values with their own levels: the decoder against loops, few bits, and files of every kind of group."""

import numpy as np
import pytest
import torch
from sets import packed_set

from budgetopt.packing import ApotLevels, Domain, Plane, UniformLevels, pack, unpack
from budgetopt.packing.codebook import CodebookLevels
from budgetopt.packing.companding import CompandedLevels
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.grouped import KINDS, Grouped, column_groups, group_count, group_index, scale_of
from budgetopt.quantizers import build
from budgetopt.quantizers.granularity import Groups

PICTURE, COLUMNS, FREQUENCIES = (Plane(3, 4, 4),), (Plane(48),), (Plane(16, 3, 1),)
CHROMA = (Plane(1, 4, 8), Plane(2, 2, 4))
LAYOUTS = [PICTURE, COLUMNS, FREQUENCIES, CHROMA]
LABELS = torch.arange(3).repeat_interleave(torch.tensor([20, 0, 12]))
FAMILIES = ["uniform", "apot", "ddq", "lloyd-max"]


def values(seed=0):
    """(32, 48) with spreads and means that differ by column and class."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(32, 48)) * np.geomspace(0.05, 5, 48) + rng.normal(size=48) * 2 + LABELS.numpy()[:, None]
    return torch.from_numpy(x.astype(np.float32))


def fitted(family, kind, layout, x=None, levels=7, clipping=None, **options):
    clipping = clipping or {"apot": "half"}.get(family, "minmax")
    quantizer = build(family, levels, clipping, tuple(sorted({"granularity": kind, **options}.items())))
    quantizer.fit(values() if x is None else x, LABELS, layout)
    return quantizer


@pytest.mark.parametrize(("code", "scale"), [(0, 8), (7, 15), (8, 16), (9, 18), (16, 32), (127, 15 << 15)])
def test_scales_are_small_floats(code, scale):
    assert scale_of(np.array([code]))[0] == scale


def test_groups_of_columns():
    assert column_groups("channel", PICTURE) == [16, 16, 16] == column_groups("band", PICTURE)
    assert column_groups("feature", PICTURE) == [1] * 48
    assert column_groups("channel", COLUMNS) == [1] * 48
    assert column_groups("band", COLUMNS) == [12, 36]
    assert column_groups("band", FREQUENCIES) == [4 * 3, 12 * 3]
    assert column_groups("band", (Plane(5),)) == [2, 3]
    assert column_groups("channel", CHROMA) == [32, 8, 8]
    assert column_groups("band", CHROMA) == [32, 16]
    with pytest.raises(BadHeader, match="65536"):
        column_groups("feature", (Plane(70_000),))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_agree_on_the_groups(kind, layout):
    domain = Domain(layout, (20, 0, 12))
    groups = Groups(kind, layout, LABELS)
    index = group_index(kind, domain, np.arange(32))
    assert groups.count == group_count(kind, domain) == index.max() + 1
    assert np.array_equal(np.broadcast_to(index, (32, 48)), groups.of(LABELS).expand(32, 48).numpy())


def test_one_group_is_no_group():
    quantizer = build("uniform", 4, "minmax", (("granularity", "channel"),))
    quantizer.fit(torch.rand(5, 9), torch.zeros(5, dtype=torch.int64), (Plane(1, 3, 3),))
    assert isinstance(quantizer.side_information(), UniformLevels)


@pytest.mark.parametrize("percent", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_against_a_loop(kind, layout, percent):
    x, groups = values(), Groups(kind, layout, LABELS)
    ranges = groups.ranges(x, LABELS, percent)
    member = groups.of(LABELS).expand(32, 48).numpy()
    for group in range(groups.count):
        mine = x.numpy()[member == group]
        wanted = np.percentile(mine if mine.size else x.numpy(), [percent, 100 - percent])
        assert np.allclose(ranges[group], wanted, rtol=1e-6)


INNER = [UniformLevels(5, 0, 3, 4), ApotLevels(3, 2, 1, 2), CodebookLevels(-3, (1, 4, 2), 5),
         CompandedLevels(6, "tanh", -200, 180, 0, 1, -3)]  # fmt: skip


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.name)
def test_decoded_integers_against_a_loop(inner, kind, offsets):
    rng, domain = np.random.default_rng(1), Domain(CHROMA, (2, 0, 3))
    count = group_count(kind, domain)
    scales = tuple(rng.integers(0, 60, count).tolist())
    shifts = tuple(rng.integers(-9, 9, count).tolist()) if offsets else ()
    side = Grouped(inner, kind, scales, shifts, 3 if offsets else 0, -77 if offsets else 0)
    symbols = rng.integers(0, side.levels, (5, 48)).astype(np.uint8)
    table, sizes = inner.table().tolist(), [] if kind == "class" else column_groups(kind, CHROMA)
    for row, label in zip(range(5), (0, 0, 2, 2, 2), strict=True):
        ints = side.ints(symbols[row : row + 1], np.array([row]), domain)[0]
        for column in range(48):
            group = label if kind == "class" else int(np.searchsorted(np.cumsum(sizes), column, side="right"))
            scale = (8 + scales[group] % 8) * 2 ** (scales[group] // 8)
            level = scale * table[symbols[row, column]]
            if offsets:  # (base + S·(t/2^q·R + T_k − T_0))·2^q
                span, above = table[-1] - table[0], table[symbols[row, column]] - table[0]
                level = -77 * 8 + scale * (shifts[group] * span + 8 * above)
            assert ints[column] == level
            assert abs(level) <= side.most
    assert side.most == np.abs(side.tables()).max()
    packed = packed_set(symbols, (2, 0, 3), side) if kind in ("class", "feature") else None
    out = Writer()
    side.write(out, domain)
    fields = Reader(bytes(out.data))
    read = Grouped.read(fields, domain, type(inner).read(fields, domain))
    assert read == side
    assert fields.left == 0
    assert packed is None or unpack(pack(packed)).dequantizer == side


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_symbols_are_the_nearest_levels_of_their_group(family, kind, layout):
    x, quantizer = values(), fitted(family, kind, layout)
    symbols, side = quantizer.encode(x, LABELS)
    levels = side.tables() * 2.0**-side.exponent
    assert (np.diff(levels) > 0).all()
    member = quantizer.groups.of(LABELS).expand(32, 48).numpy()
    distance = np.abs(levels[member] - x.numpy()[..., None])
    chosen = np.take_along_axis(distance, symbols[..., None].astype(np.int64), 2)[..., 0]
    assert np.allclose(chosen, distance.min(2), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_group_levels_follow_the_ranges(family, kind):
    """Ends of the levels are the group's range, to what the few bits allow: 1/16 of a scale, and half an offset."""
    x = values()
    quantizer = fitted(family, kind, PICTURE, levels=15)
    side = quantizer.side_information()
    ends = side.tables()[:, [0, -1]] * 2.0**-side.exponent
    if family == "apot":
        wanted = 0.5 * (quantizer.groups.ranges(x, LABELS, 1.0) @ [-1.0, 1.0])[:, None] * [-1.0, 1.0]
    else:
        wanted = quantizer.groups.ranges(x, LABELS, 0.0)
    width = wanted[:, 1:] - wanted[:, :1]
    fine = (width > width.max() / 1000)[:, 0] | (family != "apot")
    assert (np.abs(ends - wanted)[fine] < (0.3 if family == "lloyd-max" else 0.07) * width[fine]).all()


@pytest.mark.parametrize("family", ["uniform", "lloyd-max"])
def test_own_levels_err_less_where_spreads_differ(family):
    x = values()
    errors = {k: float((fitted(family, k, FREQUENCIES).eval()(x, LABELS) - x).square().mean())
              for k in ("tensor", "band", "channel", "feature")}  # fmt: skip
    assert errors["feature"] < errors["channel"] < errors["tensor"]
    assert errors["band"] < errors["tensor"] or family == "lloyd-max"  # whose one codebook fits both bands


def test_parameters_take_few_bytes():
    """784 pixels, half of them always black: not 784 pairs of floats, 6,272 bytes, but at most a byte each."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.random((50, 784)) * np.repeat([0, 255], 392) * rng.random(784)).astype(np.float32))
    labels, layout = torch.zeros(50, dtype=torch.int64), (Plane(1, 28, 28),)
    for family, clipping in (("uniform", "minmax"), ("apot", "half")):
        quantizer = build(family, 3, clipping, (("granularity", "feature"),))
        quantizer.fit(x, labels, layout)
        out = Writer()
        quantizer.side_information().write(out, Domain(layout, (50,)))
        assert len(out.data) < 640
    same = Grouped(UniformLevels(4, 0, 1, 0), "feature", (20,) * 784, (0,) * 784, 3)
    out = Writer()
    same.write(out, Domain(layout, (50,)))
    assert len(out.data) <= 16


def test_a_group_without_spread_keeps_its_value():
    x = values()
    x[:, 5], x[:, 6] = 1.25, -40.0
    out = fitted("uniform", "feature", COLUMNS, x).eval()(x, LABELS)
    assert torch.allclose(out[:, 5:7], x[:, 5:7], atol=0.05, rtol=0.02)


def test_columns_of_different_units():
    """A table of 0 … 10^6 beside 100 … 101 and 10^−3: offsets of a few hundred widths are held."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.random((32, 3)) * [1e6, 1.0, 1e3] + [0.0, 100.0, -1e4]).astype(np.float32))
    out = fitted("uniform", "feature", (Plane(3),), x, levels=16).eval()(x, LABELS)
    assert float((out - x)[:, 0].abs().max()) < 1e6 / 20
    assert float((out - x)[:, 2].abs().max()) < 1e3 / 2


def test_unused_classes_cost_nothing_and_rows_may_go():
    x, quantizer = values(), fitted("uniform", "class", PICTURE)
    keep = torch.tensor([0, 1, 20])
    symbols, side = quantizer.encode(x[keep], LABELS[keep])
    packed = packed_set(symbols.reshape(3, 3, 4, 4), (2, 0, 1, 0), side)
    received = unpack(pack(packed))
    assert np.array_equal(received.decode().reshape(3, 48), quantizer.eval()(x[keep], LABELS[keep]).numpy())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": (128,)}, "scales"),
        ({"scales": ()}, "scales"),
        ({"offsets": (1 << 15,)}, "16 bits"),
        ({"fraction": 13}, "fraction"),
        ({"base": 1 << 24}, "2\\^24"),
        ({"inner": ApotLevels(8, 7, (1 << 24) - 1, 0), "scales": (127,), "offsets": (-(1 << 15),)}, "62 bits"),
    ],
)
def test_wrong_parameters_are_named(wrong, message):
    plain = {"inner": UniformLevels(4, 0, 1, 0), "kind": "channel", "scales": (3,), "offsets": (1,), "fraction": 2}
    with pytest.raises(BadHeader, match=message):
        Grouped(**(plain | wrong))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x00\x00", "granularity 0"),
        (b"\x07\x00\x00", "granularity 7"),
        (b"\x11\x00\x00", "fraction"),
        (b"\x01\xff\x01\x00\xff", "above 255"),
        (b"\x01\x80\x00", "scales"),
        (b"\x01\x00\x7f\xff\x7f", "length of the parameters"),
    ],
)
def test_hostile_parameters_are_named(data, message):
    with pytest.raises(BadHeader, match=message):
        Grouped.read(Reader(data), Domain(PICTURE, (1,)), UniformLevels(4, 0, 1, 0))


def test_only_tables_of_levels_have_groups():
    with pytest.raises(BadHeader, match="no groups"):
        Grouped.read(Reader(b"\x01\x00\x00"), Domain(PICTURE, (1,)))
