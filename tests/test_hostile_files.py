"""Whatever the bytes, reading them gives a valid set or a `PackedFileError`, in bounded memory and time."""

import io
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sets import coded_by, coder_name, head_of, packed_set, quickly_packed, sealed, table_preparation
from variants import label, one_of_each, packed_variant, plain_case

from budgetopt.errors import PackedFileError
from budgetopt.packing import (
    ApotLevels,
    Standardize,
    UniformLevels,
    families,
    load,
    read_file,
    sections,
    unpack,
)
from budgetopt.packing.coders import CODERS
from budgetopt.packing.container import FORMAT_VERSION, MAX_FILE_BYTES, header, pack
from budgetopt.packing.errors import (
    BadHeader,
    BadPayload,
    ChecksumMismatch,
    NotAPackedFile,
    TooLarge,
    Truncated,
    UnsupportedVersion,
)
from budgetopt.packing.inverse_resize import Resize
from budgetopt.packing.log_mel import LogMel
from budgetopt.packing.resized import FILTERS, Resized


def u(value):
    out = b""
    while value >= 128:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def s(value):
    return u(2 * value if value >= 0 else -2 * value - 1)


VERSIONS = pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))


def crafted(version=FORMAT_VERSION, **changes):
    """A file of 4 samples of 2 features in 2 classes, any field replaced by other bytes."""
    fields = {
        "flags": b"\x01",
        "protocol": b"\x00",
        "axes": b"\x01",
        "shape": u(2),
        "classes": u(2),
        "counts": u(2),
        "statistics": np.array([0.0, 1.0], "<f2").tobytes(),
        "families": b"\x00",
        "transform": b"",
        "quantizer": b"\x01" + s(0) + u(1) + s(0),
        "coder": b"\x00",
        "payload": b"\xa5",
    }
    assert changes.keys() <= fields.keys()
    return sealed(b"".join((fields | changes).values()), version)


def log_mel(rate=8000, window=100, hop=50, lowest=60, highest=4000, floor=60):
    return b"\x01" + u(rate) + u(window) + u(hop) + u(lowest) + u(highest) + bytes([floor])


def prepared(preparation, mels=2, frames=3):
    """A file of one spectrogram whose preparation is these bytes."""
    statistics = np.array([0.0, 1.0], "<f2").tobytes() + preparation
    shape, counts = u(1) + u(mels) + u(frames), u(1)
    return crafted(
        flags=b"\x21", axes=b"\x03", shape=shape, classes=u(1), counts=counts, statistics=statistics, payload=b"\xa4"
    )


def small_files():
    symbols = np.random.default_rng(0).integers(0, 5, (6, 3, 2, 3)).astype(np.uint8)
    symbols[symbols > 2] = 0
    mean, std = np.float32([1.5, 0, -2]), np.float32([1, 2, 3])
    plain = packed_set(symbols, (2, 2, 2), UniformLevels(5, -7, 3, 2), mean=mean, std=std)
    side = Standardize((3, 200, 77), 6, (100, -20, 3), 4)
    apot = replace(plain, counts=(1, 0, 5), dequantizer=ApotLevels(4, 2, 600, 8), inverse=side)
    inline = replace(plain, protocol=b'{"network":"mlp"}', mean=mean / 3, inverse=side)
    raw = replace(plain, symbols=plain.symbols[:2] % 2, counts=(1, 1), dequantizer=UniformLevels(2, 0, 1, 0))
    yield "uniform", coded_by(CODERS[1], plain)
    yield "apot", coded_by(CODERS[1], apot)
    yield "inline", coded_by(CODERS[1], inline)
    yield "raw", coded_by(CODERS[0], raw)
    yield "prepared", prepared(log_mel())
    yield "table", coded_by(CODERS[0], replace(packed_variant(*plain_case("columns")), preparation=table_preparation()))


FILES = dict(small_files())
# one of each family, transform and coder that is registered
REAL = {label(*case): quickly_packed(packed_variant(*case)) for case in one_of_each()}
REAL["table"] = FILES["table"]
SHAPES = {name: packed_variant(*plain_case(name)) for name in ("digits", "columns", "voxels")}
REAL |= {
    f"{coder.name} of {name}": coded_by(coder, packed)
    for name, packed in SHAPES.items()
    for coder in CODERS.values()
    if coder.supports(packed.dequantizer.levels, packed.domain)
}


