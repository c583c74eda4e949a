"""Soft labels: probabilities in whole parts of 2^b − 1, coded with what the decoder knows of each sample.

The M = 2^b − 1 parts of a sample are shared out among the classes. Its own class comes first; what is left then goes to
other classes in shares that never grow, each followed by its class, until nothing is left. A label that is nearly
certain costs a fraction of a bit. One number for the whole file then gives every class a little more: what is too small
to be a part of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import constriction
import numpy as np

from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.fields import Reader, Writer

MOST_BITS = 8
MOST_CLASSES = 1024
FINE = 16  # a part has so many units of smoothing
MOST_SMOOTHING = 255
# Most samples, shares and symbols (n·C) of a section: bounds the time and memory that a small file can ask for.
FREE_SAMPLES, SAMPLES_PER_BYTE = 1 << 14, 256
FREE_SHARES, SHARES_PER_BYTE = 1 << 15, 32
FREE_SYMBOLS, SYMBOLS_PER_BYTE = 1 << 26, 1 << 12
EXACT = 16  # shares below it have a context each; larger ones share it with those of equal length in bits
WEIGHT = 8  # observations that a coarser estimate counts for
MEMORY = 4096  # observations of a context; above it its counts are halved

# (weights of the possible values, position of the true one for the encoder) → position
Channel = Callable[[np.ndarray, int], int]
Shares = list[tuple[int, int]]  # (class, parts) of one sample, its own class first


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """symbols: (n, C) uint8, each row adding up to M = 2^bits − 1; smoothing: 0 … 255, e.
    The probability of a class of s parts is (16·s + e) / (16·M + C·e)."""

    symbols: np.ndarray
    bits: int
    smoothing: int = 0

    def __post_init__(self) -> None:
        check_size(self.bits, self.symbols.shape[1])
        if not 0 <= self.smoothing <= MOST_SMOOTHING:
            raise BadHeader(f"the smoothing of soft labels is 0..{MOST_SMOOTHING}, got {self.smoothing}")
        sums = self.symbols.sum(1, dtype=np.int64)
        if (sums != self.parts).any():
            wrong = int(np.flatnonzero(sums != self.parts)[0])
            raise BadHeader(f"{self.bits}-bit labels add up to {self.parts}, those of sample {wrong} to {sums[wrong]}")

    @classmethod
    def nearest(cls, probabilities: np.ndarray, bits: int) -> SoftLabels:
        """probabilities: (n, C), rows that add up to 1 → the closest labels of `bits` bits, by squared error; of all
        smoothings the first after which the error grows."""
        wanted = np.asarray(probabilities, np.float64)
        check_size(bits, wanted.shape[1])
        best, least = None, np.inf
        for smoothing in range(MOST_SMOOTHING + 1):
            labels = cls(_parts(wanted, (1 << bits) - 1, smoothing), bits, smoothing)
            error = float(((labels.targets() - wanted) ** 2).sum())
            if error >= least:
                break
            best, least = labels, error
        assert best is not None
        return best

    @property
    def parts(self) -> int:
        """M"""
        return (1 << self.bits) - 1

    def __len__(self) -> int:
        return len(self.symbols)

    def __getitem__(self, rows: np.ndarray | slice) -> SoftLabels:
        return SoftLabels(self.symbols[rows], self.bits, self.smoothing)

    def targets(self) -> np.ndarray:
        """(n, C) float32 probabilities: one IEEE division each, the same on every machine."""
        whole = FINE * self.parts + self.symbols.shape[1] * self.smoothing  # below 2^24: exact, as the numerators are
        return (FINE * self.symbols.astype(np.float32) + np.float32(self.smoothing)) / np.float32(whole)

    def write(self, out: Writer, labels: np.ndarray) -> None:
        """labels: (n,) the own class of every sample, which the decoder knows."""
        encoder = constriction.stream.queue.RangeEncoder()

        def channel(weights: np.ndarray, at: int) -> int:
            encoder.encode(at, _model(weights))
            return at

        context, shares = _Context(self.symbols.shape[1], self.parts), 0
        for i in _visiting_order(labels):
            shares += len(context.code(channel, int(labels[i]), _shares(self.symbols[i], int(labels[i]))))
        data = encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        # Nearly certain labels cost almost nothing; zeros, which decode to the same, keep them within the limits.
        data = data.ljust(_least_bytes(len(self), shares, self.symbols.size), b"\0")
        out.byte(self.bits)
        out.byte(self.smoothing)
        out.unsigned(len(data))
        out.raw(data)

    @classmethod
    def read(cls, fields: Reader, counts: tuple[int, ...]) -> SoftLabels:
        """Inverse of `write`; counts: samples of each class. Raises `BadHeader`, `Truncated` or `BadPayload`."""
        bits, smoothing, samples, classes = fields.byte(), fields.byte(), sum(counts), len(counts)
        check_size(bits, classes)
        data = fields.raw(fields.unsigned(1 << 30, "the length of the soft labels"))
        if len(data) < _least_bytes(samples, samples, samples * classes):
            raise BadPayload(f"{len(data)} bytes cannot hold the soft labels of {samples:,} samples")
        labels = np.repeat(np.arange(classes), counts)
        words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)
        decoder = constriction.stream.queue.RangeDecoder(words)

        def channel(weights: np.ndarray, at: int) -> int:
            try:
                return int(decoder.decode(_model(weights)))
            except (AssertionError, ValueError) as error:
                raise BadPayload(f"the range-coded soft labels are invalid: {error}") from None

        symbols = np.zeros((len(labels), classes), np.uint8)
        context, shares = _Context(classes, (1 << bits) - 1), 0
        for i in _visiting_order(labels):
            found = context.code(channel, int(labels[i]))
            for c, share in found:
                symbols[i, c] = share
            shares += len(found)
            if len(data) < _least_bytes(0, shares, 0):
                raise BadPayload(f"{len(data)} bytes cannot hold {shares:,} shares of soft labels")
        return cls(symbols, bits, smoothing)


def check_size(bits: int, classes: int) -> None:
    """Raise `BadHeader` for what soft labels cannot be."""
    if not 1 <= bits <= MOST_BITS:
        raise BadHeader(f"soft labels have 1..{MOST_BITS} bits, got {bits}")
    if not 1 <= classes <= MOST_CLASSES:
        raise BadHeader(f"soft labels are for 1..{MOST_CLASSES} classes, got {classes}")


def _parts(probabilities: np.ndarray, parts: int, smoothing: int) -> np.ndarray:
    """(n, C) uint8: the closest shares to what is left of the probabilities once all have their smoothing (largest
    remainders; ties go to the lower class)."""
    common = smoothing / (FINE * parts + probabilities.shape[1] * smoothing)
    rest = np.maximum(probabilities - common, 0.0)
    exact = rest / rest.sum(1, keepdims=True) * parts
    floor = np.floor(exact)
    left = parts - floor.sum(1, keepdims=True)
    rank = np.argsort(np.argsort(floor - exact, 1, kind="stable"), 1, kind="stable")
    return (floor + (rank < left)).astype(np.uint8)


def _least_bytes(samples: int, shares: int, symbols: int) -> int:
    """The shortest payload that may hold so much."""
    return max(
        0,
        -(-(samples - FREE_SAMPLES) // SAMPLES_PER_BYTE),
        -(-(shares - FREE_SHARES) // SHARES_PER_BYTE),
        -(-(symbols - FREE_SYMBOLS) // SYMBOLS_PER_BYTE),
    )


class _Counts:
    """How often each value was drawn, in each coarse and each fine context."""

    def __init__(self, coarse: int, fine: int, values: int) -> None:
        self._coarse, self._fine = np.zeros((coarse, values), np.int64), np.zeros((fine, values), np.int64)

    def draw(self, channel: Channel, coarse: int, fine: int, possible: np.ndarray, truth: int) -> int:
        """One of `possible` (k,), sorted; `truth` for the encoder. The fine counts are blended with the coarse ones,
        these with equal chances, the coarser side counting as WEIGHT observations. Whole numbers throughout."""
        if len(possible) < 2:
            if not len(possible):
                raise BadPayload("a soft label cannot share out its parts so")
            return int(possible[0])
        wide = self._coarse[coarse, possible] * len(possible) + WEIGHT
        weights = self._fine[fine, possible] * int(wide.sum()) + WEIGHT * wide
        value = int(possible[channel(weights, int(np.searchsorted(possible, truth)))])
        for counts in (self._coarse[coarse], self._fine[fine]):
            counts[value] += 1
            if counts.sum() > MEMORY:
                counts >>= 1
        return value


class _Context:
    """What the samples coded so far tell about the next one."""

    def __init__(self, classes: int, parts: int) -> None:
        self._classes, self._parts, self._groups = classes, parts, _group(parts) + 1
        self._own = _Counts(1, classes, parts + 1)
        self._share = _Counts(self._groups, self._groups**2, parts + 1)
        self._class = _Counts(1, classes, classes)

    def code(self, channel: Channel, label: int, truth: Shares | None = None) -> Shares:
        """The shares of one sample of class `label`; `truth` for the encoder."""
        own = self._own.draw(channel, 0, label, np.arange(self._parts + 1), truth[0][1] if truth else 0)
        found, left = [(label, own)], self._parts - own
        free = np.ones(self._classes, bool)
        free[label] = False
        last, last_class = 0, -1
        while left:
            c, share = truth[len(found)] if truth else (0, 0)
            most = min(left, last or left)
            # no later share is larger, and there is at most one for every free class
            least = -(-left // max(1, int(free.sum())))
            group = _group(left)
            fine = group * self._groups + _group(last)
            share = self._share.draw(channel, group, fine, np.arange(least, most + 1), share)
            possible = np.flatnonzero(free)
            if share == last:  # equal shares go by class
                possible = possible[possible > last_class]
            c = self._class.draw(channel, 0, label, possible, c)
            found.append((c, share))
            free[c] = False
            left, last, last_class = left - share, share, c
        return found


def _shares(row: np.ndarray, label: int) -> Shares:
    """The shares of a row (C,) in the order in which they are coded: falling, equal ones by class."""
    others = [(int(c), int(row[c])) for c in np.flatnonzero(row) if c != label]
    return [(label, int(row[label])), *sorted(others, key=lambda pair: (-pair[1], pair[0]))]


def _visiting_order(labels: np.ndarray) -> np.ndarray:
    """The first samples of every class, then the second ones, …: what is learnt first is learnt of all classes."""
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.argsort(rank, kind="stable")


def _group(share: int) -> int:
    return share if share < EXACT else EXACT + share.bit_length() - EXACT.bit_length()


def _model(weights: np.ndarray) -> constriction.stream.model.Categorical:
    # Whole numbers below 2^53 are exact in float64: no rounding decides a probability.
    return constriction.stream.model.Categorical(weights.astype(np.float64), perfect=False)
