import hashlib
import json
import math
import os
import subprocess
import sys
import zlib
from fractions import Fraction
from itertools import product

import constriction
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sets import coded_by, coder_name, packed_set, quickly_packed

from budgetopt.errors import InputError
from budgetopt.packing import (
    ApotLevels,
    Identity,
    Standardize,
    UniformLevels,
    load,
    pack,
    read_file,
    sections,
    unpack,
)
from budgetopt.packing.coders import CODERS
from budgetopt.packing.errors import BadHeader

SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # every coder is tried
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
APOT_FORMS = [(b, k) for b in range(1, 9) for k in range(1, 8) if b == 1 or k == 2 or (b - 1) % k == 0]


@st.composite
def level_tables(draw):
    exponent = draw(st.integers(-12, 20))
    if draw(st.booleans()):
        low = draw(st.integers(-(1 << 23), 1 << 23))
        return UniformLevels(draw(st.integers(2, 256)), low, draw(st.integers(1, 1 << 16)), exponent)
    bits, k = draw(st.sampled_from(APOT_FORMS))
    return ApotLevels(bits, k, draw(st.integers(1, 1 << 10)), exponent)


@st.composite
def packed_sets(draw):
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 5)),)
    else:
        shape = (draw(st.sampled_from([1, 3])), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    channels = shape[0] if len(shape) == 3 else 1
    if draw(st.booleans()):
        counts = (draw(st.integers(1, 5)),) * draw(st.integers(1, 5))
    else:
        counts = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any)))
    table = draw(level_tables())
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    skew = draw(st.sampled_from([0.0, 0.5, 1.0]))
    symbols = rng.integers(0, table.levels, (sum(counts), *shape))
    symbols = np.where(rng.random(symbols.shape) < skew, draw(st.integers(0, table.levels - 1)), symbols)
    inverse = Identity()
    if draw(st.booleans()):
        scales = st.lists(st.integers(1, 255), min_size=channels, max_size=channels)
        offsets = st.lists(st.integers(-4095, 4095), min_size=channels, max_size=channels)
        # near the exponent of the levels, as any fit has it: the format refuses exponents that are far apart
        scale_exponent = draw(st.integers(-3, 3))
        offset_exponent = table.exponent + scale_exponent + draw(st.integers(-3, 3))
        inverse = Standardize(tuple(draw(scales)), scale_exponent, tuple(draw(offsets)), offset_exponent)
    mean = rng.normal(size=channels).astype(np.float32)
    std = rng.uniform(0.1, 100, size=channels).astype(np.float32)
    if draw(st.booleans()):
        mean, std = mean.astype(np.float16).astype(np.float32), std.astype(np.float16).astype(np.float32)
    protocol = draw(st.one_of(st.integers(0, 255), st.binary(max_size=300)))
    return packed_set(symbols, counts, table, inverse=inverse, mean=mean, std=std, protocol=protocol)


# --- an independent reader: FORMAT.md and Python integers only -----------------------------------------------------


