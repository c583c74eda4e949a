"""The order in which the context coder visits samples and cells."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from budgetopt.packing.context_mixing import MOST_DECISIONS
from budgetopt.packing.layout import Layout, Plane

STEPS = 2500  # of all blocks together, about, at one decision a symbol: fixes the time of small sets
LEAST_STEPS, DECISIONS_A_STEP = 240, 16  # small sets: fewer decisions a step gain nothing and cost time
MOST_STEPS = 1 << 14  # of one block
MOST_VALUES = 1 << 18  # of one sample: bounds the memory of the tables of neighbours
CHANNEL_LAG = 4  # steps from one channel to the next, if channels are grids: its 8 neighbours are known by then


def visiting_order(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Classes spread evenly over the whole order → indices of the samples (n,), their labels (n,)."""
    sizes = np.asarray(counts, np.int64)
    labels = np.repeat(np.arange(sizes.size), sizes)
    ranks = np.arange(labels.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.argsort(((2 * ranks + 1) << 31) // sizes[labels], kind="stable")
    return order, labels[order]


def steps_of(plane: Plane) -> int:
    lag = 1 if plane.height * plane.width == 1 else CHANNEL_LAG
    return plane.width + 2 * (plane.height - 1) + lag * (plane.channels - 1)


def cells_of_steps(plane: Plane) -> list[np.ndarray]:
    """The cells coded together, step after step: column + 2·row + lag·channel is the same for all of them."""
    lag = 1 if plane.height * plane.width == 1 else CHANNEL_LAG
    channel, row, column = np.indices((plane.channels, plane.height, plane.width))
    when = (column + 2 * row + lag * channel).ravel()
    order = np.argsort(when, kind="stable")
    bounds = np.searchsorted(when[order], np.arange(steps_of(plane) + 1))
    parts = (order[a:b] for a, b in pairwise(bounds))
    return [part for part in parts if part.size]


def widest(plane: Plane) -> int:
    """A bound of the cells in one step."""
    if plane.height * plane.width == 1:
        return 1
    rows = min(plane.height, (plane.width + 1) // 2)
    together = -(-(plane.width + 2 * (plane.height - 1)) // CHANNEL_LAG)
    return rows * min(plane.channels, together)


def blocks(n: int, layout: Layout, depth: int) -> list[tuple[int, int]]:
    """Blocks of samples that grow with what was coded before: first n/128, then start/g, for the largest g of at
    most 64 that keeps the number of steps near `STEPS`, or near what pays in a small set. No step has more than
    `MOST_DECISIONS` symbols."""
    decisions = n * depth * sum(plane.size for plane in layout)
    steps = min(STEPS, max(LEAST_STEPS, decisions // DECISIONS_A_STEP))
    most = max(1, 2 * steps // (sum(map(steps_of, layout)) * (1 + depth)))
    room = max(1, MOST_DECISIONS // max(map(widest, layout)))
    for growth in range(64, -1, -1):
        edges = [0]
        while edges[-1] < n and len(edges) <= most:
            size = max(1, n // 128, edges[-1] // growth) if growth else n
            edges.append(min(n, edges[-1] + size))
        if edges[-1] >= n:
            break
    return [(start, min(start + room, stop)) for low, stop in pairwise(edges) for start in range(low, stop, room)]
