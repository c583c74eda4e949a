"""What the rate–distortion sampler must know of a search, and how it is measured before any trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from budgetopt.allocation import Allocation
from budgetopt.methods.selection import Selector
from budgetopt.search.candidates import Candidates, SpaceCandidates
from budgetopt.space import SearchSpace
from budgetopt.trial import TrialContext, initial_bytes, initial_representation, initial_set

MEASURED = 100  # samples in all on which a coding is measured, at least one a class,
MOST_VALUES = 1 << 16  # but no more than hold so many values, one at least: of large pictures some classes are left out


@dataclass(frozen=True)
class Coding:
    """What a kind of allocation does to samples, measured on an initial set. distortion: δ, mean squared error over the
    variance of the values; bits: zeroth-order entropy of a sample's symbols; values: symbols of a sample."""

    distortion: float
    bits: float
    values: int


@dataclass(frozen=True, eq=False)
class Problem:
    """budget: bytes; chance: accuracy of guessing; class_counts: samples that a class has; validation:
    samples that accuracies are measured on; trained: objectives with optimisation steps. measure: what a kind does to
    samples, of its initial set; initial_bytes: length of the file of an allocation's initial set. Both are pure and
    keep what they found: the sampler asks again. work: by objective, what optimising costs for every sample of a set,
    as a share of what evaluating a trial does; none where nothing is optimised."""

    candidates: Candidates
    budget: int
    chance: float
    class_counts: tuple[int, ...]
    validation: int
    trained: frozenset[str]
    measure: Callable[[Allocation], Coding]
    initial_bytes: Callable[[Allocation], int]
    work: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _cumulative(self) -> np.ndarray:
        most = int(self.candidates.ipcs()[-1])
        return np.minimum(np.arange(most + 1)[:, None], np.array(self.class_counts)).sum(1)

    def samples(self, ipc: np.ndarray | int) -> np.ndarray:
        """Of a set with `ipc` samples a class, in all."""
        return self._cumulative[np.minimum(ipc, len(self._cumulative) - 1)]


class Measures:
    """Distortions and initial sizes in a run's context, each found once."""

    def __init__(self, context: TrialContext, selector: Selector) -> None:
        self._context, self._selector = context, selector
        classes = context.spec.classes
        ipc = max(1, MEASURED // classes)
        sample = selector.select("random", ipc, 0) if context.init is None else context.init.first(ipc)
        most = max(1, MOST_VALUES // math.prod(context.spec.shape))
        if len(sample.x) > most:
            shares = np.diff(np.linspace(0, most, classes + 1).astype(int))  # spread over the classes
            sample = sample.taking(tuple(np.minimum(shares, sample.counts).tolist()))
        self._bench, self._ipc = replace(context, init=sample), ipc
        self._codings: dict[Allocation, Coding] = {}
        self._seen: dict[Allocation, Coding] = {}
        self._sizes: dict[Allocation, int] = {}

    def initial_bytes(self, allocation: Allocation) -> int:
        """Length of the file of the initial set."""
        if allocation not in self._sizes:
            self._sizes[allocation] = initial_bytes(self._context, allocation, self._selector)
        return self._sizes[allocation]

    def coding(self, kind: Allocation) -> Coding:
        """Measured on the same random samples for all kinds."""
        if kind not in self._seen:
            name = next(iter(self._context.objectives))  # any: nothing is optimised
            plain = replace(kind, objective=name, selection="random", ipc=self._ipc, rate_weight=0.0, label_bits=0)
            if plain not in self._codings:
                self._codings[plain] = self._measured(plain)
            known = self._codings[plain]
            labels = kind.label_bits * (self._context.spec.classes - 1)
            self._seen[kind] = replace(known, bits=known.bits + labels)
        return self._seen[kind]

    @torch.no_grad()
    def _measured(self, allocation: Allocation) -> Coding:
        representation = initial_representation(self._bench, allocation, torch.device("cpu"), self._selector).eval()
        x = torch.from_numpy(np.ascontiguousarray(initial_set(self._bench, allocation).x, np.float32))
        variance = float(x.var(correction=0)) or 1.0
        distortion = float((representation() - x).square().mean()) / variance
        symbols = np.asarray(representation.packed().symbols)
        share = np.unique(symbols, return_counts=True)[1] / symbols.size
        values = symbols[0].size
        return Coding(distortion, float(-(share * np.log2(share)).sum()) * values, values)


def problem_of(context: TrialContext, space: SearchSpace, most_ipc: int, measures: Measures) -> Problem:
    """Of a run with a budget."""
    assert context.budget is not None
    steps = {name: objective.steps for name, objective in context.objectives.items()}
    counts = context.spec.class_counts if context.init is None else context.init.counts
    protocol = context.protocol
    evaluated = (protocol.search_seeds + protocol.rung_share) * protocol.steps * protocol.batch  # samples in a trial
    return Problem(
        candidates=SpaceCandidates(space, steps, context.spec.shape, most_ipc, context.seed),
        budget=context.budget,
        chance=1.0 / context.spec.classes,
        class_counts=counts,
        validation=len(context.val),
        trained=frozenset(name for name, count in steps.items() if count),
        measure=measures.coding,
        initial_bytes=measures.initial_bytes,
        work={name: count / evaluated for name, count in steps.items()},  # all samples of the set in every step
    )
