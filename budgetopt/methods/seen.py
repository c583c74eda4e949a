"""Real samples as a receiver would see them: through the transform and the quantizer of an allocation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from budgetopt.allocation import Allocation
from budgetopt.data.dataset import DataSpec
from budgetopt.representation import InitialSet, Representation
from budgetopt.seeding import generator

CPU = torch.device("cpu")  # a selection is the same whatever device the trial has


class Receiver:
    """Transform and quantizer of `allocation`, fitted to `typical`, a set with samples of every class. The levels of
    the file that comes out are fitted to its own samples, and so a little different."""

    def __init__(self, typical: InitialSet, allocation: Allocation, spec: DataSpec) -> None:
        hard = replace(allocation, label_bits=0, rate_weight=0.0)
        self._fitted = Representation(typical, hard, spec, 0, CPU, generator("seen"))

    @torch.no_grad()
    def sees(self, x: np.ndarray, label: int) -> np.ndarray:
        """x: samples of one class in raw units, (n, c, h, w) or (n, f) → the same as decoded, float32. Families that
        share something among samples (tiles of a picture, groups of patches) do so among these."""
        transform, quantizer = self._fitted.transform, self._fitted.quantizer
        coded = transform.forward(torch.from_numpy(x.astype(np.float32)))
        return transform.inverse(quantizer.quantized(coded, torch.full((len(x),), label))).numpy()
