import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetopt.packing.coders import (
    CODERS,
    FREE_SYMBOLS,
    SYMBOLS_PER_BYTE,
    _blocks,
    _visiting_order,
    capacity,
    decode,
    shortest,
)
from budgetopt.packing.errors import BadPayload
from budgetopt.packing.layout import Domain, Plane

ALL = pytest.mark.parametrize("coder", CODERS.values(), ids=lambda c: c.name)
QUICK = pytest.mark.parametrize("coder", [CODERS[0], CODERS[1]], ids=lambda c: c.name)  # those without contexts


# What a sample can look like to a coder: columns, pictures of one and three channels, bands of 1×1 and of a grid, and
# several planes of different size.
LAYOUTS = {
    "one value": (Plane(1),),
    "columns": (Plane(7),),
    "picture": (Plane(1, 5, 6),),
    "colour": (Plane(3, 4, 4),),
    "row": (Plane(1, 1, 9),),
    "column": (Plane(2, 9, 1),),
    "bands": (Plane(12),),
    "bands of blocks": (Plane(8, 2, 3),),
    "planes": (Plane(1, 4, 4), Plane(2, 2, 2)),
    "patches": (Plane(1, 2, 2), Plane(1, 2, 2), Plane(3, 1, 1)),
}


def flat(symbols):
    """(n, 1) symbols of n samples with one value, and their domain."""
    symbols = np.asarray(symbols, np.uint8).reshape(-1, 1)
    return symbols, Domain((Plane(1),), (len(symbols),))


def round_trip(coder, symbols, levels, domain=None, hint=None):
    if domain is None:
        symbols, domain = flat(symbols)
    if not coder.supports(levels, domain):
        return None
    before = symbols.copy()
    payload = coder.encode(symbols, levels, domain, hint)
    assert coder.encode(symbols, levels, domain, hint) == payload
    assert np.array_equal(symbols, before)
    decoded = decode(coder, payload, levels, domain, hint)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, symbols)
    return payload


def test_ids_are_those_of_the_file():
    assert all(0 <= ident < 256 and coder.ident == ident for ident, coder in CODERS.items())
    assert len({coder.name for coder in CODERS.values()}) == len(CODERS)
    assert {0: "raw", 1: "range"}.items() <= {ident: coder.name for ident, coder in CODERS.items()}.items()


@ALL
@pytest.mark.parametrize("counts", [(1,), (2, 0, 3)])
@pytest.mark.parametrize("levels", [2, 3, 5, 16, 256])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_with_and_without_a_hint(coder, name, levels, counts):
    domain = Domain(LAYOUTS[name], counts)
    rng = np.random.default_rng(levels)
    shape = (domain.samples, domain.values)
    noise = rng.integers(0, levels, shape).astype(np.uint8)
    smooth = np.cumsum(rng.integers(-1, 2, shape), axis=1).clip(0, levels - 1).astype(np.uint8)
    given = rng.integers(0, 256, shape).astype(np.uint8)
    for symbols, hint in ((noise, None), (smooth, given), (np.full(shape, levels - 1, np.uint8), np.zeros_like(given))):
        round_trip(coder, symbols, levels, domain, hint)


@ALL
@settings(max_examples=25)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(2, 9), st.binary(max_size=80), st.integers(1, 3))
def test_any_payload_of_any_layout_decodes_or_is_refused(coder, name, levels, payload, count):
    domain = Domain(LAYOUTS[name], (count, 0, 1))
    for hint in (None, np.full((domain.samples, domain.values), 3, np.uint8)):
        try:
            symbols = decode(coder, payload, levels, domain, hint)
        except BadPayload:
            continue
        assert symbols.shape == (domain.samples, domain.values)
        assert symbols.dtype == np.uint8
        assert symbols.max() < levels


@ALL
@pytest.mark.parametrize("name", ["columns", "picture", "bands of blocks"])
def test_damaged_payloads_decode_or_are_refused(coder, name):
    """Prefixes and flipped bits of a real payload."""
    domain = Domain(LAYOUTS[name], (3, 2))
    symbols = np.random.default_rng(0).integers(0, 3, (5, domain.values)).astype(np.uint8)
    payload = round_trip(coder, symbols, 3, domain)
    if payload is None:
        return
    damaged = [payload[:n] for n in range(0, len(payload), 1 if coder.ident < 2 else 3)]
    for bit in range(0, 8 * len(payload), 1 if coder.ident < 2 else 7):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    damaged += [payload + b"\0", payload + b"\xff" * 9]
    for other in damaged:
        try:
            again = decode(coder, other, 3, domain)
        except BadPayload:
            continue
        assert again.shape == symbols.shape
        assert again.max() < 3


@pytest.mark.parametrize("coder", CODERS.values(), ids=lambda c: c.name)
def test_a_claim_above_the_capacity_is_refused_before_memory_is_taken(coder):
    domain = Domain((Plane(1, 1 << 10, 1 << 10),), (1 << 8,))
    with pytest.raises(BadPayload, match="cannot hold 268,435,456 symbols"):
        decode(coder, bytes(100), 2, domain)


@QUICK
@settings(max_examples=60)
@given(st.integers(2, 256), st.data())
def test_round_trip(coder, levels, data):
    symbols = data.draw(st.lists(st.integers(0, levels - 1), min_size=1, max_size=300))
    round_trip(coder, symbols, levels)


