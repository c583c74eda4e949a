"""Palettes against brute force, and Pillow's median cut."""

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image
from sets import packed_set, sealed

from budgetopt.errors import InputError, PackedFileError
from budgetopt.options import canonical
from budgetopt.packing import Plane, UniformLevels, pack, unpack
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.palette import PaletteColours
from budgetopt.quantizers import build
from budgetopt.quantizers.palette import Palette


def pictures(n=6, channels=3, height=7, width=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(128, 30, (n, channels, 1, 1)) + rng.normal(0, 40, (n, channels, height, width))
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 255
    return torch.from_numpy(x.round().clip(0, 255)).float()


LABELS = torch.tensor([0, 0, 1, 1, 3, 3])


def fitted(x, levels, labels=LABELS, **chosen):
    made = build("palette", levels, "none", canonical(Palette.options, chosen, "palette"))
    made.fit(x.flatten(1), labels, (Plane(*x.shape[1:]),))
    return made.eval()


def received(x, made, labels=LABELS):
    symbols, side = made.encode(x.flatten(1), labels)
    data = pack(packed_set(symbols, tuple(torch.bincount(labels).tolist()), side, shape=tuple(x.shape[1:])))
    read = unpack(data)
    assert pack(read) == data
    assert np.array_equal(made(x.flatten(1), labels).numpy(), read.decode().reshape(len(x), -1))
    return read.decode(), read


@pytest.mark.parametrize("chosen", [{}, {"scope": "class"}, {"learn": "median-cut"}, {"precision": 4}])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [2, 5, 16])
def test_every_pixel_has_the_nearest_colour_of_its_palette(levels, channels, chosen):
    x = pictures(channels=channels)
    decoded, read = received(x, fitted(x, levels, **chosen))
    side = read.dequantizer
    table = side.grid.values()[side.colours]  # (palettes, L, c)
    assert read.symbols.shape == (6, 35)
    for n in range(6):
        palette = table[[0, 0, 1, 1, 2, 2][n] if side.per_class else 0]  # class 2 has no samples, and no palette
        for y in range(7):
            for column in range(5):
                pixel = x[n, :, y, column].numpy()
                distance = ((palette - pixel) ** 2).sum(1)
                assert np.isclose(((decoded[n, :, y, column] - pixel) ** 2).sum(), distance.min())
                assert any(np.array_equal(decoded[n, :, y, column], c) for c in palette)


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_median_cut_is_pillows(levels):
    x = pictures()
    _, read = received(x, fitted(x, levels, learn="median-cut"))
    rgb = x.numpy().transpose(0, 2, 3, 1).reshape(1, -1, 3).astype(np.uint8)
    palette = Image.fromarray(rgb).quantize(levels, Image.Quantize.MEDIANCUT).getpalette()
    expected = {tuple(palette[i : i + 3]) for i in range(0, 3 * levels, 3)}
    assert {tuple(colour) for colour in read.dequantizer.colours[0].tolist()} == expected


def test_k_means_beats_median_cut_and_a_palette_a_class_beats_one(digits):
    x = pictures(n=60, height=16, width=16)
    labels = torch.arange(60) // 20
    x[labels == 1] *= 0.5
    errors = {}
    for name, chosen in {"cut": {"learn": "median-cut"}, "learned": {}, "class": {"scope": "class"}}.items():
        made = fitted(x, 8, labels, **chosen)
        errors[name] = float(((made(x.flatten(1), labels) - x.flatten(1)) ** 2).mean())
    assert errors["class"] < errors["learned"] < errors["cut"]


def test_colours_are_in_order_of_brightness():
    x = pictures()
    _, read = received(x, fitted(x, 16))
    assert (np.diff(read.dequantizer.colours[0].astype(int).sum(1)) >= 0).all()


