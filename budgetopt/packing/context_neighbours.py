"""Contexts of the values of one plane, as slots of counters and weight sets of mixers.

A context is a product of features (`context_names`); a feature is one small number per value: a neighbour, the
position, the class. Cells that lie outside the plane, or are not coded yet, count as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetopt.packing.context_names import MIRRORED, NEIGHBOURS, REDUCED, context_names, selector_names
from budgetopt.packing.context_numeric import NEEDED, NEEDED_COLOUR, Distances, Near
from budgetopt.packing.context_parents import MOST_COLUMNS, Parents
from budgetopt.packing.context_schedule import cells_of_steps
from budgetopt.packing.layout import Plane

POSITIONS = 1024  # positions are told apart on a grid of at most so many cells a channel
SETS = 1024  # weight sets of a mixer, at most, with the nodes
MIXER_NODES = 16  # above it a mixer knows only how many bits of the symbol are known
LEAST_GROUPS = 16
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / φ: spreads contexts over the groups


@dataclass(frozen=True)
class Step:
    """The k cells coded together."""

    cells: np.ndarray  # (k,) index into the plane
    reads: np.ndarray  # (neighbours, k) index of each neighbour; the plane's size where there is none
    places: dict[str, np.ndarray]  # features of the place: name → (k, 1)


@dataclass(frozen=True)
class Known:
    """Contexts of the values of a step, before any of their bits is coded."""

    slots: np.ndarray  # (direct contexts, k·m), of node 0
    sets: np.ndarray  # (mixers, k·m), of node 0
    near: Near | None  # for `Distances`


class PlaneContexts:
    """hints and unders: how many values the hint and the plane below have; 0 where there is none."""

    def __init__(self, plane: Plane, levels: int, classes: int, capacity: int, hints: int, unders: int) -> None:
        self._plane, self._levels = plane, levels
        self.nodes = 1 << (levels - 1).bit_length()
        self.mixer_nodes = min(self.nodes, MIXER_NODES)
        single = plane.height * plane.width == 1
        self.numeric = Distances(levels, plane.channels) if levels > REDUCED and not single else None
        self._parents = Parents(plane.channels) if single and 2 < plane.channels <= MOST_COLUMNS else None
        self._reduce = np.arange(levels, dtype=np.int64) * min(levels, REDUCED) // levels
        self._sizes = self._feature_sizes(classes, hints, unders)
        groups = max(LEAST_GROUPS, capacity // self.nodes)  # of slots that a context may have; a power of two
        names = [name.split() for name in context_names(plane, levels, hints > 0, unders > 0)]
        self._names = sorted(names, key=self._space)
        spaces = [self._space(name) for name in self._names]
        self._first_hashed = sum(space <= groups for space in spaces)
        self._shift = np.uint64(65 - groups.bit_length())
        sizes = [min(space, groups) * self.nodes for space in spaces]
        self._starts = np.cumsum([0, *sizes[:-1]])[:, None]
        self._direct_slots = sum(sizes)
        self._selectors = [name.split() for name in selector_names(plane, levels)]
        self._set_counts = [min(self._space(name), SETS // self.mixer_nodes) for name in self._selectors]
        self._list_neighbours()
        self.steps = [self._step(cells) for cells in cells_of_steps(plane)]

    @property
    def contexts(self) -> int:
        return len(self._names) + (self.numeric.contexts if self.numeric else 0)

    @property
    def slots(self) -> int:
        return self._direct_slots + (self.numeric.slots if self.numeric else 0)

    @property
    def sets(self) -> tuple[int, ...]:
        return tuple(size * self.mixer_nodes for size in self._set_counts)

    def of(self, step: Step, grid: np.ndarray, images: dict[str, np.ndarray]) -> Known:
        """grid: (cells + 1, m) uint8, what is coded so far, last row 0; images: features of the samples and of
        their cells, name → (1, m) or (cells, m)."""
        near = grid.take(step.reads, axis=0).astype(np.int64)
        exact = dict(zip(self._neighbours, near, strict=True))
        reduced = near if self._levels <= REDUCED else self._reduce.take(near)
        features = dict(zip(self._neighbours, reduced, strict=True))
        features.update((name.upper(), exact[name]) for name in self._exact)
        features.update(step.places)
        features.update((name, v if len(v) == 1 else v[step.cells]) for name, v in images.items())
        shape = (len(step.cells), grid.shape[1])
        prefixes: dict[str, np.ndarray] = {}
        products = np.empty((len(self._names), *shape), np.int64)
        for names, out in zip(self._names, products, strict=True):
            self._product(names, features, prefixes, out)
        slots = products.reshape(len(products), -1)
        hashed = slots[self._first_hashed :].view(np.uint64)
        hashed *= GOLDEN
        hashed >>= self._shift
        slots *= self.nodes
        slots += self._starts
        chosen = np.empty((len(self._selectors), *shape), np.int64)
        for names, out in zip(self._selectors, chosen, strict=True):
            self._product(names, features, prefixes, out)
        sets = chosen.reshape(len(chosen), -1)
        sets %= np.array(self._set_counts)[:, None]
        sets *= self.mixer_nodes
        predicted = self.numeric.near(exact, step.places["ch"], self._direct_slots) if self.numeric else None
        return Known(slots, sets, predicted)

    def at(self, known: Known, prefix: np.ndarray, bit: int) -> tuple[np.ndarray, np.ndarray]:
        """prefix: (k·m,) the bits above `bit` → slots (contexts, k·m), weight sets (mixers, k·m)."""
        depth = self.nodes.bit_length() - 2 - bit
        node = (1 << depth) - 1 + prefix
        slots = known.slots + node
        if self.numeric is not None and known.near is not None:
            slots = np.concatenate([slots, self.numeric.slots_at(known.near, prefix, bit)])
        return slots, known.sets + (node if self.mixer_nodes == self.nodes else depth)

    def learn(self, grid: np.ndarray) -> None:
        """A block is coded: columns may find better parents."""
        if self._parents is None or not self._parents.learn(grid[:-1]):
            return
        first, second = self._parents.best()
        for step in self.steps:
            step.reads[self._neighbours.index("a")] = first[step.cells]
            step.reads[self._neighbours.index("b")] = second[step.cells]

    def _product(
        self, names: list[str], features: dict[str, np.ndarray], prefixes: dict[str, np.ndarray], out: np.ndarray
    ) -> None:
        """The mixed-radix number of the features; prefixes that contexts share are computed once."""
        if len(names) == 1:
            out[...] = features[names[0]]
            return
        key = names[0]
        value = features[key]
        for name in names[1:-1]:
            key += " " + name
            if key not in prefixes:
                prefixes[key] = value * self._sizes[name] + features[name]
            value = prefixes[key]
        np.multiply(value, self._sizes[names[-1]], out=out)
        out += features[names[-1]]

    def _space(self, names: list[str]) -> int:
        space = 1
        for name in names:
            space *= self._sizes[name]
        return space

    def _feature_sizes(self, classes: int, hints: int, unders: int) -> dict[str, int]:
        plane, shift = self._plane, 0
        while (-(-plane.height >> shift)) * (-(-plane.width >> shift)) > POSITIONS:
            shift += 1
        self._place_shift = shift
        self._rows, self._columns = -(-plane.height >> shift), -(-plane.width >> shift)
        sizes = dict.fromkeys((*NEIGHBOURS, *MIRRORED), min(self._levels, REDUCED))
        sizes.update(dict.fromkeys("WNPQAB", self._levels))
        sizes.update({"one": 1, "half": 2, "class": classes, "hint": hints, "under": unders, "ch": plane.channels})
        sizes["pos"] = plane.channels * self._rows * self._columns
        sizes["row"] = plane.channels * self._rows
        sizes["col"] = plane.channels * self._columns
        sizes["stripe"] = plane.channels * ((self._rows + 3) // 4)
        sizes["area"] = sizes["stripe"] * ((self._columns + 3) // 4)
        return sizes

    def _list_neighbours(self) -> None:
        used = {feature for names in self._names + self._selectors for feature in names}
        if self.numeric is not None:
            used |= {*NEEDED, *(NEEDED_COLOUR if self._plane.channels > 1 else ())}
        self._exact = [name.lower() for name in "WNPQAB" if name in used]
        self._neighbours = [name for name in (*NEIGHBOURS, *MIRRORED) if name in used or name in self._exact]

    def _step(self, cells: np.ndarray) -> Step:
        height, width = self._plane.height, self._plane.width
        channel, row, column = cells // (height * width), cells // width % height, cells % width
        opposite = width - 1 - column
        reads = np.empty((len(self._neighbours), cells.size), np.int64)
        for k, name in enumerate(self._neighbours):
            back, down, right = NEIGHBOURS.get(name, (0, 0, 0))
            c, r = channel - back, row + down
            x = opposite + MIRRORED[name] if name in MIRRORED else column + right
            inside = (c >= 0) & (r >= 0) & (r < height) & (x >= 0) & (x < width)
            reads[k] = np.where(inside, (c * height + r) * width + x, self._plane.size)
        r, x = row >> self._place_shift, column >> self._place_shift
        stripe = channel * ((self._rows + 3) // 4) + r // 4
        places = {
            "one": np.zeros_like(channel),
            "ch": channel,
            "pos": (channel * self._rows + r) * self._columns + x,
            "row": channel * self._rows + r,
            "col": channel * self._columns + x,
            "half": (column > opposite).astype(np.int64),
            "stripe": stripe,
            "area": stripe * ((self._columns + 3) // 4) + x // 4,
        }
        return Step(cells, reads, {name: value[:, None] for name, value in places.items()})
