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
    shortest,
)
from budgetopt.packing.errors import BadPayload

ALL = pytest.mark.parametrize("coder", CODERS.values(), ids=lambda c: c.name)


def round_trip(coder, symbols, levels):
    symbols = np.asarray(symbols, np.uint8)
    payload = coder.encode(symbols, levels)
    decoded = coder.decode(payload, symbols.size, levels)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, symbols)
    return payload


@ALL
@settings(max_examples=60)
@given(st.integers(2, 256), st.data())
def test_round_trip(coder, levels, data):
    symbols = data.draw(st.lists(st.integers(0, levels - 1), min_size=1, max_size=300))
    round_trip(coder, symbols, levels)


@ALL
@pytest.mark.parametrize("levels", range(2, 257))
def test_every_number_of_levels(coder, levels):
    rng = np.random.default_rng(levels)
    round_trip(coder, [*rng.integers(0, levels, 101), levels - 1, 0], levels)


@ALL
@pytest.mark.parametrize("n", [1, 2, 3, 7, 31, 32, 33, 97, 4051, 6555, 7919, 2 * 4051])
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_lengths(coder, levels, n):
    """One, primes, and the two numbers that the visiting order is made of."""
    round_trip(coder, np.random.default_rng(n).integers(0, levels, n), levels)


@ALL
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_many_symbols(coder, levels):
    rng = np.random.default_rng(0)
    round_trip(coder, np.minimum(rng.geometric(0.4, 200_000) - 1, levels - 1), levels)


@ALL
@pytest.mark.parametrize("value", [0, 6])
def test_constant_symbols(coder, value):
    round_trip(coder, np.full(200_000, value), 7)


@ALL
def test_a_payload_never_exceeds_the_capacity(coder):
    """Nearly constant sets are padded, so that a reader may bound memory by the length of the file."""
    n = FREE_SYMBOLS + 5 * SYMBOLS_PER_BYTE + 1
    payload = round_trip(coder, np.zeros(n, np.uint8), 2)
    assert n <= capacity(len(payload))


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
    assert CODERS[0].encode(symbols, levels) == bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


@pytest.mark.parametrize("length", [0, 1, 3, 10])
def test_raw_bits_of_another_length(length):
    with pytest.raises(BadPayload, match="do not fill"):
        CODERS[0].decode(bytes(length), 8, 4)


def test_raw_bits_with_a_symbol_outside_the_levels():
    with pytest.raises(BadPayload, match="3 levels"):
        CODERS[0].decode(b"\xff", 4, 3)


def test_range_payload_that_no_encoder_made():
    with pytest.raises(BadPayload):
        CODERS[1].decode(b"\xff" * 40, 100, 5)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(1, 400), st.integers(2, 256))
def test_any_bytes_decode_or_are_refused(payload, count, levels):
    for coder in CODERS.values():
        try:
            symbols = coder.decode(payload, count, levels)
        except BadPayload:
            continue
        assert symbols.shape == (count,)
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
    for symbols, levels in ((skewed, 2), (noise, 256), (np.zeros(8, np.uint8), 2), (np.ones(1, np.uint8), 2)):
        coder, payload = shortest(symbols, levels)
        lengths = {c.ident: len(c.encode(symbols, levels)) for c in CODERS.values()}
        assert len(payload) == min(lengths.values())
        assert coder.ident == min(i for i, length in lengths.items() if length == len(payload))
        assert np.array_equal(coder.decode(payload, symbols.size, levels), symbols)
    assert shortest(skewed, 2)[0].name == "range"
    assert shortest(noise, 256)[0].name == "raw"
