"""Samples through a transform and a real file, and real pictures, for the tests of transforms."""

from functools import lru_cache

import numpy as np
import torch

from budgetopt.packing import PackedSet, UniformLevels, pack, unpack
from budgetopt.packing.fields import Reader, Writer
from budgetopt.transforms import build


def fitted(name, x, **options):
    transform = build(name, tuple(options.items()))
    transform.fit(x)
    return transform


def uniform_levels(z, levels=256):
    """Levels over the range of z, with a 12-bit step and offset."""
    low, high = float(z.min()), float(z.max())
    step = (high - low) / (levels - 1) or 1.0
    exponent = 12 - int(np.frexp(step)[1])
    return UniformLevels(levels, round(low * 2.0**exponent), round(step * 2.0**exponent), exponent)


def received(transform, x, levels=256):
    """→ (quantized z (n, K), what `transform` makes of it, what a receiver decodes), through the bytes of a file."""
    z = transform.forward(x).contiguous()
    table = uniform_levels(z, levels)
    values = torch.from_numpy(table.values())
    symbols = torch.bucketize(z, (values[1:] + values[:-1]) / 2)
    channels = np.ones(x.shape[1] if x.dim() == 4 else 1, np.float32)
    packed = PackedSet(
        symbols.numpy().astype(np.uint8),
        tuple(x.shape[1:]),
        (len(x),),
        table,
        transform.side_information(),
        channels,
        channels,
    )
    quantized = values[symbols]
    return quantized, transform.inverse(quantized).numpy(), unpack(pack(packed)).decode()


def assert_as_received(transform, x, tolerance=2.0**-20):
    """torch's inverse is the file's, within `tolerance` of the largest magnitude on the way."""
    for levels in (3, 256):
        quantized, ours, theirs = received(transform, x, levels)
        assert theirs.dtype == np.float32
        assert theirs.shape == x.shape
        scale = max(float(quantized.abs().max()), float(np.abs(theirs).max()))
        assert np.abs(ours - theirs).max() <= tolerance * scale


def written(side, shape):
    """`side` through its bytes; nothing may be left over."""
    out = Writer()
    side.write(out)
    fields = Reader(bytes(out.data))
    again = type(side).read(fields, shape)
    assert fields.left == 0
    assert again == side
    return bytes(out.data), again


@lru_cache
def photographs():
    """(60, 3, 32, 32) float32, 0 … 255: squares of two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    pieces = []
    for image in load_sample_images().images:
        small = image[:416, :640].reshape(13, 32, 20, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
        pieces.append(small[:: len(small) // 30][:30])
    return torch.from_numpy(np.concatenate(pieces).astype(np.float32))


def digit_pictures():
    """(100, 1, 8, 8) float32, 0 … 16."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images[:100, None].astype(np.float32))


def fashion_pictures(root):
    """(60, 1, 28, 28) float32, 0 … 255."""
    from torchvision.datasets import FashionMNIST

    return FashionMNIST(root, train=True).data[:60, None].float()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