class Spec:
    """Decodes a file by the text of FORMAT.md, one number at a time."""

    def __init__(self, data):
        assert data[:3] == b"BOP"
        assert data[3] in (1, 2)
        assert int.from_bytes(data[-4:], "little") == zlib.crc32(data[:-4])
        self.rest = list(data[4:-4])
        flags = self.byte()
        self.protocol = bytes(self.byte() for _ in range(self.u())) if flags & 2 else self.byte()
        self.shape = [self.u() for _ in range(self.byte())]
        channels = self.shape[0] if len(self.shape) == 3 else 1
        classes = self.u()
        self.counts = [self.u()] * classes if flags & 1 else [self.u() for _ in range(classes)]
        self.mean = [self.f(flags & 4) for _ in range(channels)]
        self.std = [self.f(flags & 4) for _ in range(channels)]
        families = self.byte()
        self.affine = None
        if families >> 4 == 1:
            e_s, e_o = self.s(), self.s()
            self.affine = e_s, e_o, [(self.u(), self.s()) for _ in range(channels)]
        if families & 15 == 0:
            count = self.byte() + 1
            low, step, self.e = self.s(), self.u(), self.s()
            self.table = [low + k * step for k in range(count)]
        else:
            form = self.byte()
            magnitudes = naive_apot((form & 15) + 1, form >> 4)
            unit, self.e = self.u(), self.s()
            smallest = min(Fraction(1, m.denominator) * (m.numerator & -m.numerator) for m in magnitudes if m)
            whole = [m / smallest for m in magnitudes]
            self.table = [int(m) * unit for m in sorted({s * m for m in whole for s in (-1, 1)})]
        self.n = sum(self.counts) * math.prod(self.shape)
        decode = {0: self.raw_bits, 1: self.range_coded}[self.byte()]
        self.symbols = decode(bytes(self.rest))

    def byte(self):
        return self.rest.pop(0)

    def u(self):
        value = shift = 0
        while True:
            part = self.byte()
            value += (part % 128) << shift
            shift += 7
            if part < 128:
                return value

    def s(self):
        zigzag = self.u()
        return zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2

    def f(self, wide):
        raw = bytes(self.byte() for _ in range(4 if wide else 2))
        return np.frombuffer(raw, "<f4" if wide else "<f2")[0]

    def raw_bits(self, payload):
        width = max(1, (len(self.table) - 1).bit_length())
        bits = "".join(f"{byte:08b}" for byte in payload)
        return [int(bits[i * width : (i + 1) * width], 2) for i in range(self.n)]

    def range_coded(self, payload):
        payload += bytes(-len(payload) % 4)
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        stride = max(1, self.n * 4051 // 6555)
        while math.gcd(stride, self.n) != 1:
            stride += 1
        symbols, counts, start = [None] * self.n, [1] * len(self.table), 0
        while start < self.n:
            size = min(max(1, start // 32), self.n - start)
            model = constriction.stream.model.Categorical(np.array(counts, np.float64), perfect=False)
            for i in range(start, start + size):
                symbols[i * stride % self.n] = decoder.decode(model)
            for i in range(start, start + size):
                counts[symbols[i * stride % self.n]] += 2
            start += size
        return symbols

    def samples(self):
        """Exact values in raw units, flat."""
        pixels = math.prod(self.shape[1:]) if len(self.shape) == 3 else math.prod(self.shape)
        values = []
        for i, symbol in enumerate(self.symbols):
            value = Fraction(self.table[symbol]) / Fraction(2) ** self.e
            if self.affine:
                e_s, e_o, pairs = self.affine
                scale, offset = pairs[i // pixels % len(pairs)]
                value = value * scale / Fraction(2) ** e_s + offset / Fraction(2) ** e_o
            values.append(value)
        return values


def naive_apot(bits, k):
    """Magnitudes (Fractions): b − 1 = k·n, or the odd remainder for k = 2; terms below 2^−22 are dropped."""
    if bits == 1:
        return [Fraction(1)]
    n, rest = divmod(bits - 1, k)
    choices = [[0, *(Fraction(1, 2 ** (i + j * n)) for j in range(2**k - 1))] for i in range(n)]
    if rest:
        choices = [[0, *(Fraction(1, 2**e) for e in (i, i + n, i + 2 * n + 1))] for i in range(n)]
        choices.append([0, Fraction(1, 2 ** (2 * n))])
    choices = [[p for p in term if p == 0 or p >= Fraction(1, 2**22)] for term in choices]
    return sorted({sum(ps, Fraction(0)) for ps in product(*choices)})


# --- round trips ----------------------------------------------------------------------------------------------------


@SLOW
@given(packed_sets())
def test_the_shortest_file_round_trips(packed):
    data = pack(packed)
    assert unpack(data) == packed
    assert pack(unpack(data)) == data


@FAST
@given(packed_sets())
def test_round_trip(packed):
    data = quickly_packed(packed)
    again = unpack(data)
    assert np.array_equal(again.symbols, packed.symbols)
    assert again.symbols.dtype == np.uint8
    assert again.symbols.shape == packed.symbols.shape == (len(packed), math.prod(packed.shape))
    assert again.shape == packed.shape
    assert again.counts == packed.counts
    assert again.dequantizer == packed.dequantizer
    assert again.inverse == packed.inverse
    assert np.array_equal(again.mean, packed.mean)
    assert np.array_equal(again.std, packed.std)
    assert again.protocol == packed.protocol
    assert quickly_packed(again) == data


@FAST
@given(packed_sets())
def test_sections_add_up(packed):
    data = quickly_packed(packed)
    parts = sections(data)
    assert sum(size for _, size in parts) == len(data)
    assert all(size >= 0 for _, size in parts)
    assert parts[0] == ("magic and version", 4)
    assert parts[-1] == ("checksum", 4)
    assert coder_name(data) in {coder.name for coder in CODERS.values()}


@SLOW
@given(packed_sets())
def test_every_coder_holds_the_same_symbols(packed):
    """`pack` writes the shortest; a reader takes any, and packs it again to the shortest."""
    data, symbols = pack(packed), packed.symbols
    for coder in CODERS.values():
        if coder.supports(packed.dequantizer.levels, packed.domain):
            other = coded_by(coder, packed)
            assert coder_name(other) == coder.name
            assert np.array_equal(unpack(other).symbols, symbols)
            assert len(other) >= len(data)
            assert pack(unpack(other)) == data


@FAST
@given(packed_sets(), st.sampled_from([0, 1]))
def test_format_page_describes_the_file(packed, ident):
    """What FORMAT.md says, done with Python integers and fractions, gives what the package decodes."""
    spec = Spec(coded_by(CODERS[ident], packed))
    assert spec.symbols == packed.symbols.reshape(-1).tolist()
    assert tuple(spec.counts) == packed.counts
    assert tuple(spec.shape) == packed.shape
    assert spec.table == packed.dequantizer.table().tolist()
    assert np.array_equal(np.float32(spec.mean), packed.mean)
    assert np.array_equal(np.float32(spec.std), packed.std)
    assert spec.protocol == packed.protocol
    decoded = packed.decode().reshape(-1)
    for exact, got in zip(spec.samples(), decoded.tolist(), strict=True):
        nearest = np.float32(exact.numerator / exact.denominator)  # int / int is correctly rounded, to 53 bits
        if exact.numerator.bit_length() <= 53:
            assert got == nearest
        else:
            assert got == pytest.approx(float(nearest), rel=1e-7)


@pytest.mark.parametrize("levels", range(2, 257))
def test_every_number_of_levels(levels):
    symbols = np.random.default_rng(levels).integers(0, levels, (3, 1, 5, 7))
    symbols[0, 0, 0, 0], symbols[2, 0, 4, 6] = levels - 1, 0
    packed = packed_set(symbols, dequantizer=levels)
    for ident in (0, 1):
        assert np.array_equal(unpack(coded_by(CODERS[ident], packed)).symbols, symbols.reshape(3, 35))
    if levels in (2, 3, 17, 256):
        assert np.array_equal(unpack(pack(packed)).symbols, symbols.reshape(3, 35))
    for ident in (0, 1):
        assert Spec(coded_by(CODERS[ident], packed)).symbols == symbols.reshape(-1).tolist()


@pytest.mark.parametrize(("bits", "k"), APOT_FORMS)
def test_every_apot_form(bits, k):
    table = ApotLevels(bits, k, 3, 7)
    symbols = np.arange(2 * table.levels).reshape(-1, 1) % table.levels
    data = quickly_packed(packed_set(symbols, dequantizer=table))
    assert unpack(data).dequantizer == table
    exact = Spec(coded_by(CODERS[0], unpack(data))).samples()
    assert unpack(data).decode().reshape(-1).tolist() == [float(np.float32(float(v))) for v in exact]


# --- size -----------------------------------------------------------------------------------------------------------


def symbol_orders(levels, n):
    rng = np.random.default_rng(levels)
    skewed = rng.choice(levels, n, p=np.geomspace(1, 0.01, levels) / np.geomspace(1, 0.01, levels).sum())
    yield "random", rng.integers(0, levels, n)
    yield "skewed", skewed
    yield "sorted", np.sort(skewed)
    yield "constant", np.full(n, levels - 1)
    yield "alternating blocks", (np.arange(n) // 64) % levels


def empirical_bits(symbols):
    """N·H₀ in bits, a naive loop."""
    n = len(symbols)
    counts = {}
    for s in symbols.tolist():
        counts[s] = counts.get(s, 0) + 1
    return sum(c * math.log2(n / c) for c in counts.values())


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 33, 64])
@pytest.mark.parametrize("n", [64, 640, 10_240])
def test_size_is_near_the_entropy(levels, n):
    for name, symbols in symbol_orders(levels, n):
        size = len(quickly_packed(packed_set(symbols.reshape(-1, 1, 8, 8), dequantizer=levels)))
        allowed = 1.01 * empirical_bits(symbols) / 8 + (levels - 1) / 2 * math.log2(n) / 8 + 64
        assert size <= allowed, f"{name}: {size} bytes, allowed {allowed:.0f}"


def test_small_sets_have_a_small_header():
    data = pack(packed_set(np.zeros((10, 1, 8, 8)), counts=(1,) * 10))
    assert len(data) <= 40


def test_equal_counts_cost_the_same_for_any_number_of_classes():
    small = pack(packed_set(np.zeros((10, 2)), counts=(5,) * 2))
    large = pack(packed_set(np.zeros((100, 2)), counts=(1,) * 100))
    assert abs(len(small) - len(large)) <= 2
    assert dict(sections(large))["class counts"] == 2


# --- what the format cannot hold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1,), (2, 2), (0, 0)])
def test_counts_must_match_the_samples(counts):
    with pytest.raises(BadHeader, match=f"{sum(counts)} samples of 4 symbols expected, got .3, 4."):
        pack(packed_set(np.zeros((3, 4)), counts=counts))


def test_no_sample_cannot_be_packed():
    with pytest.raises(BadHeader):
        pack(packed_set(np.zeros((0, 4)), counts=(0, 0)))


def test_symbols_must_be_below_the_levels():
    with pytest.raises(BadHeader, match="symbol 4 is not below 4 levels"):
        pack(packed_set(np.full((1, 2), 4), dequantizer=4))


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        (UniformLevels, (1, 0, 1, 0)),
        (UniformLevels, (257, 0, 1, 0)),
        (UniformLevels, (2, 0, 0, 0)),
        (UniformLevels, (2, 0, 1 << 24, 0)),
        (ApotLevels, (0, 2, 1, 0)),
        (ApotLevels, (9, 2, 1, 0)),
        (ApotLevels, (4, 0, 1, 0)),
        (ApotLevels, (3, 8, 1, 0)),
        (ApotLevels, (5, 3, 1, 0)),
        (ApotLevels, (4, 2, 0, 0)),
        (Standardize, ((0,), 0, (0,), 0)),
        (Standardize, ((1 << 24,), 0, (0,), 0)),
    ],
)
def test_side_information_is_checked_when_made(table, arguments):
    with pytest.raises(BadHeader):
        table(*arguments)


@FAST
@given(st.integers(2, 256), st.integers(-(1 << 40), 1 << 40), st.integers(1, (1 << 24) - 1), st.integers(-100, 100))
def test_whatever_packs_unpacks(levels, low, step, exponent):
    """Side information outside the limits of the format is refused by `pack` (or when made), not by the receiver."""
    try:
        data = quickly_packed(packed_set(np.zeros((2, 3)), None, UniformLevels(levels, low, step, exponent)))
    except BadHeader:
        assert abs(low) >= 1 << 24 or abs(exponent) > 64
        return
    assert unpack(data).dequantizer == UniformLevels(levels, low, step, exponent)


# --- decoding --------------------------------------------------------------------------------------------------------


def test_mean_and_std_are_wide_only_where_they_must_be():
    exact_half = packed_set(np.zeros((2, 3)), mean=np.float32([0.5]), std=np.float32([2.0]))
    not_half = packed_set(np.zeros((2, 3)), mean=np.float32([1 / 3]), std=np.float32([2.0]))
    assert dict(sections(pack(exact_half)))["input statistics"] == 4
    assert dict(sections(pack(not_half)))["input statistics"] == 8
    too_big_for_half = packed_set(np.zeros((2, 3)), mean=np.float32([1e6]), std=np.float32([1e6]))
    assert unpack(pack(too_big_for_half)).std == np.float32([1e6])


def test_decode_of_a_part_is_the_part():
    packed = packed_set(np.arange(60).reshape(5, 3, 2, 2), None, 60, inverse=Standardize((3, 1, 2), 1, (5, -5, 0), 2))
    whole = packed.decode()
    assert whole.shape == (5, 3, 2, 2)
    assert whole.dtype == np.float32
    assert np.array_equal(packed.decode(slice(1, 3)), whole[1:3])
    assert np.array_equal(packed.decode(slice(4, None)), whole[4:])
    assert np.array_equal(packed.decode(np.array([4, 0, 4])), whole[[4, 0, 4]])
    assert np.array_equal(packed.decode(np.arange(5) % 2 == 0), whole[::2])
    assert packed.decode(slice(0)).shape == (0, 3, 2, 2)


def test_labels():
    packed = packed_set(np.arange(6)[:, None] * np.ones((1, 2)), (3, 0, 2, 1), 8)
    assert packed.labels().tolist() == [0, 0, 0, 2, 2, 3]
    assert len(packed) == 6


DECODER = """
import hashlib, json, sys
import budgetopt.packing
from budgetopt.packing import load
loaded = load(sys.argv[1])
digest = hashlib.sha256(loaded.samples.tobytes() + loaded.labels.tobytes()).hexdigest()
frameworks = {"torch", "torchvision", "ray", "optuna", "sklearn", "scipy"}
heavy = sorted(module for module in sys.modules if module.split(".")[0] in frameworks)
print(json.dumps([digest, heavy]))
"""


def decode_elsewhere(path, **environment):
    command = [sys.executable, "-c", DECODER, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return json.loads(done.stdout)


@pytest.fixture
def written(tmp_path):
    symbols = np.random.default_rng(1).integers(0, 15, (20, 3, 8, 8))
    side = Standardize((200, 17, 99), 6, (1000, -3, 77), 3)
    packed = packed_set(symbols, (5, 9, 6), ApotLevels(4, 2, 600, 9), inverse=side)
    path = tmp_path / "set.bopt"
    path.write_bytes(pack(packed))
    return path, packed


def test_decoding_imports_no_framework_and_is_the_same_in_any_process(written):
    """Thread settings, hash seeds and locales decide nothing (invariants 1 and 2)."""
    path, packed = written
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    one, heavy = decode_elsewhere(path, PYTHONHASHSEED="1", **dict.fromkeys(threads, "1"))
    four, _ = decode_elsewhere(path, PYTHONHASHSEED="2", LC_ALL="C", **dict.fromkeys(threads, "4"))
    assert heavy == []
    assert one == four
    assert one == hashlib.sha256(packed.decode().tobytes() + packed.labels().tobytes()).hexdigest()


# --- loading ---------------------------------------------------------------------------------------------------------


def test_load(written):
    path, packed = written
    loaded = load(path)
    assert len(loaded) == 20
    assert loaded.classes == 3
    assert loaded.bytes == path.stat().st_size
    assert np.array_equal(loaded.samples, packed.decode())
    assert np.array_equal(loaded.labels, packed.labels())
    assert np.array_equal(loaded.mean, packed.mean)
    assert np.array_equal(loaded.std, packed.std)
    assert read_file(str(path)) == path.read_bytes()


@pytest.mark.parametrize("size", [1, 3, 7, 20, 100])
@pytest.mark.parametrize("seed", [None, 0, 5])
def test_batches_cover_everything_once(written, size, seed):
    path, packed = written
    batches = list(load(path).batches(size, seed))
    assert [len(x) for x, _ in batches] == [size] * (20 // size) + [20 % size] * (20 % size > 0)
    x, y = np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])
    whole, labels = packed.decode(), packed.labels()
    if seed is None:
        assert np.array_equal(x, whole)
        assert np.array_equal(y, labels)
        return
    key = [(label, sample.tobytes()) for sample, label in zip(x, y.tolist(), strict=True)]
    wanted = [(label, sample.tobytes()) for sample, label in zip(whole, labels.tolist(), strict=True)]
    assert key != wanted
    assert sorted(key) == sorted(wanted)
    again = np.concatenate([b[1] for b in load(path).batches(size, seed)])
    assert np.array_equal(y, again)


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_must_be_positive(written, size):
    with pytest.raises(InputError, match=f"got {size}"):
        next(load(written[0]).batches(size))


def test_to_torch(written):
    path, packed = written
    loaded = load(path)
    raw = loaded.to_torch(standardize=False)
    assert len(raw) == 20
    assert torch.equal(raw.tensors[0], torch.from_numpy(packed.decode()))
    assert raw[7][1] == packed.labels()[7]
    ready, x = loaded.to_torch().tensors[0], packed.decode()
    for c in range(3):
        assert np.allclose(ready[:, c].numpy(), (x[:, c] - packed.mean[c]) / packed.std[c])


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (2, 3, 4, 5)])
def test_standardize(tmp_path, shape):
    """A receiver's own samples, by channel, against a loop."""
    channels = 1 if len(shape) == 1 else shape[0]
    mean, std = np.arange(channels, dtype=np.float32) + 1, np.arange(channels, dtype=np.float32) + 2
    rng = np.random.default_rng(0)
    packed = packed_set(rng.integers(0, 4, (6, *shape)), (4, 2), UniformLevels(4, 0, 1, 0), mean=mean, std=std)
    (tmp_path / "a.bopt").write_bytes(pack(packed))
    loaded = load(tmp_path / "a.bopt")
    own = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
    found = loaded.standardize(own)
    assert found.dtype == np.float32
    for index, value in np.ndenumerate(own):
        at = 0 if channels == 1 else index[1]
        assert found[index] == pytest.approx((float(value) - mean[at]) / std[at], abs=1e-5)
    with pytest.raises(InputError, match="samples must be"):
        loaded.standardize(own[0])


def test_to_torch_of_feature_vectors(tmp_path):
    path = tmp_path / "features.bopt"
    packed = packed_set(np.arange(12).reshape(4, 3), None, 12, mean=np.float32([2.0]), std=np.float32([4.0]))
    path.write_bytes(pack(packed))
    x, y = load(path).to_torch().tensors
    assert torch.equal(x, (torch.arange(12.0).reshape(4, 3) - 2) / 4)
    assert y.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["absent.bopt", "."])
def test_unreadable_file_names_the_path(tmp_path, name):
    with pytest.raises(InputError, match="cannot read") as raised:
        load(tmp_path / name)
    assert str(tmp_path) in str(raised.value)
