"""Reads the common `.bopt` files with numpy and constriction alone, by `budgetopt/packing/FORMAT.md` and nothing else.

    python examples/standalone_decoder.py FILE [OUT.npz]

A start for a decoder in another language or on a device. It reads hard and soft labels; the transforms identity,
standardize and resize; uniform, APoT and codebook levels, one table for all values; the coders raw, range and context.
Anything else ends in one line that names it. Meant for files one trusts: unlike `budgetopt.load`, it does not bound
what a hostile file may ask for. Words in capitals or italics in comments are those of the specification.
"""

from __future__ import annotations

import math
import sys
import zlib
from dataclasses import dataclass
from itertools import pairwise, product

import constriction
import numpy as np

Categorical = constriction.stream.model.Categorical
Bernoulli = constriction.stream.model.Bernoulli


class CannotRead(ValueError):
    """The file is damaged, or of a kind that this example leaves out."""


@dataclass
class Decoded:
    """x: (n, c, h, w) or (n, f) float32 in raw units; y: (n,) classes; targets: (n, classes) float32, None where labels
    are hard; mean, std: (c,) float32, for the receiver's own inputs."""

    x: np.ndarray
    y: np.ndarray
    targets: np.ndarray | None
    mean: np.ndarray
    std: np.ndarray