def read(data):
    """Everything a receiver does with a file."""
    packed = unpack(data)
    samples = packed.decode()
    assert samples.shape == (len(packed.labels()), *packed.shape)
    assert np.isfinite(samples).all()
    assert np.isfinite(packed.mean).all()
    assert (packed.std > 0).all()
    if packed.symbols.dtype == np.uint8:
        assert packed.symbols.max() < packed.dequantizer.levels
    again = unpack(quickly_packed(packed))
    assert np.array_equal(again.symbols, packed.symbols)
    assert header(again) == header(packed)
    return packed


def rejected(data):
    """The named error that reading ends in, or None; any other exception is the test's failure."""
    try:
        read(data)
    except PackedFileError as error:
        return error
    return None


def peak_bytes(data):
    tracemalloc.start()
    try:
        error = rejected(data)
        return tracemalloc.get_traced_memory()[1], error
    finally:
        tracemalloc.stop()


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES | REAL)
def test_files_are_valid_before_damage(name):
    assert rejected((FILES | REAL)[name]) is None


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(name):
    data = FILES[name]
    for length in range(len(data)):
        assert isinstance(rejected(data[:length]), NotAPackedFile | Truncated | ChecksumMismatch), length


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(name):
    data = FILES[name]
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        error = rejected(bytes(damaged))
        expected = NotAPackedFile if bit < 24 else UnsupportedVersion if bit < 32 else ChecksumMismatch
        assert type(error) is expected, bit


@pytest.mark.parametrize("name", FILES)
def test_appended_bytes_are_found(name):
    for tail in (b"\0", b"x", bytes(100)):
        assert isinstance(rejected(FILES[name] + tail), ChecksumMismatch)


@pytest.mark.parametrize("name", FILES)
def test_truncation_under_a_right_checksum(name):
    body = FILES[name][4:-4]
    first_payload_byte = len(body) - dict(sections(FILES[name])).get(sections(FILES[name])[-2][0])
    for length in range(len(body)):
        error = rejected(sealed(body[:length]))
        if length < first_payload_byte:
            assert isinstance(error, PackedFileError), length


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(4))
def test_random_edits_under_a_right_checksum(name, seed):
    """Bytes replaced, inserted, deleted or repeated anywhere after the version."""
    rng = np.random.default_rng([seed, len(FILES[name])])
    body = FILES[name][4:-4]
    found = set()
    for _ in range(400):
        edited = bytearray(body)
        for _ in range(rng.integers(1, 4)):
            at, kind = int(rng.integers(0, len(edited))), rng.integers(0, 4)
            if kind == 0:
                edited[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
            elif kind == 1:
                edited[at:at] = rng.integers(0, 256, rng.integers(1, 4), dtype=np.uint8).tobytes()
            elif kind == 2 and len(edited) > 4:
                del edited[at]
            else:
                edited[at:at] = edited[at : at + int(rng.integers(1, 9))]
        found.add(type(rejected(sealed(bytes(edited)))))
    assert BadHeader in found  # the edits reach the rules


@st.composite
def edits(draw, length):
    """A few changes of `length` bytes, most of them where the header is."""
    at = st.one_of(st.integers(0, min(length - 1, 40)), st.integers(0, length - 1))
    value = st.one_of(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]), st.integers(0, 255))
    kind = st.sampled_from(["set", "flip", "insert", "delete", "repeat", "cut"])
    return [(draw(kind), draw(at), draw(value)) for _ in range(draw(st.integers(1, 4)))]


def edited(body, changes):
    body = bytearray(body)
    for kind, at, value in changes:
        at = min(at, len(body) - 1)
        if kind == "set":
            body[at] = value
        elif kind == "flip":
            body[at] ^= 1 << value % 8
        elif kind == "insert":
            body[at:at] = bytes([value] * (1 + value % 3))
        elif kind == "repeat":
            body[at:at] = body[at : at + 1 + value % 9]
        elif kind == "delete":
            del body[at : at + 1 + value % 3]
        else:
            del body[at + 1 :]
        if not body:
            return b""
    return bytes(body)


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_family_survives_edits_under_a_right_checksum(name, data):
    body = REAL[name][4:-4]
    changed = edited(body, data.draw(edits(len(body))))
    error = rejected(sealed(changed))
    if error is not None:
        assert "\n" not in str(error)
        assert len(str(error)) < 500


