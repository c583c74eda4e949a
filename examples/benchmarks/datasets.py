"""One search on every kind of data, beside coresets that were given as many trials and the same coder.

    python examples/benchmarks/datasets.py --out runs/datasets --task beam-30kb [--runs 3] [--minutes 20]

ours      the default search, `--minutes` in all
random    coresets of random samples: samples a class and levels are searched in as many trials as ours had
herding   the same, chosen by herding

Run i of every arm has seed i. Printed are the accuracies of the best files on the test split and the paired
differences with 95 % Student-t intervals over runs; `TASK.png` in the folder shows all fronts. Without `--task` the
table of what is there. Runs lie in `--out`: finished ones are read, unfinished ones gone on with.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import records
from rich.table import Table

import budgetopt
from budgetopt import result
from budgetopt.errors import InputError
from budgetopt.result import Result
from budgetopt.search import study as studies
from budgetopt.search.folder import RunFolder

SELECTIONS = ("random", "herding")
ARMS = ("ours", *SELECTIONS)
# what a coreset may choose: the coder is that of every file
SPACE = """selection = ["{selection}"]
transform = ["identity"]

[ipc]
min = 1
max = 100000

[[quantizer]]
family = "uniform"
levels = [2, 3, 4, 6, 8, 16, 32, 64, 256]
clipping = ["minmax"]
"""


@dataclass(frozen=True)
class Task:
    """A dataset (below `--data` where it holds a slash) and a budget; lines: more accuracies to compare with, by
    name."""

    dataset: str
    budget: str
    lines: Mapping[str, float] = field(default_factory=dict)


# of the test split of the simulated beams: no learning, and another MLP on all data, as published with them
BEAM = {"strongest measured beam": 0.407, "MLP 64-128-128-64, all data": 0.495}
TASKS = {
    "digits-500": Task("digits", "500"),
    "digits-1000": Task("digits", "1000"),
    "fashion-30kb": Task("FashionMNIST", "30kb"),
    "cifar10-30kb": Task("./cifar10-jpeg", "30kb"),
    "beam-3kb": Task("./beam", "3kb", BEAM),
    "beam-30kb": Task("./beam", "30kb", BEAM),
    "spoken-10kb": Task("./fsdd/recordings", "10kb"),
    "voxels-1000": Task("voxels", "1000"),
}


def source_of(task: Task, args: argparse.Namespace) -> str:
    if task.dataset == "voxels":
        path = args.out / "voxels.npz"
        if not path.exists():
            sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
            import voxel_digits

            voxel_digits.main([str(path)])
        return str(path)
    return str(Path(args.data) / task.dataset) if "/" in task.dataset else task.dataset


def trials_of(run: Path) -> int:
    """Trials that were begun and ended, stopped ones included."""
    return sum(
        record.state in ("complete", "stopped") for record in studies.records(studies.load(RunFolder(run).study))
    )


def search(name: str, arm: str, seed: int, args: argparse.Namespace) -> None:
    """One arm of one run, unless it is done."""
    task, run, ours = TASKS[name], args.out / name / f"{arm}-{seed}", args.out / name / f"ours-{seed}"
    if _done(run):
        return
    options = {"dataset": source_of(task, args), "data_root": args.data, "seed": seed, "workers": args.workers}
    options |= {"candidates": args.candidates, "protocol": args.protocol}
    if arm == "ours":
        options |= {"trials": args.trials} if args.trials else {"time_limit": 60 * args.minutes}
        options |= {"sampler": args.sampler}
    else:
        space = args.out / f"{arm}.toml"
        space.write_text(SPACE.format(selection=arm))
        options |= {"objectives": ["coreset"], "space": space, "trials": args.trials or trials_of(ours)}
    budgetopt.search(task.budget, out=run, **options)


def _done(run: Path) -> Result | None:
    return result.read(run) if result.is_final(run) else None


def row(name: str, runs: Sequence[Mapping[str, Result]]) -> list[str]:
    best = {arm: np.array([run[arm].best.accuracy for run in runs]) for arm in runs[0]}
    differences = [records.student_interval(best["ours"] - best[arm]) for arm in SELECTIONS]
    size = f"{np.mean([run['ours'].best.bytes for run in runs]):,.0f}"
    trials = f"{np.mean([trials_of(run['ours'].folder) for run in runs]):.0f}"
    whole = [run["ours"].references["all data"]["accuracy"] for run in runs]
    accuracies = [records.student_interval(best[arm]) for arm in best]
    return [name, str(len(runs)), trials, size, *accuracies, *differences, f"{100 * np.mean(whole):.1f}"]


def draw(name: str, runs: Sequence[Mapping[str, Result]], path: Path) -> None:
    """Every front of every arm, and the lines to compare with."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for at, arm in enumerate(runs[0]):
        for number, run in enumerate(runs):
            points = [(point.bytes, 100 * point.accuracy) for point in run[arm].front]
            label = arm if number == 0 else None
            axes.plot(*zip(*points, strict=True), "o-", color=f"C{at}", ms=3, lw=1, alpha=0.7, label=label)
    lines = {**TASKS[name].lines, "all data": runs[0]["ours"].references["all data"]["accuracy"]}
    for at, (what, accuracy) in enumerate(lines.items()):
        axes.axhline(
            100 * accuracy, color="0.4", ls=("--", ":", "-.")[at % 3], lw=1, label=f"{what}, {100 * accuracy:.1f} %"
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("bytes of the packed file")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(name)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def finished(name: str, args: argparse.Namespace) -> list[dict[str, Result]]:
    """Runs of which all arms are done."""
    runs = [{arm: _done(args.out / name / f"{arm}-{seed}") for arm in ARMS} for seed in range(args.runs)]
    return [{arm: found for arm, found in run.items() if found} for run in runs if all(run.values())]


def main(arguments: Sequence[str] | None = None) -> None:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--task", choices=TASKS, help="the dataset and budget to search on (default: none)")
    parser.add_argument("--data", type=Path, default=os.environ.get("BUDGETOPT_DATA") or beside)
    parser.add_argument("--runs", type=int, default=3, help="independent runs of every arm (default: 3)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of one search of ours (default: 20)")
    parser.add_argument("--trials", type=int, help="of one search of ours, in place of the minutes")
    parser.add_argument("--candidates", type=int, help="files that a search retrains at its end (default: its own)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="those to run now (default: all)")
    parser.add_argument("--workers", type=int, help="trials at once (default: one per core)")
    parser.add_argument("--sampler", help="of ours, in place of the default")
    parser.add_argument("--protocol", help="in place of the one that suits the data")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    console = records.console()
    try:
        for seed in range(args.runs if args.task else 0):
            console.print(f"{args.task}, run {seed + 1} of {args.runs}", style="dim")
            for arm in args.arms:
                search(args.task, arm, seed, args)
    except InputError as error:
        raise SystemExit(f"{args.task}: {error}") from None
    title = "Accuracy on the test split, %; 95 % Student-t intervals over runs"
    header = ("task", "runs", "trials", "bytes", "ours", *SELECTIONS, *(f"minus {s}" for s in SELECTIONS), "all data")
    table = Table(*header, title=title)
    for name in TASKS:
        runs = finished(name, args)
        if runs:
            table.add_row(*row(name, runs))
            draw(name, runs, args.out / f"{name}.png")
    console.print(table)


if __name__ == "__main__":
    main()
