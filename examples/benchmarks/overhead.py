"""What a search costs beside its trials.

    python examples/benchmarks/overhead.py --out runs/overhead --table tests/golden/digits-table.npz

trials    a real search on digits: the seconds from the end of a trial (distillation, evaluation and packing) to the
          beginning of the next one on its worker, and the share of the workers' time without a trial
idle      the same share with more workers than this machine has, replayed on a recorded table whose trials take
          `--longer` times as long; every proposal takes the driver `--asking` seconds
proposal  seconds of one proposal with 1,000 finished trials and about 15,000 candidates
bank      memory of a worker that reads a bank of 100 MB which all workers share

The search lies in `--out`: once finished it is not repeated.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import psutil
import records
import torch
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial
from scipy.special import expit

import budgetopt
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, open_source
from budgetopt.methods.selection import Selector
from budgetopt.objective import resolve as objective
from budgetopt.protocol import PRESETS
from budgetopt.search import engine
from budgetopt.search import study as studies
from budgetopt.search.folder import RunFolder
from budgetopt.search.problem import Measures, Problem, problem_of
from budgetopt.search.recorded import Table
from budgetopt.search.sampler import RateDistortionSampler
from budgetopt.search.simulator import simulate
from budgetopt.space import QuantizerChoice, SearchSpace, resolve
from budgetopt.trial import TrialContext

PARTS = ("trials", "idle", "proposal", "bank")
BUDGET = 17_000  # all digits at four levels


def trials(console: records.Console, args: argparse.Namespace) -> None:
    folder = args.out / f"search-{args.trials}-{args.workers}"
    limits = {
        "trials": args.trials,
        "workers": args.workers,
        "candidates": 1,
    }  # what follows the trials is not measured
    budgetopt.search(3000, out=folder, protocol=args.protocol, sampler="rate-distortion", **limits)
    ended = [r for r in studies.records(studies.load(RunFolder(folder).study)) if r.rungs]
    last_rungs = [record.rungs[max(record.rungs)] for record in ended]
    busy = np.array([rung["seconds"] for rung in last_rungs])
    began = np.array([rung["began"] for rung in last_rungs])
    # each trial but the first of every worker begins where another has ended: the k-th with the k-th
    between = np.sort(began)[args.workers :] - np.sort(began + busy)[: -args.workers]
    facts = {
        "trials": f"{len(ended)} on {args.workers} workers, {np.median(busy):.2f} s each",
        "between them": f"{np.median(between):.2f} s at the median, {np.quantile(between, 0.9):.2f} s at nine in ten",
        "until all workers had one": f"{np.sort(began)[args.workers - 1] - began.min():.1f} s",
        "workers without a trial": f"{between.sum() / (between.sum() + busy.sum()):.1%} of the time",
    }
    for name, value in facts.items():
        console.print(f"{name}: {value}")


def idle(console: records.Console, args: argparse.Namespace) -> None:
    if args.table is None:
        console.print("idle: needs --table, made by record_table.py")
        return
    table = Table.load(args.table)
    table = replace(table, seconds=args.longer * table.seconds)
    length = float(np.nanmedian(np.nanmax(table.seconds[:, 0], 1)))
    title = f"replayed, {args.asking:g} s a proposal, {length:.1f} s a trial at the median"
    shown = records.Table("workers", "trials", "idle, asked when needed", "asked ahead", title=title)
    for workers in (1, 4, 16, 64):
        count = min(len(table.allocations) // 2, max(100, 4 * workers))
        row = [str(workers), str(count)]
        for ahead in (0, engine.proposed_ahead(workers)):
            found = simulate(table, 0, RandomSampler(0), trials=count, workers=workers, asking=args.asking, ahead=ahead)
            row.append(f"{found.idle / (found.idle + found.cost):.1%}")
        shown.add_row(*row)
    console.print(shown)


def large_problem() -> Problem:
    """Digits, and a space of about 15,000 candidates."""
    data = Dataset.prepare(open_source("digits", None), 0)
    objectives = {name: objective(name)[1] for name in ("coreset", "dm")}
    context = TrialContext(data.train, data.val, data.spec, PRESETS["glyph-1"], objectives, BUDGET)
    image = resolve("image")
    families = (
        QuantizerChoice(family="uniform", levels=(2, 3, 4, 6, 8, 12, 16, 32, 64), clipping=("minmax", "p1", "p5")),
        QuantizerChoice(family="lloyd-max", levels=(2, 3, 4, 6, 8, 12, 16), clipping=("minmax", "p1")),
        QuantizerChoice(family="apot", levels=(2, 3, 7, 15, 31), clipping=("quadd", "half")),
    )
    space = SearchSpace(**{**image.model_dump(), "quantizer": families, "label_bits": (0,), "rdoq": (0.0,)})
    selector = Selector(data.train, data.spec)
    return problem_of(context, space, max(data.spec.class_counts), Measures(context, selector))


def finished_study(problem: Problem, count: int) -> optuna.Study:
    """Trials of random allocations whose figures follow a law."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng, kinds = np.random.default_rng(0), problem.candidates.kinds([], 0)
    study = optuna.create_study(directions=studies.DIRECTIONS)
    ipcs = problem.candidates.ipcs()
    for _ in range(count):
        kind = kinds[rng.integers(len(kinds))]
        allocation = replace(kind, ipc=int(np.exp(rng.uniform(0, np.log(ipcs[-1])))))
        study.add_trial(_finished(problem, kind, allocation, rng))
    return study