def decode(data: bytes) -> Decoded:
    if data[:3] != b"BOP" or len(data) < 8:
        raise CannotRead("not a .bopt file")
    if data[3] not in (1, 2):
        raise CannotRead(f"format version {data[3]} is not known here")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CannotRead("the checksum does not match: the file is damaged")
    fields = Fields(data[4:-4])
    flags = fields.byte()
    if flags & 16:
        raise CannotRead("groups of levels: use budgetopt.load")
    if flags > 63:
        raise CannotRead(f"unknown flags {flags}")
    fields.raw(fields.u()) if flags & 2 else fields.byte()  # the protocol: how the network is trained
    shape = tuple(fields.u() for _ in range(fields.byte()))
    classes = fields.u()
    counts = [fields.u()] * classes if flags & 1 else [fields.u() for _ in range(classes)]
    y = np.repeat(np.arange(classes), counts)
    targets = soft_labels(fields, y, classes) if flags & 8 else None
    channels = shape[0] if len(shape) > 1 else 1
    mean, std = (fields.floats(channels, wide=bool(flags & 4)) for _ in range(2))
    if flags & 32:
        skip_preparation(fields)
    transform, quantizer = divmod(fields.byte(), 16)
    # of the coded values; slices of voxels lie behind each other like channels
    plane = (*shape, 1, 1) if len(shape) == 1 else (math.prod(shape[:-2]), *shape[-2:])
    e_s = e_o = 0
    scale = offset = np.zeros(channels, np.int64)
    if transform == 1:
        e_s, e_o = fields.s(), fields.s()
        pairs = np.array([(fields.u(), fields.s()) for _ in range(channels)], np.int64)
        scale, offset = np.repeat(pairs, plane[0] // channels if len(shape) > 1 else 1, axis=0).T
    elif transform == 4:
        plane = (shape[0], fields.u(), fields.u())
    elif transform != 0:
        raise CannotRead(f"transform {transform}: use budgetopt.load")
    table, exponent = level_table(fields, quantizer)
    coder, payload = fields.byte(), fields.rest()
    if coder == 0:
        symbols = raw_bits(payload, len(y) * math.prod(plane), len(table))
    elif coder == 1:
        symbols = range_coded(payload, len(y) * math.prod(plane), len(table))
    elif coder == 2:
        symbols = Context(payload, len(table), plane, counts).symbols
    else:
        raise CannotRead(f"coder {coder}: use budgetopt.load")
    if symbols.max() >= len(table):
        raise CannotRead(f"a symbol is {symbols.max()}, above the {len(table)} levels of the file")
    values = table[symbols.reshape(len(y), *plane)]
    if transform == 1:
        finer = max(exponent + e_s, e_o)
        values = (values * scale.reshape(-1, 1, 1) << finer - exponent - e_s) + (
            offset.reshape(-1, 1, 1) << finer - e_o
        )
        exponent = finer
    elif transform == 4:
        values = upsampled(upsampled(values, shape[2]).swapaxes(2, 3), shape[1]).swapaxes(2, 3)
        exponent += 20
    x = values.reshape(len(y), *shape).astype(np.float32) * np.float32(2.0**-exponent)
    return Decoded(x, y, targets, mean, std)


def skip_preparation(fields: Fields) -> None:
    """How a receiver makes samples of its own raw data: nothing that samples of the file depend on."""
    kind = fields.byte()
    if kind == 1:
        for _ in range(5):
            fields.u()
        fields.byte()
    elif kind == 2:
        fields.raw(fields.u())
    elif kind == 3:
        fields.byte()
    else:
        raise CannotRead(f"preparation {kind}: use budgetopt.load")


class Fields:
    """The header's fields, one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def raw(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise CannotRead("the header is cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self) -> bytes:
        return self.raw(len(self.data) - self.at)

    def byte(self) -> int:
        return self.raw(1)[0]

    def u(self) -> int:
        value, shift, more = 0, 0, True
        while more:
            part = self.byte()
            value |= (part & 127) << shift
            shift, more = shift + 7, part > 127
        return value

    def s(self) -> int:
        value = self.u()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def floats(self, count: int, wide: bool) -> np.ndarray:
        return np.frombuffer(self.raw(count * (4 if wide else 2)), "<f4" if wide else "<f2").astype(np.float32)


# --- levels ----------------------------------------------------------------------------------------------------------


def level_table(fields: Fields, quantizer: int) -> tuple[np.ndarray, int]:
    """→ T (L,) int64 and e: level k is T[k]·2^(−e)."""
    if quantizer == 0:
        count, low, step = fields.byte() + 1, fields.s(), fields.u()
        return low + step * np.arange(count, dtype=np.int64), fields.s()
    if quantizer == 1:
        form, unit = fields.byte(), fields.u()
        magnitudes = apot_magnitudes(form % 16 + 1, form // 16)
        return unit * np.array(sorted({sign * m for m in magnitudes for sign in (-1, 1)}), np.int64), fields.s()
    if quantizer == 3:
        count, low, exponent, width = fields.byte(), fields.s(), fields.s(), fields.byte()
        differences = unpacked(fields.raw((width * count + 7) // 8), count, width) + 1
        return low + np.cumsum(np.concatenate([[0], differences])), exponent
    raise CannotRead(f"quantizer {quantizer}: use budgetopt.load")


def apot_magnitudes(bits: int, k: int) -> list[int]:
    if bits == 1:
        return [1]
    n, rest = divmod(bits - 1, k)
    if rest:  # k = 2
        terms = [[i, i + n, i + 2 * n + 1] for i in range(n)] + [[2 * n]]
    else:
        terms = [[i + j * n for j in range(2**k - 1)] for i in range(n)]
    choices = [[0] + [2 ** (22 - exponent) for exponent in term if exponent <= 22] for term in terms]
    sums = {sum(chosen) for chosen in product(*choices)}
    common = math.gcd(*sums)
    common &= -common  # the power of two in all of them
    return [total // common for total in sums]


def unpacked(data: bytes, count: int, width: int) -> np.ndarray:
    """Numbers of `width` bits, most significant first."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[: count * width].reshape(count, width).astype(np.int64)
    return bits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))


def upsampled(values: np.ndarray, size: int) -> np.ndarray:
    """(…, s) → (…, size), 1024 times the values."""
    small = values.shape[-1]
    m = np.maximum(0, (2 * np.arange(size) + 1) * small - size)
    first = m // (2 * size)
    weight = (1024 * (m % (2 * size)) + size) // (2 * size)
    return (1024 - weight) * values[..., first] + weight * values[..., np.minimum(first + 1, small - 1)]


