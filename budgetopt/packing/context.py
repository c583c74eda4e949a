"""Context-mixing coder: every bit of a symbol is predicted from neighbours, position, class and earlier channels.

Blocks of samples, growing with what was coded before, are coded step after step, all samples of the block at once; a
step is a diagonal of cells. The predictions are whole numbers, so decoding is exact on every machine.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import constriction
import numpy as np

from budgetopt.packing.coder import FREE_SYMBOLS, SYMBOLS_PER_BYTE, Coder
from budgetopt.packing.context_mixing import MOST_DECISIONS, Predictor, probabilities
from budgetopt.packing.context_neighbours import PlaneContexts
from budgetopt.packing.context_schedule import MOST_STEPS, MOST_VALUES, blocks, steps_of, visiting_order, widest
from budgetopt.packing.errors import BadPayload
from budgetopt.packing.layout import Domain, Plane

RATES = (64, 32, 128)  # learning rates an encoder may choose, in 64ths of the usual one
TRIED = 1 << 10  # decisions up to which all rates are tried
WAITING = 1 << 16  # decisions handed to the range coder together
MOST_CODED = 1 << 24  # decisions of a file: bounds the time, about a microsecond each


class ContextMixing(Coder):
    """Payload: one byte, the index of the learning rate; then the words of the range coder."""

    ident: ClassVar[int] = 2
    name: ClassVar[str] = "context"

    def supports(self, levels: int, domain: Domain) -> bool:
        """Whether the number of steps and of decisions is bounded for such symbols."""
        layout = domain.layout
        return (
            len(layout) > 0
            and all(min(plane.channels, plane.height, plane.width) > 0 for plane in layout)
            and domain.values <= MOST_VALUES
            and sum(map(steps_of, layout)) <= MOST_STEPS
            and max(map(widest, layout)) <= MOST_DECISIONS
            and domain.samples * domain.values * _depth(levels) <= MOST_CODED
        )

    def encode(self, symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None) -> bytes:
        symbols = np.ascontiguousarray(symbols, np.uint8)
        tried = range(len(RATES) if symbols.size * _depth(levels) <= TRIED else 1)
        payload = min((self._encode(symbols, levels, domain, hint, option) for option in tried), key=len)
        # Nearly constant sets cost almost nothing; zeros, which decode to the same, keep them within `capacity`.
        return payload.ljust(-(-max(0, symbols.size - FREE_SYMBOLS) // SYMBOLS_PER_BYTE), b"\0")

    def _encode(self, symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None, option: int) -> bytes:
        encoder = _Encoder()
        _Coding(encoder, levels, domain, hint, RATES[option]).run(symbols.copy())
        return bytes([option]) + encoder.payload()

    def decode(self, payload: bytes, levels: int, domain: Domain, hint: np.ndarray | None) -> np.ndarray:
        if not payload or payload[0] >= len(RATES):
            raise BadPayload(f"the context coder has {len(RATES)} learning rates, got {payload[:1].hex() or 'nothing'}")
        symbols = np.zeros((domain.samples, domain.values), np.uint8)
        try:
            _Coding(_Decoder(payload[1:]), levels, domain, hint, RATES[payload[0]]).run(symbols)
        except (AssertionError, ValueError) as error:
            raise BadPayload(f"the range-coded symbols are invalid: {error}") from None
        return symbols


class _Channel(Protocol):
    """Where bits go to, or come from. Both directions run the same model."""

    def code(self, predicted: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """predicted: (m,) P(1)·65536; bits: (m,) int64, what to encode → the bits."""


class _Encoder:
    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0

    def code(self, predicted: np.ndarray, bits: np.ndarray) -> np.ndarray:
        self._waiting.append((bits.astype(np.int32), predicted.astype(np.int32)))
        self._size += bits.size
        if self._size >= WAITING:
            self._flush()
        return bits

    def payload(self) -> bytes:
        self._flush()
        return bytes(self._coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))

    def _flush(self) -> None:
        """One call for many steps: a call costs as much as a hundred bits."""
        if self._waiting:
            bits, predicted = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
            self._coder.encode(bits, _BITS, probabilities(predicted))
            self._waiting, self._size = [], 0


class _Decoder:
    def __init__(self, payload: bytes) -> None:
        padded = payload + b"\0" * (-len(payload) % 4)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))

    def code(self, predicted: np.ndarray, bits: np.ndarray) -> np.ndarray:
        return np.asarray(self._coder.decode(_BITS, probabilities(predicted)), np.int64)


_BITS = constriction.stream.model.Bernoulli(perfect=False)


class _Coding:
    def __init__(
        self,
        channel: _Channel,
        levels: int,
        domain: Domain,
        hint: np.ndarray | None,
        rate: int,
    ) -> None:
        self._channel, self._levels, self._layout = channel, levels, domain.layout
        self._order, self._labels = visiting_order(domain.counts)
        self._hint = None if hint is None else np.ascontiguousarray(hint, np.uint8)
        hints = 0 if self._hint is None else int(self._hint.max(initial=0)) + 1
        self._models = []
        for k, plane in enumerate(domain.layout):
            capacity = _slots(len(self._order) * plane.size, _depth(levels))
            contexts = PlaneContexts(plane, levels, len(domain.counts), capacity, hints, levels if k else 0)
            self._models.append((contexts, Predictor(contexts.contexts, contexts.slots, contexts.sets, rate)))

    def run(self, symbols: np.ndarray) -> None:
        """symbols: (n, K) uint8, replaced by what the channel gives back."""
        for start, stop in blocks(len(symbols), self._layout, _depth(self._levels)):
            members, labels = self._order[start:stop], self._labels[None, start:stop]
            offset, below = 0, None
            for plane, (contexts, predictor) in zip(self._layout, self._models, strict=True):
                values = slice(offset, offset + plane.size)
                images = {"class": labels}
                if self._hint is not None:
                    images["hint"] = self._hint[members, values].T.astype(np.int64)
                if below is not None:
                    images["under"] = below[0][_covered(plane, below[1])].astype(np.int64)
                truth = np.ascontiguousarray(symbols[members, values].T)
                grid = self._code_plane(contexts, predictor, truth, images)
                symbols[members, values] = grid[:-1].T
                offset, below = values.stop, (grid, plane)

    def _code_plane(
        self, contexts: PlaneContexts, predictor: Predictor, truth: np.ndarray, images: dict[str, np.ndarray]
    ) -> np.ndarray:
        """truth: (cells, m) → (cells + 1, m) uint8, the last row 0."""
        grid = np.zeros((len(truth) + 1, truth.shape[1]), np.uint8)
        for step in contexts.steps:
            known = contexts.of(step, grid, images)
            values = truth[step.cells].astype(np.int64).ravel()
            prefix = np.zeros(values.size, np.int64)
            for bit in range(_depth(self._levels) - 1, -1, -1):
                slots, sets = contexts.at(known, prefix, bit)
                open_ = ((2 * prefix + 1) << bit) < self._levels  # elsewhere the levels force a 0
                bits = (values >> bit) & 1
                if open_.all():
                    bits = self._code_bits(predictor, slots, sets, bits)
                else:
                    free = np.flatnonzero(open_)
                    if free.size:
                        coded = self._code_bits(predictor, slots[:, free], sets[:, free], bits[free])
                    bits = np.zeros_like(prefix)
                    if free.size:
                        bits[free] = coded
                prefix = 2 * prefix + bits
            grid[step.cells] = prefix.astype(np.uint8).reshape(len(step.cells), -1)
        contexts.learn(grid)
        return grid

    def _code_bits(self, predictor: Predictor, slots: np.ndarray, sets: np.ndarray, bits: np.ndarray) -> np.ndarray:
        bits = self._channel.code(predictor.predict(slots, sets), bits)
        predictor.update(bits)
        return bits


def _depth(levels: int) -> int:
    return (levels - 1).bit_length()


def _slots(symbols: int, depth: int) -> int:
    """Most slots of a context: one a decision, as long as the tables stay small beside the decoded samples."""
    wanted, small = max((symbols * depth - 1).bit_length(), 8), symbols.bit_length() - 2
    return 1 << min(wanted, max(15, min(17, small)))


def _covered(plane: Plane, below: Plane) -> np.ndarray:
    """The cell of the first channel of the plane `below` that each cell of `plane` lies on."""
    _, row, column = np.indices((plane.channels, plane.height, plane.width))
    cells = (row * below.height // plane.height) * below.width + column * below.width // plane.width
    return cells.ravel()
