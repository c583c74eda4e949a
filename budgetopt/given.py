"""A set on its way into a file: its samples, and everything else that a `.bopt` holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from budgetopt import networks, seeding
from budgetopt import protocol as protocols
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import PROTOCOLS, Dataset, DataSpec
from budgetopt.errors import InputError
from budgetopt.evaluation import default_device
from budgetopt.packing import PackedSet
from budgetopt.packing.layout import first_of_each
from budgetopt.packing.soft_labels import SoftLabels
from budgetopt.protocol import Protocol, to_field
from budgetopt.representation import InitialSet, Representation
from budgetopt.sets import SampleSet
from budgetopt.sets.statistics import of_samples

SAMPLED = 1 << 13  # values of the first samples of each class, on which ways of storing are compared


@dataclass(frozen=True, eq=False)
class Given:
    """A set in class order, with all that a file needs beside the samples. soft: (n, C) probabilities, or None; packed:
    the same samples as symbols, where they come from one file."""

    initial: InitialSet
    spec: DataSpec
    protocol: Protocol
    soft: np.ndarray | None = None
    packed: PackedSet | None = None
    seed: int = 0

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64"""
        return np.repeat(np.arange(len(self.initial.counts)), self.initial.counts)

    @property
    def largest_class(self) -> int:
        return max(self.initial.counts)

    @property
    def sampled(self) -> int:
        """Samples of a class on which ways are compared."""
        return max(1, SAMPLED // (self.spec.values * sum(c > 0 for c in self.initial.counts)))

    def representation(self, allocation: Allocation, initial: InitialSet | None = None) -> Representation:
        """`initial`: other samples than all, as `InitialSet.first` gives them."""
        noise = seeding.generator("quantizer", self.seed, allocation.key)
        protocol, device = to_field(self.protocol), default_device()
        return Representation(initial or self.initial, allocation, self.spec, protocol, device, noise)

    def labelled(self, packed: PackedSet, bits: int) -> PackedSet:
        """`packed`, which holds the first samples of each class, with their soft labels in `bits` bits."""
        if self.soft is None or bits == 0:
            return packed
        rows = first_of_each(self.initial.counts, max(packed.counts))
        return replace(packed, soft=SoftLabels.nearest(self.soft[rows], bits))


def shortened(packed: PackedSet, most: int) -> PackedSet:
    """The first `most` samples of each class; of families without parameters that belong to samples."""
    rows = first_of_each(packed.counts, most)
    soft = None if packed.soft is None else packed.soft[rows]
    return replace(packed, symbols=packed.symbols[rows], counts=tuple(min(c, most) for c in packed.counts), soft=soft)


def prepare(brought: SampleSet, protocol: str | None, seed: int, dataset: Dataset | None) -> Given:
    """The set in class order, with the input statistics and the protocol that its file will hold: those of `dataset`
    if there is one. protocol: by name or path, instead of the set's own. Raises `InputError`."""
    spec = None if dataset is None else dataset.spec
    if spec is not None and brought.shape != spec.shape:
        raise InputError(f"{brought.name}: samples have shape {brought.shape}, those of {spec.name} {spec.shape}")
    if spec is not None and brought.preparation is not None and brought.preparation != spec.preparation:
        raise InputError(
            f"{brought.name}: its samples were made of raw data otherwise than those of {spec.name} with seed {seed}: "
            "name the seed, and the --spectrogram if it had one, of the run that made it"
        )
    ordered = brought.in_class_order(None if spec is None else spec.classes)
    recipe = _protocol(brought, protocol, dataset)
    networks.check_shape(recipe.network, ordered.shape)
    protocols.check_augmentation(recipe.augment, ordered.shape)
    if spec is not None:
        mean, std = spec.mean, spec.std
    elif ordered.mean is not None and ordered.std is not None:
        mean, std = ordered.mean, ordered.std
    else:
        mean, std = of_samples(ordered.x, brought.name)
    counts = ordered.counts()
    preparation = brought.preparation if spec is None else spec.preparation
    protocol_name = protocols.name_of(recipe)
    invariances = {} if spec is None else spec.invariances  # under which a method may match real and synthetic samples
    own = DataSpec(
        brought.name, ordered.shape, counts, mean, std, "", protocol_name, invariances=invariances,
        preparation=preparation,
    )  # fmt: skip
    packed = ordered.packed
    if packed is not None and len(packed.counts) == len(counts):
        stored = protocols.to_field(recipe)
        packed = replace(packed, mean=mean, std=std, protocol=stored, preparation=preparation)
    return Given(InitialSet(ordered.x, counts), own, recipe, ordered.soft, packed, seed)


def _protocol(brought: SampleSet, protocol: str | None, dataset: Dataset | None) -> Protocol:
    if protocol is not None:
        return protocols.resolve(protocol)
    if brought.protocol is not None:
        return protocols.from_field(brought.protocol)
    if dataset is not None:
        return protocols.resolve(dataset.spec.protocol)
    return protocols.resolve(PROTOCOLS[len(brought.shape)])
