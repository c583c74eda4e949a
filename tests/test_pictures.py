"""JPEG and lossy WebP: what Pillow decodes, tiles, budgets and hostile streams."""

import contextlib
import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from sets import head_of, packed_set, sealed
from variants import CPU, spec_of

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError, OverBudget, PackedFileError
from budgetopt.options import canonical
from budgetopt.packing import Plane, pack, sections, unpack
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.pictures import MAX_SCANS, columns_for, picture_size, tiled, untiled
from budgetopt.quantizers import QUANTIZERS, build
from budgetopt.representation import InitialSet, Representation

FORMATS = {"jpeg": "JPEG", "webp": "WEBP"}


def smooth(n=10, channels=3, height=16, width=12, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.cos(np.arange(height)[:, None] / 5 + np.arange(width) / 4 + rng.normal(size=(n, channels, 1, 1)) * 2)
    return torch.from_numpy((128 + 90 * wave + rng.normal(0, 6, wave.shape)).round().clip(0, 255)).float()


LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3, 3])


def fitted(family, x, labels=LABELS, **chosen):
    made = build(family, 256, "none", canonical(QUANTIZERS[family].options, chosen, family))
    made.fit(x.flatten(1), labels, (Plane(*x.shape[1:]),))
    return made.eval()


def file_of(x, made, labels=LABELS):
    symbols, side = made.encode(x.flatten(1), labels)
    return packed_set(symbols, tuple(torch.bincount(labels).tolist()), side, shape=tuple(x.shape[1:]))


def shown(stream, kind):
    return np.asarray(Image.open(io.BytesIO(stream), formats=(kind,)))


@pytest.mark.parametrize("tile", ["all", "class", "shortest"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", FORMATS)
def test_the_receiver_sees_what_pillow_shows(family, channels, tile):
    x = smooth(channels=channels)
    made = fitted(family, x, tile=tile, quality=80)
    data = pack(file_of(x, made))
    read = unpack(data)
    assert pack(read) == data
    decoded = read.decode()
    assert np.array_equal(made(x.flatten(1), LABELS).numpy(), decoded.reshape(10, -1))
    side = read.dequantizer
    members = [range(3), range(3, 7), range(7, 10)] if side.per_class else [range(10)]
    for stream, numbers in zip(side.streams, members, strict=True):
        sheet = shown(stream, FORMATS[family])
        columns = sheet.shape[1] // 12
        for at, number in enumerate(numbers):
            top, left = at // columns * 16, at % columns * 12
            tile_shown = sheet[top : top + 16, left : left + 12]
            tile_shown = tile_shown.reshape(16, 12, -1).transpose(2, 0, 1)
            expected = tile_shown if len(tile_shown) == channels else tile_shown[1:2]  # green
            assert np.array_equal(decoded[number], expected)
    assert np.abs(decoded - x.numpy()).mean() < 12


@pytest.mark.parametrize("family", FORMATS)
def test_quality_trades_bytes_for_distortion(family):
    x, found = smooth(), []
    for quality in (5, 50, 95):
        made = fitted(family, x, quality=quality)
        found.append((len(pack(file_of(x, made))), -float(((made(x.flatten(1), LABELS) - x.flatten(1)) ** 2).mean())))
    assert found == sorted(found)
    assert found[0][1] < found[1][1] < found[2][1]


def test_chroma_subsampling():
    x = smooth()
    sizes = {c: len(pack(file_of(x, fitted("jpeg", x, chroma=c)))) for c in (420, 444)}
    assert sizes[420] < sizes[444]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_without_its_jfif_segment_is_the_same_picture(channels):
    x = smooth(channels=channels)
    made = fitted("jpeg", x, tile="all")
    (stream,) = made.encode(x.flatten(1), LABELS)[1].streams
    assert b"JFIF" not in stream
    jfif = stream[:2] + bytes.fromhex("ffe000104a46494600010100000100010000") + stream[2:]
    assert np.array_equal(shown(stream, "JPEG"), shown(jfif, "JPEG"))


def test_the_shorter_tiling_is_taken():
    x = smooth()
    for family in FORMATS:
        sizes = {t: len(pack(file_of(x, fitted(family, x, tile=t)))) for t in ("all", "class", "shortest")}
        assert sizes["shortest"] == min(sizes["all"], sizes["class"])


def test_units_that_are_not_bytes(digits):
    """0 … 16 are stretched over all 256 levels."""
    x = torch.from_numpy(digits.train.x[:40].astype(np.float32))
    labels = torch.arange(40) // 10
    decoded = unpack(pack(file_of(x, fitted("jpeg", x, labels, quality=95), labels))).decode()
    assert np.abs(decoded - x.numpy()).mean() < 0.5


@pytest.mark.parametrize("family", FORMATS)
def test_training_sees_what_the_file_holds(family):
    x = smooth()
    made = fitted(family, x)
    z = x.flatten(1).requires_grad_()
    trained = made.train()(z, LABELS)
    assert torch.equal(trained, made.eval()(x.flatten(1), LABELS))
    trained.sum().backward()
    assert (z.grad == 1).all()


@pytest.mark.parametrize("family", FORMATS)
def test_fits_a_budget_by_leaving_samples_out(family):
    """The samples that stay are coded again."""
    x = smooth(n=24).numpy()
    initial = InitialSet(x, (8, 8, 8))
    allocation = Allocation(quantizer=family, levels=256, clipping="none", ipc=8)
    made = Representation(initial, allocation, spec_of(initial), 0, CPU)
    whole = len(pack(made.packed()))
    budget = round(0.7 * whole)
    data = made.fit_to_budget(budget)
    assert 0.5 * budget < len(data) <= budget
    counts = unpack(data).counts
    assert len(set(counts)) == 1
    assert 1 <= counts[0] < 8
    with pytest.raises(OverBudget):
        made.fit_to_budget(60)


@pytest.mark.parametrize("family", FORMATS)
def test_large_flat_sets(family):
    """Almost no bytes for 1.5 million pixels: zeros keep the file within what a reader accepts."""
    x = torch.full((300, 1, 72, 72), 200.0)
    labels = torch.zeros(300, dtype=torch.int64)
    data = pack(file_of(x, fitted(family, x, labels, quality=10), labels))
    read = unpack(data)
    assert pack(read) == data
    assert np.abs(read.decode() - 200).max() <= 3


# --- tiles --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (5, 2), (5, 5), (6, 3), (7, 100)])
def test_untiled_is_the_inverse(n, columns, channels):
    plane = Plane(channels, 3, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (n, plane.size), dtype=np.uint8)
    sheet = tiled(pixels, plane, columns)
    assert sheet.shape[:2] == picture_size(plane, n, columns)
    assert np.array_equal(untiled(sheet, plane, n, columns), pixels)


def test_tiles_lie_row_by_row():
    plane = Plane(1, 1, 2)
    sheet = tiled(np.arange(10, dtype=np.uint8).reshape(5, 2), plane, 3)
    assert sheet.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 4, 4]]  # the mean fills the last row


