"""Every distillation method at few samples a class, beside its start and what its paper reports.

    python examples/benchmarks/methods.py --out runs/methods

The shipped objectives on Fashion-MNIST, each from the same random samples, `--files` sets of every method. The
published figures are those of width 128 after 1,000 epochs and of float32 samples; ours are of `--width`, the protocol
and `--levels`. With `--guards 0 0.5` every method has a row without its guard and one with it. Finished rows are kept
in DIR, as is what a method knows of the real data (targets, gradients, trajectories).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import records
import torch

from budgetopt import methods, objective
from budgetopt.allocation import Allocation
from budgetopt.data import open_source
from budgetopt.objective import Objective
from budgetopt.packing import pack
from budgetopt.protocol import PRESETS
from budgetopt.representation import Representation
from budgetopt.seeding import generator

RANDOM = "random"
# Fashion-MNIST, ConvNet-D3 of width 128 (DSA, ICML 2021, Table 1)
PUBLISHED = {(RANDOM, 1): 51.4, ("dc", 1): 70.5, ("dsa", 1): 70.6, (RANDOM, 10): 73.8, ("dc", 10): 82.3}
PUBLISHED |= {("dsa", 10): 84.6}
OPTIONS = {
    "ipc": ((1,), "samples a class"),
    "objectives": (("dm", "dc", "dsa", "mtt", "datm"), "by name, or by path of a TOML file"),
    "steps": (0, "of a training; 0: the protocol's"),
    "levels": (0, "of a uniform quantizer; 0: float32"),
    "guards": ((-1.0,), "shares of the protocol's steps; -1: the objective's own"),
}
QUICK = {"steps": 2, "bank": 2, "real_batch": 8, "experts": 1, "expert_epochs": 2, "expert_steps": 2}
QUICK |= {"student_steps": 2, "max_start": 1, "first_max_start": 1}


class Methods(records.Bench):
    def made(self, name: str, recipe: Objective | None, ipc: int, draw: int) -> bytes:
        """The set of one method, or its start where there is no recipe."""
        shown = None if recipe is None else recipe.model_dump(mode="json")
        key = {"method": name, "recipe": shown, "ipc": ipc, "draw": draw, "levels": self.args.levels}

        def make() -> bytes:
            initial = self.drawn(draw, ipc * self.dataset.spec.classes)
            levels = self.args.levels
            exact = {"levels": 256, "quantizer": "none", "clipping": "none"}
            allocation = Allocation(ipc=ipc, **({"levels": levels} if levels else exact))
            representation = self.representation(initial, allocation, draw)
            if recipe is not None:
                cost = self._optimise(name, recipe, representation, draw)
                self.rows.once(self._cost(key), lambda: cost)
            return pack(representation.packed())

        return self.file(key, make)

    def _cost(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Key of what a set cost to make."""
        return {"cost of": dict(key), "protocol": self.protocol.hash, "dataset": self.args.dataset}

    def made_all(self, name: str, recipe: Objective | None, ipc: int) -> list[bytes]:
        """One set for every draw."""
        return [self.made(name, recipe, ipc, draw) for draw in range(self.args.files)]

    def _optimise(self, name: str, recipe: Objective, representation: Representation, draw: int) -> dict[str, Any]:
        started = time.monotonic()
        known = methods.shared(recipe, self.data, 0, self.args.out / "shared")
        self.console.print(f"distilling by {name}; shared material: {time.monotonic() - started:.0f} s", style="dim")
        method = methods.build(recipe, self.data, representation, generator("methods", draw), known)
        started = time.process_time()
        losses = records.optimise(method, representation, recipe.all_steps)
        tenth = max(1, len(losses) // 10)
        fall = float(np.mean(losses[-tenth:]) / np.mean(losses[:tenth]))
        return {"seconds": (time.process_time() - started) / recipe.all_steps, "fall": fall}

    def costs(self, name: str, recipe: Objective | None, ipc: int) -> tuple[str, str, str]:
        """Steps; milliseconds of processor time in each; the loss of their last tenth, as a share of the first's."""
        if recipe is None:
            return "", "", ""
        key = {"method": name, "recipe": recipe.model_dump(mode="json"), "ipc": ipc}
        key["levels"] = self.args.levels
        found = [self.rows.once(self._cost(key | {"draw": draw}), dict) for draw in range(self.args.files)]
        seconds, fall = (np.mean([row[what] for row in found]) for what in ("seconds", "fall"))
        return f"{recipe.all_steps:,}", f"{1000 * seconds:.0f}", f"{fall:.2f}"


def guarded(recipes: Mapping[str, Objective], guards: Sequence[float]) -> dict[str, Objective]:
    """Every recipe with every guard."""
    if guards == [-1.0]:
        return dict(recipes)
    named = itertools.product(recipes.items(), guards)
    return {f"{name}, guard {g:g}": smaller(recipe, {"guard": g}) for (name, recipe), g in named}


def smaller(recipe: Objective, settings: Mapping[str, float]) -> Objective:
    """`recipe` with those of the settings that it has."""
    return recipe.model_copy(update={k: v for k, v in settings.items() if k in type(recipe).model_fields})


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    recipes: dict[str, Objective | None] = {RANDOM: None}
    recipes |= guarded(dict(objective.resolve(name) for name in args.objectives), list(args.guards))
    if args.quick:
        records.tiny(args, width=2)
        recipes = {name: recipe and smaller(recipe, QUICK) for name, recipe in recipes.items()}
    args.steps = args.steps or PRESETS[open_source(args.dataset, args.data).protocol].steps
    torch.set_num_threads(1)
    bench = Methods(args, records.console())
    files = {(ipc, name): bench.made_all(name, recipe, ipc) for ipc in args.ipc for name, recipe in recipes.items()}
    found = bench.accuracies({f"{ipc} {name}": made for (ipc, name), made in files.items()})
    rows = []
    for ipc, name in files:
        groups, published = (
            found[f"{ipc} {name}"],
            PUBLISHED.get((name, ipc)) if args.dataset == "FashionMNIST" and not args.levels else None,
        )
        gain = records.interval(groups - found[f"{ipc} {RANDOM}"], signed=True) if name != RANDOM else ""
        shown = f"{published}" if published else ""
        rows.append((str(ipc), name, *bench.costs(name, recipes[name], ipc), records.interval(groups), gain, shown))
    values = f"{args.levels} levels" if args.levels else "float32"
    title = f"{args.dataset}, {values}, width {args.width}, {args.steps} steps a training: accuracy ({args.split}), %"
    bench.table(title, "a class|method|steps|ms|loss|accuracy|minus random|published", rows)
    bench.console.print("ms: processor time of a step; loss: of the last tenth of the steps, as a share of the first's")
    bench.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


if __name__ == "__main__":
    main()
