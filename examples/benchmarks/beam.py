"""Beam management (3GPP, 64 beams, half of them unmeasured): what a file of 30,000 bytes is worth, and claim 5.

    python examples/benchmarks/beam.py --out runs/beam [--parts figure replacement search] [--quick]

figure       random samples in equal numbers with hard labels, then what the default search space adds: numbers by the
             root of the class sizes, soft labels; beside all data, and the strongest measured beam, which needs no
             learning. Allocations that the search could propose; those of `ARMS` were chosen on validation
replacement  classes smaller than the others use what they have, or are filled up with copies (QuADD E.2, Fig. 11)
search       the default search for `--minutes`, its best file trained as often as a run trains one

Accuracy and macro-F1 on the test split. Finished rows and files are kept in DIR; intervals are two-level bootstraps
over files and trainings where there are several files, else Student's t over trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import records
import torch
from records import CPU, Bench, derive

from budgetopt import evaluation, single
from budgetopt.allocation import Allocation
from budgetopt.errors import OverBudget
from budgetopt.fitting import largest_fitting
from budgetopt.packing import pack, unpack
from budgetopt.representation import InitialSet
from budgetopt.scores import Score

PARTS = ("figure", "replacement", "search")
OPTIONS = {
    "dataset": ("beam", "folder below --data, or any that the package knows"),
    "steps": (1000, "of a training: those of tabular-2"),
    "parts": (("figure", "replacement"), "to run"),
    "budget": (30_000, "bytes of a file of `figure` and `search`"),
    "levels": (6, "of `figure`"),
    "bits": ((2, 4, 6, 8), "of a value, of `replacement`"),
    "ipc": (50, "samples a class of `replacement`: QuADD's, where small classes run out"),
    "alone": (5, "trainings where there is one file, or none"),
    "minutes": (20.0, "of `search`"),
}
# name → (selection, balance, label bits, label temperature)
ARMS = {
    "random, equal": ("random", "equal", 0, 4.0),
    "herding, equal": ("herding", "equal", 0, 4.0),
    "random, sqrt": ("random", "sqrt", 0, 4.0),
    "random, equal, soft labels": ("random", "equal", 4, 2.0),
    "random, sqrt, soft labels": ("random", "sqrt", 4, 2.0),
    "random, proportional, soft labels": ("random", "proportional", 4, 2.0),
}
START = "random, equal"
SLACK = 0.005  # of a budget that may stay unused


class Beam(Bench):
    # --- trainings ---------------------------------------------------------------------------------------------------

    def scores(self, sets: Mapping[str, Sequence[evaluation.TrainingSet]], trainings: int) -> dict[str, np.ndarray]:
        """→ (files, trainings, 2), accuracy and macro-F1. The trainings of one set run side by side; the i-th of the
        d-th set of every arm has the same seed."""
        jobs, keys = {}, {}
        for name, of_arm in sets.items():
            for draw, subject in enumerate(of_arm):
                parts = [subject.x, subject.y, subject.mean, subject.std]
                parts += [] if subject.targets is None else [subject.targets]
                held = records.digest(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
                key = {"scores": held, "protocol": self.protocol.hash, "split": self.args.split, "draw": draw}
                key |= {"trainings": trainings, "data": self.dataset.spec.split_hash}
                keys[name, draw] = key
                if key not in self.rows:
                    jobs[held, draw] = key, subject, [derive("training", draw, i) for i in range(trainings)]
        self._run(list(jobs.values()))
        return {
            name: np.array([self.rows.once(keys[name, draw], lambda: None) for draw in range(len(of_arm))])
            for name, of_arm in sets.items()
        }

    def _run(self, jobs: Sequence[tuple[dict[str, object], evaluation.TrainingSet, list[int]]]) -> None:
        if not jobs:
            return
        tested = self.tested

        def one(key: dict[str, object], subject: evaluation.TrainingSet, seeds: list[int]) -> None:
            found = evaluation.evaluate_set(subject, tested, self.protocol, seeds, CPU).scores
            self.rows.once(key, lambda: [[score.accuracy, score.macro_f1] for score in found])

        self.at_once(one, jobs, "training on file")

    def decoded(self, files: Mapping[str, Sequence[bytes]]) -> dict[str, list[evaluation.TrainingSet]]:
        return {name: [evaluation.TrainingSet.of(unpack(f)) for f in of_arm] for name, of_arm in files.items()}

    # --- files -------------------------------------------------------------------------------------------------------

    def fitting(self, name: str, allocation: Allocation, budget: int) -> list[bytes]:
        """Of every draw the file of the most samples a class within `budget`."""
        key = {"beam": name, "allocation": str(allocation), "budget": budget}

        def packed(draw: int, ipc: int) -> bytes:
            initial = self.selector.select(allocation.selection, ipc, derive("draw", draw), allocation)
            return pack(self.representation(initial, allocation, draw).packed())

        most = max(self.dataset.spec.class_counts)
        return [
            self.file(key | {"draw": d}, lambda d=d: fitted(lambda ipc: packed(d, ipc), budget, 1, most))
            for d in range(self.args.files)
        ]

    # --- parts -------------------------------------------------------------------------------------------------------

    def figure(self) -> None:
        """What the choices of the default search space are worth."""
        args, files = self.args, {}
        for name, (selection, balance, bits, temperature) in ARMS.items():
            allocation = single.allocation(
                "coreset", selection, 1, "identity", "uniform", args.levels, None, bits, 0.0, balance, temperature
            )
            files[name] = self.fitting(name, allocation, args.budget)
        found = self.scores(self.decoded(files), args.trainings)
        rows = [("strongest measured beam", "", "", *map(percent, self.strongest()), "")] if self.is_beam else []
        for name, groups in found.items():
            difference = records.interval(groups[..., 0] - found[START][..., 0], True) if name != START else ""
            figures = records.interval(groups[..., 0]), records.interval(groups[..., 1])
            rows.append((name, *records.of_files(files[name]), *figures, difference))
        train, spec = self.dataset.train, self.dataset.spec
        whole = evaluation.TrainingSet(train.x, train.y, spec.classes, spec.mean, spec.std)
        (alone,) = self.scores({"all": [whole]}, args.alone)["all"]
        figures = [records.student_interval(alone[:, at]) for at in (0, 1)]
        rows.append(("all data", f"{len(train):,}", f"{train.x.nbytes:,}", *figures, ""))
        self.shown(f"{args.budget:,} bytes, uniform {args.levels} levels", "samples chosen", rows, START)

    def replacement(self) -> None:
        """Claim 5. A set with copies has `ipc` samples of every class; the one without gets as many bytes."""
        args, files = self.args, {}
        for bits in args.bits:
            allocation = single.allocation("coreset", "random", 1, "identity", "uniform", 2**bits, None)
            key = {"beam": "replacement", "levels": 2**bits, "ipc": args.ipc}

            def packed(draw: int, ipc: int, copies: bool, a: Allocation = allocation) -> bytes:
                drawn = self.selector.select("random", ipc, derive("draw", draw))
                initial = filled_up(drawn, ipc, draw) if copies else drawn
                return pack(self.representation(initial, a, draw).packed())

            def plain(draw: int, budget: int, of: Callable[[int, int, bool], bytes] = packed) -> bytes:
                return fitted(lambda ipc: of(draw, ipc, False), budget, max(1, args.ipc // 2), 2 * args.ipc)

            for d in range(args.files):
                with_copies = self.file(key | {"draw": d, "copies": True}, lambda d=d: packed(d, args.ipc, True))
                files.setdefault(f"{bits} bits, with", []).append(with_copies)
                budget = len(with_copies)
                without = self.file(key | {"draw": d, "copies": False}, lambda d=d, b=budget: plain(d, b))
                files.setdefault(f"{bits} bits, without", []).append(without)
        found = self.scores(self.decoded(files), args.trainings)
        rows = []
        for name, groups in found.items():
            start = name.replace("without", "with")
            figures = [records.interval(groups[..., at]) for at in (0, 1)]
            differences = [records.interval(groups[..., at] - found[start][..., at], True) for at in (0, 1)]
            cells = (*figures, *differences) if name != start else (*figures, "", "")
            rows.append((name, *records.of_files(files[name]), *cells))
        header = "bits, replacement|samples|bytes|accuracy, %|macro-F1, %|accuracy minus with|macro-F1 minus with"
        self.table(f"Claim 5: {args.ipc} a class, at equal bytes ({args.split})", header, rows)

    def search(self) -> None:
        """What a user gets."""
        import budgetopt

        args = self.args
        folder = args.out / f"search-{args.budget}"
        if (folder / "config.json").exists():
            found = budgetopt.resume(folder)
        else:
            found = budgetopt.search(args.budget, args.dataset, time_limit=60 * args.minutes, out=folder)
        data = found.best.path.read_bytes()
        (of_file,) = self.scores(self.decoded({"best": [data]}), args.alone)["best"]
        figures = [records.student_interval(of_file[:, at]) for at in (0, 1)]
        rows = [("strongest measured beam", "", "", *map(percent, self.strongest()), "")] if self.is_beam else []
        rows.append((str(found.best.allocation), *records.of_files([data]), *figures, ""))
        self.shown(f"{args.budget:,} bytes, search of {args.minutes:g} minutes", "best found", rows, START)

    @property
    def is_beam(self) -> bool:
        """A feature is a class: the strongest one is a guess."""
        return self.dataset.spec.shape == (self.dataset.spec.classes,)

    def strongest(self) -> tuple[float, float]:
        tested = self.dataset.load_test() if self.args.split == "test" else self.dataset.val
        confusion = np.zeros((self.dataset.spec.classes,) * 2, np.int64)
        np.add.at(confusion, (tested.y, tested.x.argmax(1)), 1)
        score = Score.of(confusion)
        assert score.macro_f1 is not None
        return score.accuracy, score.macro_f1

    def shown(self, title: str, first: str, rows: Sequence[Sequence[str]], start: str) -> None:
        header = f"{first}|samples|bytes|accuracy, %|macro-F1, %|accuracy minus {start}"
        self.table(f"{title} ({self.args.split})", header, rows)


def fitted(packed: Callable[[int], bytes], budget: int, least: int, most: int) -> bytes:
    """The file of about the most samples a class within `budget` bytes."""
    found: dict[int, bytes] = {}

    def size(ipc: int) -> int:
        found[ipc] = packed(ipc)
        return len(found[ipc])

    ipc = largest_fitting(size, budget, least, most, SLACK)
    if ipc is None:
        raise OverBudget(f"{least} samples a class take {len(found[least])} bytes, the budget is {budget}")
    return found[ipc]


def filled_up(drawn: InitialSet, ipc: int, draw: int) -> InitialSet:
    """Classes of fewer than `ipc` samples get copies of random ones, after all of their own."""
    rng = np.random.default_rng(derive("copies", draw))
    starts, rows = np.cumsum(drawn.counts) - drawn.counts, []
    for start, count in zip(starts, drawn.counts, strict=True):
        rows.append(np.concatenate([np.arange(count), rng.integers(0, count, ipc - count)]) + start)
    return InitialSet(drawn.x[np.concatenate(rows)], (ipc,) * len(drawn.counts))


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args, budget=1_500, levels=3, bits=(1, 2), ipc=3, alone=2)
    elif args.dataset == OPTIONS["dataset"][0]:
        args.dataset = str(args.data / args.dataset)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise SystemExit(f"unknown part {unknown[0]!r}, known are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    bench = Beam(args, records.console())
    for part in args.parts:
        getattr(bench, part)()
    bench.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


if __name__ == "__main__":
    main()
