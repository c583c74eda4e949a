"""Which real samples a set starts from.

No selection is best everywhere. Accuracy in per cent on validation, 10 samples a class at 4 levels, ConvNet width 16,
few trainings: digits k-centre 97.4, herding 95.2, random 94.9, memorable 94.2, forgetting 92.6; Fashion-MNIST memorable
72.6, random 69.6, herding 68.1, k-centre 54.1, forgetting 17. Odd samples help where labels are clean and samples many
(digits at 30 a class: forgetting 98.2, random 97.0), and hurt elsewhere. Herding of decoded samples against herding,
digits at 2 levels, 10 and 30 a class: uniform levels +1.5 and +1.1 for 11 % more bytes, Lloyd–Max levels −0.7 and −2.1
for 5 % fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from budgetopt import cache
from budgetopt.allocation import SELECTIONS, Allocation
from budgetopt.balance import shared_out
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.methods import crops, forgetting
from budgetopt.methods.base import TrainingData
from budgetopt.methods.orders import herding_order, k_centre_order
from budgetopt.methods.seen import Receiver
from budgetopt.options import parse
from budgetopt.representation import InitialSet
from budgetopt.seeding import derive

PROJECTED = 128  # features for distances; longer ones are projected, which keeps distances to about 10 %
CHUNK = 1 << 26  # values that are floats at once
TYPICAL = 1000  # samples in all that a quantizer is fitted to before those of its set are known
CANDIDATES = 1000  # samples a class that are decoded to choose among them: a whole class of a large set takes too long
FIXED = 0  # seed of draws that are the same in every trial
DECODED = "herding:seen=decoded"

# what a selection learns of the train part by training a network: (data, seed, cache folder, progress) → arrays
LEARNED: dict[str, Callable[..., Any]] = {
    "forgetting": forgetting.cached,
    "memorable": forgetting.cached,
    "crops": crops.cached,
}


def check_shape(selection: str, shape: tuple[int, ...]) -> None:
    """Raise `InputError` for samples that a selection cannot take."""
    if selection == "crops":
        crops.check_shape(shape)


def takes_long(selection: str) -> bool:
    """Whether it trains a network, or decodes samples for every allocation anew."""
    return selection in LEARNED or selection == DECODED


def learned(
    selections: Iterable[str],
    data: TrainingData,
    seed: int,
    folder: Path | None,
    progress: cache.Progress = cache.silent,
) -> dict[str, Any]:
    """What a `Selector` needs for those of the selections that train a network, from the cache in `folder` or made
    now; without a folder nothing is kept."""
    return {name: LEARNED[name](data, seed, folder, progress) for name in selections if name in LEARNED}


class Selector:
    """Orders the train part by usefulness. Orders are kept and extended, so asking again is cheap; those that are
    greedy are the same in every trial."""

    def __init__(self, train: Split, spec: DataSpec, learned: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._train, self._spec, self._learned = train, spec, learned
        self._members = [np.flatnonzero(train.y == c) for c in range(spec.classes)]
        self._orders: dict[tuple[object, ...], np.ndarray] = {}  # the longest known
        self._last: tuple[Allocation, Receiver] | None = None

    def select(self, how: str, ipc: int, seed: int, coding: Allocation | None = None) -> InitialSet:
        """The `ipc` most useful samples of every class (all of a smaller class), best first. `coding`: what the samples
        go through, for selections that depend on it, and how they are shared out among the classes."""
        counts = shared_out(self._spec.class_counts, ipc, "equal" if coding is None else coding.balance)
        if how == "crops":
            made = [self._known(how).tiles(self._train.x, c, count) for c, count in enumerate(counts)]
            return InitialSet(np.concatenate(made), tuple(map(len, made)))
        index = [self.order(how, c, count, seed, coding) for c, count in enumerate(counts)]
        return InitialSet(self._train.x[np.concatenate(index)].astype(np.float32), tuple(map(len, index)))

    def order(self, how: str, label: int, count: int, seed: int, coding: Allocation | None = None) -> np.ndarray:
        """Indices into the train part of the first `count` samples of a class."""
        members, name = self._members[label], parse(how, SELECTIONS, "selection")[0]
        count = min(count, len(members))
        if name == "random":
            generator = np.random.default_rng(derive("random selection", seed, label))
            return members[generator.permutation(len(members))[:count]]
        through = None if how != DECODED else _coding(coding)
        key = (how, label, through)
        if len(self._orders.get(key, ())) < count:
            self._orders[key] = self._ordered(how, label, count, through)
        return self._orders[key][:count]

    def _ordered(self, how: str, label: int, count: int, coding: Allocation | None) -> np.ndarray:
        members = self._members[label]
        if how == "forgetting":
            return self._known(how).most_first(members)[:count]
        if how == "memorable":
            return self._known(how).least_first(self.order("random", label, len(members), FIXED))[:count]
        if how == "crops":
            raise ValueError("crops are parts of samples: `select` makes them, they have no order")
        features = self._features(self._train.x[members])
        if how == "k-centre":
            return members[k_centre_order(features, count)]
        if coding is None:
            return members[herding_order(features, count)]
        drawn = self.order("random", label, len(members), FIXED)
        candidates, others = drawn[:CANDIDATES], drawn[CANDIDATES:]
        decoded = self._features(self._receiver(coding).sees(self._train.x[candidates], label))
        herded = herding_order(decoded, min(count, len(candidates)), features.mean(0))
        return np.concatenate([candidates[herded], others])[:count]

    def _features(self, x: np.ndarray) -> np.ndarray:
        """(n, d) float32, the same projection in every trial: an order, not a draw."""
        flat, scale = x.reshape(len(x), -1), self._spec.std.mean()
        if flat.shape[1] <= 2 * PROJECTED:
            return flat.astype(np.float32) / scale
        normal = np.random.default_rng(FIXED).standard_normal((flat.shape[1], PROJECTED))
        projection, rows = (normal / PROJECTED**0.5).astype(np.float32), max(1, CHUNK // flat.shape[1])
        starts = range(0, len(flat), rows)  # a float copy of a class of large pictures would be four times their bytes
        return np.concatenate([flat[at : at + rows].astype(np.float32) / scale @ projection for at in starts])

    def _receiver(self, coding: Allocation) -> Receiver:
        """Of the last coding asked for: the classes of one set follow each other."""
        if self._last is None or self._last[0] != coding:
            typical = self.select("random", max(1, TYPICAL // self._spec.classes), FIXED)
            self._last = coding, Receiver(typical, coding, self._spec)
        return self._last[1]

    def _known(self, how: str) -> Any:
        if how not in self._learned:
            raise ValueError(f"the selection {how} needs what a training tells of the train part: see `learned`")
        return self._learned[how]


def _coding(allocation: Allocation | None) -> Allocation:
    """The allocation with all that does not shape decoded samples set aside."""
    if allocation is None:
        raise ValueError(f"{DECODED} needs an allocation")
    return replace(
        allocation, objective="coreset", selection="random", ipc=1, label_bits=0, rate_weight=0.0, balance="equal"
    )
