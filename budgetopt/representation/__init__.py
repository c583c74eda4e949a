"""What is optimised: latent values → quantizer → inverse transform → samples in raw units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from budgetopt.allocation import Allocation
from budgetopt.data.dataset import DataSpec
from budgetopt.errors import OverBudget, PackedFileError, TrialFailure
from budgetopt.packing import PackedSet, pack
from budgetopt.quantizers import build as build_quantizer
from budgetopt.transforms import build as build_transform


@dataclass(frozen=True, eq=False)
class InitialSet:
    """x: (n, c, h, w) or (n, f) float32 in raw units, in class order and, inside a class, most useful first;
    counts: samples of each class."""

    x: np.ndarray
    counts: tuple[int, ...]


class Representation(nn.Module):
    """The set being made. `latent` (n, K) are coded values in units of the initial set's standard deviation, so that
    one learning rate fits every dataset and transform."""

    def __init__(
        self,
        initial: InitialSet,
        allocation: Allocation,
        spec: DataSpec,
        protocol: int | bytes,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        x = torch.from_numpy(np.ascontiguousarray(initial.x, np.float32)).to(device)
        self.counts, self.spec, self.protocol = initial.counts, spec, protocol
        self.labels = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts)).to(device)
        self.transform = build_transform(allocation.transform, allocation.transform_options)
        self.transform.check_shape(spec.shape)
        self.transform.fit(x)
        coded = self.transform.forward(x)
        self.unit = float(coded.std(correction=0)) or 1.0
        self.quantizer = build_quantizer(
            allocation.quantizer, allocation.levels, allocation.clipping, allocation.quantizer_options
        )
        self.quantizer.check_transform(allocation.transform, spec.shape)
        if generator is not None:
            self.quantizer.generator = generator
        self.quantizer.fit(coded, self.labels, self.transform.layout)
        self.quantizer.to(device)
        self.latent = nn.Parameter(coded / self.unit)

    def forward(self) -> torch.Tensor:
        """Samples in raw units, differentiable with respect to the latent values and the quantizer's parameters."""
        return self.transform.inverse(self.quantizer(self.latent * self.unit, self.labels))

    def penalty(self) -> torch.Tensor:
        """What the quantizer adds to the loss of any method."""
        return self.quantizer.penalty(self.latent * self.unit, self.labels)

    def packed(self, most: int | None = None) -> PackedSet:
        """The set as the file would hold it now, or the first `most` samples of each class. Raises `TrialFailure` where
        a value is NaN or infinite."""
        if not torch.isfinite(self.latent).all() or not all(torch.isfinite(p).all() for p in self.parameters()):
            raise TrialFailure("distillation diverged: the synthetic samples are not finite")
        counts = self.counts if most is None else tuple(min(c, most) for c in self.counts)
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        keep = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        rows = torch.from_numpy(keep).to(self.labels.device)
        symbols, side = self.quantizer.encode(self.latent.detach()[rows] * self.unit, self.labels[rows])
        packed = PackedSet(
            symbols=symbols,
            shape=self.spec.shape,
            counts=counts,
            dequantizer=side,
            inverse=self.transform.side_information(),
            mean=self.spec.mean,
            std=self.spec.std,
            protocol=self.protocol,
        )
        try:
            packed.check_exponents()
        except PackedFileError as error:
            raise TrialFailure(f"distillation diverged: {error}") from None
        return packed

    def fit_to_budget(self, budget: int | None) -> bytes:
        """Pack within `budget` bytes, dropping the least useful samples of the largest classes where needed.

        Samples are most useful first in their class, so every class keeps a prefix of min(count, m). The largest m that
        fits is found by interpolation, since the size is nearly linear in m, and bisection where that does not settle
        it. Raises `OverBudget` if not even one sample a class fits.
        """
        data = pack(self.packed())
        if budget is None or len(data) <= budget:
            return data
        fitting, fitting_size = b"", 0.0
        low, high, high_size = 0, max(self.counts), float(len(data))  # low fits, high does not
        for attempt in range(3 * high.bit_length() + 3):
            if high - low <= 1:
                break
            share = (budget - fitting_size) / (high_size - fitting_size) if attempt % 3 < 2 else 0.5
            middle = min(high - 1, max(low + 1, low + int((high - low) * share)))
            data = pack(self.packed(middle))
            if len(data) <= budget:
                low, fitting, fitting_size = middle, data, float(len(data))
            else:
                high, high_size = middle, float(len(data))
        if not fitting:
            raise OverBudget(f"one sample a class takes {len(data)} bytes, the budget is {budget}")
        return fitting
