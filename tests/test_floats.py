"""`none`: exact bits of floating-point numbers, and whole 8-bit numbers."""

import numpy as np
import pytest
import torch
from sets import head_of, sealed

from budgetopt.errors import InputError, PackedFileError, TrialFailure
from budgetopt.options import canonical
from budgetopt.packing import Identity, PackedSet, Plane, Standardize, pack, sections, unpack
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.floats import FloatValues
from budgetopt.quantizers import build
from budgetopt.quantizers.floats import Floats


def made(x, dtype):
    quantizer = build("none", 256, "none", canonical(Floats.options, {"dtype": dtype}, "none"))
    labels = torch.zeros(len(x), dtype=torch.int64)
    quantizer.fit(x.flatten(1), labels, (Plane(*x.shape[1:]),))
    return quantizer.eval(), labels


def packed(x, dtype, inverse=Identity()):  # noqa: B008 - immutable
    quantizer, labels = made(x, dtype)
    symbols, side = quantizer.encode(x.flatten(1), labels)
    channels = x.shape[1] if x.dim() == 4 else 1
    statistics = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return PackedSet(symbols, tuple(x.shape[1:]), (len(x),), side, inverse, *statistics)


ODD = torch.tensor([[0.0, -0.0, 1e-45, -3.4028235e38, 1 / 3, 65504.0]])


def test_float32_keeps_every_bit():
    data = pack(packed(ODD, "float32"))
    read = unpack(data)
    assert read.decode().tobytes() == ODD.numpy().tobytes()
    assert pack(read) == data
    assert dict(sections(data))["symbols (float32)"] == 4 * 6


def test_float16_is_numpys():
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 100
    quantizer, labels = made(x, "float16")
    data = pack(packed(x, "float16"))
    assert np.array_equal(unpack(data).decode(), x.numpy().astype(np.float16).astype(np.float32))
    assert np.array_equal(quantizer(x.flatten(1), labels).numpy(), unpack(data).decode().reshape(5, -1))
    assert dict(sections(data))["symbols (float16)"] == 2 * x.numel()
    assert pack(unpack(data)) == data


def test_bytes_of_pictures_are_the_pixels(digits):
    x = torch.arange(256.0).reshape(1, 1, 16, 16).repeat(3, 1, 1, 1)
    file = packed(x + 0.3, "uint8")
    assert np.array_equal(file.symbols.reshape(-1), x.numpy().ravel())
    read = unpack(pack(file))
    assert np.array_equal(read.decode(), x.numpy())
    assert pack(read) == pack(file)
    coarse = torch.from_numpy(digits.train.x[:50].astype(np.float32))  # 0 … 16: 256 steps over that range
    assert np.abs(unpack(pack(packed(coarse, "uint8"))).decode() - coarse.numpy()).max() <= 0.51 * 16 / 255


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_training_sees_what_the_file_holds(dtype):
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    quantizer, labels = made(x.detach(), dtype)
    trained = quantizer.train()(x, labels)
    assert np.array_equal(trained.detach().numpy(), unpack(pack(packed(x.detach(), dtype))).decode())
    trained.sum().backward()
    assert (x.grad == 1).all()


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("float32", np.inf), ("float16", 1e6)])
def test_what_is_not_finite_is_refused(dtype, value):
    x = torch.zeros(2, 3)
    quantizer, labels = made(x, dtype)
    x[1, 2] = value
    with pytest.raises(TrialFailure):
        quantizer.encode(x, labels)
    side = FloatValues(4 if dtype == "float32" else 2)
    with pytest.raises(BadHeader):
        pack(PackedSet(x.numpy(), (3,), (2,), side, Identity(), np.zeros(1), np.ones(1)))


def test_no_transform():
    with pytest.raises(InputError, match="takes no transform"):
        Floats.check_transform("standardize", (3, 8, 8))
    with pytest.raises(BadHeader):
        pack(packed(ODD, "float32", Standardize((1,), 0, (0,), 0)))
    assert unpack(pack(packed(ODD.clamp(-1, 1), "uint8"))).inverse == Identity()


def test_hostile_files():
    data = pack(packed(ODD, "float32"))
    body, head = data[4:-4], head_of(data)
    for wrong in (body[:-1], body + b"\0", head):
        with pytest.raises(BadPayload, match="do not fill"):
            unpack(sealed(wrong))
    for value in (np.nan, np.inf):
        with pytest.raises(BadPayload, match="not finite"):
            unpack(sealed(head + np.full(6, value, "<f4").tobytes()))
    for form in range(3, 256):
        with pytest.raises(BadHeader, match="unknown type"):
            unpack(sealed(head[:-1] + bytes([form]) + body[len(head) :]))
    standardized = bytearray(head)
    standardized[-2] |= 1 << 4  # the transform: its parameters e_s, e_o, scale, offset follow
    with pytest.raises(BadHeader):
        unpack(sealed(bytes(standardized[:-1]) + b"\0\0\1\0" + standardized[-1:] + body[len(head) :]))
    small = pack(packed(torch.zeros(1, 1), "uint8"))[4:-4]
    for cut in range(len(small)):
        with pytest.raises(PackedFileError):
            unpack(sealed(small[:cut]))