# --- coders ----------------------------------------------------------------------------------------------------------


def words(data: bytes) -> constriction.stream.queue.RangeDecoder:
    padded = data + bytes(-len(data) % 4)
    return constriction.stream.queue.RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))


def raw_bits(data: bytes, count: int, levels: int) -> np.ndarray:
    return unpacked(data, count, (levels - 1).bit_length())


def range_coded(data: bytes, count: int, levels: int) -> np.ndarray:
    decoder, symbols, seen, start = words(data), np.empty(count, np.int64), np.ones(levels), 0
    stride = max(1, count * 4051 // 6555)
    while math.gcd(stride, count) != 1:
        stride += 1
    while start < count:
        stop = min(count, start + max(1, start // 32))
        block = decoder.decode(Categorical(seen, perfect=False), stop - start)
        symbols[np.arange(start, stop) * stride % count] = block
        seen = seen + 2 * np.bincount(block, minlength=levels)
        start = stop
    return symbols


# --- soft labels -----------------------------------------------------------------------------------------------------


def soft_labels(fields: Fields, y: np.ndarray, classes: int) -> np.ndarray:
    """(n, classes) float32 probabilities."""
    bits, e = fields.byte(), fields.byte()
    decoder, M = words(fields.raw(fields.u())), 2**bits - 1
    parts = np.zeros((len(y), classes), np.int64)

    def g(v: int) -> int:
        return v if v < 16 else 11 + v.bit_length()

    def counts(sizes: int) -> dict[str, dict[object, np.ndarray]]:
        return {kind: _Zeros(sizes) for kind in ("coarse", "fine")}

    own, share, of_class = counts(M + 1), counts(M + 1), counts(classes)

    def draw(table: dict[str, dict[object, np.ndarray]], coarse: object, fine: object, possible: np.ndarray) -> int:
        if len(possible) == 1:
            return int(possible[0])
        a = len(possible) * table["coarse"][coarse][possible] + 8
        w = table["fine"][fine][possible] * a.sum() + 8 * a
        value = int(possible[decoder.decode(Categorical(w.astype(np.float64), perfect=False))])
        for context in (table["coarse"][coarse], table["fine"][fine]):
            context[value] += 1
            if context.sum() > 4096:
                context >>= 1
        return value

    rank = np.arange(len(y)) - np.searchsorted(y, y)
    for i in np.lexsort((y, rank)):
        label = int(y[i])
        parts[i, label] = draw(own, 0, label, np.arange(M + 1))
        unused, last, before = np.arange(classes) != label, 0, -1
        while (left := M - int(parts[i].sum())) > 0:
            least = -(-left // int(unused.sum()))
            v = draw(share, g(left), (g(left), g(last)), np.arange(least, min(left, last or left) + 1))
            possible = np.flatnonzero(unused)
            chosen = draw(of_class, 0, label, possible[possible > before] if v == last else possible)
            parts[i, chosen], unused[chosen] = v, False
            last, before = v, chosen
    return (16 * parts + e).astype(np.float32) / np.float32(16 * M + classes * e)


class _Zeros(dict):
    """Contexts appear when they are first used."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __missing__(self, key: object) -> np.ndarray:
        self[key] = np.zeros(self.size, np.int64)
        return self[key]


# --- the context coder -----------------------------------------------------------------------------------------------

NEIGHBOURS = {  # channels back, rows down, columns right
    "w": (0, 0, -1), "n": (0, -1, 0), "nw": (0, -1, -1), "ne": (0, -1, 1), "ww": (0, 0, -2), "nn": (0, -2, 0),
    "nne": (0, -2, 1), "nww": (0, -1, -2), "nnw": (0, -2, -1), "www": (0, 0, -3), "nnn": (0, -3, 0), "p": (1, 0, 0),
    "pw": (1, 0, -1), "pn": (1, -1, 0), "pe": (1, 0, 1), "ps": (1, 1, 0), "q": (2, 0, 0), "qw": (2, 0, -1),
    "qn": (2, -1, 0), "a": (1, 0, 0), "b": (2, 0, 0),
}  # fmt: skip
MIRRORS = {"mirror": 0, "mirror_e": -1, "mirror_w": 1}
FOUR, SIX = "w n ne nw", "w n ne nw ww nn"
MIRROR = "mirror mirror_e mirror_w w n ne half"


def contexts_of(levels: int, c: int, h: int, w: int) -> list[str]:
    if h * w == 1:
        names = ["one", "a", "class", "ch", "ch class", "ch P", "ch P q", "ch A", "ch A b", "ch A class", "a b p"]
        return [*names, "ch P q class", "ch A b class"]
    if levels > 4:
        names = ["pos class", "pos w n", "ch N w", FOUR, FOUR + " class", SIX + " ch", "row class w n"]
        names += ["area class w n ne", "ch W N" if levels <= 16 else "ch W n"] + ["ch P w"] * (c > 1)
    else:
        names = ["pos class", "pos w n", FOUR + " p ch", SIX + " p ch", FOUR + " class", "area class " + FOUR]
        if levels == 2:
            names += [SIX + " nne nww nnw www", FOUR + " nww nne www nnw nnn"]
        else:
            names += [SIX + " nne", SIX + " class", FOUR + " nww nne"]
        if c == 1:
            names += ["pos class w n", "row class " + FOUR, "col class " + FOUR]
        else:
            names += ["ch p q pw pn pe ps w n nw ne"]
    if c > 1:
        names += ["ch P Q w", "ch P pw w", "ch P pn n", "ch p pw pn w n", "ch p pw pn pe ps w n", "ch p q w n nw ne"]
    elif w > 3:
        names += ["class " + MIRROR] + [MIRROR] * (levels <= 4)
    return names


def selectors_of(levels: int, c: int, h: int, w: int) -> list[str]:
    if h * w == 1:
        return ["one", "class", "a p"]
    if c > 1:
        return ["class ch", "p w n ch", "stripe"]
    return ["class", FOUR if levels == 2 else "w n ne", "stripe"]


class Context:
    """Decodes one plane c × h × w; `symbols` (n, c·h·w)."""

    def __init__(self, payload: bytes, levels: int, plane: tuple[int, int, int], counts: list[int]) -> None:
        self.levels, self.plane, self.c, self.h, self.w = levels, plane, *plane
        self.cells, self.depth = math.prod(plane), (levels - 1).bit_length()
        n, self.classes = sum(counts), len(counts)
        if payload[0] > 2:
            raise CannotRead(f"unknown learning rate {payload[0]}")
        self.rate, self.decoder = (64, 32, 128)[payload[0]], words(payload[1:])
        self._features()
        self._tables(n)
        y = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(n) - np.searchsorted(y, y)
        order = np.argsort(((2 * rank + 1) << 31) // np.array(counts, np.int64)[y], kind="stable")
        self.symbols = np.zeros((n, self.cells), np.int64)
        for start, stop in self._blocks(n):
            self.symbols[order[start:stop]] = self._block(y[order[start:stop]])

    # *Features*

    def _features(self) -> None:
        c, h, w, L = self.c, self.h, self.w, self.levels
        shift = next(k for k in range(64) if (-(-h >> k)) * (-(-w >> k)) <= 1024)
        H, W = -(-h >> shift), -(-w >> shift)
        ch, row, x = (axis.ravel() for axis in np.indices(self.plane))
        self.lag = 1 if h * w == 1 else 4
        self.when = x + 2 * row + self.lag * ch
        down, right = row >> shift, x >> shift
        stripe = ch * -(-H // 4) + down // 4
        self.places = {
            "one": 0 * ch, "ch": ch, "half": (x > w - 1 - x).astype(np.int64), "pos": (ch * H + down) * W + right,
            "row": ch * H + down, "col": ch * W + right, "stripe": stripe, "area": stripe * -(-W // 4) + right // 4,
        }  # fmt: skip
        self.sizes = dict.fromkeys([*NEIGHBOURS, *MIRRORS], min(L, 4)) | dict.fromkeys("WNPQAB", L)
        self.sizes |= {
            "one": 1,
            "half": 2,
            "class": self.classes,
            "ch": c,
            "pos": c * H * W,
            "row": c * H,
            "col": c * W,
        }
        self.sizes |= {"stripe": c * -(-H // 4), "area": c * -(-H // 4) * -(-W // 4)}
        self.reads = {}  # the cell of every neighbour; self.cells where there is none
        for name in [*NEIGHBOURS, *MIRRORS]:
            back, below, beside = NEIGHBOURS.get(name, (0, 0, 0))
            at = w - 1 - x + MIRRORS[name] if name in MIRRORS else x + beside
            there = (ch >= back) & (row + below >= 0) & (row + below < h) & (at >= 0) & (at < w)
            self.reads[name] = np.where(there, ((ch - back) * h + row + below) * w + at, self.cells)

    def _tables(self, n: int) -> None:
        L, D, plane = self.levels, self.depth, self.plane
        names, mixers = contexts_of(L, *plane), selectors_of(L, *plane)
        self.contexts, self.selectors = [name.split() for name in names], [name.split() for name in mixers]
        decisions, few = n * self.cells * D, (n * self.cells).bit_length() - 2
        T = 1 << min(max(8, (decisions - 1).bit_length()), max(15, min(17, few)))
        self.groups = max(16, T >> D)
        self.predictions = 0 if L <= 4 or self.h * self.w == 1 else 11 if self.c > 1 else 7
        self.bins = 2 * self._bin(np.array([8 * L]))[0] + 1
        kinds = self.c if self.c <= 4 else 1
        sizes = [min(math.prod(self.sizes[f] for f in context), self.groups) << D for context in self.contexts]
        sizes += [kinds * 6 * D * self.bins] * self.predictions
        self.starts = np.cumsum([0, *sizes])
        self.n0, self.n1 = np.zeros((2, self.starts[-1]), np.int64)
        self.N = min(1 << D, 16)
        self.set_sizes = [min(math.prod(self.sizes[f] for f in s), 1024 // self.N) for s in self.selectors]
        self.set_starts = np.cumsum([0, *self.set_sizes])[:-1] * self.N
        sets = sum(self.set_sizes) * self.N
        self.weights = np.full((len(sizes) + 1, sets), 9 * 2**20 // 5 // len(sizes), np.int64)
        self.weights[-1] = 0
        self.used = np.zeros(sets, np.int64)
        self.ln = np.rint(256 * np.log(5.0 * np.arange(1025) + 2)).astype(np.int64)
        x = np.arange(-2815, 2816)
        self.logistic = np.clip(np.rint(65536 / (1 + np.exp(-x / 256.0))), 1, 65535).astype(np.int64)
        # *Parents*
        self.parents = self.h * self.w == 1 and 3 <= self.c <= 128
        self.total, self.sum, self.products, self.mark = 0, np.zeros(self.c, np.int64), 0, 8

    # *Order*

    def _blocks(self, n: int) -> list[tuple[int, int]]:
        c, h, w, D = self.c, self.h, self.w, self.depth
        steps = w + 2 * (h - 1) + self.lag * (c - 1)
        most = max(1, 2 * min(2500, max(240, n * self.cells * D // 16)) // (steps * (1 + D)))
        for growth in range(64, 0, -1):
            edges = [0]
            while edges[-1] < n and len(edges) <= most:
                edges.append(min(n, edges[-1] + max(1, n // 128, edges[-1] // growth)))
            if edges[-1] == n:
                break
        else:
            edges = [0, n]
        widest = 1 if h * w == 1 else min(h, (w + 1) // 2) * min(c, -(-(w + 2 * (h - 1)) // 4))
        piece = max(1, 16384 // widest)
        return [(at, min(at + piece, stop)) for start, stop in pairwise(edges) for at in range(start, stop, piece)]

    def _block(self, labels: np.ndarray) -> np.ndarray:
        """labels: (m,) of the block's samples → (m, cells) symbols."""
        grid = np.zeros((self.cells + 1, len(labels)), np.int64)  # the last row is outside
        for step in range(self.when.max() + 1):
            cells = np.flatnonzero(self.when == step)
            if cells.size:
                grid[cells] = self._step(grid, cells, labels).reshape(cells.size, -1)
        if self.parents and self.total < 1 << 20:
            self._find_parents(grid[:-1])
        return grid[:-1].T

    def _step(self, grid: np.ndarray, cells: np.ndarray, labels: np.ndarray) -> np.ndarray:
        L, shape = self.levels, (cells.size, len(labels))
        near = {name: grid[read[cells]] for name, read in self.reads.items()}
        feature = {name: value * min(L, 4) // L for name, value in near.items()}
        feature |= {name: near[name.lower()] for name in "WNPQAB"}
        feature |= {name: place[cells][:, None] for name, place in self.places.items()} | {"class": labels[None]}

        def number(names: list[str]) -> np.ndarray:
            z = np.zeros(shape, np.int64)
            for name in names:
                z = z * self.sizes[name] + feature[name]
            return z.ravel()

        contexts = []
        for names in self.contexts:
            z = number(names)
            if math.prod(self.sizes[name] for name in names) > self.groups:
                z = (z.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(65 - self.groups.bit_length())
            contexts.append(z.astype(np.int64))
        chosen = [number(names) % size for names, size in zip(self.selectors, self.set_sizes, strict=True)]
        predicted, base = self._distances(near, cells, shape) if self.predictions else (None, None)
        prefix = np.zeros(math.prod(shape), np.int64)
        for bit in range(self.depth - 1, -1, -1):
            node = (1 << self.depth - 1 - bit) - 1 + prefix
            slots = [z * (1 << self.depth) + node for z in contexts]
            if predicted is not None:
                d = np.clip(predicted - (8 * ((2 * prefix + 1) << bit) - 4), -8 * L, 8 * L)
                slots += list((base * self.depth + bit) * self.bins + self._bin(d) + self.bins // 2)
            slots = np.stack(slots) + self.starts[:-1, None]
            of_node = node if self.depth <= 4 else self.depth - 1 - bit
            sets = np.stack(chosen) * self.N + of_node + self.set_starts[:, None]
            coded = ((2 * prefix + 1) << bit) < L
            bits = np.zeros_like(prefix)
            if coded.any():
                bits[coded] = self._decide(slots[:, coded], sets[:, coded])
            prefix = 2 * prefix + bits
        return prefix

    # *Distances*

    def _distances(self, near: dict, cells: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """→ (predictions, k·m) in eighths, (k·m,) the number of channel and activity."""
        w, n, nw, ne, ww, nn = (near[name] for name in ("w", "n", "nw", "ne", "ww", "nn"))
        ch = np.broadcast_to(self.places["ch"][cells][:, None], shape)
        rough = abs(w - nw) + abs(n - nw) + abs(n - ne)
        found = [8 * np.median([w, n, w + n - nw], axis=0).astype(np.int64), 6 * (w + n) - 4 * nw]
        found += [4 * (w + n) + 2 * (ne - nw), 3 * (w + n) + nw + ne, 8 * w + 4 * (ne - n)]
        found += [8 * (2 * w - ww), 8 * (2 * n - nn)]
        if self.c > 1:
            p, pw, pn, q, qw, qn = (near[name] for name in ("p", "pw", "pn", "q", "qw", "qn"))
            rough = rough + np.where(ch > 0, abs(p - pw) + abs(p - pn), 0)
            found += [np.where(ch > 0, 4 * (w + n) + 8 * p - 4 * (pw + pn), 8 * w)]
            found += [np.where(ch > 0, 8 * (w + p - pw), 8 * n), np.where(ch > 0, 8 * (n + p - pn), 8 * ne)]
            both = 4 * (w + n) + 4 * (p + q) - 2 * (pw + pn + qw + qn)
            found += [np.where(ch > 1, both, 8 * (w + n) - 8 * nw)]
        activity = np.minimum(5, bit_length(rough))
        base = (ch if self.c <= 4 else 0) * 6 + activity
        return np.stack(found).reshape(len(found), -1), base.ravel()

    @staticmethod
    def _bin(d: np.ndarray) -> np.ndarray:
        octave = np.maximum(1, bit_length(abs(d)) - 3)
        return np.sign(d) * ((abs(d) >> octave) + 4 * (octave - 1))

    # *Counters*, *Mixers*

    def _decide(self, slots: np.ndarray, sets: np.ndarray) -> np.ndarray:
        """slots: (contexts, m), sets: (3, m) → (m,) bits."""
        while (over := np.unique(slots[(self.n0 + self.n1)[slots] > 1023])).size:
            self.n0[over], self.n1[over] = (self.n0[over] + 1) >> 1, (self.n1[over] + 1) >> 1
        inputs = np.full((len(slots) + 1, slots.shape[1]), 256, np.int64)
        inputs[:-1] = self.ln[self.n1[slots]] - self.ln[self.n0[slots]]
        sums = [(self.weights[:, chosen] * inputs).sum(0) >> 20 for chosen in sets]
        x = np.clip(np.stack(sums), -2815, 2815)
        p = self.logistic[x.sum(0) // 3 + 2815] / 65536
        bits = np.asarray(self.decoder.decode(Bernoulli(perfect=False), p), np.int64)
        together = np.bincount(sets.ravel(), minlength=len(self.used))
        k = np.maximum(together, 1)
        root = np.array([math.isqrt(2**24 // v) for v in range(1, k.max() + 1)])  # ⌊4096/√k⌋
        speed = root[k - 1] * (4 * self.rate + 28 * self.rate * 4096 // (4096 + self.used))
        self.used += together
        pace = ((65536 * bits - self.logistic[x + 2815]) * speed[sets]) >> 18
        for chosen, own in zip(sets, pace, strict=True):
            np.add.at(self.weights.T, chosen, (inputs * own >> 14).T)
        for seen, news in ((self.n1, bits), (self.n0, 1 - bits)):
            np.add.at(seen, slots.ravel(), np.tile(news, len(slots)))
        return bits

    # *Parents*

    def _find_parents(self, values: np.ndarray) -> None:
        """values: (columns, m)"""
        self.sum = self.sum + values.sum(1)
        self.products = self.products + values @ values.T
        self.total += values.shape[1]
        if self.total < self.mark:
            return
        self.mark = 2 * self.total
        covariance = self.total * self.products - np.outer(self.sum, self.sum)
        variance = covariance.diagonal()
        s = max(0, int(variance.max()).bit_length() - 30)
        for i in range(1, self.c):
            score = (covariance[i, :i] >> s) ** 2 // np.maximum(1, variance[:i] >> s)
            best = np.lexsort((np.arange(i), score))[::-1]
            self.reads["a"][i], self.reads["b"][i] = best[0], best[1] if i > 1 else self.cells


def bit_length(a: np.ndarray) -> np.ndarray:
    return np.frexp(a.astype(np.float64))[1]


def main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2:
        sys.exit(f"usage: python {sys.argv[0]} FILE [OUT.npz]")
    try:
        with open(arguments[0], "rb") as stream:
            found = decode(stream.read())
    except (CannotRead, OSError) as error:
        sys.exit(f"{arguments[0]}: {error}")
    print(
        f"{len(found.y):,} samples of shape {found.x.shape[1:]}, {'hard' if found.targets is None else 'soft'} labels"
    )
    if arguments[1:]:
        soft = {} if found.targets is None else {"targets": found.targets}
        np.savez(arguments[1], x=found.x, y=found.y, mean=found.mean, std=found.std, **soft)


if __name__ == "__main__":
    main(sys.argv[1:])
