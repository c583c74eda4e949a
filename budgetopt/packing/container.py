"""The container: `PackedSet` ↔ bytes. FORMAT.md specifies it."""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from budgetopt.errors import InputError, PackedFileError
from budgetopt.packing import families
from budgetopt.packing.coders import CODERS
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import (
    BadHeader,
    ChecksumMismatch,
    NotAPackedFile,
    TooLarge,
    Truncated,
    UnsupportedVersion,
)
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.grouped import Grouped
from budgetopt.packing.inverse import InverseTransform
from budgetopt.packing.layout import Domain, channels_of, values_of
from budgetopt.packing.preparation import Preparation
from budgetopt.packing.soft_labels import SoftLabels

MAGIC = b"BOP"
FORMAT_VERSION = 2
MAX_FILE_BYTES = 1 << 30
MAX_SYMBOLS = 1 << 28
# Most decoded values: transforms leave out coefficients, so that these may be many more than the symbols
FREE_VALUES, VALUES_PER_BYTE = 1 << 20, 4096
DECODED_AT_ONCE = 1 << 22  # values: bounds the memory that integers take beside the float32 result
_EQUAL_COUNTS, _INLINE_PROTOCOL, _WIDE_STATISTICS, _SOFT_LABELS, _GROUPED, _PREPARATION = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True)
class _Version:
    """What the files of one version may hold: flags, numbers of axes, and ids of families and coders."""

    flags: int
    axes: tuple[int, ...]
    transforms: frozenset[int]
    quantizers: frozenset[int]
    coders: frozenset[int]


_VERSIONS = {
    1: _Version(7, (1, 3), frozenset({0, 1}), frozenset({0, 1}), frozenset({0, 1})),
    2: _Version(63, (1, 3, 4), frozenset(families.TRANSFORMS), frozenset(families.QUANTIZERS), frozenset(CODERS)),
}


