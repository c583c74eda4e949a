"""One contract for every registered transform and option; then what identity and standardisation promise.

A new transform is covered by being registered: `variants.py` finds its options.
"""

import warnings

import numpy as np
import pytest
import torch
from sets import packed_set, quickly_packed
from variants import initial_sets, option_sets

from budgetopt.errors import InputError, PackedFileError
from budgetopt.options import show
from budgetopt.packing import UniformLevels, unpack
from budgetopt.packing import families as formats
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.layout import layout_of, values_of
from budgetopt.quantizers import build as build_quantizer
from budgetopt.transforms import TRANSFORMS, build


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def takes(name, shape):
    try:
        TRANSFORMS[name].check_shape(shape)
    except InputError:
        return False
    return True


OPTIONS = [(name, chosen) for name, cls in TRANSFORMS.items() for chosen in option_sets(cls.options)]
CASES = [
    pytest.param(name, chosen, key, id=f"{show(name, chosen)}-{key}")
    for name, chosen in OPTIONS
    for key, made in initial_sets().items()
    if takes(name, made.x.shape[1:])
]
ALL = pytest.mark.parametrize(("name", "chosen", "key"), CASES)


def smooths(name, chosen, shape):
    """Whether `forward` is documented not to undo `inverse`: means over pixels, and blocks that the edge cuts, of which
    only some bands are kept."""
    values = dict(chosen)
    cut = any(side % 8 for side in (1, *shape)[-2:])
    blocks_cut = name == "dct" and values.get("block") == "8x8" and "keep" in values and cut
    return values.get("down") == "area" or blocks_cut


def made(name, chosen, key):
    """A fitted transform, and the set x (n, c, h, w) or (n, f)."""
    x = torch.from_numpy(initial_sets()[key].x)
    transform = build(name, chosen)
    transform.fit(x)
    return transform, x


# --- the contract of every transform ---------------------------------------------------------------------------------


def test_every_transform_has_its_side_in_the_decoder():
    found = {type(made(*case.values)[0].side_information()) for case in CASES}
    assert found == set(formats.TRANSFORMS.values())
    assert {case.values[0] for case in CASES} == set(TRANSFORMS)
    assert len({cls.name for cls in formats.TRANSFORMS.values()}) == len(formats.TRANSFORMS)


@ALL
def test_coded_values_have_the_layout_that_the_file_declares(name, chosen, key):
    transform, x = made(name, chosen, key)
    before = x.clone()
    z = transform.forward(x)
    assert z.shape == (len(x), values_of(transform.layout))
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert torch.equal(x, before)
    side = transform.side_information()
    assert transform.layout == side.layout(tuple(x.shape[1:]))
    back = transform.inverse(z)
    assert back.shape == x.shape
    assert back.dtype == torch.float32
    again, _ = made(name, chosen, key)
    assert again.side_information() == side
    assert torch.equal(again.forward(x), z)


@ALL
def test_forward_undoes_inverse_on_the_coded_domain(name, chosen, key):
    transform, x = made(name, chosen, key)
    for z in (transform.forward(x), transform.forward(x.flip(0) * 0.5)):
        again = transform.forward(transform.inverse(z))
        if smooths(name, chosen, tuple(x.shape[1:])):
            assert float((again - z).norm()) < float(z.norm())
            continue
        spread = float(z.std(correction=0)) or float(z.abs().max())
        precision = 2.0**-22 * float(x.abs().max()) / max(spread, 1e-30)
        assert float((again - z).abs().max()) <= (transform.tolerance + precision) * max(spread, float(z.abs().max()))


@ALL
def test_parameters_survive_the_file(name, chosen, key):
    """Read to the last byte, equal, and of the same size for fewer samples."""
    transform, x = made(name, chosen, key)
    side, shape = transform.side_information(), tuple(x.shape[1:])
    out = Writer()
    side.write(out)
    fields = Reader(bytes(out.data))
    assert type(side).read(fields, shape) == side
    assert fields.left == 0
    for length in range(len(out.data)):
        with pytest.raises(PackedFileError):
            type(side).read(Reader(bytes(out.data[:length])), shape)


@ALL
def test_the_receiver_decodes_what_training_saw(name, chosen, key):
    """Integers in the decoder, float32 in training: one rounding apart, through the bytes of a file."""
    transform, x = made(name, chosen, key)
    z = transform.forward(x)
    for levels in (2, 16, 256):
        quantizer = build_quantizer("uniform", levels, "minmax").eval()
        labels = torch.zeros(len(x), dtype=torch.int64)
        quantizer.fit(z, labels, transform.layout)
        symbols, table = quantizer.encode(z, labels)
        packed = packed_set(symbols, None, table, tuple(x.shape[1:]), inverse=transform.side_information())
        received = unpack(quickly_packed(packed)).decode()
        ours = transform.inverse(quantizer(z, labels)).numpy()
        largest = max(np.abs(received).max(), float(x.abs().max()), float(z.abs().max()))
        assert np.abs(ours - received).max() <= 2.0**-18 * largest


