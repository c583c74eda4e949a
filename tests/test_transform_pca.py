from contextlib import suppress

import numpy as np
import pytest
import torch
from sklearn import decomposition
from through_a_file import assert_as_received, digit_pictures, fashion_pictures, fitted, normal, photographs, written

from budgetopt.errors import InputError, PackedFileError
from budgetopt.packing import Plane
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.inverse_basis import MOST_ENTRIES, Basis, largest_entry
from budgetopt.packing.offsets import Offsets
from budgetopt.transforms import build
from budgetopt.transforms.pca import PCA, principal

NONE = Offsets((0,), 0)
INPUTS = {
    "grey": normal(30, 1, 5, 7) * 30 + 128,
    "colour": normal(20, 3, 4, 4) * 10 - 3,
    "columns": normal(40, 9) @ normal(9, 9, seed=2) + 50,
    "few samples": normal(3, 1, 6, 6),
    "one value": normal(10, 1),
    "one pixel": normal(10, 1, 1, 1),
    "constant": torch.full((5, 4), 300.0),
    "one sample": normal(1, 2, 3, 3),
    "twice the same": torch.cat([normal(3, 8)] * 2),
    "small units": normal(20, 5) * 1e-6 + 1e-5,
    "large units": normal(20, 5) * 1e6 - 1e7,
}


@pytest.mark.parametrize("key", INPUTS)
@pytest.mark.parametrize("options", [{}, {"bits": 3}, {"bits": 8, "components": 2}, {"components": 0.5}])
def test_forward_undoes_inverse(key, options):
    x = INPUTS[key]
    transform = fitted("pca", x, **options)
    spread = float(x.std(correction=0)) if len(x) > 1 and key != "constant" else 1.0
    z = normal(11, transform.side_information().components, seed=1) * spread
    again = transform.forward(transform.inverse(z))
    precision = float(x.abs().max()) * 2.0**-20
    assert torch.allclose(again, z, rtol=0, atol=transform.tolerance * float(z.abs().max()) + precision)


@pytest.mark.parametrize("key", INPUTS)
@pytest.mark.parametrize("bits", [3, 5, 8])
def test_inverse_is_what_a_receiver_decodes(key, bits):
    x = INPUTS[key]
    transform = fitted("pca", x, bits=bits)
    assert transform.layout == (Plane(transform.side_information().components),)
    assert_as_received(transform, x)


def test_real_pictures(fashion_mnist_root):
    for x in (digit_pictures(), photographs(), fashion_pictures(fashion_mnist_root)):
        assert_as_received(fitted("pca", x, components=16), x)


@pytest.mark.parametrize("bits", range(3, 9))
def test_entries_are_stored_in_so_many_bits_and_norms_are_one(bits):
    side = fitted("pca", INPUTS["grey"], bits=bits).side_information()
    entries = np.frombuffer(side.mantissas, np.uint8).astype(int) - largest_entry(bits)
    assert np.abs(entries.reshape(side.components, -1)).max(1).tolist() == [2 ** (bits - 1) - 1] * side.components
    assert np.abs(np.linalg.norm(side.matrix, axis=1) * 2.0**-side.scale_exponent - 1).max() < 0.02


def test_directions_against_scikit_learn():
    """About the stored mean there is one direction more than about the mean sample, so centre first."""
    x = digit_pictures()
    x = x - x.mean(0)
    transform = fitted("pca", x, components=6, bits=8)
    reference = decomposition.PCA(6).fit(x.flatten(1).numpy()).components_
    ours = transform.side_information().matrix * 2.0 ** -transform.side_information().scale_exponent
    assert np.abs(np.abs(np.sum(ours * reference, 1)) - 1).max() < 0.02
    energy = transform.forward(x).pow(2).mean(0)
    assert (energy[:-1] > energy[1:] * 0.95).all()


def test_more_bits_and_more_components_lose_less():
    x = photographs()

    def lost(**options):
        transform = fitted("pca", x, **options)
        return float((transform.inverse(transform.forward(x)) - x).pow(2).mean())

    assert lost(components=8) > lost(components=16) > lost(components=32)
    assert lost(components=16, bits=3) > lost(components=16, bits=5) > lost(components=16, bits=8)
    flat = (x - x.mean((0, 2, 3), keepdim=True)).flatten(1).double()
    least = float((torch.linalg.svdvals(flat)[16:] ** 2).sum()) / flat.numel()
    assert least <= lost(components=16, bits=8) < 1.02 * least


def test_coordinates_are_the_least_squares_solution_for_the_rounded_basis():
    x = INPUTS["colour"]
    transform = fitted("pca", x, components=4, bits=3)
    basis = transform.side_information().matrix * 2.0 ** -transform.side_information().scale_exponent
    centred = (x - transform._mean).flatten(1).double().numpy()
    expected = np.linalg.lstsq(basis.T, centred.T, rcond=None)[0].T
    assert np.abs(transform.forward(x).numpy() - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("key", "options", "count"),
    [
        ("grey", {"components": 0.2}, 7),
        ("grey", {"components": 1}, 1),
        ("columns", {}, 9),
        ("few samples", {}, 3),
        ("constant", {}, 1),
        ("twice the same", {}, 3),
    ],
)
def test_number_of_components(key, options, count):
    assert fitted("pca", INPUTS[key], **options).side_information().components == count


