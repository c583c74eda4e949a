"""Record a table of trials for `search.py`: every kind of allocation with every number of samples, several seeds, all
rungs with accuracy, bytes and seconds, and the distortion of every coding.

    python examples/benchmarks/record_table.py --out runs/digits-table --table tests/golden/digits-table.npz

Finished trials are kept in `--out`: stopped at any point, the same command goes on. Seconds are those of the processor
that the trial itself took: a busy machine records the same. What is over `--budget` before it starts is not run. The
defaults are 2 methods × 8 numbers of samples × 5 levels × 5 quantizers with clipping × 3 seeds. `--every N` takes each
N-th kind alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch

from budgetopt import methods, objective, trial
from budgetopt.allocation import Allocation
from budgetopt.data import open_source
from budgetopt.errors import OverBudget, TrialFailure
from budgetopt.evaluation import Evaluation
from budgetopt.objective import Objective
from budgetopt.protocol import PRESETS
from budgetopt.search.problem import Measures
from budgetopt.search.recorded import Table

OPTIONS = {
    "dataset": ("digits", "any that the package knows"),
    "steps": (0, "of a full training; 0: the protocol's"),
    "objectives": (("coreset", "dm"), "methods"),
    "distillation": (0, "steps of optimised sets; 0: the objective's own"),
    "ipcs": ((1, 2, 4, 8, 15, 30, 60, 100), "samples a class"),
    "levels": ((2, 3, 4, 8, 16), "distinct values"),
    "codings": (
        ("uniform minmax", "uniform p1", "uniform p5", "lloyd-max minmax", "lloyd-max p1"),
        "quantizer and clipping",
    ),
    "selection": ("herding", "of the real samples that sets start from"),
    "seeds": (3, "of every trial"),
    "budget": (8000, "bytes"),
    "every": (1, "record each N-th kind alone"),
}


class Recorder:
    """Runs the trials of the table, each once."""

    def __init__(self, bench: records.Bench) -> None:
        self.bench, args, data = bench, bench.args, bench.dataset
        objectives = {name: objective.resolve(name)[1] for name in args.objectives}
        if args.distillation:
            objectives = {name: _shortened(o, args.distillation) for name, o in objectives.items()}
        shared = {n: methods.shared(o, bench.data, 0, args.out / "shared") for n, o in objectives.items()}
        self.context = trial.TrialContext(
            data.train, data.val, data.spec, bench.protocol, objectives, args.budget, shared=shared
        )
        self._what = {
            "data": data.spec.split_hash,
            "protocol": bench.protocol.hash,
            "budget": args.budget,
            "objectives": {name: o.model_dump(mode="json") for name, o in objectives.items()},
        }

    def allocations(self) -> list[Allocation]:
        args = self.bench.args
        kinds = list(itertools.product(args.objectives, args.codings, args.levels))[:: args.every]
        return [
            Allocation(name, args.selection, ipc, "identity", quantizer, levels, clipping)
            for name, coding, levels in kinds
            for quantizer, clipping in [coding.split()]
            for ipc in args.ipcs
        ]

    def recorded(self, allocation: Allocation, seed: int) -> dict[str, Any]:
        key = self._what | {"allocation": allocation.to_dict(), "seed": seed}
        return self.bench.rows.once(key, lambda: self._run(allocation, seed))

    def _run(self, allocation: Allocation, seed: int) -> dict[str, Any]:
        context = replace(self.context, seed=seed)
        size = trial.initial_bytes(context, allocation, self.bench.selector)
        result: dict[str, Any] = {"initial_bytes": size, "rungs": [], "bytes": size, "samples": 0, "failure": None}
        if size > self.bench.args.budget:
            return result
        started = time.thread_time()
        try:
            for report in trial.run(context, allocation, records.CPU):
                found: Evaluation = report.evaluation
                seconds = time.thread_time() - started
                result["rungs"].append([found.accuracy, found.standard_error, seconds])
                result |= {"bytes": len(report.data), "samples": report.samples}
        except OverBudget as error:
            result |= {"failure": str(error), "bytes": self.bench.args.budget + 1, "rungs": []}
        except TrialFailure as error:
            result |= {"failure": str(error), "rungs": []}
        result["seconds"] = time.thread_time() - started
        return result

    def table(self) -> Table:
        args, allocations = self.bench.args, self.allocations()
        jobs = [(a, seed) for seed in range(args.seeds) for a in allocations]
        with ThreadPoolExecutor(args.parallel) as pool:
            futures = {pool.submit(self.recorded, *job): job for job in jobs}
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if done % 20 == 0 or done == len(jobs):
                    self.bench.console.print(f"{done} of {len(jobs)} trials", style="dim")
        rows = [[self.recorded(a, seed) for seed in range(args.seeds)] for a in allocations]
        rungs = max(len(row["rungs"]) for of_seeds in rows for row in of_seeds)

        def of_rungs(column: int) -> np.ndarray:
            found = np.full((len(rows), args.seeds, rungs), np.nan)
            for i, of_seeds in enumerate(rows):
                for j, row in enumerate(of_seeds):
                    found[i, j, : len(row["rungs"])] = [r[column] for r in row["rungs"]]
            return found

        def of_trials(name: str) -> np.ndarray:
            return np.array([[row[name] for row in of_seeds] for of_seeds in rows], np.int64)

        seconds = of_rungs(2)
        for i, of_seeds in enumerate(rows):
            for j, row in enumerate(of_seeds):
                if not row["rungs"]:  # failed trials took time too
                    seconds[i, j, 0] = row.get("seconds", 0.0)
        measures, spec = Measures(self.context, self.bench.selector), self.bench.dataset.spec
        codings = [measures.coding(replace(a, ipc=1)) for a in allocations]
        return Table(
            tuple(allocations),
            of_rungs(0),
            of_rungs(1),
            seconds,
            of_trials("bytes"),
            of_trials("samples"),
            of_trials("initial_bytes"),
            np.array([[c.distortion, c.bits, c.values] for c in codings]),
            args.budget,
            1.0 / spec.classes,
            spec.class_counts,
            len(self.bench.dataset.val),
            frozenset(name for name, o in self.context.objectives.items() if o.steps),
        )


def _shortened(recipe: Objective, steps: int) -> Objective:
    """No more targets are made than there are steps."""
    short = {"steps": steps} | ({"bank": min(recipe.bank, steps)} if hasattr(recipe, "bank") else {})
    return recipe.model_copy(update=short) if recipe.steps else recipe


def main(arguments: Sequence[str] | None = None) -> None:
    parser = records.arguments(__doc__, OPTIONS)
    parser.add_argument("--table", type=Path, required=True, help="file to write")
    args = parser.parse_args(arguments)
    if args.quick:
        quick = {"ipcs": (1, 3), "levels": (2, 4), "codings": ("uniform minmax",), "seeds": 1, "distillation": 3}
        records.tiny(args, **quick, steps=4)
    args.steps = args.steps or PRESETS[open_source(args.dataset, args.data).protocol].steps
    torch.set_num_threads(1)
    console = records.console()
    table = Recorder(records.Bench(args, console)).table()
    table.save(args.table)
    best = np.nanmax(table.final, initial=0.0)
    console.print(f"{args.table}: {len(table.allocations)} allocations, {table.seeds} seeds, best accuracy {best:.2%}")


if __name__ == "__main__":
    main()
