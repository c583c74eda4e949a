"""No method may leave a set worse than it found it: both ends train a network, and the train part decides.

Matching real features makes a set better where it is small and can make it worse where it is large: the features of a
class then agree in the mean at the cost of their spread. Nothing in a method's own loss shows that. A difference within
what chance makes of the samples on which the two differ (McNemar, Psychometrika 12, 1947) changes nothing: it hides a
small gain as often as a small loss. One standard deviation is asked for; two let pass most losses of two points.
"""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import torch

from budgetopt.checkpoint import State
from budgetopt.data.dataset import Split
from budgetopt.evaluation import Standardize, TrainingSet, predicted, train_network
from budgetopt.methods.base import Method, TrainingData
from budgetopt.representation import Representation

TESTED = 4000  # real samples at most on which the two are compared


class Guarded(Method):
    """`method` for `steps` steps. At the last, two networks are trained by the same random numbers, each for `share` of
    the protocol's steps: on the set as a file would hold it then, and on the one it started from. Where the second is
    clearly the better one on real samples of the train part, the set is put back to its start. The samples that the
    start holds are not among them."""

    def __init__(
        self,
        method: Method,
        steps: int,
        share: float,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
    ) -> None:
        self._method, self._steps, self._done = method, steps, 0
        self._data, self._representation, self._generator = data, representation, generator
        self._protocol = data.protocol.model_copy(update={"steps": max(1, round(data.protocol.steps * share))})
        self._start = copy.deepcopy(representation.state_dict())

    def step(self) -> float:
        loss = self._method.step()
        self._done += 1
        if self._done == self._steps and np.isfinite(loss):
            self._keep_the_better()
        return loss

    def state(self) -> State:
        return {"done": self._done, "method": self._method.state()}

    def restore(self, state: State) -> None:
        """The start needs no place in the state: a method built anew from the same arguments begins with it."""
        self._done = state["done"]
        self._method.restore(state["method"])

    def _keep_the_better(self) -> None:
        seed = int(torch.randint(2**31, (), generator=self._generator))
        tested = self._tested(seed)
        after = self._right(tested, seed)
        end = copy.deepcopy(self._representation.state_dict())
        self._representation.load_state_dict(self._start)
        if not clearly_more(self._right(tested, seed), after):
            self._representation.load_state_dict(end)

    def _right(self, tested: Split, seed: int) -> np.ndarray:
        """(n,) whether a network that is trained on the set as it is now classifies each sample rightly."""
        train, device = TrainingSet.of(self._representation.packed()), self._data.device
        net = train_network(train, self._protocol, seed, device)
        standardize = Standardize(train.mean, train.std, train.x.shape[1:], device)
        return predicted(net, tested, standardize, device) == tested.y

    def _tested(self, seed: int) -> Split:
        train = self._data.train
        held = {sample.tobytes() for sample in self._representation.initial.x}
        order = np.random.default_rng(seed).permutation(len(train))
        others = (row for row in order if train.x[row].astype(np.float32).tobytes() not in held)
        chosen = list(itertools.islice(others, TESTED)) or order[:TESTED]  # or the start holds all there is
        rows = np.sort(chosen)
        return Split(train.x[rows], train.y[rows])


def clearly_more(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether more is right in the first than in the second, (n,) bool each, by over one standard deviation of what
    chance alone would make of the samples on which they differ."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return only_first - only_second > math.sqrt(only_first + only_second)
