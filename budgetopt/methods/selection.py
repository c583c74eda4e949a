"""Which real samples a set starts from: random, or herding (Welling, ICML 2009)."""

from __future__ import annotations

import numpy as np

from budgetopt.data.dataset import DataSpec, Split
from budgetopt.representation import InitialSet
from budgetopt.seeding import derive

PROJECTED = 128  # features for herding; longer ones are projected, which keeps distances to about 10 %


class Selector:
    """Orders the train part by usefulness. Herding orders are kept and extended, so asking again is cheap."""

    def __init__(self, train: Split, spec: DataSpec) -> None:
        self._train, self._spec = train, spec
        self._members = [np.flatnonzero(train.y == c) for c in range(spec.classes)]
        self._herded: dict[int, np.ndarray] = {}

    def select(self, how: str, ipc: int, seed: int) -> InitialSet:
        """The `ipc` most useful samples of every class (all of a smaller class), best first."""
        index = [self.order(how, c, ipc, seed) for c in range(self._spec.classes)]
        return InitialSet(self._train.x[np.concatenate(index)].astype(np.float32), tuple(len(i) for i in index))

    def order(self, how: str, label: int, count: int, seed: int) -> np.ndarray:
        """Indices into the train part of the first `count` samples of a class."""
        members = self._members[label]
        count = min(count, len(members))
        if how == "random":
            generator = np.random.default_rng(derive("random selection", seed, label))
            return members[generator.permutation(len(members))[:count]]
        if len(self._herded.get(label, ())) < count:
            flat = self._train.x[members].reshape(len(members), -1).astype(np.float32) / self._spec.std.mean()
            if flat.shape[1] > 2 * PROJECTED:
                generator = np.random.default_rng(0)  # the same projection in every trial: an order, not a draw
                flat = flat @ (generator.standard_normal((flat.shape[1], PROJECTED)) / PROJECTED**0.5).astype(
                    flat.dtype
                )
            self._herded[label] = members[herding_order(flat, count)]
        return self._herded[label][:count]


def herding_order(features: np.ndarray, count: int) -> np.ndarray:
    """Greedy order in which the running mean stays closest to the mean of all. features: (n, d) → (count,).

    Step t takes the x that minimises ‖μ − (s_t + x)/(t+1)‖, without replacement; O(count·n·d).
    """
    mean = features.mean(0)
    squares = (features**2).sum(1)
    free = np.zeros(len(features))
    total = np.zeros_like(mean)
    order = np.empty(count, np.int64)
    for t in range(count):
        wanted = (t + 1) * mean - total  # ‖wanted − x‖² up to a constant
        order[t] = np.argmin(squares - 2.0 * (features @ wanted) + free)
        free[order[t]] = np.inf
        total += features[order[t]]
    return order
