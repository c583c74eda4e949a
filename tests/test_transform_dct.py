from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from scipy.fft import dct, dctn
from through_a_file import assert_as_received, digit_pictures, fashion_pictures, fitted, normal, photographs, written

from budgetopt.errors import InputError, PackedFileError
from budgetopt.packing import Plane
from budgetopt.packing import kept_positions as positions
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader
from budgetopt.packing.integer_cosine import MOST_SIDE, cosine_table, reach, synthesize
from budgetopt.packing.inverse_dct import BLOCK, Cosine
from budgetopt.packing.offsets import Offsets
from budgetopt.transforms import build
from budgetopt.transforms.dct import DCT

SHAPES = [(1, 5, 7), (3, 28, 28), (1, 1, 1), (2, 1, 9), (3, 16, 11), (1, 8, 8), (6,), (1,), (19,)]
NONE = Offsets((0,), 0)


def decimal_cosine(angle):
    """cos by its Taylor series, in decimal."""
    total, term, k = Decimal(0), Decimal(1), 0
    while abs(term) > Decimal(10) ** -55:
        total, term, k = total + term, -term * angle * angle / ((k + 1) * (k + 2)), k + 2
    return total


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 28, 32])
def test_cosine_table_is_right_to_the_last_bit(size):
    getcontext().prec = 60
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    table = cosine_table(size)
    for u in range(size):
        scale = (Decimal(1 if u == 0 else 2) / size).sqrt() * 2**13
        for x in range(size):
            exact = scale * decimal_cosine(pi * ((2 * x + 1) * u % (4 * size)) / (2 * size))
            assert abs(Decimal(int(table[u, x])) - exact) <= Decimal("0.5")


@pytest.mark.parametrize("size", [1, 2, 5, 28, 64, 331, MOST_SIDE])
def test_cosine_table_is_orthonormal_within_its_precision(size):
    table = cosine_table(size)
    assert np.abs(table @ table.T / 2.0**26 - np.eye(size)).max() < size**0.5 * 2.0**-12
    # scipy's float transform of unit vectors, rounded: only an entry within float error of a tie could differ
    assert np.array_equal(table, np.rint(dct(np.eye(size), norm="ortho", axis=0) * 2**13).astype(np.int64))
    assert np.abs(table).sum(0).max() <= reach(size)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_synthesis_is_the_plain_product(size):
    rng = np.random.default_rng(size)
    for bands in {1, size // 2 + 1, size}:
        values = rng.integers(-1000, 1000, (3, 4, bands))
        assert np.array_equal(synthesize(values, size), values @ cosine_table(size)[:bands])


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_samples_against_scipy(shape):
    x = normal(20, *shape) * 30 + 128
    transform = fitted("dct", x)
    side = transform.side_information()
    z = transform.forward(x)
    centred = (x - transform._mean).double().numpy()
    expected = dct(centred, norm="ortho") if len(shape) == 1 else dctn(centred, axes=(2, 3), norm="ortho")
    expected = expected.reshape(20, -1)[:, side.places]
    assert np.abs(z.numpy() - expected).max() <= 1e-3 * np.abs(expected).max()


def test_blocks_against_scipy():
    x = normal(4, 2, 16, 11)
    transform = fitted("dct", x, block="8x8")
    assert transform.layout == (Plane(2 * 64, 2, 2),)
    z = transform.forward(x).reshape(4, 128, 2, 2)
    padded = np.pad((x - transform._mean).numpy(), [(0, 0), (0, 0), (0, 0), (0, 5)], mode="symmetric")
    for row in range(2):
        for column in range(2):
            block = padded[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = dctn(block, axes=(2, 3), norm="ortho").reshape(4, 128)[:, transform.side_information().places]
            assert np.abs(z[:, :, row, column].numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("block", ["whole", "8x8"])
def test_constant_images_have_only_a_dc(block):
    x = torch.tensor([10.0, 200.0])[:, None, None, None].expand(2, 3, 16, 16).contiguous()
    transform = fitted("dct", x, block=block)
    z = transform.forward(x).reshape(2, 3 * transform._bands[1] * transform._bands[2], -1)
    assert (z[:, :3].abs() > 100).all()  # the three lowest bands are the DCs of the channels
    assert (z[:, 3:].abs() < 1e-2).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"keep": 0.3}, {"block": "8x8"}, {"block": "8x8", "keep": 0.5}])
