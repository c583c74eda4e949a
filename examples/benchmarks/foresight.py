"""Does the rate–distortion model know what it does not know? Every trial of a run, foretold from those before it.

    python examples/benchmarks/foresight.py runs/a runs/b ...

The model is fitted to the trials 0 to k − 1 of a finished run and says what accuracy it expects of trial k, and how
sure it is; trials that were stopped early, and those that no candidate is like, are left out. Printed for each run:
how many trials were foretold, the mean error (expected minus measured: above zero where the model is too hopeful), its
root mean square, the share of trials inside the 95 % interval, and the mean log density of the measured accuracies,
which no model gains by being surer than it is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table

from budgetopt.search import study as studies
from budgetopt.search.evidence import observe
from budgetopt.search.folder import RunFolder
from budgetopt.search.rate_distortion import Points
from budgetopt.search.run import sampler_of


def foretold(run: Path, first: int, last: int) -> np.ndarray:
    """(k, 3) expected accuracy, its standard deviation with that of the measurement, and the accuracy measured, of the
    trials `first` to `last` of a run."""
    out = RunFolder(run)
    sampler, _ = sampler_of(out)
    trials = studies.load(out.study).get_trials(deepcopy=False)
    found = []
    for trial in trials[first : last + 1]:
        record = studies.record(trial)
        if record.state != "complete" or record.allocation is None:
            continue
        before = optuna.create_study(directions=studies.DIRECTIONS)
        before.add_trials(trials[: trial.number])
        view = sampler.view(before, trial.number)
        problem = view.problem
        seen = observe(trial, problem.candidates.allocation)
        assert seen is not None
        assert seen.accuracy is not None
        if seen.kind not in view.table.kinds:
            continue
        n = (seen.samples or problem.samples(seen.allocation.ipc)) / len(problem.class_counts)
        expected = view.model.predict(Points(np.array([view.table.kinds.index(seen.kind)]), np.array([n])))
        doubt = max(seen.error, np.sqrt(seen.accuracy * (1 - seen.accuracy) / problem.validation))
        found.append((expected.accuracy[0], np.hypot(expected.accuracy_std[0], doubt), seen.accuracy))
    return np.array(found).reshape(-1, 3)


def row(name: str, figures: np.ndarray) -> list[str]:
    expected, doubt, measured = figures.T
    error = expected - measured
    z = error / doubt
    density = -0.5 * z**2 - np.log(doubt) - 0.5 * np.log(2 * np.pi)
    return [
        name,
        str(len(figures)),
        f"{100 * error.mean():+.1f}",
        f"{100 * np.sqrt((error**2).mean()):.1f}",
        f"{100 * (np.abs(z) < 1.96).mean():.0f}",
        f"{density.mean():.2f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--first", type=int, default=4, help="trial that is foretold first (default: 4)")
    parser.add_argument("--last", type=int, default=15, help="trial that is foretold last (default: 15)")
    args = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table(title="Accuracies foretold, percentage points")
    for column in ("run", "trials", "mean error", "RMSE", "inside 95 %", "log density"):
        table.add_column(column)
    found = {str(run): foretold(run, args.first, args.last) for run in args.runs}
    for name, figures in found.items():
        if len(figures):
            table.add_row(*row(name, figures))
    everything = np.concatenate(list(found.values()))
    if len(found) > 1 and len(everything):
        table.add_row(*row("all", everything))
    Console().print(table)


if __name__ == "__main__":
    main()
