"""The first trials of a search: a design along curves of equal size, and the bounds of the space in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import optuna

from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.errors import InputError
from budgetopt.fitting import largest_fitting
from budgetopt.methods.selection import Selector
from budgetopt.search.config import SearchConfig
from budgetopt.trial import TrialContext, initial_bytes

SPACING = math.sqrt(10.0)  # between the sizes of the design: half a decade
SLACK = 0.15  # of a size of the design that may stay unused: each packing costs up to a second
MARGIN = 1.2  # on the largest IPC: other choices (clipping, options) may code shorter still
GROWTH = 1.1  # how much larger a file may become while its set is optimised
OPTIMISED_LEVELS = 4  # between the few levels that suit many samples and the many that suit few


class Design:
    """Coresets at the fewest levels, every optimised objective at about four, from the budget down: a valid file within
    seconds, and both ends of the front in sight of the sampler. Where the space has soft labels, coresets of about four
    levels too, and the finest labels for them and for optimised sets."""

    def __init__(self, config: SearchConfig, context: TrialContext, selector: Selector) -> None:
        self._config, self._context, self._selector = config, context, selector
        self._packed: dict[Allocation, int] = {}
        names = {name: o.steps for name, o in config.objectives.items()}
        self._coreset = next(n for n, steps in names.items() if steps == 0)
        self._optimised = [n for n, steps in names.items() if steps > 0]
        kinds = _kinds(config, context, self._coreset)
        self._first = kinds[0]
        self._largest = self.largest_ipc(self._first, config.budget)
        # another transform or family may code shorter: the size is nearly linear, so one packing tells how many fit
        scales = [config.budget / self._bytes(replace(a, ipc=self._largest)) for a in kinds]
        self.most_ipc = min(self._most(), math.ceil(MARGIN * self._largest * max(1.0, *scales)))

    def _bytes(self, allocation: Allocation) -> int:
        """Size of the initial set; every one is packed once."""
        if allocation not in self._packed:
            self._packed[allocation] = initial_bytes(self._context, allocation, self._selector)
        return self._packed[allocation]

    def _most(self) -> int:
        """No set has more samples a class."""
        init, spec = self._context.init, self._context.spec
        counts = spec.class_counts if init is None else init.counts
        return max(self._config.space.ipc.min, min(self._config.space.ipc.max, max(counts)))

    def largest_ipc(self, allocation: Allocation, size: float) -> int:
        """About the most samples a class with which the initial set of `allocation` takes at most `size` bytes; the
        smallest IPC of the space if none does."""

        def packed(ipc: int) -> int:
            return self._bytes(replace(allocation, ipc=ipc))

        least = self._config.space.ipc.min
        return largest_fitting(packed, size, least, self._most(), SLACK) or least

    def allocations(self) -> list[Allocation]:
        """For a sampler that has to see the whole front first: coresets of sizes half a decade apart, those with soft
        labels, optimised sets, the other selections in turn; large before small."""
        sizes, ipcs = [float(self._config.budget)], [self._largest]
        while ipcs[-1] > self._config.space.ipc.min:
            sizes.append(sizes[-1] / SPACING)
            ipcs.append(self.largest_ipc(self._first, sizes[-1]))
        selection, *others = self._selections()
        found = [replace(self._first, ipc=ipc, selection=selection) for ipc in ipcs]
        for start in self._fine():
            found += [replace(start, ipc=self.largest_ipc(start, size / GROWTH)) for size in sizes]
        turns = max(len(ipcs), len(others)) if others else 0  # the others take turns: the design stays small
        found += [
            replace(self._first, ipc=ipcs[turn % len(ipcs)], selection=others[turn % len(others)])
            for turn in range(turns)
        ]
        return list(dict.fromkeys(found))

    def few(self) -> list[Allocation]:
        """For a sampler with a model, which knows what to expect of the rest: one of each kind, in turn at the budget
        and at a tenth of it."""
        selection, *others = self._selections()
        kinds = [*self._fine(), *(replace(self._first, selection=other) for other in others[:1])]
        found = [replace(self._first, ipc=self._largest, selection=selection)]
        for turn, kind in enumerate(kinds):
            size = self._config.budget / (SPACING**2 if turn % 2 else 1.0)
            found.append(replace(kind, ipc=self.largest_ipc(kind, size / GROWTH)))
        return list(dict.fromkeys(found))

    def _selections(self) -> list[str]:
        """Herding first, in the shipped space: it needs no luck."""
        return self._config.space.selections(self._context.spec.shape)[::-1]

    def _fine(self) -> list[Allocation]:
        """Coresets, where there are soft labels, and optimised sets, with about four levels."""
        space = self._config.space
        family = next(c for c in space.quantizer if c.family == self._first.quantizer)
        levels = min(family.levels, key=lambda count: abs(math.log2(count / OPTIMISED_LEVELS)))
        bits = max(space.label_bits)
        fine = replace(self._first, selection=self._selections()[0], levels=levels, label_bits=bits)
        fine = replace(fine, label_temperature=min(space.label_temperature)) if bits else fine
        names = [self._coreset, *self._optimised] if bits else self._optimised
        return [replace(fine, objective=name) for name in names]

    def enqueue(self, study: optuna.Study, allocations: Sequence[Allocation]) -> None:
        for allocation in allocations:
            study.enqueue_trial(self._config.space.parameters(allocation, self.most_ipc))


def _kinds(config: SearchConfig, context: TrialContext, name: str) -> list[Allocation]:
    kinds = config.space.kinds(name, context.spec.shape)
    if not kinds:
        raise InputError(
            f"no selection, transform and quantizer of the search space takes samples of shape {context.spec.shape}"
        )
    return kinds


def smallest_file(config: SearchConfig, context: TrialContext, selector: Selector) -> int:
    """Bytes of the smallest file of the search space; raises `InputError` where the budget is below it."""
    name, shape = next(iter(config.objectives)), context.spec.shape
    smallest = min(initial_bytes(context, a, selector) for a in _kinds(config, context, name))
    if smallest > config.budget:  # before saying no, every choice is looked at
        smallest = min(initial_bytes(context, a, selector) for a in config.space.smallest(name, shape))
    if smallest > config.budget:
        raise InputError(
            f"the budget of {Budget(config.budget)} is too small for {config.dataset}: the smallest file of the search "
            f"space, {config.space.ipc.min} sample(s) a class at the fewest levels, takes {smallest} bytes"
        )
    return smallest
