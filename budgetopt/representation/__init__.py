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
    """The set being made. `latent` (n, ...) is in units of the initial set's standard deviation, so that one learning
    rate fits every dataset and transform."""

    def __init__(
        self,
        initial: InitialSet,
        allocation: Allocation,
        spec: DataSpec,
        protocol: int | bytes,
        device: torch.device,
    ) -> None:
        super().__init__()
        x = torch.from_numpy(np.ascontiguousarray(initial.x, np.float32)).to(device)
        self.counts, self.spec, self.protocol = initial.counts, spec, protocol
        self.labels = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts)).to(device)
        self.transform = build_transform(allocation.transform)
        self.transform.fit(x)
        coded = self.transform.forward(x)
        self.unit = float(coded.std()) or 1.0
        self.quantizer = build_quantizer(allocation.quantizer, allocation.levels, allocation.clipping)
        self.quantizer.fit(coded)
        self.quantizer.to(device)
        self.latent = nn.Parameter(coded / self.unit)

    def forward(self) -> torch.Tensor:
        """Samples in raw units, differentiable with respect to the latent values and the quantizer's parameters."""
        return self.transform.inverse(self.quantizer(self.latent * self.unit))

    def packed(self) -> PackedSet:
        """The set as the file would hold it now. Raises `TrialFailure` where a value is NaN or infinite."""
        if not torch.isfinite(self.latent).all() or not all(torch.isfinite(p).all() for p in self.parameters()):
            raise TrialFailure("distillation diverged: the synthetic samples are not finite")
        symbols, table = self.quantizer.encode(self.latent.detach() * self.unit)
        packed = PackedSet(
            symbols=symbols.cpu().numpy(),
            counts=self.counts,
            levels=table,
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


def fit_to_budget(packed: PackedSet, budget: int | None) -> bytes:
    """Pack within `budget` bytes, dropping the least useful samples of the largest classes where needed.

    Samples are most useful first in their class, so every class keeps a prefix of min(count, m); m is found by
    bisection. Raises `OverBudget` if not even one sample a class fits.
    """
    data = pack(packed)
    if budget is None or len(data) <= budget:
        return data
    fitting: bytes | None = None
    low, high = 1, max(packed.counts) - 1
    while low <= high:
        middle = (low + high) // 2
        data = pack(packed.prefix(tuple(min(c, middle) for c in packed.counts)))
        if len(data) <= budget:
            fitting, low = data, middle + 1
        else:
            high = middle - 1
    if fitting is None:
        raise OverBudget(f"one sample a class takes {len(data)} bytes, the budget is {budget}")
    return fitting
