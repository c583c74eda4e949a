"""Raw units: what a dataset's samples are in (0 … 255 for pictures). Distilled sets are often saved standardised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetopt.errors import InputError

PIXEL = 255.0  # of an 8-bit picture, which the usual statistics divide by
Statistics = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Units:
    """What the user says of the values of a set.

    mean, std: of each channel, by which x = z·std + mean undoes the standardisation; both in [0, 1] are those of pixels
    that were divided by 255. dataset: (mean, std) in raw units of the dataset the set was made from. raw: the values
    are in raw units already.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dataset: Statistics | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std go together: one value for each channel, or one for all")
        if self.raw and self.mean is not None:
            raise InputError("--raw says that nothing is to be undone: leave out --mean and --std")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"--std must be positive, got {', '.join(f'{s:g}' for s in self.std)}")

    def to_raw(self, x: np.ndarray, path: Path, certain: bool) -> tuple[np.ndarray, Statistics | None, str]:
        """x: (n, c, …) or (n, f) float32 → (x in raw units, the input statistics that this tells or None, what was
        done). Raises `InputError`, with the range of the values, where the units are in doubt: `certain` is false, and
        nothing was said."""
        if self.mean is not None and self.std is not None:
            return self._undo(x, path, np.array(self.mean, np.float32), np.array(self.std, np.float32))
        low, high = float(x.min()), float(x.max())
        if self.raw or certain or (x.ndim > 2 and low >= 0 and high > 1):
            return x, None, ""
        if self.dataset is not None and x.ndim > 2 and low < 0:
            return self._undo(x, path, *self.dataset)
        works = "--mean and --std undo a standardisation, --raw takes the values as they are"
        if x.ndim > 2 and low < 0 and self.dataset is None:
            works += ", --dataset uses its own mean and std"
        if x.ndim > 2 and low >= 0:
            works += ", --mean 0 --std 1 makes 0..255 of 0..1"
        raise InputError(f"{path}: cannot tell the units of values from {low:.4g} to {high:.4g}: {works}")

    def _undo(self, x: np.ndarray, path: Path, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, Statistics, str]:
        channels = x.shape[1] if x.ndim > 2 else 1
        if mean.size != std.size or mean.size not in (1, channels):
            raise InputError(f"{path}: {mean.size} means and {std.size} stds do not fit samples of {channels} channels")
        mean, std = np.broadcast_to(mean, channels), np.broadcast_to(std, channels)
        pixels = x.ndim > 2 and self.mean is not None and mean.min() >= 0 and max(mean.max(), std.max()) <= 1
        if pixels:
            mean, std = mean * np.float32(PIXEL), std * np.float32(PIXEL)
        shape = (1, channels) + (1,) * (x.ndim - 2) if x.ndim > 2 else (1, 1)
        raw = x * std.reshape(shape) + mean.reshape(shape)
        if not np.isfinite(raw).all():
            raise InputError(f"{path}: the values are not finite once mean and std are undone")
        note = (
            f"values from {x.min():.4g} to {x.max():.4g} became {raw.min():.4g} to {raw.max():.4g}, undoing "
            f"mean {_list(mean)} and std {_list(std)} {'of pixels 0..255' if pixels else 'in raw units'}"
        )
        return raw.astype(np.float32), (mean.astype(np.float32), std.astype(np.float32)), note


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