@pytest.mark.parametrize("name", REAL)
def test_every_cut_of_every_family_under_a_right_checksum(name):
    body, head = REAL[name][4:-4], len(head_of(REAL[name]))
    for length in [*range(head + 1), *range(head + 1, len(body), 1 + len(body) // 6)]:
        error = rejected(sealed(body[:length]))
        assert error is not None or length > head


@pytest.mark.parametrize("name", REAL)
def test_bytes_of_the_header_of_every_family(name):
    """Set to the least and the most, one after the other: all of a short header, some of a long one."""
    body, head = REAL[name][4:-4], len(head_of(REAL[name]))
    for at in range(0, head, 1 if head < 100 else head // 20):
        for value in (0, 0xFF) if head < 100 else (0xFF,):
            changed = bytearray(body)
            changed[at] = value
            rejected(sealed(bytes(changed)))


def test_no_file_is_written_that_is_refused():
    """A transform that makes many values of few: at most 2^20 + 4096 a byte, for the writer as for the reader."""
    side = Resize(1, 1)
    for samples, good in ((256, True), (1200, False)):
        packed = packed_set(np.zeros((samples, 1)), None, 2, (1, 64, 64), inverse=side)
        if good:
            assert unpack(pack(packed)).decode().shape == (samples, 1, 64, 64)
        else:
            with pytest.raises(TooLarge, match="4,915,200 values"):
                pack(packed)


@pytest.mark.parametrize("side", [1 << 10, 1 << 13, 1 << 20])
@pytest.mark.parametrize("name", REAL)
def test_huge_sides_take_little_memory(name, side):
    """Whatever transform or quantizer makes many values of few: bounded by the length of the file."""
    packed, body = unpack(REAL[name]), REAL[name][4:-4]
    at = body.index(bytes([len(packed.shape), *packed.shape])) + 1
    sides = [packed.shape[0], side, side] if len(packed.shape) == 3 else [side]
    huge = body[:at] + b"".join(map(u, sides)) + body[at + len(packed.shape) :]
    peak, error = peak_bytes(sealed(huge))
    assert error is None or isinstance(error, PackedFileError)
    assert peak < 400_000_000


def test_random_bytes_under_a_right_header():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        rejected(sealed(rng.integers(0, 256, rng.integers(0, 60), dtype=np.uint8).tobytes()))


# --- foreign files ---------------------------------------------------------------------------------------------------


def zip_bytes():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"B", b"BO", b"\x89PNG\r\n\x1a\n" + bytes(30), zip_bytes(), b"BOQ\x01" + bytes(30), bytes(64), b"bop\x01"],
)
def test_not_a_packed_file(data):
    with pytest.raises(NotAPackedFile, match=r"not a \.bopt file"):
        unpack(data)


@pytest.mark.parametrize("data", [b"BOP", b"BOP\x01", b"BOP\x01\x00\x00\x00"])
def test_shorter_than_any_file(data):
    with pytest.raises(Truncated, match=f"got {len(data)}"):
        unpack(data)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 255])
def test_other_version(version):
    with pytest.raises(UnsupportedVersion, match=f"version {version} "):
        unpack(sealed(FILES["raw"][4:-4], version))


def test_wrong_checksum():
    with pytest.raises(ChecksumMismatch):
        unpack(FILES["apot"][:-1] + bytes([FILES["apot"][-1] ^ 1]))


def test_oversized_file_is_not_read(tmp_path):
    path = tmp_path / "large.bopt"
    with open(path, "wb") as stream:
        stream.write(FILES["raw"])
        stream.truncate(100_000)
    assert len(read_file(path)) == 100_000
    assert isinstance(rejected(read_file(path)), ChecksumMismatch)


# --- one rule after another ------------------------------------------------------------------------------------------


