"""Ways of storing a set that exists: what each one distorts, and how much of the set it holds within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from budgetopt import networks, seeding
from budgetopt.allocation import Allocation
from budgetopt.evaluation import Standardize
from budgetopt.fitting import largest_fitting
from budgetopt.given import Given, shortened
from budgetopt.packing import LevelTable, PackedSet, pack
from budgetopt.packing.layout import first_of_each
from budgetopt.packing.soft_labels import MOST_CLASSES
from budgetopt.space import SearchSpace, possible

NETWORKS = 4  # random ones, in whose features the distortion is measured
MOST_DISTORTION = 0.5  # above it leaving samples out is better: in its features a sample is hardly itself
SURELY = 0.9  # a prediction below this share of a size is below it
TOO_LARGE = 4.0  # a way predicted to take so many times the budget is not packed


@dataclass(frozen=True, eq=False)
class Way:
    """allocation: None for the symbols that the set came in; bytes: predicted for all samples; distortion: normalised
    squared error in the features of random networks, and of soft labels where the set has them."""

    allocation: Allocation | None
    bytes: float
    distortion: float


@dataclass(frozen=True, eq=False)
class Stored:
    """What a way holds within a budget: the file, and the samples of the largest class in it."""

    way: Way
    data: bytes
    most: int
    samples: int


class Distortion:
    """Σ‖f(x) − f(x̂)‖² / Σ‖f(x) − mean f(x)‖² over a few random networks f (PTQ eq. 9–10, normalised). Needs no data;
    where levels are shifted as a whole, which networks take no notice of, a fairer guide than the error of pixels."""

    def __init__(self, given: Given) -> None:
        self._given, spec, protocol = given, given.spec, given.protocol
        self._standardize = Standardize(spec.mean, spec.std, spec.shape, torch.device("cpu"))
        shape, classes, width = spec.shape, spec.classes, protocol.width
        self._networks = [
            networks.build(protocol.network, shape, classes, width, seeding.generator("distortion", given.seed, i))
            for i in range(NETWORKS)
        ]

    def of(self, packed: PackedSet) -> float:
        """What `packed` distorts, which holds the first samples of each class, measured on the first of them. The error
        of soft labels is added, where the set has them: Σ‖p − q‖² / Σ‖p − mean p‖² of p and what is stored of it, q."""
        given, most = self._given, min(self._given.sampled, max(packed.counts))
        rows = first_of_each(given.initial.counts, most)
        held = first_of_each(packed.counts, most)
        error = self.between(given.initial.x[rows], packed.decode(held))
        if given.soft is None:
            return error
        soft, targets = given.soft[rows], packed.targets()
        stored = np.eye(given.spec.classes, dtype=np.float32)[packed.labels()] if targets is None else targets
        return error + float(((soft - stored[held]) ** 2).sum() / (((soft - soft.mean(0)) ** 2).sum() or 1.0))

    @torch.no_grad()
    def between(self, x: np.ndarray, stored: np.ndarray) -> float:
        """x, stored: (n, …) samples in raw units."""
        error, spread = 0.0, 0.0
        for network in self._networks:
            features = network.embed(self._standardize(torch.from_numpy(x)))
            error += float(((network.embed(self._standardize(torch.from_numpy(stored))) - features) ** 2).sum())
            spread += float(((features - features.mean(0)) ** 2).sum())
        return error / (spread or 1.0)


def allocations(space: SearchSpace, given: Given, levels: tuple[int, ...] = ()) -> list[Allocation]:
    """All that `space` offers for such samples and labels, or those with one of `levels`."""
    soft = given.soft is not None and given.spec.classes <= MOST_CLASSES
    return [
        a
        for a in _all(space, given.largest_class)
        if possible(a, given.spec.shape) and (soft or a.label_bits == 0) and (not levels or a.levels in levels)
    ]


def _all(space: SearchSpace, ipc: int) -> Iterator[Allocation]:
    for transform, choice, bits in itertools.product(space.transform, space.quantizer, space.label_bits):
        wanted = transform.option_sets(), choice.option_sets(), choice.clipping, choice.levels
        for transform_options, options, clipping, levels in itertools.product(*wanted):
            family = transform.name, choice.family, levels, clipping
            yield Allocation("coreset", "random", ipc, *family, transform_options, options, bits)


def survey(given: Given, candidates: list[Allocation]) -> list[Way]:
    """The ways worth packing, from coarse to fine: each takes more bytes than the one before and distorts less. All are
    compared on the first samples of each class; the symbols that the set came in distort nothing."""
    sample, distortion = given.initial.first(given.sampled), Distortion(given)
    ways = []
    for allocation in candidates:
        representation = given.representation(allocation, sample)
        sizes = []
        for most in sorted({max(1, given.sampled // 2), given.sampled}):
            packed = given.labelled(representation.packed(most), allocation.label_bits)
            sizes.append((len(packed), len(pack(packed))))
        ways.append(Way(allocation, predicted(sizes, len(given.initial.x)), distortion.of(packed)))
    if given.packed is not None:
        size = len(pack(given.packed))  # known, where others are predicted: those as good must be clearly smaller
        ways = [way for way in ways if way.distortion > 0 or way.bytes < SURELY * size] + [Way(None, size, 0.0)]
    likenesses = [way for way in ways if way.distortion <= MOST_DISTORTION]
    return finer_and_finer(likenesses or [min(ways, key=lambda w: w.distortion)])


def predicted(sizes: list[tuple[int, int]], samples: int) -> float:
    """Bytes of `samples` samples from [(samples, bytes)] of few and of more: the later ones cost least, since headers
    are paid once and coders learn."""
    (few, small), (more, large) = sizes[0], sizes[-1]
    each = (large - small) / (more - few) if more > few else large / more
    return large + (samples - more) * each


def finer_and_finer(ways: list[Way]) -> list[Way]:
    """Those that no other way beats in both bytes and distortion, from coarse to fine."""
    kept: list[Way] = []
    for way in sorted(ways, key=lambda w: (w.bytes, w.distortion)):
        if not kept or way.distortion < kept[-1].distortion:
            kept.append(way)
    return kept


def cut(packed: Callable[[int], PackedSet], budget: int, largest: int) -> tuple[bytes, int] | None:
    """The longest file of the first samples of each class within `budget` bytes, and how many of a class it holds at
    most; None where one of each takes more."""
    found: dict[int, bytes] = {}

    def size(most: int) -> int:
        found[most] = pack(packed(most))
        return len(found[most])

    most = largest_fitting(size, budget, 1, largest)
    return None if most is None else (found[most], most)


class Fitting:
    """Files within `budget` bytes; each way is fitted once."""

    def __init__(self, given: Given, budget: int) -> None:
        self.given, self.budget = given, budget
        self._whole: dict[int, Stored | None] = {}
        self._largest: dict[int, Stored | None] = {}

    def whole(self, way: Way) -> Stored | None:
        """All samples, or None where they do not fit."""
        if id(way) not in self._whole:
            fits = way.bytes <= TOO_LARGE * self.budget
            stored = self._stored(way, pack(self._packed(way)), self.given.largest_class) if fits else None
            self._whole[id(way)] = stored if stored is not None and len(stored.data) <= self.budget else None
        return self._whole[id(way)]

    def largest(self, way: Way) -> Stored | None:
        """As many samples as fit, the first of each class; None where not even one of each does."""
        if id(way) not in self._largest:
            self._largest[id(way)] = self.whole(way) or self._cut(way)
        return self._largest[id(way)]

    def finest_whole(self, ways: list[Way]) -> Stored | None:
        """The way that distorts least and holds every sample; `ways` from coarse to fine. Starts where the prediction
        says and goes on until the next finer one does not fit."""
        at = max((i for i, way in enumerate(ways) if way.bytes <= self.budget), default=0)
        while at >= 0 and self.whole(ways[at]) is None:
            at -= 1
        if at < 0:
            return None
        while at + 1 < len(ways) and self.whole(ways[at + 1]) is not None:
            at += 1
        return self.whole(ways[at])

    def _cut(self, way: Way) -> Stored | None:
        if way.allocation is None and not isinstance(self.given.packed and self.given.packed.dequantizer, LevelTable):
            return None  # the parameters of other families belong to their samples
        found = cut(lambda most: self._packed(way, most), self.budget, self.given.largest_class)
        return None if found is None else self._stored(way, *found)

    def _stored(self, way: Way, data: bytes, most: int) -> Stored:
        return Stored(way, data, most, sum(min(c, most) for c in self.given.initial.counts))

    def _packed(self, way: Way, most: int | None = None) -> PackedSet:
        if way.allocation is not None:
            initial = None if most is None else self.given.initial.first(most)
            stored = self.given.representation(way.allocation, initial).packed()
            return self.given.labelled(stored, way.allocation.label_bits)
        packed = self.given.packed
        assert packed is not None
        if most is None:
            return packed
        return shortened(packed, most)
