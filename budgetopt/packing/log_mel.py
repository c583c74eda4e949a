"""Log-mel spectrograms: how samples are made of recordings, in numpy; scipy where sampling rates differ."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from budgetopt.errors import InputError
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.preparation import Preparation

# Bounds on what a stranger's file may ask of a receiver's time and memory
RATES = (1_000, 384_000)  # Hz, of a file and of a recording
MOST_WINDOW, MOST_LENGTH, MOST_MELS = 1 << 13, 1 << 22, 256
MOST_WINDOWED = 1 << 24  # values of all frames, which may overlap
AT_ONCE = 1 << 20  # values of the Fourier transforms that are in memory


@dataclass(frozen=True)
class LogMel(Preparation):
    """(1, mels, frames) whole decibels above a floor that lies `floor` dB below the loudest value of the recording:
    0 … floor, low frequencies first.

    A recording is brought to `rate` Hz and cut, or padded with silence, to the same length on both sides. Every `hop`
    values a frame begins, of `window` values under a Hann window; `mels` triangular filters, equally spaced on the mel
    scale between `lowest` and `highest` Hz, add up its power spectrum.
    """

    kind: ClassVar[int] = 1
    name: ClassVar[str] = "log-mel spectrograms"
    rate: int
    window: int
    hop: int
    lowest: int
    highest: int
    floor: int
    mels: int
    frames: int

    def __post_init__(self) -> None:
        for what, (least, most) in {
            "rate": RATES,
            "window": (2, MOST_WINDOW),
            "hop": (1, MOST_WINDOW),
            "lowest": (0, self.highest - 1),
            "highest": (1, self.rate // 2),
            "floor": (1, 255),
            "mels": (1, MOST_MELS),
            "frames": (1, MOST_LENGTH),
        }.items():
            if not least <= getattr(self, what) <= most:
                raise BadHeader(f"{what} of the spectrograms must be in {least}..{most}, got {getattr(self, what)}")
        if self.length > MOST_LENGTH or self.frames * self.window > MOST_WINDOWED:
            raise BadHeader(
                f"{self.frames:,} frames of {self.window:,} values, every {self.hop:,}, are more than a receiver "
                f"prepares ({MOST_LENGTH:,} values, {MOST_WINDOWED:,} in all frames)"
            )

    @property
    def length(self) -> int:
        """Values of a recording at `rate` that the frames cover."""
        return (self.frames - 1) * self.hop + self.window

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a sample."""
        return 1, self.mels, self.frames

    @property
    def summary(self) -> str:
        return (
            f"{self.name}: {self.length / self.rate:.2f} s at {self.rate:,} Hz, {self.frames} frames of "
            f"{1000 * self.window / self.rate:.3g} ms every {1000 * self.hop / self.rate:.3g} ms, {self.mels} mels "
            f"from {self.lowest:,} to {self.highest:,} Hz, {self.floor} dB"
        )

    def prepare(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """waveform: (t,) or (t, channels), which are averaged, sampled at `rate` Hz, in any unit → (1, mels, frames)
        float32 in the raw units of the file. Raises `InputError` for what is no recording."""
        waveform = np.asarray(waveform)
        if waveform.ndim not in (1, 2) or waveform.size == 0:
            raise InputError(f"a recording is (t,) or (t, channels) with t > 0, got {waveform.shape}")
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(f"the sampling rate must be in {RATES[0]}..{RATES[1]} Hz, got {rate}")
        waveform = _centre(waveform, self.longest(rate)).astype(np.float64)  # before anything takes memory or time
        if not np.isfinite(waveform).all():
            raise InputError("a recording holds NaN or infinite values")
        if waveform.ndim == 2:
            waveform = waveform.mean(1)
        if rate != self.rate:
            from scipy.signal import resample_poly

            shared = math.gcd(rate, self.rate)
            waveform = resample_poly(waveform, self.rate // shared, rate // shared)
        waveform = _centre(waveform, self.length)
        missing = self.length - len(waveform)
        waveform = np.pad(waveform, (missing // 2, missing - missing // 2))
        largest = float(np.abs(waveform).max())
        energy = self._energies(waveform / (largest or 1.0))
        loudest = float(energy.max())
        if loudest == 0.0:
            return np.zeros(self.shape, np.float32)
        with np.errstate(divide="ignore"):
            decibels = 10.0 * np.log10(energy / loudest)
        return np.round(np.maximum(decibels + self.floor, 0.0)).astype(np.float32)[None]

    def longest(self, rate: int) -> int:
        """Values at `rate` Hz, around the middle of a recording, that a sample is made of."""
        return -(-self.length * rate // self.rate)

    def _energies(self, waveform: np.ndarray) -> np.ndarray:
        """(length,) → (mels, frames)"""
        starts = np.lib.stride_tricks.sliding_window_view(waveform, self.window)[:: self.hop]
        size = max(1, AT_ONCE // self._bins)
        parts = [
            self._filters @ np.abs(np.fft.rfft(starts[i : i + size] * self._hann, self._bins).T) ** 2
            for i in range(0, self.frames, size)
        ]
        return np.concatenate(parts, 1)

    @property
    def _bins(self) -> int:
        """Length of the Fourier transform: twice the window at least, so that narrow filters have values too."""
        return 1 << (2 * self.window - 1).bit_length()

    @cached_property
    def _hann(self) -> np.ndarray:
        return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / self.window)

    @cached_property
    def _filters(self) -> np.ndarray:
        """(mels, bins // 2 + 1) weights of 0 … 1."""
        edges = hertz(np.linspace(mel(self.lowest), mel(self.highest), self.mels + 2))[:, None]
        frequencies = np.arange(self._bins // 2 + 1) * (self.rate / self._bins)
        rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
        return np.minimum(rising, falling).clip(min=0.0)

    @property
    def silent_mels(self) -> int:
        """Filters between two neighbouring frequencies of the Fourier transform: they are 0 whatever is heard."""
        return int((self._filters.sum(1) == 0.0).sum())

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, out: Writer) -> None:
        for value in (self.rate, self.window, self.hop, self.lowest, self.highest):
            out.unsigned(value)
        out.byte(self.floor)

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> LogMel:
        if len(shape) != 3 or shape[0] != 1:
            raise BadHeader(f"spectrograms have the shape (1, mels, frames), got {shape}")
        rate = fields.unsigned(RATES[1], "the sampling rate")
        window, hop = (fields.unsigned(MOST_WINDOW, f"the {what} of the spectrograms") for what in ("window", "hop"))
        lowest, highest = (fields.unsigned(RATES[1], "a frequency of the spectrograms") for _ in range(2))
        return cls(rate, window, hop, lowest, highest, fields.byte(), shape[1], shape[2])


def mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def hertz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def _centre(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` values of the first axis, around its middle."""
    first = max(0, len(values) - most) // 2
    return values[first : first + most]