def test_many_samples_are_thinned_out_evenly():
    x = normal(400, 30, seed=3).double()
    x[:, 0] = torch.linspace(-9, 9, 400)
    thinned = principal(x, 1, most=20)
    assert thinned.abs().argmax() == 0
    assert torch.allclose(thinned, principal(x[torch.linspace(0, 399, 20).long()], 1))


@pytest.mark.parametrize("key", INPUTS)
def test_parameters_round_trip(key):
    x = INPUTS[key]
    for bits in (3, 8):
        side = fitted("pca", x, bits=bits).side_information()
        data, again = written(side, tuple(x.shape[1:]))
        assert np.array_equal(again.matrix, side.matrix)
        assert len(data) <= 16 + 2 * side.components + len(side.mantissas) + 3 * len(side.offsets.mantissas)


def test_the_basis_is_entropy_coded():
    x = photographs()
    side = fitted("pca", x, components=16, bits=4).side_information()
    assert len(written(side, tuple(x.shape[1:]))[0]) < 0.9 * len(side.mantissas) * 4 / 8


def test_overflow_is_refused():
    side = Basis(3, (2,), bytes([6, 0]), (1000,), 10, NONE)
    side.check((1 << 24) - 1, 0, (2,))
    for most in (1 << 40, 1 << 51, 1 << 62):
        if most * 3000 < 1 << 62:
            worst, _ = side.apply(np.array([[most]]), 0, (2,))
            assert worst.tolist() == [[3000 * most, -3000 * most]]
            side.check(most, 0, (2,))
        else:
            with pytest.raises(BadHeader, match="64-bit"):
                side.check(most, 0, (2,))
    with pytest.raises(BadHeader, match="64-bit"):
        Basis(3, (2,), bytes([6, 0]), (1000,), 10, Offsets((1,), 64)).check(255, -60, (2,))


@pytest.mark.parametrize(("exponent", "fits"), [(-64, False), (-44, False), (-43, True)])
def test_values_beyond_float32_are_refused(exponent, fits):
    """A file of zeros for offsets, whose basis goes the other way than its levels: 2^128 is no float32."""
    basis = Basis(3, (2,), bytes([6, 0]), (1000,), -64, NONE)
    if fits:
        basis.check(255, exponent, (2,))
    else:
        with pytest.raises(BadHeader, match="too large for float32"):
            basis.check(255, exponent, (2,))


def fields(bits=4, components=2, exponent=0, offset=0, scale_exponent=5, scales=(1, 1), coded=b"\x00\x77\x77\x77\x77"):
    out = Writer()
    out.byte(bits)
    out.unsigned(components)
    out.signed(exponent)
    out.signed(offset)
    out.signed(scale_exponent)
    for scale in scales:
        out.unsigned(scale)
    out.unsigned(len(coded))
    out.raw(coded)
    return bytes(out.data)


def test_crafted_parameters_are_read():
    side = Basis.read(Reader(fields()), (4,))
    assert side.matrix.tolist() == [[0] * 4] * 2  # raw nibbles of 7 are zeros of 4-bit entries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 2}, "3 to 8 bits, got 2"),
        ({"bits": 9}, "3 to 8 bits, got 9"),
        ({"components": 0}, "no component"),
        ({"components": 5}, "number of components"),  # more than values
        ({"scales": (0, 1)}, "scale of the basis"),
        ({"scale_exponent": 100}, "exponent of the basis"),
        ({"exponent": 100}, "exponent of the offsets"),
        ({"coded": b""}, "unknown coder"),
        ({"coded": b"\xfa123"}, "unknown coder"),
        ({"coded": b"\x00\x77"}, "do not fill"),
        ({"coded": b"\x00\xff\x77\x77\x77"}, "above the 15 levels"),
    ],
)
def test_hostile_parameters(changes, message):
    with pytest.raises(BadHeader, match=message):
        Basis.read(Reader(fields(**changes)), (4,))


def test_every_cut_and_every_flip_gives_a_basis_or_an_error():
    data = fields()
    for cut in range(len(data)):
        with pytest.raises(PackedFileError):
            Basis.read(Reader(data[:cut]), (4,))
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with suppress(PackedFileError):
            assert Basis.read(Reader(bytes(flipped)), (4,)).matrix.shape[1] == 4


def test_a_small_file_cannot_claim_a_large_basis():
    with pytest.raises(BadHeader):
        Basis.read(Reader(fields(components=40)), (1 << 20,))
    with pytest.raises(InputError, match="at most 16,777,216 values, got 20,000,000"):
        PCA.check_shape((20_000_000,))
    assert MOST_ENTRIES == 16_777_216


@pytest.mark.parametrize("options", [{"bits": 2}, {"bits": 4.5}, {"components": 0}])
def test_bad_options(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be"):
        build("pca", tuple(options.items()))
