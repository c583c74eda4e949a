import numpy as np
import pytest
import torch
from PIL import Image
from through_a_file import assert_as_received, fitted, normal, photographs, written

from budgetopt.errors import InputError
from budgetopt.packing import Plane
from budgetopt.packing.errors import BadHeader, Truncated
from budgetopt.packing.fields import Reader
from budgetopt.packing.inverse_ycbcr import TO_RGB, LumaChroma
from budgetopt.transforms import build

SHAPES = [(3, 5, 7), (3, 28, 28), (3, 1, 1), (3, 2, 9)]


def test_against_pillow():
    x = photographs()
    z = fitted("ycbcr", x).forward(x).reshape(-1, 3, 32, 32)
    centre = torch.tensor([0.0, 128.0, 128.0]).reshape(3, 1, 1)
    for picture, ours in zip(x[:20], z + centre, strict=False):
        theirs = Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8)).convert("YCbCr")
        assert np.abs(ours.permute(1, 2, 0).numpy() - np.asarray(theirs)).max() < 1.02  # Pillow rounds down


def test_decoding_against_pillow():
    coded = np.random.default_rng(0).integers(60, 196, (8, 8, 3)).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(coded, "YCbCr").convert("RGB")).astype(float)
    z = coded.astype(np.int64).transpose(2, 0, 1) - np.array([0, 128, 128]).reshape(3, 1, 1)
    ints, exponent = LumaChroma(False).apply(z.reshape(1, -1), 0, (3, 8, 8))
    ours = np.clip(ints[0] * 2.0**-exponent, 0, 255)
    assert np.abs(ours.transpose(1, 2, 0) - theirs).max() < 1


def test_the_matrix_is_that_of_bt601():
    red, green, blue = 0.299, 0.587, 0.114
    cr, cb = 2 * (1 - red), 2 * (1 - blue)
    exact = [[1, 0, cr], [1, -cb * blue / green, -cr * red / green], [1, cb, 0]]
    assert np.abs(np.array(TO_RGB) / 2**12 - exact).max() <= 2.0**-13


def test_grey_has_no_chroma():
    x = (normal(4, 1, 6, 6) * 30 + 128).expand(4, 3, 6, 6).contiguous()
    for chroma in (444, 420):
        z = fitted("ycbcr", x, chroma=chroma).forward(x)
        assert torch.allclose(z[:, :36], x[:, 0].flatten(1), atol=1e-3)
        assert z[:, 36:].abs().max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chroma", [444, 420])
def test_forward_undoes_inverse_and_layout(shape, chroma):
    x = normal(5, *shape) * 30 + 128
    transform = fitted("ycbcr", x, chroma=chroma)
    _, h, w = shape
    small = (h + 1) // 2, (w + 1) // 2
    assert transform.layout == ((Plane(3, h, w),) if chroma == 444 else (Plane(1, h, w), Plane(2, *small)))
    z = normal(5, sum(plane.size for plane in transform.layout), seed=1)
    assert torch.allclose(transform.forward(transform.inverse(z)), z, atol=transform.tolerance)
    assert transform.forward(x).shape == z.shape
    if chroma == 444:
        assert torch.allclose(transform.inverse(transform.forward(x)), x, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chroma", [444, 420])
def test_inverse_is_what_a_receiver_decodes(shape, chroma):
    for unit in (1.0, 1e-3, 1e5):
        x = (normal(5, *shape) * 30 + 128) * unit
        assert_as_received(fitted("ycbcr", x, chroma=chroma), x)


@pytest.mark.parametrize("chroma", [444, 420])
def test_real_pictures(chroma):
    assert_as_received(fitted("ycbcr", photographs(), chroma=chroma), photographs())


def test_half_the_chroma_loses_little_of_a_photograph():
    x = photographs()
    transform = fitted("ycbcr", x, chroma=420)
    assert (transform.inverse(transform.forward(x)) - x).pow(2).mean() < 0.02 * x.var()


@pytest.mark.parametrize("subsampled", [False, True])
def test_overflow_is_refused(subsampled):
    side = LumaChroma(subsampled)
    side.check((1 << 28) - 1, 0, (3, 4, 4))
    low, high = 0, 1 << 62
    while high - low > 1:
        middle = (low + high) // 2
        try:
            side.check(middle, 0, (3, 4, 4))
            low = middle
        except BadHeader:
            high = middle
    values = sum(plane.size for plane in side.layout((3, 4, 4)))
    colours, _ = side.apply(np.full((1, values), low), 0, (3, 4, 4))  # blue: every term has the same sign
    assert int(colours[0, 2, 0, 0]) == low * (4096 + 7258) << 20 * subsampled
    with pytest.raises(BadHeader, match="64-bit"):
        side.check(1 << 61, 0, (3, 4, 4))


@pytest.mark.parametrize(
    ("data", "shape", "error", "message"),
    [
        (b"", (3, 4, 4), Truncated, "more bytes"),
        (b"\x02", (3, 4, 4), BadHeader, "got 2"),
        (b"\x01", (1, 4, 4), BadHeader, "3 channels"),
        (b"\x01", (12,), BadHeader, "3 channels"),
    ],
)
def test_hostile_parameters(data, shape, error, message):
    with pytest.raises(error, match=message):
        LumaChroma.read(Reader(data), shape)


def test_parameters_round_trip_in_one_byte():
    for chroma, data in ((444, b"\x00"), (420, b"\x01")):
        assert written(fitted("ycbcr", photographs(), chroma=chroma).side_information(), (3, 32, 32))[0] == data


@pytest.mark.parametrize("shape", [(1, 8, 8), (12,), (4, 8, 8)])
def test_what_it_refuses(shape):
    with pytest.raises(InputError, match="ycbcr takes pictures of 3 channels"):
        build("ycbcr").check_shape(shape)


def test_inverse_is_differentiable():
    transform = fitted("ycbcr", normal(2, 3, 5, 5), chroma=420)
    z = normal(2, 25 + 2 * 9).requires_grad_()
    transform.inverse(z)[:, 0].sum().backward()
    assert z.grad[:, :25].sum() == pytest.approx(2 * 25, rel=1e-5)
    assert z.grad[:, 25:34].abs().max() == 0  # no Cb in red
    assert z.grad[:, 34:].sum() == pytest.approx(2 * 25 * 1.402, rel=1e-3)
