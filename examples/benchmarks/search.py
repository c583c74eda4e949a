"""Which search finds the front soonest? Samplers and stopping rules, replayed in virtual time on a recorded table.

    python examples/benchmarks/search.py --table tests/golden/digits-table.npz

Every search of a run starts from the same random allocation, sees one seed of the table, and is judged by the mean of
the others: hypervolume of what it finished, as a share of the whole table's, and accuracy of what it would hand over
(those within one standard error of the best retrained). Virtual time is worker seconds over `--workers`; at a time
nothing is counted that has not finished. Means over `--runs`, and how often and when 95 % was reached. What a search
costs is what its trials cost, evaluations included, without its proposals.

`--parts stopping`: all allocations in random order, with each rule that stops trials: what that costs, as a share of
what all trials cost to their end, and what it loses of the full hypervolume and of the allocations on the true front.
Means over `--orders`.

`--parts starts`: ours within the table's budget, a half, a quarter and an eighth of it, from designs of one trial to a
ladder of sizes for every objective. How much less accurate than the table's best is what is handed over.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import records
import torch
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from budgetopt.allocation import Allocation
from budgetopt.front import non_dominated, ranks
from budgetopt.search.halving import FrontHalving
from budgetopt.search.recorded import Table
from budgetopt.search.sampler import RateDistortionSampler
from budgetopt.search.simulator import Outcome, Scheduler, chosen, curve, simulate

REACH = 0.95  # of the full hypervolume
GP_RUNS, GP_TRIALS = 10, 60  # it takes a second to ask it
POPULATION = 20  # of the genetic samplers: their default, 50, is most of a search
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # of the virtual time that random search takes for all its trials


class Asha:
    """Asynchronous halving: a trial goes on past a rung where it is in the best `1/reduction` of those that reported
    there, by accuracy, or by non-dominated rank of (bytes, accuracy)."""

    def __init__(self, by_rank: bool, reduction: float = 2.0) -> None:
        self._by_rank, self._reduction = by_rank, reduction
        self._rungs: dict[int, list[tuple[float, float]]] = {}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["last"]:
            return "CONTINUE"
        seen = self._rungs.setdefault(result["rung"], [])
        seen.append((result["bytes"], result["accuracy"]))
        size, accuracy = np.array(seen).T
        worse = ranks(size, accuracy) if self._by_rank else -accuracy
        better = int((worse < worse[-1]).sum())
        return "CONTINUE" if better < len(seen) / self._reduction else "STOP"


@dataclass(frozen=True)
class Search:
    """A sampler for (table, table's seed, run's seed), and a rule that stops trials."""

    sampler: Callable[[Table, int, int], BaseSampler]
    scheduler: Callable[[Table], Scheduler] | None = None
    slow: bool = False


STOPPING: dict[str, Callable[[Table], Scheduler]] = {
    "ASHA": lambda table: Asha(by_rank=False),
    "MO-ASHA": lambda table: Asha(by_rank=True),
    "halving": lambda table: FrontHalving(table.validation),
}


def weighed(table: Table, seed: int, run: int) -> BaseSampler:
    """Ours, told what optimising a sample costs: as the table's largest sets took it."""
    largest = [i for i, a in enumerate(table.allocations) if a.ipc == table.ipcs[-1]]
    trained = np.array([table.allocations[i].objective in table.trained for i in largest])
    seconds = np.nanmax(table.seconds[largest], -1).mean(1)
    samples = table.samples[largest].mean(1)[trained].mean()
    work = (seconds[trained].mean() / seconds[~trained].mean() - 1) / samples
    problem = replace(table.problem(seed), work=dict.fromkeys(table.trained, float(work)))
    return RateDistortionSampler(problem, seed=run)


SEARCHES = {
    "random": Search(lambda table, seed, run: RandomSampler(run)),
    "TPE": Search(
        lambda table, seed, run: TPESampler(seed=run, multivariate=True, group=True, constant_liar=True),
    ),
    "NSGA-II": Search(lambda table, seed, run: NSGAIISampler(seed=run, population_size=POPULATION)),
    "NSGA-III": Search(lambda table, seed, run: NSGAIIISampler(seed=run, population_size=POPULATION)),
    "GP": Search(lambda table, seed, run: GPSampler(seed=run), slow=True),
    "ASHA, random": Search(lambda table, seed, run: RandomSampler(run), STOPPING["ASHA"]),
    "MO-ASHA, random": Search(lambda table, seed, run: RandomSampler(run), STOPPING["MO-ASHA"]),
    "ours": Search(lambda table, seed, run: RateDistortionSampler(table.problem(seed), seed=run)),
    "ours, by cost": Search(weighed),
    "ours, halving": Search(
        lambda table, seed, run: RateDistortionSampler(table.problem(seed), seed=run), STOPPING["halving"]
    ),
}