def test_the_crafted_file_is_valid():
    packed = read(crafted())
    assert packed.symbols.reshape(-1).tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
    assert packed.counts == (2, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": b"\x81"},
        {"axes": b"\x00"},
        {"axes": b"\x02", "shape": u(2) * 2},
        {"axes": b"\x05", "shape": u(1) * 5},
        {"shape": u(0)},
        {"shape": u((1 << 20) + 1)},
        {"shape": b"\xff" * 12},
        {"classes": u(0)},
        {"classes": u((1 << 16) + 1)},
        {"counts": u(0)},
        {"counts": u((1 << 31) + 1)},
        {"statistics": np.array([np.nan, 1], "<f2").tobytes()},
        {"statistics": np.array([0, np.inf], "<f2").tobytes()},
        {"statistics": np.array([0, 0], "<f2").tobytes()},
        {"statistics": np.array([0, -1], "<f2").tobytes()},
        {"families": b"\xff"},
        {"families": b"\x10", "transform": s(0) + s(0) + u(0) + s(0)},
        {"families": b"\x10", "transform": s(65) + s(0) + u(1) + s(0)},
        {"families": b"\x10", "transform": s(0) + s(-65) + u(1) + s(0)},
        {"families": b"\x10", "transform": s(0) + s(0) + u(1 << 24) + s(0)},
        {"families": b"\x10", "transform": s(0) + s(0) + u(1) + s(1 << 24)},
        {"families": b"\x10", "transform": s(0) + s(0) + u(1) + s(-(1 << 24))},
        {"quantizer": b"\x00" + s(0) + u(1) + s(0)},
        {"quantizer": b"\x01" + s(0) + u(0) + s(0)},
        {"quantizer": b"\x01" + s(0) + u(1 << 24) + s(0)},
        {"quantizer": b"\x01" + s(1 << 24) + u(1) + s(0)},
        {"quantizer": b"\x01" + s(-(1 << 24)) + u(1) + s(0)},
        {"quantizer": b"\x01" + s(0) + u(1) + s(65)},
        {"quantizer": b"\x01" + s(0) + u(1) + s(-65)},
        {"families": b"\x01", "quantizer": b"\x21" + u(0) + s(0)},
        {"families": b"\x01", "quantizer": b"\x21" + u(1 << 24) + s(0)},
        {"families": b"\x01", "quantizer": b"\x01" + u(1) + s(0)},
        {"families": b"\x01", "quantizer": b"\x28" + u(1) + s(0)},
        {"families": b"\x01", "quantizer": b"\x81" + u(1) + s(0)},
        {"families": b"\x01", "quantizer": b"\x34" + u(1) + s(0)},
        {"families": b"\x01", "quantizer": b"\x21" + u(1) + s(-65)},
        {"coder": b"\xff"},
    ],
    ids=lambda changes: ", ".join(f"{k} {v.hex()}" for k, v in changes.items()),
)
@VERSIONS
def test_bad_header(version, changes):
    with pytest.raises(BadHeader):
        read(crafted(version, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        *({"flags": bytes([1 << bit | 1])} for bit in range(3, 8)),
        {"axes": b"\x04", "shape": u(1) * 4},
        *({"families": bytes([transform << 4])} for transform in range(2, 16)),
        *({"families": bytes([quantizer])} for quantizer in range(2, 16)),
        *({"coder": bytes([coder])} for coder in range(2, 256)),
    ],
    ids=lambda changes: ", ".join(f"{k} {v.hex()}" for k, v in changes.items()),
)
def test_what_later_versions_added_is_unknown_in_version_1(changes):
    with pytest.raises(BadHeader, match=r"unknown|1 or 3 axes, got 4"):
        read(crafted(1, **changes))


@pytest.mark.parametrize("name", REAL)
def test_a_family_of_a_later_version_is_refused_in_version_1(name):
    """The same bytes under version 1: what that version had reads the same, everything else is an error."""
    data = REAL[name]
    packed, older = unpack(data), sealed(data[4:-4], 1)
    known = (
        packed.inverse.family in (0, 1) and packed.dequantizer.family in (0, 1) and coder_name(data) in ("raw", "range")
    )
    if known and data[4] < 8 and len(packed.shape) != 4:
        assert np.array_equal(unpack(older).symbols, packed.symbols)
        assert header(unpack(older)) == header(packed)
    else:
        with pytest.raises(BadHeader, match=r"unknown|1 or 3 axes, got 4"):
            unpack(older)


def test_unknown_families_coders_and_flags():
    for ident in range(16):
        if ident not in families.TRANSFORMS:
            with pytest.raises(BadHeader, match=f"unknown transform {ident}"):
                read(crafted(families=bytes([ident << 4])))
        if ident not in families.QUANTIZERS:
            with pytest.raises(BadHeader, match=f"quantizer {ident}"):
                read(crafted(families=bytes([ident])))
    for ident in set(range(256)) - set(CODERS):
        with pytest.raises(BadHeader, match="unknown coder"):
            read(crafted(coder=bytes([ident])))
    for kind in set(range(256)) - set(families.PREPARATIONS):
        with pytest.raises(BadHeader, match=f"unknown preparation {kind}"):
            read(prepared(bytes([kind])))
    for flag in (64, 128):
        with pytest.raises(BadHeader, match="unknown flags"):
            read(crafted(flags=bytes([flag | 1])))
    for ident in set(range(256)) - set(families.PREPARATIONS):
        with pytest.raises(BadHeader, match=f"unknown preparation {ident}"):
            read(crafted(flags=b"\x21", families=bytes([ident, 0])))