def test_forward_undoes_inverse(shape, options):
    x = normal(20, *shape) * 30 + 128
    transform = fitted("dct", x, **options)
    z = normal(7, transform.forward(x).shape[1], seed=1)
    again = transform.forward(transform.inverse(z))
    aligned = options.get("block") != "8x8" or all(s <= BLOCK or s % BLOCK == 0 for s in shape[-2:])
    if aligned:
        assert torch.allclose(again, z, atol=transform.tolerance)
    else:  # cropped blocks are filled by reflection: what forward gives comes back
        z = transform.forward(x)
        if "keep" not in options:
            assert torch.allclose(transform.forward(transform.inverse(z)), z, atol=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"keep": 0.3}, {"block": "8x8"}, {"block": "8x8", "keep": 0.5}])
def test_inverse_is_what_a_receiver_decodes(shape, options):
    x = normal(9, *shape) * 30 + 128
    transform = fitted("dct", x, **options)
    assert sum(plane.size for plane in transform.layout) == transform.forward(x).shape[1]
    assert_as_received(transform, x)


@pytest.mark.parametrize("options", [{}, {"keep": 0.25}, {"block": "8x8", "keep": 0.25}])
def test_real_pictures(options, fashion_mnist_root):
    for x in (digit_pictures(), photographs(), fashion_pictures(fashion_mnist_root)):
        assert_as_received(fitted("dct", x, **options), x)


def test_a_quarter_of_the_coefficients_holds_nearly_all_of_a_photograph():
    x = photographs()
    transform = fitted("dct", x, keep=0.25)
    error = (transform.inverse(transform.forward(x)) - x).pow(2).mean()
    assert error < 0.1 * x.var()


@pytest.mark.parametrize("block", ["whole", "8x8"])
@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.99])
def test_kept_positions_are_those_of_most_variance(block, keep):
    x = photographs()[:, :, :16, :16]
    transform = fitted("dct", x, keep=keep, block=block)
    everything = fitted("dct", x, block=block)
    z = everything.forward(x).double().reshape(len(x), len(everything.side_information().places), -1)
    variance = {
        int(place): float(z[:, i].var(correction=0)) for i, place in enumerate(everything.side_information().places)
    }
    count = max(1, round(keep * len(variance)))
    kept = transform.side_information().places
    assert len(kept) == count
    assert min(variance[p] for p in kept) >= max(variance[p] for p in variance if p not in set(kept)) * (1 - 1e-5)
    assert [p for p in everything.side_information().places if p in set(kept)] == list(kept)


def test_ties_go_to_the_lower_frequency():
    transform = fitted("dct", torch.zeros(3, 1, 6, 6), keep=0.1)
    assert list(transform.side_information().places) == list(fitted("dct", torch.zeros(3, 1, 6, 6))._places[:4])


def test_bands_are_ordered_from_low_to_high():
    order = positions.low_to_high((2, 3, 6))
    triples = [(int(p) // 18, int(p) // 6 % 3, int(p) % 6) for p in order]
    assert triples == sorted(np.ndindex(2, 3, 6), key=lambda t: ((t[1] * 6) ** 2 + (t[2] * 3) ** 2, t[1], t[0]))
    assert triples[:2] == [(0, 0, 0), (1, 0, 0)]


@pytest.mark.parametrize("bands", [(1, 1, 1), (3, 8, 8), (2, 1, 40), (1, 40, 1), (3, 5, 7), (1, 28, 28)])
def test_bitmaps_round_trip(bands):
    rng = np.random.default_rng(1)
    falling = rng.random(bands) < np.exp(-np.add.outer(np.arange(bands[1]), np.arange(bands[2])) / 5)
    for mask in (np.ones(bands, bool), np.zeros(bands, bool), rng.random(bands) < 0.5, falling):
        assert np.array_equal(positions.decode(positions.encode(mask), bands), mask)


def test_positions_of_real_pictures_take_far_fewer_bytes_than_a_bitmap(fashion_mnist_root):
    for x in (photographs(), fashion_pictures(fashion_mnist_root)):
        side = fitted("dct", x, keep=0.25).side_information()
        assert len(written(side, tuple(x.shape[1:]))[0]) < 0.6 * len(side.kept) / 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"keep": 0.4}, {"block": "8x8"}, {"block": "8x8", "keep": 0.4}])
