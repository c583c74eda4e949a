"""Do short trainings rank files as the full protocol does? Spearman's correlation of files within an octave of bytes.

    python examples/benchmarks/rungs.py --out runs/rungs [--dataset FashionMNIST]

Files are allocations drawn at random from the search space `image`, each with as many samples as fit a size drawn in
the octave. The full protocol: the mean of `--trainings` trainings. A rung: one training of another seed, for a share of
the steps (trial.rung_protocol takes half of them; a share of 1 shows what the luck of one training costs). Both on
validation, as in a search, which learns from its own trials what a rung foretells (`search/rungs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import optuna
import records
import torch
from scipy.stats import rankdata

from budgetopt import methods, objective, space, trial
from budgetopt.allocation import Allocation
from budgetopt.data import open_source
from budgetopt.data.dataset import Split
from budgetopt.errors import OverBudget
from budgetopt.evaluation import evaluate_file
from budgetopt.fitting import largest_fitting
from budgetopt.protocol import PRESETS, Protocol
from budgetopt.seeding import derive, generator

OPTIONS = {
    "dataset": ("digits", "any that the package knows"),
    "octaves": ((300, 1200, 4800), "smallest files, in bytes; the largest have twice as many"),
    "files": (24, "in each octave"),
    "objectives": (("coreset", "dm"), "of the files"),
    "shares": ((0.1, 0.25, 0.5, 1.0), "of the steps"),
    "steps": (0, "of a full training; 0: the protocol's"),
    "trainings": (5, "in full, of every file"),
}
RESAMPLES = 2_000


class Files:
    """The files of the benchmark, each made once."""

    def __init__(self, bench: records.Bench) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._bench, self._space = bench, space.resolve("image")
        self._objectives = {name: objective.resolve(name)[1] for name in bench.args.objectives}
        data, folder = bench.dataset, bench.args.out / "shared"
        known = {name: methods.shared(o, bench.data, 0, folder) for name, o in self._objectives.items()}
        self._context = trial.TrialContext(
            data.train, data.val, data.spec, bench.protocol, self._objectives, shared=known
        )

    def octave(self, smallest: int) -> list[bytes]:
        return [
            self._bench.file(
                {"octave": smallest, "number": i, "of": "+".join(self._objectives)},
                lambda i=i: self._drawn(smallest, i),
            )
            for i in range(self._bench.args.files)
        ]

    def _drawn(self, smallest: int, number: int) -> bytes:
        """A file of smallest … 2 · smallest bytes: the first allocation drawn that can be one."""
        for attempt in range(1000):
            seed = derive("rungs", smallest, number, attempt)
            limit = int(smallest * 2 ** np.random.default_rng(seed).uniform(0.1, 1))
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed % 2**32))
            allocation = self._space.suggest(study.ask(), list(self._objectives), 1)
            if not space.possible(allocation, self._context.spec.shape):
                continue
            try:
                data = self._made(allocation, limit)
            except OverBudget:
                continue
            if len(data) >= smallest:
                return data
        raise OverBudget(f"no file of {smallest} to {2 * smallest} bytes was found")

    def _made(self, allocation: Allocation, limit: int) -> bytes:
        def size(ipc: int) -> int:
            return trial.initial_bytes(self._context, replace(allocation, ipc=ipc), self._bench.selector)

        ipc = largest_fitting(size, limit, 1, max(self._context.spec.class_counts), slack=0.05)
        if ipc is None:
            raise OverBudget(f"one sample a class takes more than {limit} bytes")
        allocation = replace(allocation, ipc=ipc)
        recipe, noise = self._objectives[allocation.objective], generator("rungs", allocation.key)
        representation = trial.initial_representation(self._context, allocation, records.CPU, self._bench.selector)
        if recipe.steps:
            known = self._context.shared[allocation.objective]
            method = methods.build(recipe, self._bench.data, representation, noise, known)
            records.optimise(method, representation, recipe.all_steps)
        return representation.fit_to_budget(limit)


def accuracies(
    bench: records.Bench, files: Sequence[bytes], protocol: Protocol, purpose: str, count: int
) -> np.ndarray:
    """(files, count) accuracies by `protocol`."""
    test: Split = bench.dataset.load_test() if bench.args.split == "test" else bench.dataset.val

    def found(file: bytes) -> list[float]:
        def made() -> list[float]:
            bench.console.print(f"training ({purpose}): {protocol.steps} steps, {len(file)} bytes", style="dim")
            seeds = [derive("rungs", purpose, records.digest(file), i) for i in range(count)]
            return list(evaluate_file(file, test, protocol, seeds, records.CPU).accuracies)

        key = {"file": records.digest(file), "protocol": protocol.hash, "split": bench.args.split, "purpose": purpose}
        return bench.rows.once(key | {"count": count, "data": bench.dataset.spec.split_hash}, made)

    with ThreadPoolExecutor(bench.args.parallel) as pool:
        return np.array(list(pool.map(found, files)))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the rows of a and b: (m, n) each → (m,); NaN where all are equal."""
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    with np.errstate(invalid="ignore"):
        return (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))


def interval(a: np.ndarray, b: np.ndarray) -> str:
    """Spearman's correlation of (n,) and (n,), and its 95 % bootstrap interval over files."""
    drawn = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    low, high = np.nanpercentile(spearman(a[drawn], b[drawn]), [2.5, 97.5])
    return f"{spearman(a[None], b[None])[0]:.2f} [{low:.2f}, {high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = records.arguments(__doc__, OPTIONS)
    parser.set_defaults(split="val")
    args = parser.parse_args(arguments)
    if args.quick:
        records.tiny(args, steps=8, files=4, octaves=(200,), objectives=("coreset",), shares=(0.25, 0.5))
    args.steps = args.steps or PRESETS[open_source(args.dataset, args.data).protocol].steps
    torch.set_num_threads(1)
    bench = records.Bench(args, records.console())
    files, rows = Files(bench), []
    for smallest in args.octaves:
        octave = files.octave(smallest)
        full = accuracies(bench, octave, bench.protocol, "full", args.trainings).mean(1)
        spread = f"{100 * full.min():.1f} to {100 * full.max():.1f}"
        for share in args.shares:
            steps = max(1, round(share * args.steps))
            short = accuracies(bench, octave, bench.protocol.model_copy(update={"steps": steps}), "rung", 1)[:, 0]
            figures = (f"{100 * short.mean():.1f}", interval(short, full))
            rows.append(
                (f"{smallest:,} to {2 * smallest:,}", str(len(octave)), spread, f"{share:g}", str(steps), *figures)
            )
    title = f"{args.dataset}, width {args.width}: one short training against {args.trainings} of {args.steps} steps"
    bench.table(title, "bytes|files|full, %|share|steps|short, %|Spearman [95 %]", rows)


if __name__ == "__main__":
    main()
