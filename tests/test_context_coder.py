"""The context coder: exact, the bytes its specification says, and shorter where there is something to learn."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from decimal import Decimal, localcontext
from functools import cache

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from budgetopt.packing import coders
from budgetopt.packing.context import RATES, ContextMixing
from budgetopt.packing.context_arithmetic import FAR, inverse_roots, logarithms, logistic
from budgetopt.packing.context_names import COLUMNS, FEW_LEVELS, FOUR, MANY_LEVELS, MIRROR, TWO_LEVELS, context_names
from budgetopt.packing.context_schedule import MOST_STEPS, blocks, cells_of_steps, steps_of, visiting_order, widest
from budgetopt.packing.errors import BadPayload
from budgetopt.packing.layout import Domain, Layout, Plane

Drawn = tuple[np.ndarray, int, Layout, tuple[int, ...], np.ndarray | None]


class CODER:
    """The coder with the domain spelt out."""

    @staticmethod
    def encode(symbols, levels, layout, counts, hint=None):
        return ContextMixing().encode(symbols, levels, Domain(layout, counts), hint)

    @staticmethod
    def decode(payload, levels, layout, counts, hint=None):
        return coders.decode(ContextMixing(), payload, levels, Domain(layout, counts), hint)

    @staticmethod
    def supports(layout, samples):
        return ContextMixing().supports(2, Domain(layout, (samples,)))


def real_digits(levels: int, each: int = 8) -> tuple[np.ndarray, tuple[int, ...]]:
    """(10·each, 64) symbols in class order."""
    data = load_digits()
    members = np.concatenate([np.flatnonzero(data.target == c)[:each] for c in range(10)])
    return np.round(data.data[members] / 16 * (levels - 1)).astype(np.uint8), (each,) * 10


@st.composite
def sets(draw: st.DrawFn) -> Drawn:
    levels = draw(st.sampled_from([2, 3, 4, 5, 8, 11, 17, 256]))
    planes = st.builds(Plane, st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
    layout = tuple(draw(st.lists(planes, min_size=1, max_size=2)))
    counts = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any)))
    shape = (sum(counts), sum(plane.size for plane in layout))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["constant", "smooth", "uniform"]))
    if kind == "constant":
        symbols = np.full(shape, draw(st.integers(0, levels - 1)))
    elif kind == "smooth":
        symbols = np.abs(np.cumsum(rng.integers(-1, 2, shape), axis=1)) % levels
    else:
        symbols = rng.integers(0, levels, shape)
    hint = rng.integers(0, 7, shape).astype(np.uint8) if draw(st.booleans()) else None
    return symbols.astype(np.uint8), levels, layout, counts, hint


@settings(max_examples=15)
@given(sets())
def test_round_trip(drawn: Drawn) -> None:
    symbols, levels, layout, counts, hint = drawn
    before = symbols.copy()
    decoded = CODER.decode(CODER.encode(symbols, levels, layout, counts, hint), levels, layout, counts, hint)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, symbols)
    assert np.array_equal(before, symbols)


@settings(max_examples=8)
@given(sets(), st.binary(max_size=40), st.integers(0, 2**16))
def test_a_corrupt_payload_decodes_to_symbols_or_is_refused(drawn: Drawn, noise: bytes, cut: int) -> None:
    symbols, levels, layout, counts, hint = drawn
    payload = CODER.encode(symbols, levels, layout, counts, hint)
    at = cut % (len(payload) + 1)
    for broken in (noise, payload[:at] + noise, bytes([cut % 3]) + noise):
        try:
            decoded = CODER.decode(broken, levels, layout, counts, hint)
        except BadPayload:
            continue
        assert decoded.shape == symbols.shape
        assert decoded.max() < levels


@pytest.mark.parametrize("payload", [b"", bytes([len(RATES)]), b"\xff" * 9])
def test_an_unknown_rate_is_refused(payload: bytes) -> None:
    with pytest.raises(BadPayload, match="rates"):
        CODER.decode(payload, 4, (Plane(1, 4, 4),), (2,))


def test_layouts_of_too_many_steps_are_refused() -> None:
    assert CODER.supports((Plane(3, 128, 128),), 300)
    assert CODER.supports((Plane(1, 28, 28), Plane(2, 14, 14)), 14_000)
    assert CODER.supports((Plane(MOST_STEPS),), 1)
    for layout in ((Plane(1 << 20),), (Plane(1, 1 << 14, 1),), (Plane(1, 4096, 4096),), ()):
        assert not CODER.supports(layout, 1)
    with pytest.raises(BadPayload, match=r"cannot hold|does not take"):
        CODER.decode(b"\0\1\2", 2, (Plane(1 << 20),), (1,))


# Tables and order


def test_tables_equal_their_definition_in_decimal_arithmetic() -> None:
    assert logarithms(1024, 5, 2).tolist() == [twin_log(k) for k in range(1024)]
    assert logistic().tolist() == [twin_logistic(x) for x in range(-FAR, FAR + 1)]
    assert inverse_roots(2000).tolist() == [twin_root(max(k, 1)) for k in range(2000)]


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_steps_visit_every_cell_once_after_its_neighbours(channels: int, height: int, width: int) -> None:
    plane = Plane(channels, height, width)
    steps = cells_of_steps(plane)
    assert len(steps) <= steps_of(plane)
    assert max(step.size for step in steps) <= widest(plane)
    assert sorted(np.concatenate(steps)) == list(range(plane.size))
    when = np.empty(plane.size, np.int64)
    for k, step in enumerate(steps):
        when[step] = k
    grid = when.reshape(channels, height, width)
    assert (grid[:, :, :-1] < grid[:, :, 1:]).all()
    assert (grid[:, :-1, 1:] < grid[:, 1:, :-1]).all()
    assert (grid[:-1] < grid[1:]).all()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 300, 100_000])
@pytest.mark.parametrize("plane", [Plane(1, 8, 8), Plane(3, 128, 128), Plane(64), Plane(5000)])
def test_blocks_cover_all_samples_in_few_steps(n: int, plane: Plane) -> None:
    found = blocks(n, (plane,), 1)
    assert [start for start, _ in found] == [0, *(stop for _, stop in found)][: len(found)]
    assert sum(stop - start for start, stop in found) == n
    assert len(found) * steps_of(plane) <= 2500 + steps_of(plane) * (1 + 2 * n * widest(plane) / (1 << 14))


def test_every_part_of_the_order_sees_all_classes() -> None:
    order, labels = visiting_order((30, 0, 10))
    assert sorted(order) == list(range(40))
    assert labels[:4].tolist().count(0) == 3
    assert all((part == 2).any() for part in np.split(labels, 10))


# The same bytes as a slow twin that follows the specification value by value


@cache
def twin_log(k: int) -> int:
    with localcontext() as context:
        context.prec = 40
        return int((256 * Decimal(5 * k + 2).ln()).to_integral_value())


@cache
def twin_logistic(x: int) -> int:
    with localcontext() as context:
        context.prec = 40
        return min(max(int((65536 / (1 + (Decimal(-x) / 256).exp())).to_integral_value()), 1), 65535)


@cache
def twin_root(k: int) -> int:
    return int((Decimal(2) ** 24 / k).sqrt())


def twin_distances(
    v: dict[str, int], channel: int, channels: int, levels: int, threshold: int
) -> list[tuple[int, ...]]:
    w, n, nw, ne, ww, nn = (v[k] for k in ("w", "n", "nw", "ne", "ww", "nn"))
    p, pw, pn, q, qw, qn = (v[k] for k in ("p", "pw", "pn", "q", "qw", "qn"))
    rough = abs(w - nw) + abs(n - nw) + abs(n - ne)
    found = [8 * sorted((w, n, w + n - nw))[1], 6 * w + 6 * n - 4 * nw, 4 * w + 4 * n + 2 * ne - 2 * nw]
    found += [3 * w + 3 * n + nw + ne, 8 * w + 4 * ne - 4 * n, 16 * w - 8 * ww, 16 * n - 8 * nn]
    if channels > 1 and channel:
        rough += abs(p - pw) + abs(p - pn)
        found += [4 * (w + n) + 8 * p - 4 * (pw + pn), 8 * (w + p - pw), 8 * (n + p - pn)]
    elif channels > 1:
        found += [8 * w, 8 * n, 8 * ne]
    if channels > 1:
        both = 4 * (w + n) + 4 * (p + q) - 2 * (pw + pn + qw + qn)
        found.append(both if channel > 1 else 8 * (w + n) - 8 * nw)
    contexts = []
    for k, prediction in enumerate(found):
        away = max(-8 * levels, min(8 * levels, prediction - 8 * threshold + 4))
        octave = max(abs(away).bit_length() - 3, 1)
        rank = (abs(away) >> octave) + 4 * (octave - 1)
        contexts.append((k, channel if channels <= 4 else 0, min(rough.bit_length(), 5), rank if away > 0 else -rank))
    return contexts


def twin_product(name: str, features: dict[str, tuple[int, int]]) -> tuple[int, int]:
    number, space = 0, 1
    for feature in name.split():
        value, size = features[feature]
        number, space = number * size + value, space * size
    return number, space


OFFSETS = {"w": (0, 0, -1), "n": (0, -1, 0), "nw": (0, -1, -1), "ne": (0, -1, 1), "ww": (0, 0, -2), "nn": (0, -2, 0)}
OFFSETS |= {"nne": (0, -2, 1), "nww": (0, -1, -2), "nnw": (0, -2, -1), "www": (0, 0, -3), "nnn": (0, -3, 0)}
OFFSETS |= {"p": (1, 0, 0), "pw": (1, 0, -1), "pn": (1, -1, 0), "pe": (1, 0, 1), "ps": (1, 1, 0), "q": (2, 0, 0)}
OFFSETS |= {"qw": (2, 0, -1), "qn": (2, -1, 0), "a": (1, 0, 0), "b": (2, 0, 0)}


def twin(symbols: np.ndarray, levels: int, plane: Plane, counts: tuple[int, ...], names: list[str], rate: int) -> bytes:
    """Payload without its first byte. For planes without parents, of at most 1024 positions, levels ≤ 16."""
    depth, (C, H, W) = (levels - 1).bit_length(), (plane.channels, plane.height, plane.width)
    grey = min(levels, 4)
    groups = max(16, (1 << min(max((symbols.size * depth - 1).bit_length(), 8), 15)) >> depth)
    if H * W == 1:
        selectors = ["one", "class", "a p"]
    elif C > 1:
        selectors = ["class ch", "p w n ch", "stripe"]
    else:
        selectors = ["class", FOUR if levels == 2 else "w n ne", "stripe"]
    seen: dict[tuple, list[int]] = {}
    weights: dict[tuple, list[int]] = {}
    used: dict[tuple, int] = {}
    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Bernoulli(perfect=False)
    labels = [c for c, size in enumerate(counts) for _ in range(size)]
    ranks = [r for size in counts for r in range(size)]
    order = sorted(range(len(labels)), key=lambda i: ((2 * ranks[i] + 1) << 31) // counts[labels[i]])
    pixels = symbols.reshape(-1, C, H, W).tolist()
    lag = 1 if H * W == 1 else 4
    stripes, across = (H + 3) // 4, (W + 3) // 4

    def features_of(i: int, c: int, r: int, x: int) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
        near = {k: coded.get((i, c - b, r + d, x + e), 0) for k, (b, d, e) in OFFSETS.items()}
        f = {k: (v * grey // levels, grey) for k, v in near.items()}
        f |= {k.upper(): (near[k], levels) for k in "wnpqab"}
        for k, e in (("mirror", 0), ("mirror_e", -1), ("mirror_w", 1)):
            f[k] = (coded.get((i, c, r, W - 1 - x + e), 0) * grey // levels, grey)
        f |= {"one": (0, 1), "ch": (c, C), "class": (labels[i], len(counts)), "half": (int(2 * x > W - 1), 2)}
        f |= {"pos": ((c * H + r) * W + x, C * H * W), "row": (c * H + r, C * H), "col": (c * W + x, C * W)}
        f["stripe"] = (c * stripes + r // 4, C * stripes)
        f["area"] = (f["stripe"][0] * across + x // 4, C * stripes * across)
        return near, f

    for start, stop in blocks(len(order), (plane,), depth):
        coded: dict[tuple[int, ...], int] = {}
        for moment in range(W + 2 * H + lag * C):
            cells = [(c, r, x) for c in range(C) for r in range(H) for x in range(W) if x + 2 * r + lag * c == moment]
            values = [(i, *cell) for cell in cells for i in order[start:stop]]
            features = {value: features_of(*value) for value in values}
            prefix = dict.fromkeys(values, 0)
            for bit in range(depth - 1, -1, -1):
                learned = []
                node = {value: (1 << (depth - 1 - bit)) - 1 + prefix[value] for value in values}
                for value in values:
                    near, f = features[value]
                    threshold = (2 * prefix[value] + 1) << bit
                    prefix[value] *= 2
                    if threshold >= levels:
                        continue
                    slots: list[tuple] = []
                    for name in names:
                        number, space = twin_product(name, f)
                        if space > groups:
                            number = (number * 0x9E3779B97F4A7C15) % 2**64 >> (65 - groups.bit_length())
                        slots.append((name, number, node[value]))
                    if levels > 4 and H * W > 1:
                        slots += [(bit, *key) for key in twin_distances(near, value[1], C, levels, threshold)]
                    inputs = []
                    for slot in slots:
                        pair = seen.setdefault(slot, [0, 0])
                        while sum(pair) > 1023:
                            pair[:] = [(pair[0] + 1) // 2, (pair[1] + 1) // 2]
                        inputs.append(twin_log(pair[1]) - twin_log(pair[0]))
                    inputs.append(256)
                    chosen, mixed = [], []
                    for name in selectors:
                        number, space = twin_product(name, f)
                        key = (name, number % min(space, 1024 >> depth), node[value])
                        first = [(9 << 20) // 5 // len(slots)] * len(slots) + [0]
                        total = sum(a * b for a, b in zip(weights.setdefault(key, first), inputs, strict=True))
                        mixed.append(max(-2815, min(2815, total >> 20)))
                        chosen.append(key)
                    i, c, r, x = value
                    y = pixels[i][c][r][x] >> bit & 1
                    p = twin_logistic(sum(mixed) // 3)
                    encoder.encode(np.array([y], np.int32), model, np.array([p / 65536]))
                    prefix[value] += y
                    learned.append((slots, chosen, inputs, mixed, y))
                together: dict[tuple, int] = {}
                for key in (key for _, chosen, *_ in learned for key in chosen):
                    together[key] = together.get(key, 0) + 1
                for slots, chosen, inputs, mixed, y in learned:
                    for slot in slots:
                        seen[slot][y] += 1
                    for key, m in zip(chosen, mixed, strict=True):
                        warm = rate * 4 + rate * 28 * 4096 // (4096 + used.get(key, 0))
                        pace = ((y * 65536 - twin_logistic(m)) * twin_root(together[key]) * warm) >> 18
                        weights[key] = [a + ((b * pace) >> 14) for a, b in zip(weights[key], inputs, strict=True)]
                for key, size in together.items():
                    used[key] = used.get(key, 0) + size
            coded.update(prefix)
    return bytes(encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


GREY = ["row class " + FOUR, "col class " + FOUR, "class " + MIRROR, MIRROR]


@pytest.mark.parametrize(
    ("levels", "plane", "names"),
    [
        (2, Plane(1, 6, 5), [*TWO_LEVELS, *GREY]),
        (3, Plane(1, 5, 6), [*FEW_LEVELS, *GREY]),
        (6, Plane(1, 4, 6), [*MANY_LEVELS, "ch W N", "class " + MIRROR]),
        (9, Plane(3, 4, 3), context_names(Plane(3, 4, 3), 9, False, False)),
        (4, Plane(2, 3, 4), context_names(Plane(2, 3, 4), 4, False, False)),
        (5, Plane(2), COLUMNS),
    ],
)
def test_bytes_equal_the_twin_that_follows_the_specification(levels: int, plane: Plane, names: list[str]) -> None:
    counts = (3, 0, 4)
    rng = np.random.default_rng(levels)
    smooth = np.abs(np.cumsum(rng.integers(-1, 2, (7, plane.size)), axis=1))
    symbols = (smooth % levels).astype(np.uint8)
    payload = CODER.encode(symbols, levels, (plane,), counts)
    assert payload[1:] == twin(symbols, levels, plane, counts, names, RATES[payload[0]])


# The same bytes everywhere


def test_order_of_memory_and_type_do_not_change_the_bytes() -> None:
    symbols, counts = real_digits(4, 3)
    layout = (Plane(1, 8, 8),)
    expected = CODER.encode(symbols, 4, layout, counts)
    for same in (symbols.astype(">i4"), np.asfortranarray(symbols), np.repeat(symbols, 2, axis=1)[:, ::2]):
        assert CODER.encode(same, 4, layout, counts) == expected


def test_threads_do_not_change_the_bytes() -> None:
    symbols, counts = real_digits(3, 4)
    script = (
        "import hashlib, sys, numpy as np\n"
        "from budgetopt.packing.context import ContextMixing\n"
        "from budgetopt.packing.layout import Domain, Plane\n"
        "symbols = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(40, 64)\n"
        "payload = ContextMixing().encode(symbols, 3, Domain((Plane(1, 8, 8),), (4,) * 10), None)\n"
        "print(hashlib.sha256(payload).hexdigest())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    run = subprocess.run(
        [sys.executable, "-c", script], input=symbols.tobytes(), capture_output=True, check=True, env=environment
    )
    here = CODER.encode(symbols, 3, (Plane(1, 8, 8),), counts)
    assert run.stdout.decode().strip() == hashlib.sha256(here).hexdigest()


# Length


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_classes_and_neighbours_shorten_real_digits(levels: int) -> None:
    symbols, counts = real_digits(levels)
    layout, rng = (Plane(1, 8, 8),), np.random.default_rng(0)
    length = len(CODER.encode(symbols, levels, layout, counts))
    share = np.bincount(symbols.ravel()) / symbols.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * symbols.size / 8
    assert length < 0.85 * entropy  # no order-0 coder, adaptive ones included, comes near
    mixed_classes = symbols[rng.permutation(len(symbols))]
    mixed_pixels = symbols[:, rng.permutation(64)]
    assert length < 0.99 * len(CODER.encode(mixed_classes, levels, layout, counts))
    assert length < 0.97 * len(CODER.encode(mixed_pixels, levels, layout, counts))


def test_a_hint_and_the_plane_below_are_used() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (40, 36)).astype(np.uint8)
    plane = Plane(1, 6, 6)
    alone = len(CODER.encode(truth, 4, (plane,), (40,)))
    assert len(CODER.encode(truth, 4, (plane,), (40,), truth ^ 1)) < 0.6 * alone
    twice = np.concatenate([truth, truth], axis=1)
    assert len(CODER.encode(twice, 4, (plane, plane), (40,))) < 1.6 * alone


def test_columns_learn_from_a_distant_column() -> None:
    """Column 20 + k repeats column k."""
    half = np.random.default_rng(0).integers(0, 2, (400, 20)).astype(np.uint8)
    payload = CODER.encode(np.concatenate([half, half], axis=1), 2, (Plane(40),), (400,))
    assert len(payload) < 1.25 * half.size / 8


def test_constant_symbols_cost_almost_nothing_but_stay_within_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(CODER.encode(np.zeros((50, 64), np.uint8), 2, (Plane(1, 8, 8),), (50,))) < 40
    monkeypatch.setattr("budgetopt.packing.context.FREE_SYMBOLS", 1000)
    symbols = np.zeros((600, 64), np.uint8)
    payload = CODER.encode(symbols, 2, (Plane(1, 8, 8),), (600,))
    assert symbols.size <= 1000 + 256 * len(payload)
    assert not CODER.decode(payload, 2, (Plane(1, 8, 8),), (600,)).any()
