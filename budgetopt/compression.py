"""`budgetopt compress`: a set that exists already, as the best file within a budget, by quantization after the fact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from budgetopt import evaluation, objective, requantization, seeding, space
from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.data.dataset import Dataset
from budgetopt.errors import InputError, OverBudget, TrialFailure
from budgetopt.given import Given, prepare
from budgetopt.packing import PackedSet, pack, unpack
from budgetopt.representation import Representation
from budgetopt.sets import SampleSet
from budgetopt.storing import Distortion, Fitting, Stored, Way, allocations, cut, survey

TRIALS = 6  # files that are trained on, by default
MOST_CLOSE = 4  # files that are trained on again
COARSEST = 3  # ways that are cut where no way holds all samples
SPACING = 1.3  # between the bytes of the ways that are trained on

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """levels: only these, of the space; refine: PTQ's refinement, with the features of `network` (a file) if named;
    finetune: an objective that goes on with the quantizer in its loop for `steps` steps (default: its own); trials:
    files to train on where there is real data; time_limit: seconds, after which no training starts."""

    space: str = "compress"
    levels: tuple[int, ...] = ()
    protocol: str | None = None
    refine: str = "none"
    refine_steps: int = 100
    network: Path | None = None
    finetune: str | None = None
    steps: int | None = None
    trials: int | None = None
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.refine not in requantization.REFINEMENTS:
            raise InputError(f"--refine must be one of {', '.join(requantization.REFINEMENTS)}, got {self.refine!r}")
        if self.network is not None and self.refine == "none":
            raise InputError("--network is what --refine matches features of: give --refine before, after or both")
        if self.steps is not None and self.finetune is None:
            raise InputError("--steps are those of --finetune: name its method")
        for what, value in (("trials", self.trials), ("time limit", self.time_limit), ("steps", self.refine_steps)):
            if value is not None and value <= 0:
                raise InputError(f"the {what} must be positive, got {value}")
        if self.seed < 0:
            raise InputError(f"the seed must not be negative, got {self.seed}")


@dataclass(frozen=True, eq=False)
class Tried:
    """One file that was made. allocation: None where the symbols of the input were kept; accuracy: mean on validation,
    None where nothing was trained."""

    how: str
    allocation: Allocation | None
    data: bytes
    samples: int
    distortion: float
    accuracy: float | None = None

    @property
    def bytes(self) -> int:
        return len(self.data)

    @property
    def what(self) -> str:
        """How it is stored, in words: levels, quantizer, transform."""
        if self.allocation is None:
            return "symbols as they came"
        words = str(self.allocation).split(", ", 2)[2]  # method and IPC say nothing here
        return f"{words}, {self.how}" if self.how else words


@dataclass(frozen=True, eq=False)
class Compressed:
    """The chosen file and what it was chosen from. of: samples of the input; path: where it was written."""

    chosen: Tried
    tried: tuple[Tried, ...]
    budget: Budget
    of: int
    notes: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def data(self) -> bytes:
        return self.chosen.data

    @property
    def bytes(self) -> int:
        return self.chosen.bytes

    @property
    def allocation(self) -> Allocation | None:
        """None where the symbols of the input were kept."""
        return self.chosen.allocation


def compress(
    brought: SampleSet, budget: Budget, settings: Settings, dataset: Dataset | None = None, say: Say = lambda line: None
) -> Compressed:
    """The best file of the set within `budget`.

    Without `dataset` all samples are kept if they fit, at the least distortion in the features of random networks; if
    they do not, even at the coarsest, the last ones of each class are left out. With it, accuracy on its validation
    part decides between that file and some that hold fewer samples more finely. Raises `InputError`, of which
    `OverBudget` where not even one sample a class fits.
    """
    started = time.monotonic()
    tuning = None if settings.finetune is None else requantization.resolve(settings.finetune, settings.steps)
    if tuning is not None and dataset is None:
        raise InputError(f"--finetune {settings.finetune} needs real data: name it with --dataset")
    given = prepare(brought, settings.protocol, settings.seed, dataset)
    if tuning is not None:
        objective.check_augmentation(*tuning, given.spec.shape)
    network = None if settings.network is None else requantization.read_network(settings.network, given)
    judge = _Judge(given, dataset, settings, started, say)
    kept = replace(given, packed=None) if settings.levels else given  # symbols that are there have other levels
    for stored in _stored(kept, settings, budget, several=dataset is not None):
        judge.see("", stored.way.allocation, stored.data)
    if settings.refine == "none" and tuning is None:
        return judge.result(brought, budget)
    if all(t.allocation is None for t in judge.seen):  # the symbols of the input are no start for either
        for stored in _stored(replace(given, packed=None), settings, budget, several=False):
            judge.see("", stored.way.allocation, stored.data)
    base = judge.best([t for t in judge.seen if t.allocation is not None]).allocation
    assert base is not None

    def refined() -> Representation:
        matched = network
        if matched is None and dataset is not None:
            matched = requantization.trained_network(given, dataset)
        return requantization.refine(given, base, settings.refine, settings.refine_steps, dataset, matched)

    def changed(how: str, steps: int, make: Callable[[], Representation]) -> None:
        """A further file; without it there is a good one already."""
        if judge.late:
            return say(f"not {how}: the time limit is over")
        say(f"{how}: {steps} steps")
        try:
            judge.see(how, base, _within(given, make(), base, budget))
        except (TrialFailure, OverBudget) as error:
            say(f"not {how}: {error}")

    if settings.refine != "none":
        changed(f"refined {settings.refine}", settings.refine_steps, refined)
    if tuning is not None and dataset is not None:
        tuned = partial(requantization.finetune, given, base, *tuning, dataset)
        changed(f"fine-tuned by {tuning[0]}", tuning[1].all_steps, tuned)
    return judge.result(brought, budget)


class _Judge:
    """Measures every file that is made, and says which is best: by accuracy on validation where there is real data,
    else by the samples it holds, then by distortion."""

    def __init__(self, given: Given, dataset: Dataset | None, settings: Settings, started: float, say: Say) -> None:
        self._distortion, self._protocol, self._dataset, self._say = Distortion(given), given.protocol, dataset, say
        self._seed, self._deadline = settings.seed, started + (settings.time_limit or math.inf)
        self._device = evaluation.default_device()
        self.seen: list[Tried] = []

    def see(self, how: str, allocation: Allocation | None, data: bytes) -> None:
        packed = unpack(data)
        tried = Tried(how, allocation, data, len(packed), self._distortion.of(packed))
        if not self.seen or not self.late:
            tried = self._trained(tried, self._protocol.search_seeds)
        self.seen.append(tried)

    @property
    def late(self) -> bool:
        return time.monotonic() >= self._deadline

    def best(self, tried: Sequence[Tried]) -> Tried:
        return max(tried, key=lambda t: (t.accuracy or 0.0, t.samples, -t.distortion, -t.bytes))

    def result(self, brought: SampleSet, budget: Budget) -> Compressed:
        """With real data, those within one standard error of the best are trained again with more and fresh seeds, and
        only these figures decide: a search by few trainings flatters its winner."""
        best = self.best(self.seen)
        if self._dataset is not None and best.accuracy is not None:
            slack = math.sqrt(best.accuracy * (1 - best.accuracy) / len(self._dataset.val))
            close = [t for t in self.seen if t.accuracy is not None and t.accuracy >= best.accuracy - slack]
            close = sorted(close, key=lambda t: -(t.accuracy or 0.0))[:MOST_CLOSE]
            if len(close) > 1 and not self.late:
                again = {id(t): self._trained(t, self._protocol.seeds, "again") for t in close}
                self.seen = [again.get(id(t), t) for t in self.seen]
                best = self.best(list(again.values()))
        return Compressed(best, tuple(self.seen), budget, len(brought), brought.notes)

    def _trained(self, tried: Tried, count: int, purpose: str = "first") -> Tried:
        if self._dataset is None:
            return tried
        seeds = [seeding.derive("compress", purpose, self._seed, i) for i in range(count)]
        parallel = evaluation.default_parallel(self._device)
        found = evaluation.evaluate_file(
            tried.data, self._dataset.val, self._protocol, seeds, self._device, min(parallel, count)
        )
        self._say(f"{tried.bytes:,} bytes, {tried.samples:,} samples: validation {found.accuracy:.2%} ({tried.what})")
        return replace(tried, accuracy=found.accuracy)


def _stored(given: Given, settings: Settings, budget: Budget, several: bool) -> list[Stored]:
    """The file to make without real data; with `several`, also some that hold fewer samples more finely."""
    offered = allocations(space.resolve(settings.space), given, settings.levels)
    if not offered:
        wanted = ", ".join(map(str, settings.levels)) or "any"
        raise InputError(f"{settings.space}: offers nothing of {wanted} levels for samples of shape {given.spec.shape}")
    ways = survey(given, offered)
    fitting = Fitting(given, budget.bytes)
    first = fitting.finest_whole(ways) or _most(fitting, ways, budget)
    if not several:
        return [first]
    found = [first]
    for way in ways[ways.index(first.way) + 1 :]:
        if len(found) == (settings.trials or TRIALS):
            break
        stored = fitting.largest(way) if way.bytes >= SPACING * found[-1].way.bytes else None
        found += [stored] if stored is not None else []
    return found


def _most(fitting: Fitting, ways: Sequence[Way], budget: Budget) -> Stored:
    """What holds the most samples, where no way holds all of them."""
    found = [stored for stored in map(fitting.largest, ways[:COARSEST]) if stored is not None]
    if not found:
        raise OverBudget(
            f"the budget of {budget} is too small for {fitting.given.spec.name}: one sample of each class "
            "takes more, even at the fewest levels"
        )
    return max(found, key=lambda s: (s.samples, -s.way.distortion))


def _within(given: Given, representation: Representation, base: Allocation, budget: Budget) -> bytes:
    """The changed set within the budget. Changed samples code worse: the last ones of each class may have to go."""
    representation.eval()

    def packed(most: int | None) -> PackedSet:
        return given.labelled(representation.packed(most), base.label_bits)

    data = pack(packed(None))
    found = (data, 0) if len(data) <= budget.bytes else cut(packed, budget.bytes, given.largest_class)
    if found is None:
        raise OverBudget(f"the changed set does not fit {budget}, not even one sample of each class")
    return found[0]
