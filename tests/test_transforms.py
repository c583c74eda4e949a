import numpy as np
import pytest
import torch

from budgetopt.errors import InputError
from budgetopt.packing import PackedSet, UniformLevels, pack, unpack
from budgetopt.quantizers import build as build_quantizer
from budgetopt.transforms import TRANSFORMS, build


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CHANNELS = torch.tensor([1.0, 40.0, 5.0]).reshape(3, 1, 1)
INPUTS = {
    "grey images": (normal(20, 1, 6, 5) * 30 + 128).clamp(0, 255).round(),
    "colour images": normal(20, 3, 4, 4) * CHANNELS + 3 * CHANNELS,
    "features": normal(40, 7) * 3 - 1,
    "one constant channel": torch.cat([normal(9, 1, 3, 3), torch.full((9, 2, 3, 3), 7.0)], 1),
    "constant images": torch.full((5, 1, 3, 3), -2.5),
    "constant features": torch.full((5, 4), 300.0),
    "zero": torch.zeros(5, 4),
    "one sample": normal(1, 3, 2, 2),
    "small units": normal(20, 5) * 1e-6 + 1e-5,
    "large units": normal(20, 5) * 1e6 - 1e7,
    "far from zero": normal(20, 5) * 0.1 + 1000,
    "already standardised": (normal(500, 4) - normal(500, 4).mean()) / normal(500, 4).std(),
    "exactly centred": torch.cat([normal(50, 4), -normal(50, 4)]),
    "nearly centred": torch.cat([normal(50, 4), -normal(50, 4), torch.full((1, 4), 1e-9)]),
}
VARIANTS = [(name, key) for name in TRANSFORMS for key in INPUTS]


def fitted(name, x):
    transform = build(name)
    transform.fit(x)
    return transform


def as_packed(transform, symbols, table, x):
    channels = x.shape[1] if x.dim() == 4 else 1
    unit = np.ones(channels, np.float32)
    return PackedSet(symbols.numpy(), (len(x),), table, transform.side_information(), 0 * unit, unit)


@pytest.mark.parametrize(("name", "key"), VARIANTS)
def test_forward_undoes_inverse(name, key):
    transform = fitted(name, INPUTS[key])
    z = normal(*INPUTS[key].shape, seed=1) if name == "standardize" else INPUTS[key]
    again = transform.forward(transform.inverse(z))
    # float32 cannot hold small differences of numbers far from zero: that is the input's own precision
    x, spread = transform.inverse(z), transform.inverse(z).std() if z.numel() > 1 else 1.0
    precision = float(x.abs().max()) * 2.0**-23 / max(float(spread), 1e-30) if key != "constant features" else 1e-4
    assert again.shape == z.shape
    assert torch.allclose(again, z, rtol=0, atol=(transform.tolerance + 2 * precision) * float(z.abs().max()))


@pytest.mark.parametrize(("name", "key"), VARIANTS)
@pytest.mark.parametrize(("family", "levels"), [("uniform", 2), ("uniform", 16), ("uniform", 256), ("apot", 15)])
def test_inverse_is_what_a_receiver_decodes(name, key, family, levels):
    """Bit for bit where float32 holds every integer on the way, else to the last bit or two; through a real file."""
    x = INPUTS[key]
    transform = fitted(name, x)
    quantizer = build_quantizer(family, levels, "minmax" if family == "uniform" else "half")
    coded = transform.forward(x)
    quantizer.fit(coded)
    quantizer.eval()
    symbols, table = quantizer.encode(coded)
    received = unpack(pack(as_packed(transform, symbols, table, x))).decode()
    ours = transform.inverse(quantizer(coded)).numpy()
    magnitude = np.abs(received).max() + (0 if name == "identity" else float(transform._mean.abs().max()))
    assert np.abs(ours - received).max() <= 2.0**-22 * magnitude
    if name == "identity" or every_integer_is_small(transform.side_information(), table):
        assert np.array_equal(ours, received)


def every_integer_is_small(side, table):
    """Products and sums, on the finer of the two exponents, all below 2^24."""
    shift = table.exponent + side.scale_exponent - side.offset_exponent
    largest = 0
    for scale, offset in zip(side.scale, side.offset, strict=True):
        product = max(abs(int(t)) for t in table.table()) * scale << max(0, -shift)
        largest = max(largest, product + (abs(offset) << max(0, shift)))
    return largest < 1 << 24


@pytest.mark.parametrize(("levels", "low", "step", "exponent"), [(2, -1, 2, 0), (5, -4, 2, 1), (16, -60, 8, 5)])
@pytest.mark.parametrize("key", ["grey images", "colour images", "features", "one constant channel"])
def test_small_integers_are_exact(key, levels, low, step, exponent):
    x = INPUTS[key]
    transform = fitted("standardize", x)
    table = UniformLevels(levels, low, step, exponent)
    assert every_integer_is_small(transform.side_information(), table)
    symbols = torch.randint(0, levels, x.shape, generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    z = torch.from_numpy(table.values())[symbols.long()]
    assert np.array_equal(transform.inverse(z).numpy(), as_packed(transform, symbols, table, x).decode())


@pytest.mark.parametrize("key", ["grey images", "colour images", "features", "small units", "large units"])
def test_standardize_centres_and_scales_each_channel(key):
    x = INPUTS[key]
    z = fitted("standardize", x).forward(x)
    channels = z.transpose(0, 1).flatten(1) if z.dim() == 4 else z.reshape(1, -1)
    # stored with 8 and 12 bits, relative to the largest channel
    assert (channels.mean(1).abs() < 0.1).all()
    assert torch.allclose(channels.std(1, correction=0), torch.ones(len(channels)), atol=0.3)


def test_standardize_statistics_against_a_naive_loop():
    x = INPUTS["colour images"]
    side = fitted("standardize", x).side_information()
    means = [float(np.mean([image[c].mean() for image in x.double().numpy()])) for c in range(3)]
    stds = [float(np.concatenate([image[c].ravel() for image in x.double().numpy()]).std()) for c in range(3)]
    for c in range(3):
        assert side.offset[c] * 2.0**-side.offset_exponent == pytest.approx(means[c], abs=max(means) * 2.0**-11)
        assert side.scale[c] * 2.0**-side.scale_exponent == pytest.approx(stds[c], abs=max(stds) * 2.0**-7)


@pytest.mark.parametrize("key", ["constant images", "constant features", "one constant channel", "zero"])
def test_constant_channels_survive(key):
    x = INPUTS[key]
    transform = fitted("standardize", x)
    z = transform.forward(x)
    assert torch.isfinite(z).all()
    assert torch.allclose(transform.inverse(z), x, rtol=1e-3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inverse_is_differentiable(name):
    x = INPUTS["colour images"]
    transform = fitted(name, x)
    z = transform.forward(x).clone().requires_grad_()
    transform.inverse(z).sum().backward()
    slope = transform.inverse(torch.ones_like(x)) - transform.inverse(torch.zeros_like(x))
    assert torch.allclose(z.grad, slope, rtol=1e-5)
    assert (z.grad > 0).all()


def test_unknown_transform_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'standardize'"):
        build("standardise")
