"""scikit-learn's 8×8 digits: 1,797 real scans that ship with the package (values 0 … 16)."""

from __future__ import annotations

import numpy as np

from budgetopt.data.dataset import GLYPHS, Arrays, Source

TEST_SHARE, TEST_SEED = 0.3, 0  # one test split for ever: stratified, 30 %, seed 0


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
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        index = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=TEST_SEED)
        chosen = np.sort(index[which])
        return x[chosen].reshape(-1, 1, 8, 8).astype(np.uint8), y[chosen].astype(np.int64)