@QUICK
@pytest.mark.parametrize("levels", range(2, 257))
def test_every_number_of_levels(coder, levels):
    rng = np.random.default_rng(levels)
    round_trip(coder, [*rng.integers(0, levels, 101), levels - 1, 0], levels)


@QUICK
@pytest.mark.parametrize("n", [1, 2, 3, 7, 31, 32, 33, 97, 4051, 6555, 7919, 2 * 4051])
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_lengths(coder, levels, n):
    """One, primes, and the two numbers that the visiting order is made of."""
    round_trip(coder, np.random.default_rng(n).integers(0, levels, n), levels)


@QUICK
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_many_symbols(coder, levels):
    rng = np.random.default_rng(0)
    round_trip(coder, np.minimum(rng.geometric(0.4, 200_000) - 1, levels - 1), levels)


@QUICK
@pytest.mark.parametrize("value", [0, 6])
def test_constant_symbols(coder, value):
    round_trip(coder, np.full(200_000, value), 7)


@ALL
def test_a_payload_never_exceeds_the_capacity(coder):
    """Nearly constant sets are padded, so that a reader may bound memory by the length of the file."""
    n = FREE_SYMBOLS + 5 * SYMBOLS_PER_BYTE + 1
    payload = round_trip(coder, np.zeros(n, np.uint8), 2)
    assert payload is None or n <= capacity(len(payload))


def test_capacity():
    assert capacity(0) == 1 << 20
    assert capacity(1) == (1 << 20) + 256
    assert capacity(100) - capacity(99) == 256


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8, 9, 16, 17, 128, 129, 255, 256])
def test_raw_bits_against_a_string_of_bits(levels):
    symbols = np.random.default_rng(levels).integers(0, levels, 37).astype(np.uint8)
    width = max(1, math.ceil(math.log2(levels)))
    text = "".join(f"{s:0{width}b}" for s in symbols.tolist())
    text += "0" * (-len(text) % 8)
    column, domain = flat(symbols)
    expected = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    assert CODERS[0].encode(column, levels, domain, None) == expected


@pytest.mark.parametrize("length", [0, 1, 3, 10])
def test_raw_bits_of_another_length(length):
    with pytest.raises(BadPayload, match="do not fill"):
        CODERS[0].decode(bytes(length), 4, Domain((Plane(1),), (8,)), None)


def test_raw_bits_with_a_symbol_outside_the_levels():
    with pytest.raises(BadPayload, match="3 levels"):
        CODERS[0].decode(b"\xff", 3, Domain((Plane(1),), (4,)), None)


def test_range_payload_that_no_encoder_made():
    with pytest.raises(BadPayload):
        CODERS[1].decode(b"\xff" * 40, 5, Domain((Plane(1),), (100,)), None)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(1, 400), st.integers(2, 256))
def test_any_bytes_decode_or_are_refused(payload, count, levels):
    for coder in (CODERS[0], CODERS[1]):
        try:
            symbols = decode(coder, payload, levels, Domain((Plane(1),), (count,)))
        except BadPayload:
            continue
        assert symbols.shape == (count, 1)
        assert symbols.max() < levels


@pytest.mark.parametrize("n", [*range(1, 200), 4051, 6555, 10_007, 65_536])
def test_visiting_order_is_a_permutation(n):
    order = _visiting_order(n)
    assert sorted(order.tolist()) == list(range(n))
    stride = int(order[1]) if n > 1 else 0
    assert order.tolist() == [i * stride % n for i in range(n)]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 1000, 12_345])
def test_blocks_cover_everything_and_follow_the_rule(n):
    blocks = list(_blocks(n))
    assert blocks[0][0] == 0
    assert blocks[-1][1] == n
    assert all(a[1] == b[0] for a, b in pairwise(blocks))
    assert all(stop - start == max(1, start // 32) for start, stop in blocks[:-1])


def test_the_shortest_coder_is_chosen():
    rng = np.random.default_rng(0)
    skewed, noise = (rng.random(4000) < 0.02).astype(np.uint8), rng.integers(0, 256, 64).astype(np.uint8)
    for made, levels in ((skewed, 2), (noise, 256), (np.zeros(8, np.uint8), 2), (np.ones(1, np.uint8), 2)):
        symbols, domain = flat(made)
        coder, payload = shortest(symbols, levels, domain)
        able = [c for c in CODERS.values() if c.supports(levels, domain)]
        lengths = {c.ident: len(c.encode(symbols, levels, domain, None)) for c in able}
        assert len(payload) == min(lengths.values())
        assert coder.ident == min(i for i, length in lengths.items() if length == len(payload))
        assert np.array_equal(decode(coder, payload, levels, domain), symbols)
    tiles = np.tile(rng.integers(0, 4, (50, 4, 4), np.uint8), (1, 4, 4)).reshape(50, 256)
    assert shortest(tiles, 4, Domain((Plane(1, 16, 16),), (50,)))[0].name == "webp"  # the rule that spares it
    skewed, domain = flat(skewed)
    assert shortest(skewed, 2, domain)[0].name != "raw"
    noise, domain = flat(noise)
    assert shortest(noise, 256, domain)[0].name == "raw"