def test_columns_fill_whole_blocks():
    assert columns_for(Plane(1, 28, 28), 200, 8, 65_500) == 10  # 280×560: both are multiples of 8
    assert columns_for(Plane(3, 32, 32), 100, 16, 16_383) == 10
    for n in range(1, 40):
        plane = Plane(1, 5, 7)
        columns = columns_for(plane, n, 8, 200)
        height, width = picture_size(plane, n, columns)
        assert max(height, width) <= 200
        assert -(-height // 8) * -(-width // 8) * 64 <= 2 * n * plane.size + 16 * (height + width) + 64


def test_more_samples_than_a_picture_holds():
    with pytest.raises(BadHeader, match="do not fit one picture"):
        columns_for(Plane(1, 64, 64), 70_000, 16, 16_383)


@pytest.mark.parametrize(
    ("transform", "shape"), [("standardize", (1, 8, 8)), ("identity", (9,)), ("identity", (2, 8, 8))]
)
@pytest.mark.parametrize("family", FORMATS)
def test_only_pictures(family, transform, shape):
    with pytest.raises(InputError, match=f"{family} needs pictures"):
        QUANTIZERS[family].check_transform(transform, shape)


# --- hostile streams --------------------------------------------------------------------------------


def saved(pixels, kind, **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def with_stream(family, stream, channels=3):
    """A file of ten samples, whose picture (8 to 16 blocks) is replaced by `stream`."""
    x = smooth(channels=channels)
    data = pack(file_of(x, fitted(family, x, tile="all")))
    height, width = picture_size(Plane(channels, 16, 12), 10, unpack(data).dequantizer.columns)
    return sealed(head_of(data) + (stream((height, width)) if callable(stream) else stream))


GREY = np.zeros((16, 12), np.uint8)


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize(
    ("stream", "channels"),
    [
        (b"", 3),
        (b"\0" * 100, 3),
        (saved(GREY, "JPEG"), 1),  # of another size
        (saved(GREY, "WEBP"), 1),
        (lambda size: saved(np.zeros(size, np.uint8), "PNG"), 1),
        (lambda size: saved(np.zeros(size, np.uint8), "GIF"), 1),
        (lambda size: saved(np.zeros(size, np.uint8), "JPEG"), 3),  # a grey one; WebP: another format
        (lambda size: saved(np.zeros((*size, 4), np.uint8), "WEBP", lossless=True, exact=True), 3),  # transparent
        (lambda size: saved(np.zeros(size[::-1], np.uint8), "JPEG"), 1),
    ],
)
def test_other_pictures_are_refused(family, stream, channels):
    with pytest.raises(BadPayload):
        unpack(with_stream(family, stream, channels))


def test_a_cmyk_jpeg_is_refused():
    def cmyk(size):
        buffer = io.BytesIO()
        Image.new("CMYK", size[::-1]).save(buffer, "JPEG")
        return buffer.getvalue()

    with pytest.raises(BadPayload, match="CMYK"):
        unpack(with_stream("jpeg", cmyk))


def test_an_animation_is_refused():
    def frames(size):
        buffer = io.BytesIO()
        first, second = (Image.new("RGB", size[::-1], c) for c in ("red", "blue"))
        first.save(buffer, "WEBP", save_all=True, append_images=[second])
        return buffer.getvalue()

    with pytest.raises(BadPayload):
        unpack(with_stream("webp", frames))


def test_a_jpeg_of_many_scans_is_refused():
    """Each scan costs the time of all pixels, however few bytes it has."""

    def scans(size):
        stream = saved(np.zeros((*size, 3), np.uint8), "JPEG", progressive=True)
        at = stream.rindex(b"\xff\xda")
        return stream[:at] + stream[at:-2] * MAX_SCANS + stream[-2:]

    with pytest.raises(BadPayload, match="scans"):
        unpack(with_stream("jpeg", scans))


def test_our_own_scans_are_few():
    x = smooth(n=10, height=64, width=64)
    for quality in (1, 20, 50, 75, 100):
        for stream in fitted("jpeg", x, quality=quality).encode(x.flatten(1), LABELS)[1].streams:
            assert stream.count(b"\xff\xda") <= MAX_SCANS


@pytest.mark.parametrize("family", FORMATS)
def test_a_small_file_cannot_ask_for_much_memory(family):
    """1300×1300 pixels in some 150 bytes: refused before a picture is decoded."""
    x = torch.full((1, 1, 200, 201), 7.0)
    label = torch.zeros(1, dtype=torch.int64)
    data = pack(file_of(x, fitted(family, x, label), label))
    head = head_of(data)
    small = bytes([3, 1, 0xC8, 1, 0xC9, 1])
    assert head.count(small) == 1
    huge = head.replace(small, bytes([3, 1, 0x94, 0x0A, 0x94, 0x0A]))
    tracemalloc.start()
    try:
        with pytest.raises(BadPayload, match="cannot hold"):
            unpack(sealed(huge + data[4 + len(head) : -4]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tile", ["all", "class"])
@pytest.mark.parametrize("family", FORMATS)
def test_every_cut_is_an_error_and_flips_are_errors_or_sets(family, tile):
    x = smooth(height=8, width=8)
    body = pack(file_of(x, fitted(family, x, tile=tile, quality=10)))[4:-4]
    rng = np.random.default_rng(0)
    changed = [body[:cut] for cut in range(0, len(body), 7)]
    for i in rng.integers(0, len(body), 300):
        changed.append(body[:i] + bytes([rng.integers(256)]) + body[i + 1 :])
    for wrong in changed:
        with contextlib.suppress(PackedFileError):
            unpack(sealed(wrong)).decode()


def test_lengths_of_streams_are_checked():
    x = smooth()
    data = pack(file_of(x, fitted("jpeg", x, tile="class")))
    head, payload = head_of(data), data[4 + len(head_of(data)) : -4]
    assert dict(sections(data))["symbols (jpeg)"] == len(payload)
    with pytest.raises(PackedFileError):
        unpack(sealed(head + b"\xff\xff\xff\x7f" + payload[2:]))


def test_bad_headers():
    x = smooth()
    data = pack(file_of(x, fitted("jpeg", x, tile="all")))
    head, payload = head_of(data), data[4 + len(head_of(data)) : -4]
    columns = unpack(data).dequantizer.columns
    at = head.rindex(bytes([0, columns, 255]))
    for wrong, message in ((bytes([2, columns]), "unknown form"), (bytes([0, 0]), "at least one column")):
        with pytest.raises(BadHeader, match=message):
            unpack(sealed(head[:at] + wrong + head[at + 2 :] + payload))
    with pytest.raises(BadHeader, match="256 levels"):
        unpack(sealed(head[: at + 2] + b"\xfe" + head[at + 3 :] + payload))