def test_preparation_of_pictures():
    """Every byte after kind 3: a known filter of samples that are pictures of 1 or 3 channels, or a named error."""
    plain = packed_variant(*plain_case("digits"))
    file = bytearray(quickly_packed(replace(plain, preparation=Resized(1, 8, 8, FILTERS[0]))))
    names, sizes = zip(*sections(bytes(file)), strict=True)
    at = sum(sizes[: names.index("preparation")]) + 1  # after the kind
    for value in range(256):
        file[at] = value
        whole = sealed(bytes(file[4:-4]))
        if value < len(FILTERS):
            assert read(whole).preparation == Resized(1, 8, 8, FILTERS[value])
        else:
            with pytest.raises(BadHeader, match=f"unknown resampling filter {value}"):
                read(whole)
    with pytest.raises(BadHeader, match="no pictures that were resized"):
        read(crafted(flags=b"\x21", families=b"\x03\x00\x00"))


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": b"\x03", "protocol": u(5000)},
        {"flags": b"\x00", "classes": u(60_000)},
        {"payload": b"", "coder": b"", "quantizer": b"\x01"},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_header_longer_than_the_file(changes):
    with pytest.raises(Truncated, match="are left"):
        read(crafted(**changes))


def test_preparation_of_recordings():
    how = read(prepared(log_mel(floor=255))).preparation
    assert how == LogMel(8000, 100, 50, 60, 4000, 255, 2, 3)
    assert how.prepare(np.ones(400), 8000).shape == (1, 2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": 999},
        {"rate": 384_001},
        {"window": 1},
        {"window": (1 << 13) + 1},
        {"hop": 0},
        {"hop": (1 << 13) + 1},
        {"lowest": 4000},
        {"highest": 4001},
        {"floor": 0},
    ],
    ids=str,
)
def test_bad_preparation_of_recordings(changes):
    with pytest.raises(BadHeader):
        read(prepared(log_mel(**changes)))


@pytest.mark.parametrize(("mels", "frames"), [(257, 1), (1, (1 << 20) - 1), (0, 3)])
def test_spectrograms_that_are_too_large(mels, frames):
    with pytest.raises(BadHeader):
        read(prepared(log_mel(), mels, frames))


def test_the_costliest_preparation_takes_bounded_time_and_memory():
    how = LogMel(384_000, 1 << 13, 512, 0, 192_000, 255, 256, 1 << 11)
    tracemalloc.start()
    try:
        made = how.prepare(np.ones(1000), 1001)  # rates without a common divisor
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()
    assert made.shape == (1, 256, 1 << 11)


@pytest.mark.parametrize("axes", [1, 4])
def test_only_pictures_of_one_channel_are_spectrograms(axes):
    with pytest.raises(BadHeader, match="mels, frames"):
        read(
            crafted(
                flags=b"\x21",
                axes=bytes([axes]),
                shape=u(1) * axes,
                statistics=np.array([0.0, 1.0], "<f2").tobytes() + log_mel(),
            )
        )


@pytest.mark.parametrize("channels", [3, 1 << 10])
def test_more_channels_than_bytes(channels):
    with pytest.raises((Truncated, TooLarge)):
        read(crafted(axes=b"\x03", shape=u(channels) + u(1) + u(1)))