@ALL
def test_samples_are_transformed_one_by_one(name, chosen, key):
    """Sets are cut to fit a budget: what is left is coded as it was."""
    transform, x = made(name, chosen, key)
    z = transform.forward(x)
    for keep in (slice(0, 1), slice(1, None, 2)):
        assert torch.allclose(transform.forward(x[keep]), z[keep], rtol=1e-5, atol=1e-5 * float(z.abs().max()))
        part, whole = transform.inverse(z[keep]), transform.inverse(z)[keep]
        assert torch.allclose(part, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


@ALL
def test_the_gradient_of_the_inverse_is_its_slope(name, chosen, key):
    """Inverses are affine: a step of any size changes samples by the gradient times the step."""
    transform, x = made(name, chosen, key)
    z = transform.forward(x).clone().requires_grad_()
    weight, step = normal(*x.shape, seed=1), normal(*z.shape, seed=2) * float(z.detach().std(correction=0))
    (transform.inverse(z) * weight).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad != 0).float().mean() > 0.5
    change = ((transform.inverse(z.detach() + step) - transform.inverse(z.detach())).double() * weight.double()).sum()
    scale = float((z.grad * step).abs().sum())
    assert float(change) == pytest.approx(float((z.grad.double() * step.double()).sum()), abs=1e-4 * scale)


@ALL
def test_integers_never_overflow(name, chosen, key):
    """Whatever exponents and levels pass the check decode to what float64 gives; the others are refused."""
    transform, x = made(name, chosen, key)
    side, shape = transform.side_information(), tuple(x.shape[1:])
    values = values_of(transform.layout)
    signs = np.random.default_rng(0).choice([-1, 1], (4, values))
    accepted = 0
    for exponent in range(-64, 65, 8):
        for most in (1, 255, (1 << 24) - 1, (1 << 32) - 1):
            try:
                side.check(most, exponent, shape)
            except BadHeader:
                continue
            accepted += 1
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ints, out = side.apply(most * signs.astype(np.int64), exponent, shape)
            zero, base = side.apply(np.zeros((1, values), np.int64), exponent, shape)
            one, unit = side.apply(signs.astype(np.int64), 24, shape)  # affine: the slope at a small size
            origin, _ = side.apply(np.zeros((1, values), np.int64), 24, shape)
            slope = (one - origin).astype(np.float64) * 2.0 ** (24 - unit)
            expected = zero.astype(np.float64) * 2.0**-base + slope * most * 2.0**-exponent
            got = ints.astype(np.float64) * 2.0**-out
            assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()
    assert accepted > 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 9), (2, 5, 5), (1, 1, 1), (4, 1, 7), (7,), (1,)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_samples_that_a_transform_cannot_take_are_named(name, shape):
    """Either it says so in one line, or it works."""
    try:
        TRANSFORMS[name].check_shape(shape)
    except InputError as error:
        text = str(error)
        assert "\n" not in text
        assert name in text
        return
    x = normal(4, *shape) * 50 + 100
    transform = build(name)
    transform.fit(x)
    assert transform.inverse(transform.forward(x)).shape == x.shape


@pytest.mark.parametrize("name", TRANSFORMS)
def test_wrong_options_show_the_name_or_the_value(name):
    with pytest.raises(InputError, match="'colour'") as raised:
        build(name, (("colour", 3),))
    assert "\n" not in str(raised.value)
    for option in TRANSFORMS[name].options:
        with pytest.raises(InputError, match="got 'no such choice'") as raised:
            build(name, ((option, "no such choice"),))
        assert option in str(raised.value)


def test_unknown_transform_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'standardize'"):
        build("standardise")


# --- identity and standardisation -----------------------------------------------------------------------------------

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
EXACT = ("identity", "standardize")
VARIANTS = [(name, key) for name in EXACT for key in INPUTS]


def fitted(name, x):
    transform = build(name)
    transform.fit(x)
    return transform


def as_packed(transform, symbols, table, x):
    return packed_set(symbols, None, table, tuple(x.shape[1:]), inverse=transform.side_information())


@pytest.mark.parametrize(("name", "key"), VARIANTS)
def test_forward_undoes_inverse(name, key):
    transform = fitted(name, INPUTS[key])
    x = INPUTS[key]
    z = normal(*x.shape, seed=1).flatten(1) if name == "standardize" else x.flatten(1)
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
    labels = torch.zeros(len(x), dtype=torch.int64)
    quantizer.fit(coded, labels, layout_of(x.shape[1:]))
    quantizer.eval()
    symbols, table = quantizer.encode(coded, labels)
    received = unpack(quickly_packed(as_packed(transform, symbols, table, x))).decode()
    ours = transform.inverse(quantizer(coded, labels)).numpy()
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
    symbols = np.random.default_rng(3).integers(0, levels, (len(x), x[0].numel()))
    z = torch.from_numpy(table.values())[torch.from_numpy(symbols)]
    assert np.array_equal(transform.inverse(z).numpy(), as_packed(transform, symbols, table, x).decode())


@pytest.mark.parametrize("key", ["grey images", "colour images", "features", "small units", "large units"])
def test_standardize_centres_and_scales_each_channel(key):
    x = INPUTS[key]
    z = fitted("standardize", x).forward(x).reshape(x.shape)
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


@pytest.mark.parametrize("name", EXACT)
def test_inverse_is_differentiable(name):
    x = INPUTS["colour images"]
    transform = fitted(name, x)
    z = transform.forward(x).clone().requires_grad_()
    transform.inverse(z).sum().backward()
    slope = transform.inverse(torch.ones_like(z)) - transform.inverse(torch.zeros_like(z))
    assert torch.allclose(z.grad, slope.flatten(1), rtol=1e-5)
    assert (z.grad > 0).all()
