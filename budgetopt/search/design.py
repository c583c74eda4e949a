"""The first trials of a search: a small design along curves of equal size, and the bounds of the space in bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna

from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.errors import InputError
from budgetopt.methods.selection import Selector
from budgetopt.search.config import SearchConfig
from budgetopt.trial import TrialContext, initial_bytes

SPACING = math.sqrt(10.0)  # between the sizes of the design: half a decade
GROWTH = 1.1  # how much larger a file may become while its set is optimised
OPTIMISED_LEVELS = 4  # between the few levels that suit many samples and the many that suit few


class Design:
    """Coresets at the fewest levels, and every optimised objective at about four, at sizes half a decade apart from the
    budget down: a valid file within seconds, and both ends of the front in sight of the sampler."""

    def __init__(self, config: SearchConfig, context: TrialContext, selector: Selector) -> None:
        self._config, self._context, self._selector = config, context, selector
        names = {name: o.steps for name, o in config.objectives.items()}
        self._coreset = next(n for n, steps in names.items() if steps == 0)
        self._optimised = [n for n, steps in names.items() if steps > 0]
        # of all transforms and families, since another one may code shorter
        fewest = [
            a
            for a in config.space.smallest(self._coreset, context.spec.shape)
            if a.selection == config.space.selection[0]
        ]
        self.most_ipc = max(self.largest_ipc(a, config.budget) for a in fewest)

    def largest_ipc(self, allocation: Allocation, size: float) -> int:
        """The most samples a class with which the initial set of `allocation` takes at most `size` bytes; the smallest
        IPC of the space if none does. Doubling, then bisection: nothing much larger than `size` is ever packed."""
        init, spec = self._context.init, self._context.spec
        counts = spec.class_counts if init is None else init.counts

        def fits(ipc: int) -> bool:
            return initial_bytes(self._context, replace(allocation, ipc=ipc), self._selector) <= size

        low = self._config.space.ipc.min
        most = max(low, min(self._config.space.ipc.max, max(counts)))
        high = low
        while high < most and fits(min(most, 2 * high)):
            low = high = min(most, 2 * high)
        high = min(most, 2 * high) - 1 if high < most else most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def allocations(self) -> list[Allocation]:
        """The design: coresets of all sizes, optimised sets of all sizes, the other selections; large before small."""
        space = self._config.space
        coreset = space.smallest(self._coreset, self._context.spec.shape)[0]
        family = next(c for c in space.quantizer if c.family == coreset.quantizer)
        levels = min(family.levels, key=lambda count: abs(math.log2(count / OPTIMISED_LEVELS)))
        sizes, ipcs = [float(self._config.budget)], [self.largest_ipc(coreset, self._config.budget)]
        while ipcs[-1] > space.ipc.min:
            sizes.append(sizes[-1] / SPACING)
            ipcs.append(self.largest_ipc(coreset, sizes[-1]))
        first, *others = space.selection[::-1]  # herding first, in the shipped space: it needs no luck
        found = [replace(coreset, ipc=ipc, selection=first) for ipc in ipcs]
        for name in self._optimised:
            start = replace(coreset, objective=name, selection=first, levels=levels)
            found += [replace(start, ipc=self.largest_ipc(start, size / GROWTH)) for size in sizes]
        found += [replace(coreset, ipc=ipc, selection=other) for other in others for ipc in ipcs]
        return list(dict.fromkeys(found))

    def enqueue(self, study: optuna.Study) -> None:
        for allocation in self.allocations():
            study.enqueue_trial(self._config.space.parameters(allocation, self.most_ipc))


def smallest_file(config: SearchConfig, context: TrialContext, selector: Selector) -> int:
    """Bytes of the smallest file of the search space; raises `InputError` where the budget is below it."""
    name = next(iter(config.objectives))
    smallest = min(initial_bytes(context, a, selector) for a in config.space.smallest(name, context.spec.shape))
    if smallest > config.budget:
        raise InputError(
            f"the budget of {Budget(config.budget)} is too small for {config.dataset}: the smallest file of the search "
            f"space, {config.space.ipc.min} sample(s) a class at the fewest levels, takes {smallest} bytes"
        )
    return smallest