@pytest.mark.parametrize("cut", range(9))
def test_file_that_ends_inside_the_header(cut):
    with pytest.raises(Truncated, match="are left"):
        unpack(sealed(crafted()[4 : 4 + cut]))


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": b""},
        {"payload": b"\xa5\x00"},
        {"payload": b"\xff", "quantizer": b"\x02" + s(0) + u(1) + s(0)},
        {"payload": b"\xff\xff", "quantizer": b"\x02" + s(0) + u(1) + s(0)},  # symbol 3 of 3 levels
        {"counts": u((1 << 18) + 1000)},  # within the bound on values, above the one on symbols
        {"counts": u((1 << 18) + 1000), "coder": b"\x01"},
    ],
    ids=lambda changes: ", ".join(f"{k} {v.hex()}" for k, v in changes.items()),
)
def test_bad_payload(changes):
    with pytest.raises(BadPayload):
        read(crafted(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": u(1 << 31)},
        {"counts": u(1 << 20)},
        {"counts": u(1 << 20), "coder": b"\x01"},
        {"counts": u(1 << 30), "shape": u(1 << 20)},
        {"classes": u(1 << 16), "counts": u(1 << 20)},
        {"axes": b"\x03", "shape": u(1 << 20) * 3},
    ],
    ids=lambda changes: ", ".join(f"{k} {v.hex()}" for k, v in changes.items()),
)
def test_too_large(changes):
    with pytest.raises(TooLarge):
        read(crafted(**changes))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": u(1 << 31)},
        {"counts": u((1 << 31) - 1), "coder": b"\x01"},
        {"shape": u(1 << 20), "counts": u(1 << 10), "coder": b"\x01"},
        {"classes": u(1 << 16), "counts": u(1 << 14), "coder": b"\x01"},
        {"axes": b"\x03", "shape": u(1 << 20) + u(1) + u(1), "classes": u(1), "counts": u(1)},
        {"flags": b"\x03", "protocol": u(1 << 16)},
    ],
    ids=lambda changes: ", ".join(f"{k} {v.hex()}" for k, v in changes.items()),
)
def test_huge_claims_take_no_memory(changes):
    peak, error = peak_bytes(crafted(**changes))
    assert isinstance(error, PackedFileError)
    assert peak < 2_000_000


@pytest.mark.parametrize("shape", [u(4), u(1 << 18)])
def test_the_largest_claim_of_a_small_file_is_bounded(shape):
    """FORMAT.md: at most 2^20 + 256 symbols a byte."""
    sides = 4 if shape == u(4) else 1 << 18
    values = (1 << 20) + 256
    counts = values // sides // 2
    levels = b"\xff" + s(0) + u(1) + s(0)
    data = crafted(shape=shape, counts=u(counts), coder=b"\x01", quantizer=levels, payload=b"\0")
    peak, error = peak_bytes(data)
    assert error is None
    assert peak < 80_000_000


def test_one_symbol_more_than_the_bound():
    most = (1 << 20) + 256
    assert rejected(crafted(shape=u(1), classes=u(1), counts=u(most), coder=b"\x01")) is None
    error = rejected(crafted(shape=u(1), classes=u(1), counts=u(most + 1), coder=b"\x01"))
    assert isinstance(error, BadPayload)


def test_a_megabyte_of_zeros_is_bounded_too():
    """A very long claim that a file of 1 MB may make takes 13 bytes a symbol, decoded samples and labels included."""
    payload = bytes(1 << 20)
    values = min((1 << 20) + 256 * len(payload), 1 << 28) // 16
    data = crafted(shape=u(1), classes=u(1), counts=u(values), coder=b"\x01", payload=payload)
    peak, error = peak_bytes(data)
    assert error is None
    assert peak < 14 * values + 20_000_000


# --- exponents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [-64, -20, 0, 20, 64])
@pytest.mark.parametrize("scale", [-64, -20, 0, 20, 64])
@pytest.mark.parametrize("offset", [-64, -20, 0, 20, 64])
def test_exponents_that_do_not_fit_together(levels, scale, offset):
    """Whatever `unpack` accepts decodes, completely and to finite numbers; the first sample here is all zero."""
    data = crafted(
        families=b"\x10",
        transform=s(scale) + s(offset) + u((1 << 24) - 1) + s((1 << 24) - 1),
        quantizer=b"\x01" + s(0) + u((1 << 24) - 1) + s(levels),
        payload=b"\x0f",
    )
    error = rejected(data)
    assert error is None or type(error) is BadHeader


def test_what_unpacks_also_decodes():
    """The levels that only later samples use are checked by `unpack`, too."""
    accepted = 0
    for offset in range(-64, 65):
        data = crafted(
            families=b"\x10",
            transform=s(0) + s(offset) + u(1) + s(1),
            quantizer=b"\x01" + s(0) + u((1 << 24) - 1) + s(0),
            payload=b"\x0f",
        )
        try:
            packed = unpack(data)
        except BadHeader:
            continue
        accepted += 1
        assert packed.decode().shape == (4, 2)
    assert accepted > 0


def test_file_above_the_limit(tmp_path):
    """A sparse file takes no disk; `load` names the rule, and reads nothing of it."""
    path = tmp_path / "huge.bopt"
    with open(path, "wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="1,073,741,824"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