@dataclass(frozen=True, eq=False)
class PackedSet:
    """All that a `.bopt` file holds.

    `symbols`: (n, S) uint8 in class order, what `dequantizer` turns into (n, K) coded values and `inverse` into samples
    of `shape`, (c, h, w), (c, d, h, w) or (f,). `counts`: samples of each class. `mean`, `std`: (c,) float32, the
    receiver's input standardisation in raw units. `protocol`: the number of a preset of the package, or a whole
    protocol as bytes. `soft`: labels of the samples in their order, where they are more than the class. `preparation`:
    how a receiver makes samples of its own data, where these are not samples yet.
    """

    symbols: np.ndarray
    shape: tuple[int, ...]
    counts: tuple[int, ...]
    dequantizer: Dequantizer
    inverse: InverseTransform
    mean: np.ndarray
    std: np.ndarray
    protocol: int | bytes = field(default=0)
    soft: SoftLabels | None = None
    preparation: Preparation | None = None

    @property
    def domain(self) -> Domain:
        return Domain(self.inverse.layout(self.shape), self.counts)

    def __len__(self) -> int:
        return sum(self.counts)

    def labels(self) -> np.ndarray:
        """(n,) int64 class of each sample."""
        return self.domain.labels

    def targets(self) -> np.ndarray | None:
        """(n, C) float32 probabilities to train towards, or None where labels are hard."""
        return None if self.soft is None else self.soft.targets()

    def decode(self, index: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The samples `index` as float32 in the dataset's raw units, (m, *shape)."""
        everything = range(len(self))
        chosen = everything[index] if isinstance(index, slice) else np.arange(len(self))[index]
        domain, samples = self.domain, np.empty((len(chosen), *self.shape), np.float32)
        size = max(1, DECODED_AT_ONCE // math.prod(self.shape))
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            if isinstance(part, range):  # an index of all samples would take more memory than small ones themselves
                part = np.arange(part.start, part.stop, part.step)
            samples[first : first + size] = self.dequantizer.samples(
                self.symbols[part], part, domain, self.inverse, self.shape
            )
        return samples

    def check_exponents(self) -> None:
        """Raise `BadHeader` where some symbol could not be decoded in 64 bits, whichever ones the samples use."""
        self.inverse.check(self.dequantizer.most, self.dequantizer.exponent, self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedSet) and pack(self) == pack(other)


def pack(packed: PackedSet) -> bytes:
    """→ the bytes of the file, the shortest of all coders. Raises `BadHeader` for what the format cannot hold."""
    head = header(packed)
    payload = packed.dequantizer.payload(packed.symbols, packed.domain)[1]
    data = MAGIC + bytes([FORMAT_VERSION]) + head + payload
    data += zlib.crc32(data).to_bytes(4, "little")
    _check_values(len(packed) * math.prod(packed.shape), len(data))
    return data


def header(packed: PackedSet) -> bytes:
    """→ all fields between the version and the coded symbols. Raises as `pack`."""
    body, domain = Writer(), packed.domain
    wide = not _fits_half(packed.mean, packed.std)
    equal = len(set(packed.counts)) == 1
    inline = isinstance(packed.protocol, bytes)
    symbols_each = values_of(packed.dequantizer.symbol_layout(domain.layout))
    if packed.symbols.shape != (domain.samples, symbols_each) or packed.symbols.size == 0:
        raise BadHeader(f"{domain.samples} samples of {symbols_each} symbols expected, got {packed.symbols.shape}")
    packed.check_exponents()
    soft = packed.soft
    if soft is not None and soft.symbols.shape != (domain.samples, len(packed.counts)):
        expected = (domain.samples, len(packed.counts))
        raise BadHeader(f"soft labels must be (samples, classes) = {expected}, got {soft.symbols.shape}")
    flags = equal * _EQUAL_COUNTS | inline * _INLINE_PROTOCOL | wide * _WIDE_STATISTICS
    flags |= isinstance(packed.dequantizer, Grouped) * _GROUPED
    flags |= (packed.preparation is not None) * _PREPARATION
    body.byte(flags | (soft is not None) * _SOFT_LABELS)
    if isinstance(packed.protocol, bytes):
        body.unsigned(len(packed.protocol))
        body.raw(packed.protocol)
    else:
        body.byte(packed.protocol)
    body.byte(len(packed.shape))
    for side in packed.shape:
        body.unsigned(side)
    body.unsigned(len(packed.counts))
    for count in packed.counts[:1] if equal else packed.counts:
        body.unsigned(count)
    if soft is not None:
        soft.write(body, domain.labels)
    body.floats(packed.mean, wide)
    body.floats(packed.std, wide)
    if packed.preparation is not None:
        body.byte(packed.preparation.kind)
        packed.preparation.write(body)
    body.byte(packed.inverse.family << 4 | packed.dequantizer.family)
    packed.inverse.write(body)
    packed.dequantizer.write(body, domain)
    return bytes(body.data)


def unpack(data: bytes) -> PackedSet:
    """Parse and decode; raises a `PackedFileError` that names the broken rule."""
    return _parse(data)[0]


def sections(data: bytes) -> list[tuple[str, int]]:
    """[(what, bytes), …] in file order; the sizes add up to `len(data)`. Raises as `unpack`."""
    return _parse(data)[1]


def read_file(path: str | Path) -> bytes:
    """The bytes of a file of at most 1 GiB; raises `TooLarge` before reading more."""
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END) if stream.seekable() else 0
        if size <= MAX_FILE_BYTES:
            if stream.seekable():
                stream.seek(0)
            data = stream.read(MAX_FILE_BYTES + 1)
            size = len(data)
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"{path} is larger than {MAX_FILE_BYTES:,} bytes")
    return data


def unpack_file(path: str | Path) -> tuple[bytes, PackedSet]:
    """Read and parse the file at `path`. Raises `InputError` where it cannot be read, and what `unpack` raises, with
    the path in front."""
    try:
        data = read_file(path)
        return data, unpack(data)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except PackedFileError as error:
        message = str(error)
        raise (error if str(path) in message else type(error)(f"{path}: {message}")) from None


