"""scikit-learn's 8×8 digits: 1,797 real scans that ship with the package (values 0 … 16)."""

from __future__ import annotations

import numpy as np

from budgetopt.data.carving import carved
from budgetopt.data.dataset import GLYPHS, Arrays, Source


class Digits(Source):
    name = "digits"
    protocol = "glyph-1"
    invariances = GLYPHS

    def train_arrays(self) -> Arrays:
        return self._part(0)

    def test_arrays(self) -> Arrays:
        return self._part(1)

    def _part(self, which: int) -> Arrays:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        chosen = carved(y, self.name)[which]
        return x[chosen].reshape(-1, 1, 8, 8).astype(np.uint8), y[chosen].astype(np.int64)