def _finished(
    problem: Problem, kind: Allocation, allocation: Allocation, rng: np.random.Generator
) -> optuna.trial.FrozenTrial:
    coding, n = problem.measure(kind), int(problem.samples(allocation.ipc))
    size = int(50 + 0.75 * n * coding.bits / 8)
    accuracy = float(expit(4.5 - 3.5 * allocation.ipc**-0.4 - 1.8 * coding.distortion**0.5 + 0.1 * rng.normal()))
    parameters, every = problem.candidates.parameters(allocation), problem.candidates.distributions
    return create_trial(
        state=TrialState.COMPLETE,
        params=parameters,
        distributions={name: every[name] for name in parameters},
        values=studies.values(size, accuracy),
        user_attrs={"allocation": allocation.to_dict(), "initial_bytes": size},
    )


def proposal(console: records.Console, args: argparse.Namespace) -> None:
    problem = large_problem()
    study, sampler = finished_study(problem, args.finished), RateDistortionSampler(problem)
    points, _ = sampler.view(study, args.finished).candidates()  # fits hyperparameters, once in a while in a search
    seconds = []
    for number in range(args.finished, args.finished + args.proposals):
        started = time.perf_counter()
        sampler.propose(study, number)
        seconds.append(time.perf_counter() - started)
    of = f"{args.finished:,} finished trials and {len(points):,} candidates; what it packs included"
    console.print(f"proposal: {1000 * np.median(seconds):.0f} ms at the median of {len(seconds)}, with {of}")


def bank(console: records.Console, args: argparse.Namespace) -> None:
    with engine.ray_session(args.workers, 0, verbose=False):
        import ray

        @ray.remote(num_cpus=1)
        class Worker:
            def own(self) -> int:
                """Bytes that no other process has."""
                return int(psutil.Process().memory_full_info().uss)

            def read(self, shared: np.ndarray) -> tuple[int, int, float]:
                total = float(shared.sum(dtype=np.float64))
                found = psutil.Process().memory_full_info()
                return int(found.uss), int(found.rss), total

        shared = ray.put(np.ones(args.megabytes * 250_000, np.float32))
        for number in range(args.workers):
            worker = Worker.remote()
            before = ray.get(worker.own.remote())
            own, resident, _ = ray.get(worker.read.remote(shared))
            console.print(
                f"bank: worker {number}, after reading {args.megabytes} MB: {resident / 1e6:,.0f} MB resident, "
                f"{(own - before) / 1e6:+.1f} MB of its own"
            )
            del worker


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the real search")
    parser.add_argument("--table", type=Path, help="made by record_table.py, for the part `idle`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--trials", type=int, default=40, help="of the real search (default: 40)")
    parser.add_argument("--workers", type=int, default=2, help="of the real search (default: 2)")
    parser.add_argument("--protocol", help="of the real search, in place of the one that suits digits")
    parser.add_argument("--asking", type=float, default=0.2, help="seconds of a replayed proposal (default: 0.2)")
    parser.add_argument("--longer", type=float, default=1.0, help="factor on replayed trials (default: 1)")
    parser.add_argument("--finished", type=int, default=1000, help="trials before a proposal (default: 1,000)")
    parser.add_argument("--proposals", type=int, default=20, help="timed ones (default: 20)")
    parser.add_argument("--megabytes", type=int, default=100, help="of the bank (default: 100)")
    args = parser.parse_args(arguments)
    console = records.console()
    console.print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for part in args.parts:
        {"trials": trials, "idle": idle, "proposal": proposal, "bank": bank}[part](console, args)


if __name__ == "__main__":
    main()