def _parse(data: bytes) -> tuple[PackedSet, list[tuple[str, int]]]:
    if data[:3] != MAGIC:
        raise NotAPackedFile(f"not a .bopt file: it starts with {data[:4]!r}, expected {MAGIC!r}")
    if len(data) < 8:
        raise Truncated(f"a .bopt file has at least 8 bytes, got {len(data)}")
    version = _VERSIONS.get(data[3])
    if version is None:
        raise UnsupportedVersion(f"format version {data[3]} is not known; this package reads 1 to {FORMAT_VERSION}")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ChecksumMismatch("the checksum does not match: the file is damaged or cut short")
    fields = Reader(data[4:-4])
    with fields.section("flags"):
        flags = fields.byte()
        if flags & ~version.flags:
            raise BadHeader(f"unknown flags {flags:#04x}")
    with fields.section("protocol"):
        protocol: int | bytes
        if flags & _INLINE_PROTOCOL:
            protocol = fields.raw(fields.unsigned(1 << 16, "the length of the protocol"))
        else:
            protocol = fields.byte()
    with fields.section("shape"):
        axes = fields.byte()
        if axes not in version.axes:
            raise BadHeader(f"samples have {_either(version.axes)} axes, got {axes}")
        shape = tuple(fields.unsigned(1 << 20, "a side of the samples") for _ in range(axes))
        channels = channels_of(shape)
    with fields.section("class counts"):
        classes = fields.unsigned(1 << 16, "the number of classes")
        if flags & _EQUAL_COUNTS:
            counts = (fields.unsigned(1 << 31, "the samples of a class"),) * classes
        else:
            counts = tuple(fields.unsigned(1 << 31, "the samples of a class") for _ in range(classes))
        total = sum(counts) * math.prod(shape)
        if total == 0:
            raise BadHeader(f"the file holds no sample: {classes} classes, samples of shape {shape}")
        _check_values(total, len(data))
        if channels > fields.left:
            raise Truncated(
                f"the statistics of {channels:,} channels need more bytes than the {fields.left} that are left"
            )
    soft = None
    if flags & _SOFT_LABELS:
        with fields.section("soft labels"):
            soft = SoftLabels.read(fields, counts)
    with fields.section("input statistics"):
        wide = bool(flags & _WIDE_STATISTICS)
        mean = fields.floats(channels, wide, "the mean")
        std = fields.floats(channels, wide, "the standard deviation")
        if (std <= 0).any():
            raise BadHeader("a standard deviation is not positive")
    preparation = None
    if flags & _PREPARATION:
        with fields.section("preparation"):
            kind = fields.byte()
            if kind not in families.PREPARATIONS:
                raise BadHeader(f"unknown preparation {kind}")
            preparation = families.PREPARATIONS[kind].read(fields, shape)
    with fields.section("families"):
        transform, quantizer = divmod(fields.byte(), 16)
        if transform not in version.transforms or quantizer not in version.quantizers:
            raise BadHeader(f"unknown transform {transform} or quantizer {quantizer}")
    with fields.section("transform parameters"):
        inverse = families.TRANSFORMS[transform].read(fields, shape)
        domain = Domain(inverse.layout(shape), counts)
        if domain.samples * domain.values > MAX_SYMBOLS:
            raise TooLarge(f"the file claims {domain.values:,} coded values a sample, more than the format allows")
    with fields.section("quantizer parameters"):
        dequantizer = families.QUANTIZERS[quantizer].read(fields, domain)
        if flags & _GROUPED:
            dequantizer = Grouped.read(fields, domain, dequantizer)
    inverse.check(dequantizer.most, dequantizer.exponent, shape)
    payload = fields.raw(fields.left)
    coder, symbols = dequantizer.read_payload(payload, domain, version.coders)
    parts = [("magic and version", 4), *fields.sections, (f"symbols ({coder})", len(payload)), ("checksum", 4)]
    packed = PackedSet(symbols, shape, counts, dequantizer, inverse, mean, std, protocol, soft, preparation)
    return packed, parts


def _either(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


def _check_values(values: int, file_bytes: int) -> None:
    most = min(MAX_SYMBOLS, FREE_VALUES + VALUES_PER_BYTE * file_bytes)
    if values > most:
        raise TooLarge(f"the file claims {values:,} values, more than the format allows its length ({most:,})")


def _fits_half(mean: np.ndarray, std: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        half = np.concatenate([mean, std]).astype(np.float16).astype(np.float32)
    return bool(np.array_equal(half, np.concatenate([mean, std]).astype(np.float32)))
