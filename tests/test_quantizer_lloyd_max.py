"""Lloyd–Max: never worse than equal steps on real data, stationary, and stored in few bits."""

import gzip
from itertools import pairwise

import numpy as np
import pytest
import torch

from budgetopt.packing import Domain, Plane
from budgetopt.packing.codebook import CodebookLevels
from budgetopt.packing.errors import BadHeader, Truncated
from budgetopt.packing.fields import Reader, Writer
from budgetopt.quantizers import build
from budgetopt.quantizers.lloyd_max import codebook, lloyd_max

LABELS = torch.zeros(60, dtype=torch.int64)


def values(seed=0):
    return torch.randn(60, 10, generator=torch.Generator().manual_seed(seed)) ** 3


def fitted(family, levels, clipping, x, layout, **options):
    quantizer = build(family, levels, clipping, tuple(sorted(options.items())))
    quantizer.fit(x, torch.zeros(len(x), dtype=torch.int64), layout)
    return quantizer.eval()


def error(quantizer, x):
    return float((quantizer(x, torch.zeros(len(x), dtype=torch.int64)) - x).double().square().mean())


@pytest.fixture(scope="module")
def pictures(fashion_mnist_root):
    """(200, 784) real pixels, 0 … 255."""
    folder = fashion_mnist_root / "FashionMNIST" / "raw"
    (path,) = list(folder.glob("t10k-images-idx3-ubyte*"))[:1]
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        stream.seek(16)
        pixels = np.frombuffer(stream.read(200 * 784), np.uint8)
    return torch.from_numpy(pixels.reshape(200, 784).astype(np.float32))


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("clipping", ["minmax", "p1", "p5"])
def test_distortion_is_never_above_uniform_on_real_pictures(pictures, clipping, levels):
    layout = (Plane(1, 28, 28),)
    ours = error(fitted("lloyd-max", levels, "minmax", pictures, layout), pictures)
    assert ours <= error(fitted("uniform", levels, clipping, pictures, layout), pictures)


@pytest.mark.parametrize("levels", [2, 3, 5, 17, 64])
@pytest.mark.parametrize("clipping", ["minmax", "p1"])
def test_distortion_is_never_above_uniform_on_digits(digits, clipping, levels):
    x = torch.from_numpy(np.asarray(digits.train.x[:300], np.float32).reshape(-1, 64))
    layout = (Plane(1, 8, 8),)
    ours = error(fitted("lloyd-max", levels, clipping, x, layout), x)
    assert ours <= error(fitted("uniform", levels, clipping, x, layout), x) * (1 + 1e-6) + 1e-4


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 7, 16])
def test_levels_are_the_means_of_their_values(levels, weighted):
    """Stationary: every level is the weighted mean of what is nearest to it, by a loop."""
    x = np.sort(values().numpy().astype(np.float64).flatten())
    weights = np.random.default_rng(0).random(x.size) if weighted else np.ones(x.size)
    book = lloyd_max(x, weights, levels, 10_000)
    nearest = np.abs(x[:, None] - book).argmin(1)
    for k in range(levels):
        mine = nearest == k
        assert not mine.any() or book[k] == pytest.approx(np.average(x[mine], weights=weights[mine]), abs=1e-9)


def test_two_levels_of_a_normal_distribution():
    """±σ·√(2/π) (Max 1960)."""
    x = np.sort(np.random.default_rng(0).normal(size=200_000))
    assert lloyd_max(x, np.ones(x.size), 2, 200) == pytest.approx([-0.7979, 0.7979], abs=0.01)
    assert lloyd_max(x, np.ones(x.size), 4, 1000) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=0.02)


def test_steps_never_add_to_the_error():
    x = values()
    errors = [error(fitted("lloyd-max", 6, "minmax", x, (Plane(10),), steps=s), x) for s in (0, 1, 3, 100)]
    assert all(later <= earlier * 1.01 for earlier, later in pairwise(errors))


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 256])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 255.0, 1e9])
def test_stored_levels_are_precise_and_short(levels, scale):
    book = np.sort(np.random.default_rng(levels).normal(size=levels)) * scale
    side = codebook(book)
    step = (book[-1] - book[0]) / (levels - 1)
    moved = np.abs(side.table() * 2.0**-side.exponent - book)
    assert moved.max() <= step / (8 if levels < 100 else 1)
    out = Writer()
    side.write(out, Domain((Plane(10),), (1,)))
    width = (max(side.differences) - 1).bit_length()
    assert len(out.data) <= 6 + -(-(levels - 1) * width // 8)
    assert levels > 4 or len(out.data) <= 9
    fields = Reader(bytes(out.data))
    assert CodebookLevels.read(fields, Domain((Plane(10),), (1,))) == side
    assert fields.left == 0


def test_equal_levels_are_moved_apart():
    table = codebook(np.array([1.0, 1.0, 1.0, 2.0])).table()
    assert (np.diff(table) > 0).all()
    assert (np.diff(codebook(np.zeros(256)).table()) > 0).all()


def test_gradient_of_learned_levels():
    x, weight = values(), values(1)
    quantizer = build("lloyd-max", 5, "learned")
    quantizer.fit(x, LABELS, (Plane(10),))
    z = x.clone().requires_grad_()
    (quantizer.train()(z, LABELS) * weight).sum().backward()
    symbols = quantizer.encode(x, LABELS)[0]
    width = float(x.max() - x.min())
    wanted = [width * float(weight[torch.from_numpy(symbols == k)].sum()) for k in range(5)]
    assert quantizer.book.grad.numpy() == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert torch.equal(z.grad, weight)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"\x00\x00\x00\x00", BadHeader, "2..256"),
        (b"\x03\x00\x00\x11", BadHeader, "16 bits"),
        (b"\x03\x00\x00\x08\x01", Truncated, "more bytes"),
    ],
)
def test_hostile_parameters_are_named(data, error, message):
    with pytest.raises(error, match=message):
        CodebookLevels.read(Reader(data), Domain((Plane(10),), (1,)))