@dataclass(frozen=True)
class Run:
    """One search on one seed of the table."""

    table: Table
    seed: int
    outcome: Outcome

    def share(self, entries: Sequence[int]) -> float:
        full = self.table.volume(range(len(self.table.allocations)), self.seed)
        return self.table.volume(entries, self.seed) / full

    def by_trials(self, at: Sequence[int]) -> np.ndarray:
        return curve(self.outcome, self.share, at, by_time=False)

    def by_time(self, at: Sequence[float]) -> np.ndarray:
        return curve(self.outcome, self.share, at, by_time=True)

    def accuracy(self, at: Sequence[float]) -> np.ndarray:
        """Of what is handed over at these times; 0 before there is anything."""
        counts = [sum(t <= point for t in self.outcome.times) for point in at]
        return np.nan_to_num([chosen(self.table, self.seed, self.outcome, count) for count in counts])

    def reached(self) -> tuple[float, float]:
        """(trials, virtual seconds) at which REACH is reached, infinite where it is not."""
        shares = self.by_trials(range(1, len(self.outcome.finished) + 1))
        at = np.flatnonzero(shares >= REACH)
        return (float(at[0] + 1), self.outcome.times[at[0]]) if len(at) else (np.inf, np.inf)


def replayed(table: Table, search: Search, args: argparse.Namespace) -> list[Run]:
    found = []
    for run in range(min(args.runs, GP_RUNS) if search.slow else args.runs):
        seed = run % table.seeds
        fits = np.flatnonzero(table.initial_bytes[:, seed] <= table.budget)
        first = int(np.random.default_rng(run).choice(fits))
        scheduler = search.scheduler(table) if search.scheduler else None
        trials = min(args.trials, GP_TRIALS) if search.slow else args.trials
        sampler = search.sampler(table, seed, run)
        outcome = simulate(
            table, seed, sampler, trials=trials, workers=args.workers, scheduler=scheduler, first=[first]
        )
        found.append(Run(table, seed, outcome))
    return found


def stopping(table: Table, args: argparse.Namespace) -> records.Table:
    title = f"all {len(table.allocations)} allocations in random order, {args.orders} orders"
    shown = records.Table("", "cost, %", "hypervolume lost, %", "true front kept, %", title=title)
    everything = {"trials": len(table.allocations), "workers": args.workers}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in STOPPING}
    for order in range(args.orders):
        seed = order % table.seeds
        whole = simulate(table, seed, RandomSampler(order), **everything).cost
        size, accuracy = table.truth(seed)
        good = np.flatnonzero(np.isfinite(accuracy))
        front = good[non_dominated(size[good], accuracy[good])]
        for name, rule in STOPPING.items():
            outcome = simulate(table, seed, RandomSampler(order), scheduler=rule(table), **everything)
            lost = 1 - Run(table, seed, outcome).share(outcome.finished)
            found[name].append((outcome.cost / whole, lost, float(np.isin(front, outcome.finished).mean())))
    for name, figures in found.items():
        cost, lost, kept = 100 * np.mean(figures, 0)
        shown.add_row(name, f"{cost:.0f}", f"{lost:.2f}", f"{kept:.0f}")
    return shown


def designs(table: Table, seed: int) -> dict[str, list[int]]:
    """First trials, by what they are: coresets of the fewest levels, optimised sets of about four, of sizes half a
    decade apart from the budget down."""
    kinds = [replace(a, ipc=1) for a in table.allocations]
    first = {}
    for kind in kinds:  # of every objective one kind
        wanted = 2 if kind.objective not in table.trained else 4
        if kind.levels == wanted:
            first.setdefault(kind.objective, kind)

    def largest(kind: Allocation, size: float) -> int:
        entries = np.array([e for e, other in enumerate(kinds) if other == kind])
        sizes = table.initial_bytes[entries, seed]
        fits = sizes <= size
        return int(entries[np.where(fits, sizes, -1).argmax() if fits.any() else sizes.argmin()])

    ladder = {o: [largest(kind, table.budget / 10 ** (k / 2)) for k in range(8)] for o, kind in first.items()}
    plain, *others = (ladder[objective] for objective in sorted(ladder, key=lambda o: o in table.trained))
    found = {
        "one": plain[:1],
        "one a kind": plain[:1] + [entries[0] for entries in others],
        "four": plain[:1] + [entries[0] for entries in others] + plain[2:3] + [entries[3] for entries in others],
        "ladders": plain + [entry for entries in others for entry in entries],
    }
    fits = table.initial_bytes[:, seed] <= table.budget
    return {name: [e for e in dict.fromkeys(entries) if fits[e]] for name, entries in found.items()}


