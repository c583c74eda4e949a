from fractions import Fraction

import numpy as np
import pytest
import torch
from through_a_file import assert_as_received, digit_pictures, fashion_pictures, fitted, normal, photographs, written
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from budgetopt.errors import InputError
from budgetopt.packing import Plane
from budgetopt.packing.bilinear import WEIGHT_BITS, taps, upsample
from budgetopt.packing.errors import BadHeader, Truncated
from budgetopt.packing.fields import Reader
from budgetopt.packing.inverse_resize import Resize
from budgetopt.transforms import build
from budgetopt.transforms.resampling import area, down, up

SIZES = [(1, 1), (1, 7), (3, 5), (4, 8), (14, 28), (7, 28), (13, 28), (28, 28), (8, 32), (31, 32)]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_taps_against_fractions(small, large):
    for i, (first, second, weight) in enumerate(zip(*taps(small, large), strict=True)):
        centre = max(Fraction(0), (i + Fraction(1, 2)) * small / large - Fraction(1, 2))
        whole = centre.numerator // centre.denominator
        assert (first, second) == (whole, min(whole + 1, small - 1))
        scaled = (centre - whole) * 1024
        assert weight == (scaled + Fraction(1, 2)).numerator // (scaled + Fraction(1, 2)).denominator


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_up_sampling_against_torch(small, large):
    ints = np.random.default_rng(0).integers(0, 256, (3, 2, small, small + 2))
    ours = upsample(ints, large, large + 2) * 2.0 ** (-2 * WEIGHT_BITS)
    theirs = interpolate(torch.from_numpy(ints).double(), (large, large + 2), mode="bilinear", align_corners=False)
    assert np.abs(ours - theirs.numpy()).max() < 1


def test_doubling_is_exact():
    ints = np.random.default_rng(0).integers(0, 256, (3, 1, 14, 8))
    theirs = interpolate(torch.from_numpy(ints).double(), (28, 16), mode="bilinear", align_corners=False)
    assert np.array_equal(upsample(ints, 28, 16) * 2.0 ** (-2 * WEIGHT_BITS), theirs.numpy())


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_matrices_do_what_the_decoder_does(small, large):
    column = np.random.default_rng(0).integers(-50, 50, (small, 1))
    assert np.array_equal(up(small, large).numpy() @ column, upsample(column, large, 1) * 2.0 ** (-2 * WEIGHT_BITS))


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_area_is_the_mean_of_what_a_pixel_covers(small, large):
    matrix = area(large, small)
    assert torch.allclose(matrix.sum(1), torch.ones(small, dtype=torch.float64))
    if large % small == 0:
        x = normal(1, 1, large, large).double()
        assert torch.allclose(matrix @ x @ matrix.T, adaptive_avg_pool2d(x, (small, small)))
    fine = np.repeat(np.arange(large), small).reshape(small, large)  # each pixel cut into `small` parts
    expected = np.stack([(fine == i).mean(1) for i in range(large)], 1)
    assert np.abs(matrix.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 28, 28), (1, 1, 1), (2, 9, 1)])
@pytest.mark.parametrize("scale", [0.25, 0.5, 0.8, 1.0])
def test_forward_undoes_inverse_and_layout(shape, scale):
    x = normal(6, *shape) * 30 + 128
    transform = fitted("resize", x, scale=scale)
    sides = [max(1, round(side * scale)) for side in shape[1:]]
    assert transform.layout == (Plane(shape[0], *sides),)
    z = normal(6, shape[0] * sides[0] * sides[1], seed=1)
    assert torch.allclose(transform.forward(transform.inverse(z)), z, atol=transform.tolerance)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 28, 28), (1, 1, 1), (2, 9, 1)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"scale": 1.0}, {"down": "area", "scale": 0.7}])
def test_inverse_is_what_a_receiver_decodes(shape, options):
    x = normal(6, *shape) * 30 + 128
    assert_as_received(fitted("resize", x, **options), x)


def test_real_pictures(fashion_mnist_root):
    for x in (digit_pictures(), photographs(), fashion_pictures(fashion_mnist_root)):
        assert_as_received(fitted("resize", x), x)


def test_the_least_squares_pixels_are_nearer_than_the_area_means():
    x = photographs()

    def lost(way):
        transform = fitted("resize", x, down=way)
        return float((transform.inverse(transform.forward(x)) - x).pow(2).mean())

    assert lost("fit") < 0.9 * lost("area") < 0.3 * float(x.var())


def test_least_squares_against_numpy():
    x = normal(1, 1, 10, 10).double()
    matrix = up(6, 10).numpy()
    expected = np.linalg.lstsq(np.kron(matrix, matrix), x.numpy().ravel(), rcond=None)[0].reshape(6, 6)
    assert np.abs((down(10, 6, "fit") @ x[0, 0] @ down(10, 6, "fit").T).numpy() - expected).max() < 1e-10


def test_constant_pictures_stay_constant():
    x = torch.full((2, 1, 11, 7), 77.0)
    for way in ("fit", "area"):
        transform = fitted("resize", x, scale=0.4, down=way)
        assert torch.allclose(transform.inverse(transform.forward(x)), x, atol=1e-3)


def test_overflow_is_refused():
    side = Resize(2, 2)
    side.check((1 << 24) - 1, 0, (1, 4, 4))
    side.check((1 << 42) - 1, 0, (1, 4, 4))
    pixels, exponent = side.apply(np.full((1, 4), (1 << 42) - 1), 3, (1, 4, 4))
    assert (pixels == (1 << 42) - 1 << 20).all()
    assert exponent == 23
    with pytest.raises(BadHeader, match="64-bit"):
        side.check(1 << 42, 0, (1, 4, 4))


@pytest.mark.parametrize(
    ("data", "shape", "error", "message"),
    [
        (b"\x02", (1, 4, 4), Truncated, "more bytes"),
        (b"\x00\x02", (1, 4, 4), BadHeader, "is 0"),
        (b"\x02\x05", (1, 4, 4), BadHeader, "above its limit of 4"),
        (b"\x02\x02", (4,), BadHeader, "only pictures"),
    ],
)
def test_hostile_parameters(data, shape, error, message):
    with pytest.raises(error, match=message):
        Resize.read(Reader(data), shape)


def test_parameters_round_trip_in_two_bytes():
    data, _ = written(fitted("resize", photographs()).side_information(), (3, 32, 32))
    assert data == bytes([16, 16])


def test_what_it_refuses():
    with pytest.raises(InputError, match=r"resize takes pictures .*\(7,\)"):
        build("resize").check_shape((7,))
    with pytest.raises(InputError, match=r"scale must be in 0.25..1, got 0.1"):
        build("resize", (("scale", 0.1),))


def test_inverse_is_differentiable():
    transform = fitted("resize", normal(2, 1, 6, 6))
    z = normal(2, 9).requires_grad_()
    transform.inverse(z).sum().backward()
    assert z.grad.sum() == pytest.approx(2 * 36)  # the weights of every pixel sum to one
