"""Packed sets made by hand, for tests."""

import math
import zlib

import numpy as np

from budgetopt.packing import (
    FORMAT_VERSION,
    Dequantizer,
    Domain,
    Identity,
    PackedSet,
    TablePreparation,
    UniformLevels,
    sections,
)
from budgetopt.packing.coders import CODERS
from budgetopt.packing.container import header
from budgetopt.packing.table import Categorical, Numeric


def packed_set(symbols, counts=None, dequantizer=2, shape=None, **changes):
    """symbols: (n, *shape), or (n, S) with `shape`; a number of levels means 0 … L−1; one class, identity, mean 0 and
    std 1 unless given."""
    symbols = np.asarray(symbols)
    shape = symbols.shape[1:] if shape is None else shape
    channels = shape[0] if len(shape) > 1 else 1
    plain = {
        "inverse": Identity(),
        "mean": np.zeros(channels, np.float32),
        "std": np.ones(channels, np.float32),
    }
    return PackedSet(
        symbols=symbols.astype(np.uint8).reshape(len(symbols), math.prod(symbols.shape[1:])),
        shape=tuple(shape),
        counts=counts or (len(symbols),),
        dequantizer=UniformLevels(dequantizer, 0, 1, 0) if isinstance(dequantizer, int) else dequantizer,
        **(plain | changes),
    )


def table_preparation():
    """Of 11 values and 4 classes: every kind of column."""
    columns = (
        Numeric("age", 40, 3),
        Numeric("income", 100, 12),
        Numeric("rooms", 3, 0, indicator=True),
        Categorical("job", ("", "baker", "smith"), other=True),
        Categorical("öffnet", ("ja", "nein")),
        Numeric("year", 32_000, 0),
    )
    return TablePreparation(columns, ("ash", "fir", "oak", "yew"))


def sealed(body, version=FORMAT_VERSION):
    """`body` with a right magic, version and checksum."""
    data = b"BOP" + bytes([version]) + body
    return data + zlib.crc32(data).to_bytes(4, "little")


def head_of(data):
    """All fields of a file before its payload, without magic and version."""
    (size,) = [size for what, size in sections(data) if what.startswith("symbols")]
    return data[4 : -4 - size]


def coder_name(data):
    """The coder of a file, as its account names it: `symbols (raw)`."""
    (name,) = [what for what, _ in sections(data) if what.startswith("symbols")]
    return name.removeprefix("symbols (").removesuffix(")")


def coded_by(coder, packed):
    """The file that holds the symbols of `packed` by this coder, be it the shortest or not."""
    domain, dequantizer = packed.domain, packed.dequantizer
    inner = Domain(dequantizer.symbol_layout(domain.layout), domain.counts)
    payload = coder.encode(packed.symbols, dequantizer.levels, inner, dequantizer.hint(domain))
    return sealed(header(packed) + bytes([coder.ident]) + payload)


def quickly_packed(packed):
    """A file as `pack` writes it, but for the search of the shortest coder: what is not about size need not wait."""
    if type(packed.dequantizer).payload is Dequantizer.payload:
        return coded_by(CODERS[1], packed)
    return sealed(header(packed) + packed.dequantizer.payload(packed.symbols, packed.domain)[1])