def starts(table: Table, args: argparse.Namespace) -> records.Table:
    counts = [count for count in (4, 6, 8, 10, 14, 20, 28) if count <= args.trials]
    shown = records.Table("", "trials", *map(str, counts), title="hypervolume, %; accuracy behind the best, points")
    found: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for share in (1, 2, 4, 8):
        part = replace(table, budget=table.budget // share)
        for seed in range(part.seeds):
            best = np.nanmax(part.truth(seed)[1])
            for name, first in designs(part, seed).items():
                sampler = RateDistortionSampler(part.problem(seed), seed=seed)
                outcome = simulate(part, seed, sampler, trials=counts[-1], workers=1, first=first)
                behind = best - [chosen(part, seed, outcome, count) for count in counts]
                found.setdefault(name, []).append((len(first), Run(part, seed, outcome).by_trials(counts), behind))
    for name, runs in found.items():
        shares, behind = (np.mean([run[i] for run in runs], 0) for i in (1, 2))
        line = [f"{100 * share:.1f}; {100 * less:.2f}" for share, less in zip(shares, behind, strict=True)]
        shown.add_row(name, f"{np.mean([run[0] for run in runs]):.0f}", *line)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="made by record_table.py")
    parser.add_argument("--runs", type=int, default=30, help="searches of every kind (default: 30)")
    parser.add_argument("--trials", type=int, default=120, help="of a search (default: 120)")
    parser.add_argument("--workers", type=int, default=2, help="virtual ones (default: 2)")
    parser.add_argument("--orders", type=int, default=9, help="random ones for `stopping` (default: 9)")
    parser.add_argument("--parts", nargs="+", choices=("searches", "stopping", "starts"), default=["searches"])
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="default: all")
    args = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    table, console = Table.load(args.table), records.console()
    if "stopping" in args.parts:
        console.print(stopping(table, args))
    if "starts" in args.parts:
        console.print(starts(table, args))
    if "searches" not in args.parts:
        return
    runs: dict[str, list[Run]] = {}
    for name in args.searches:
        started = time.perf_counter()
        runs[name] = replayed(table, SEARCHES[name], args)
        asked = sum(len(run.outcome.started) for run in runs[name])
        console.print(f"{name}: {1000 * (time.perf_counter() - started) / asked:.0f} ms a trial", style="dim")
    report(console, runs, args)


def report(console: records.Console, runs: dict[str, list[Run]], args: argparse.Namespace) -> None:
    trials = sorted({t for t in (4, 8, 12, 16, 24, 32, 48, 64, 96, args.trials) if t <= args.trials})
    baseline = runs.get("random") or next(iter(runs.values()))
    whole = float(np.mean([run.outcome.time for run in baseline]))
    times = [share * whole for share in SHARES]
    tables = {
        "share of the full hypervolume, %, after finished trials": ([f"{t}" for t in trials], _by_trials(runs, trials)),
        f"the same, at shares of {whole:,.0f} virtual seconds": (
            [f"{share:.0%}" for share in SHARES],
            {name: _line([run.by_time(times) for run in of]) for name, of in runs.items()},
        ),
        "accuracy of what is handed over, %, at the same times": (
            [f"{share:.0%}" for share in SHARES],
            {name: _line([run.accuracy(times) for run in of]) for name, of in runs.items()},
        ),
        f"to {REACH:.0%} of the hypervolume": (
            ["trials, median", "seconds, median", "reached", "cost, s"],
            {name: _reached(of) for name, of in runs.items()},
        ),
    }
    for title, (header, lines) in tables.items():
        shown = records.Table("", *header, title=title)
        for name, line in lines.items():
            shown.add_row(name, *line)
        console.print(shown)


def _by_trials(runs: dict[str, list[Run]], trials: Sequence[int]) -> dict[str, list[str]]:
    """Nothing where fewer have finished."""
    found = {}
    for name, of in runs.items():
        least = min(len(run.outcome.finished) for run in of)
        known = [t for t in trials if t <= least]
        found[name] = _line([run.by_trials(known) for run in of]) + [""] * (len(trials) - len(known))
    return found


def _line(values: Sequence[np.ndarray]) -> list[str]:
    return [f"{100 * value:.1f}" for value in np.mean(values, 0)]


def _reached(runs: Sequence[Run]) -> list[str]:
    trials, seconds = np.array([run.reached() for run in runs]).T
    cost = np.mean([run.outcome.cost for run in runs])
    return [
        f"{np.median(trials):.0f}",
        f"{np.median(seconds):,.0f}",
        f"{np.isfinite(trials).mean():.0%}",
        f"{cost:,.0f}",
    ]


if __name__ == "__main__":
    main()