@pytest.mark.parametrize("scope", ["dataset", "class"])
def test_colours_are_learned(scope):
    """Descent on the surrogate's error lowers the error of the file."""
    x = pictures(n=6, height=16, width=16)
    made = fitted(x, 4, scope=scope)
    with torch.no_grad():
        made.colours += 25 * torch.randn(made.colours.shape, generator=torch.Generator().manual_seed(0))
    before = float(((made(x.flatten(1), LABELS) - x.flatten(1)) ** 2).mean())
    made.train()
    optimizer = torch.optim.Adam(made.parameters(), lr=1.0)
    for step in range(60):
        made.progress = step / 60
        optimizer.zero_grad()
        ((made(x.flatten(1), LABELS) - x.flatten(1)) ** 2).mean().backward()
        optimizer.step()
    made.eval()
    assert float(((made(x.flatten(1), LABELS) - x.flatten(1)) ** 2).mean()) < 0.8 * before
    received(x, made)


def test_training_sees_what_the_file_holds():
    x = pictures()
    made = fitted(x, 5)
    z = x.flatten(1).requires_grad_()
    trained = made.train()(z, LABELS)
    trained.sum().backward()
    assert torch.equal(trained, made.eval()(x.flatten(1), LABELS))
    assert (z.grad == 1).all()
    assert made.colours.grad.abs().sum() > 0


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_surrogate_is_a_softmax_over_the_nearest_colours(progress):
    x = pictures(n=1)
    made = fitted(x, 6, torch.zeros(1, dtype=torch.int64)).train()
    made.progress = progress
    soft = made._soft(x.flatten(1), torch.zeros(1, dtype=torch.int64))[0]
    temperature = made._spacing * 0.01**progress
    for pixel, mixed in zip(x[0].flatten(1).T, soft, strict=True):
        near = sorted(made.colours.detach()[0], key=lambda c: float(((c - pixel) ** 2).sum()))[:4]
        weights = torch.softmax(torch.stack([-((c - pixel) ** 2).sum() / temperature for c in near]), 0)
        assert torch.allclose(mixed, sum(w * c for w, c in zip(weights, near, strict=True)), atol=1e-2)


def test_samples_and_classes_may_be_left_out():
    x = pictures()
    made = fitted(x, 4, scope="class")
    decoded, read = received(x[2:], made, LABELS[2:])  # class 0 is gone
    assert read.dequantizer.colours.shape == (2, 4, 3)
    assert np.array_equal(decoded, made(x.flatten(1), LABELS)[2:].reshape(decoded.shape).numpy())


def test_fewer_colours_than_asked_for_are_kept_exactly():
    x = pictures().ge(128).float() * 255
    for learn in ("learned", "median-cut"):
        assert np.array_equal(received(x, fitted(x, 16, learn=learn))[0], x.numpy())


@pytest.mark.parametrize(("transform", "shape"), [("dct", (3, 8, 8)), ("identity", (7,)), ("identity", (2, 8, 8))])
def test_only_pictures(transform, shape):
    with pytest.raises(InputError, match="palette needs pictures"):
        Palette.check_transform(transform, shape)


def side_of(**changes):
    fields = {"grid": UniformLevels(256, 0, 1, 0), "colours": np.array([[[0], [7]]], np.uint8), "per_class": False}
    return PaletteColours(**(fields | changes))


def test_hostile_files():
    data = pack(packed_set(np.array([[0, 1, 1, 0]]), (1,), side_of(), shape=(1, 2, 2)))
    assert unpack(data).decode().ravel().tolist() == [0, 7, 7, 0]
    body = data[4:-4]
    at = body.index(bytes([1, 0, 255]))  # levels, form, the grid's count
    for form in range(2, 256):
        with pytest.raises(BadHeader, match="unknown form"):
            unpack(sealed(body[: at + 1] + bytes([form]) + body[at + 2 :]))
    with pytest.raises(BadHeader, match="at least 2"):
        unpack(sealed(body[:at] + b"\0" + body[at + 1 :]))
    changed = [body[:cut] for cut in range(len(body))]
    changed += [body[:i] + bytes([body[i] ^ 1 << bit]) + body[i + 1 :] for i in range(len(body)) for bit in range(8)]
    for wrong in changed:
        with contextlib.suppress(PackedFileError):
            unpack(sealed(wrong)).decode(slice(0, 2))


def test_pictures_of_many_channels_are_refused():
    with pytest.raises(BadHeader, match="1 to 4 channels"):
        side_of().symbol_layout((Plane(5, 2, 2),))
    with pytest.raises(BadHeader, match="pictures"):
        side_of().symbol_layout((Plane(1), Plane(1)))
