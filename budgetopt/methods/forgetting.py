"""How often each real sample is forgotten while a network learns (Toneva et al., ICLR 2019): once for a whole run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from budgetopt import cache
from budgetopt.evaluation import TrainingSet, one_thread, train_network
from budgetopt.methods.base import TrainingData
from budgetopt.seeding import derive

EPOCHS = 10  # of the train part


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Of each sample of the train part, (n,) int32. events: times that it was right when it was last in a batch and now
    is wrong; wrong: times that it was in a batch and wrong; seen: times that it was in a batch."""

    events: np.ndarray
    wrong: np.ndarray
    seen: np.ndarray

    def often(self) -> np.ndarray:
        """(n,) events; what was never right counts as forgotten more often than all else (section 3)."""
        return np.where(self.wrong == self.seen, self.seen + 1, self.events)

    def most_first(self, rows: np.ndarray) -> np.ndarray:
        """The rows, most forgotten first, equals by how often they were wrong."""
        return rows[np.lexsort((-self.wrong[rows], -self.often()[rows]))]

    def least_first(self, rows: np.ndarray) -> np.ndarray:
        """The rows, least forgotten first, equals as they come: they are most of a class, and those that are never
        wrong look all the same."""
        return rows[np.argsort(self.often()[rows], kind="stable")]


def train(data: TrainingData, seed: int, progress: cache.Progress = cache.silent) -> Forgetting:
    """Train a network of the protocol for EPOCHS epochs of the train part and watch what it gets right, as it is
    augmented in training (algorithm 1). On the CPU it takes one thread, so that counts do not depend on how many there
    are. Raises `TrialFailure` if the training diverges."""
    spec, n = data.spec, len(data.train)
    steps = math.ceil(EPOCHS * n / min(data.protocol.batch, n))
    subject = TrainingSet(data.train.x, data.train.y, spec.classes, spec.mean, spec.std)
    events, wrong, seen = (np.zeros(n, np.int32) for _ in range(3))
    was_right = np.zeros(n, bool)

    def watch(rows: torch.Tensor, logits: torch.Tensor) -> None:
        # once, where it ends an epoch and begins the next in one batch
        batch, first = np.unique(rows.cpu().numpy(), return_index=True)
        right = logits.argmax(1).cpu().numpy()[first] == data.train.y[batch]
        events[batch] += was_right[batch] & ~right
        wrong[batch] += ~right
        seen[batch] += 1
        was_right[batch] = right

    longer = data.protocol.model_copy(update={"steps": steps})
    with one_thread(data.device):
        train_network(subject, longer, derive("forgetting", seed, spec.split_hash), data.device, progress, watch)
    return Forgetting(events, wrong, seen)


def cached(data: TrainingData, seed: int, folder: Path | None, progress: cache.Progress = cache.silent) -> Forgetting:
    """`train`, or the same counts from `folder`; without a folder nothing is kept."""

    def good(found: cache.Arrays) -> bool:
        counts = [found[name] for name in ("events", "wrong", "seen")]
        return all(count.shape == (len(data.train),) and count.dtype == np.int32 for count in counts)

    def make() -> cache.Arrays:
        made = train(data, seed, progress)
        return {"events": made.events, "wrong": made.wrong, "seen": made.seen}

    key = ("v1", data.spec.split_hash, data.protocol.hash, EPOCHS, seed)
    found = cache.arrays(folder, "forgetting", key, good, make) if folder else make()
    return Forgetting(found["events"], found["wrong"], found["seen"])
