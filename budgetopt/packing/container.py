"""The container: `PackedSet` ↔ bytes. FORMAT.md specifies it on one screen."""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from budgetopt.errors import InputError, PackedFileError
from budgetopt.packing import coders, inverse, levels
from budgetopt.packing.errors import (
    BadHeader,
    BadPayload,
    ChecksumMismatch,
    NotAPackedFile,
    TooLarge,
    Truncated,
    UnsupportedVersion,
)
from budgetopt.packing.fields import Reader, Writer

MAGIC = b"BOP"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 1 << 30
MAX_SYMBOLS = 1 << 28
DECODED_AT_ONCE = 1 << 22  # values: bounds the memory that integers take beside the float32 result
_EQUAL_COUNTS, _INLINE_PROTOCOL, _WIDE_STATISTICS = 1, 2, 4
_KNOWN_FLAGS = _EQUAL_COUNTS | _INLINE_PROTOCOL | _WIDE_STATISTICS


@dataclass(frozen=True, eq=False)
class PackedSet:
    """All that a `.bopt` file holds.

    `symbols`: (n, c, h, w) or (n, f) uint8, samples in class order. `counts`: samples of each class. `mean`,
    `std`: (c,) float32, the receiver's input standardisation in raw units. `protocol`: the number of a preset of the
    package, or a whole protocol as bytes.
    """

    symbols: np.ndarray
    counts: tuple[int, ...]
    levels: levels.LevelTable
    inverse: inverse.InverseTransform
    mean: np.ndarray
    std: np.ndarray
    protocol: int | bytes = field(default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (c, h, w) or (f,)."""
        return self.symbols.shape[1:]

    @property
    def channels(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    def labels(self) -> np.ndarray:
        """(n,) int64 class of each sample."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def decode(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Samples start … stop as float32 in the dataset's raw units, (n, c, h, w) or (n, f): integers times one
        power of two, rounded once (invariant 1)."""
        symbols, table = self.symbols[start:stop], self.levels.table()
        samples = np.empty(symbols.shape, np.float32)
        size = max(1, DECODED_AT_ONCE // math.prod(self.shape))
        for first in range(0, len(symbols), size):
            ints = table[symbols[first : first + size]]
            if len(self.shape) == 1:  # feature vectors have one channel
                ints = ints[:, None]
            ints, exponent = self.inverse.apply(ints, self.levels.exponent)
            decoded = ints.astype(np.float32) * np.float32(2.0**-exponent)
            samples[first : first + size] = decoded.reshape(-1, *self.shape)
        return samples

    def check_exponents(self) -> None:
        """Raise `BadHeader` where some level cannot be decoded in 64 bits, whichever levels the samples use."""
        table = self.levels.table()
        self.inverse.apply(np.broadcast_to(table, (1, self.channels, table.size)), self.levels.exponent)

    def prefix(self, counts: tuple[int, ...]) -> PackedSet:
        """The first `counts[c]` samples of every class c."""
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        keep = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        return replace(self, symbols=self.symbols[keep], counts=tuple(counts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedSet) and pack(self) == pack(other)


def pack(packed: PackedSet) -> bytes:
    """→ the bytes of the file, the shortest of all coders. Raises `BadHeader` for what the format cannot hold."""
    body = Writer()
    wide = not _fits_half(packed.mean, packed.std)
    equal = len(set(packed.counts)) == 1
    inline = isinstance(packed.protocol, bytes)
    if int(sum(packed.counts)) != packed.symbols.shape[0] or packed.symbols.size == 0:
        raise BadHeader(f"counts {packed.counts} do not match {packed.symbols.shape[0]} samples")
    if packed.symbols.max() >= packed.levels.levels:
        raise BadHeader(f"symbol {packed.symbols.max()} is not below {packed.levels.levels} levels")
    packed.check_exponents()
    body.byte(equal * _EQUAL_COUNTS | inline * _INLINE_PROTOCOL | wide * _WIDE_STATISTICS)
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
    body.floats(packed.mean, wide)
    body.floats(packed.std, wide)
    body.byte(packed.inverse.family << 4 | packed.levels.family)
    packed.inverse.write(body)
    packed.levels.write(body)
    coder, payload = coders.shortest(packed.symbols.reshape(-1), packed.levels.levels)
    body.byte(coder.ident)
    body.raw(payload)
    data = MAGIC + bytes([FORMAT_VERSION]) + bytes(body.data)
    return data + zlib.crc32(data).to_bytes(4, "little")


def unpack(data: bytes) -> PackedSet:
    """Parse and decode; raises a `PackedFileError` that names the broken rule."""
    return _parse(data)[0]


def sections(data: bytes) -> list[tuple[str, int]]:
    """[(what, bytes), …] in file order; the sizes add up to `len(data)`. Raises as `unpack`."""
    return _parse(data)[1]


def coder_name(data: bytes) -> str:
    """Name of the coder of the symbols."""
    return next(name for name, _ in sections(data) if name.startswith("symbols")).split(" ", 1)[1].strip("()")


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
    if data[3] != FORMAT_VERSION:
        raise UnsupportedVersion(f"format version {data[3]} is not known; this package reads {FORMAT_VERSION}")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ChecksumMismatch("the checksum does not match: the file is damaged or cut short")
    fields = Reader(data[4:-4])
    with fields.section("flags"):
        flags = fields.byte()
        if flags & ~_KNOWN_FLAGS:
            raise BadHeader(f"unknown flags {flags:#04x}")
    with fields.section("protocol"):
        protocol: int | bytes
        if flags & _INLINE_PROTOCOL:
            protocol = fields.raw(fields.unsigned(1 << 16, "the length of the protocol"))
        else:
            protocol = fields.byte()
    with fields.section("shape"):
        axes = fields.byte()
        if axes not in (1, 3):
            raise BadHeader(f"samples have 1 or 3 axes, got {axes}")
        shape = tuple(fields.unsigned(1 << 20, "a side of the samples") for _ in range(axes))
        channels = shape[0] if axes == 3 else 1
    with fields.section("class counts"):
        classes = fields.unsigned(1 << 16, "the number of classes")
        if flags & _EQUAL_COUNTS:
            counts = (fields.unsigned(1 << 31, "the samples of a class"),) * classes
        else:
            counts = tuple(fields.unsigned(1 << 31, "the samples of a class") for _ in range(classes))
        total = sum(counts) * math.prod(shape)
        if total == 0:
            raise BadHeader(f"the file holds no sample: {classes} classes, samples of shape {shape}")
        if total > MAX_SYMBOLS:
            raise TooLarge(f"the file claims {total:,} values, more than the format allows ({MAX_SYMBOLS:,})")
        if channels > fields.left:
            raise Truncated(
                f"the statistics of {channels:,} channels need more bytes than the {fields.left} that are left"
            )
    with fields.section("input statistics"):
        wide = bool(flags & _WIDE_STATISTICS)
        mean = fields.floats(channels, wide, "the mean")
        std = fields.floats(channels, wide, "the standard deviation")
        if (std <= 0).any():
            raise BadHeader("a standard deviation is not positive")
    with fields.section("families"):
        families = fields.byte()
        if families >> 4 not in inverse.FAMILIES or families & 0x0F not in levels.FAMILIES:
            raise BadHeader(f"unknown transform {families >> 4} or quantizer {families & 0x0F}")
    with fields.section("transform parameters"):
        transform = inverse.FAMILIES[families >> 4].read(fields, channels)
    with fields.section("quantizer parameters"):
        table = levels.FAMILIES[families & 0x0F].read(fields)
    with fields.section("coder"):
        ident = fields.byte()
        if ident not in coders.CODERS:
            raise BadHeader(f"unknown coder {ident}")
    payload = fields.raw(fields.left)
    if total > coders.capacity(len(payload)):
        raise BadPayload(f"{len(payload)} coded bytes cannot hold {total:,} symbols")
    symbols = coders.CODERS[ident].decode(payload, total, table.levels)
    packed = PackedSet(symbols.reshape(-1, *shape), counts, table, transform, mean, std, protocol)
    packed.check_exponents()
    parts = [("magic and version", 4), *fields.sections]
    parts += [(f"symbols ({coders.CODERS[ident].name})", len(payload)), ("checksum", 4)]
    return packed, parts


def _fits_half(mean: np.ndarray, std: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        half = np.concatenate([mean, std]).astype(np.float16).astype(np.float32)
    return bool(np.array_equal(half, np.concatenate([mean, std]).astype(np.float32)))