def test_parameters_round_trip(shape, options):
    side = fitted("dct", normal(6, *shape) + 3, **options).side_information()
    data, again = written(side, shape)
    assert again.layout(shape) == side.layout(shape)
    if "keep" not in options:
        assert len(data) <= 2 + 3 * len(side.offsets.mantissas)


def test_overflow_is_refused():
    side = Cosine(False, (1, 28, 28), b"", NONE)
    side.check((1 << 28) - 1, 0, (1, 28, 28))
    Cosine(False, (3, 224, 224), b"", NONE).check((1 << 28) - 1, 0, (3, 224, 224))
    with pytest.raises(BadHeader, match="64-bit"):
        side.check(1 << 40, 0, (1, 28, 28))
    far = Cosine(False, (1, 28, 28), b"", Offsets((1 << 23,), -40))
    with pytest.raises(BadHeader, match="64-bit"):
        far.check(255, 30, (1, 28, 28))
    with pytest.raises(BadHeader, match="64-bit"):
        Cosine(False, (1, 28, 28), b"", Offsets((1,), 60)).check(1 << 20, -60, (1, 28, 28))


@pytest.mark.parametrize("side", [1, 28, MOST_SIDE])
def test_what_passes_the_check_does_not_overflow(side):
    inverse = Cosine(False, (1, 1, side), b"", Offsets((-77,), 3))
    low, high = 0, 1 << 62
    while high - low > 1:  # the largest magnitude that passes
        middle = (low + high) // 2
        try:
            inverse.check(middle, 0, (side,))
            low = middle
        except BadHeader:
            high = middle
    worst = np.sign(cosine_table(side)[:, :1].T) * low  # all terms of pixel 0 add up
    pixels, exponent = inverse.apply(worst.astype(np.int64), 0, (side,))
    terms = [int(z) * int(c) << 13 for z, c in zip(worst[0], cosine_table(side)[:, 0], strict=True)]
    expected = (sum(terms) + (1 << 9) >> 10) + (-77 << exponent - 3)
    assert int(pixels[0, 0]) == expected
    inverse.check((1 << 24) - 1, 0, (side,))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04\x00\x00",  # unknown flag
        b"\x00",  # no offsets
        b"\x02\x00\x00",  # no bitmap
        b"\x02\x00\x00\x05abc",  # bitmap cut short
        b"\x02\x00\x00\x04\x00\x00\x00\x00" + b"\xff",
        b"\x00\xff\xff\x01\x00",  # exponent out of range
        b"\x00\x00\xff\xff\xff\xff\x7f",  # offset too large
    ],
)
def test_hostile_parameters(data):
    try:
        side = Cosine.read(Reader(data), (1, 6, 6))
    except PackedFileError:
        return
    assert 1 <= len(side.places) <= 36


def test_a_file_that_keeps_nothing_or_is_too_large_is_refused():
    with pytest.raises(BadHeader, match="keeps no coefficient"):
        Cosine(False, (1, 2, 2), bytes(4), NONE)
    with pytest.raises(BadHeader, match="512 values an axis"):
        Cosine.read(Reader(bytes(9)), (1, 4, 100_000))
    with pytest.raises(BadHeader, match="at most 256 channels"):
        Cosine.read(Reader(bytes(9999)), (4000, 8, 8))
    for shape in ((1, 4, 600), (257, 2, 2), (20, 512, 512), (513,)):
        with pytest.raises(InputError, match="at most 256 channels, 512 values an axis and 4,194,304 in all, got"):
            DCT.check_shape(shape)


def test_random_bitmaps_decode_or_are_refused():
    rng = np.random.default_rng(0)
    for size in range(40):
        try:
            mask = positions.decode(rng.bytes(size), (3, 9, 9))
        except BadHeader:
            continue
        assert mask.shape == (3, 9, 9)


def test_inverse_is_differentiable():
    x = normal(3, 2, 9, 5).double()
    transform = fitted("dct", x.float(), keep=0.5, block="8x8")
    z = transform.forward(x.float()).requires_grad_()
    weight = normal(*x.shape)
    (transform.inverse(z) * weight).sum().backward()
    step = torch.zeros_like(z)
    step[1, 3] = 1.0
    slope = ((transform.inverse(z + step) - transform.inverse(z)) * weight).sum()
    assert z.grad[1, 3] == pytest.approx(float(slope.detach()), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"), [({"keep": 0.0}, "keep must be in"), ({"block": "4x4"}, "block must be one of whole, 8x8")]
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        build("dct", tuple(options.items()))
