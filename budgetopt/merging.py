"""`budgetopt merge`: the files of several nodes, joined into one within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from budgetopt.budget import Budget
from budgetopt.compression import Compressed, Say, Settings, compress
from budgetopt.data.dataset import Dataset
from budgetopt.errors import InputError
from budgetopt.packing import LevelTable, PackedSet, pack
from budgetopt.sets import SampleSet, packed_file
from budgetopt.sets.statistics import pooled

NEAR = 0.02  # squared distance of twins, as a share of the mean squared distance inside their class


def merge(
    paths: Sequence[str | Path],
    budget: Budget,
    settings: Settings,
    classes: int | None = None,
    dataset: Dataset | None = None,
    say: Say = lambda line: None,
) -> Compressed:
    """One file of all within `budget`: symbols that can be kept and fit are kept; where the files together take more
    than the budget, near twins go before anything else. Raises as `join` and `compression.compress`."""
    joined = join(paths, classes, settings.protocol is not None)
    taken = sum(Path(path).stat().st_size for path in paths) if joined.packed is None else len(pack(joined.packed))
    return compress(joined if taken <= budget.bytes else without_twins(joined), budget, settings, dataset, say)


def join(paths: Sequence[str | Path], classes: int | None = None, protocol_is_chosen: bool = False) -> SampleSet:
    """The samples of all files, class by class; inside a class the first of every file come first, then the second of
    every file, so that what is cut later is what each node found least useful.

    Input statistics are pooled by the number of samples. Symbols are kept where all files have the same levels and
    transform. A node may lack classes; with `classes`, also the last ones, which its file then does not know of.
    Raises `InputError` that names the file which does not fit the first.
    """
    if len(paths) < 2:
        raise InputError(f"merge joins two files or more, got {len(paths)}")
    found = [packed_file.read(Path(path)) for path in paths]
    first, total = found[0], classes or found[0].classes
    for one in found:
        if one.shape != first.shape:
            raise InputError(f"{one.name}: samples have shape {one.shape}, those of {first.name} {first.shape}")
        if one.classes > total or (classes is None and one.classes != total):
            raise InputError(
                f"{one.name}: has {one.classes} classes, expected {total}: --classes N says how many there are in all, "
                "where nodes lack the last ones"
            )
        if one.protocol != first.protocol and not protocol_is_chosen:
            raise InputError(f"{one.name}: has another protocol than {first.name}: choose one with --protocol")
        if one.preparation != first.preparation:
            raise InputError(f"{one.name}: its samples were made of raw data otherwise than those of {first.name}")
    y = np.concatenate([one.y for one in found])
    node = np.repeat(np.arange(len(found)), [len(one) for one in found])
    order = np.lexsort((node, np.concatenate([_ranks(one.y) for one in found]), y))
    parts = [(len(one), one.mean, one.std) for one in found if one.mean is not None and one.std is not None]
    mean, std = pooled(parts)
    joined = SampleSet(
        name=f"{len(found)} files",
        x=np.concatenate([one.x for one in found])[order],
        y=y[order],
        classes=total,
        soft=_soft(found, total, order),
        mean=mean,
        std=std,
        protocol=None if protocol_is_chosen else first.protocol,
        preparation=first.preparation,
    )
    packed = [one.packed for one in found if one.packed is not None]
    return replace(joined, packed=_same_symbols(packed, order, joined))


def without_twins(joined: SampleSet) -> SampleSet:
    """Without the samples that have a near twin before them in their class: nodes may have seen the same things."""
    kept = []
    for label in np.unique(joined.y):
        rows = np.flatnonzero(joined.y == label)
        flat = joined.x[rows].reshape(len(rows), -1).astype(np.float64)
        near = NEAR * 2.0 * float(flat.var(0).sum())  # mean ‖x − x'‖² over pairs is twice the variance
        free = np.ones(len(rows), bool)
        for i in range(len(rows)):  # the most useful first: it stays, its later twins go
            if free[i]:
                free[i + 1 :] &= ((flat[i + 1 :] - flat[i]) ** 2).sum(1) > near
        kept.append(rows[free])
    rows = np.concatenate(kept)
    if len(rows) == len(joined):
        return joined
    left = joined.taken(rows)
    if joined.packed is not None:  # families without parameters that belong to samples
        soft = None if joined.packed.soft is None else joined.packed.soft[rows]
        packed = replace(joined.packed, symbols=joined.packed.symbols[rows], counts=left.counts(), soft=soft)
        left = replace(left, packed=packed)
    return replace(left, notes=(*joined.notes, f"{len(joined) - len(rows):,} near twins left out"))


def _ranks(y: np.ndarray) -> np.ndarray:
    """(n,) place of each sample inside its class."""
    ranks = np.empty(len(y), np.int64)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        ranks[rows] = np.arange(len(rows))
    return ranks


def _soft(found: Sequence[SampleSet], total: int, order: np.ndarray) -> np.ndarray | None:
    """(n, total) soft labels where any file has them: hard ones are certain."""
    if all(one.soft is None for one in found):
        return None
    rows = []
    for one in found:
        known = np.eye(one.classes, dtype=np.float32)[one.y] if one.soft is None else one.soft
        rows.append(np.pad(known, ((0, 0), (0, total - one.classes))))
    return np.concatenate(rows)[order]


def _same_symbols(found: Sequence[PackedSet], order: np.ndarray, joined: SampleSet) -> PackedSet | None:
    """All symbols under the one table and transform that every file has; None where they differ, or where their
    parameters belong to samples."""
    first = found[0]
    scales = {None if one.soft is None else (one.soft.bits, one.soft.smoothing) for one in found}
    same = all(one.dequantizer == first.dequantizer and one.inverse == first.inverse for one in found)
    if (
        not same
        or not isinstance(first.dequantizer, LevelTable)
        or len(scales) > 1
        or joined.mean is None
        or joined.std is None
    ):
        return None
    soft = None
    if first.soft is not None:
        labels = [
            np.pad(one.soft.symbols, ((0, 0), (0, joined.classes - len(one.counts)))) for one in found if one.soft
        ]
        soft = replace(first.soft, symbols=np.concatenate(labels)[order])
    symbols = np.concatenate([one.symbols for one in found])[order]
    return replace(first, symbols=symbols, counts=joined.counts(), mean=joined.mean, std=joined.std, soft=soft)
