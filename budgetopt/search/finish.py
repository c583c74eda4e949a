"""The end of a run: candidates retrained, the front fixed on validation, and only then the test split loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch

from budgetopt import seeding
from budgetopt.data.dataset import Dataset, Split
from budgetopt.errors import BudgetoptError, Interrupted
from budgetopt.evaluation import TrainingSet, file_seeds, groups
from budgetopt.front import best, hypervolume, near_front, non_dominated
from budgetopt.option_text import resume_command
from budgetopt.packing import Identity, PackedSet, UniformLevels, pack, unpack
from budgetopt.packing.container import MAX_SYMBOLS
from budgetopt.packing.fields import MANTISSA_LIMIT
from budgetopt.protocol import name_of, to_field
from budgetopt.scores import Evaluation, Score
from budgetopt.search import engine
from budgetopt.search.atomic import write_atomically
from budgetopt.search.config import SearchConfig
from budgetopt.search.folder import RunFolder
from budgetopt.search.progress import Observer, Progress
from budgetopt.search.study import Record

ALL_DATA, LOSSLESS = "all data", "whole training set, losslessly coded"


@dataclass(frozen=True, eq=False)
class Final:
    """Everything the final phase works on."""

    config: SearchConfig
    folder: RunFolder
    study: optuna.Study
    dataset: Dataset
    progress: Progress
    observer: Observer
    interrupted: Callable[[], bool]

    def trainings(
        self, subjects: dict[str, tuple[Any, list[int]]], test: Split, part: str
    ) -> dict[str, Evaluation | None]:
        """Scores of {name: (file or training set, seeds)} on `test`: None where a training diverges, and without those
        that may yet succeed, of which one failed for another reason (out of memory, say). Every finished training is in
        the study at once (`final/PART/NAME/SEED`) and is never replaced. After an interruption a group of seeds is
        trained again as a whole, so that its missing scores are those that `eval` finds."""
        config, shape = self.config, self.dataset.spec.shape
        known = self.study.user_attrs
        keys = {(name, seed): f"final/{part}/{name}/{seed}" for name, (_, seeds) in subjects.items() for seed in seeds}
        self.progress.final_done = sum(key in known for key in keys.values())
        self.progress.final_total = len(keys)
        missing = [
            (name, group)
            for name, (_, seeds) in subjects.items()
            for group in groups(seeds, shape, config.protocol, torch.device(config.device))
            if any(keys[name, seed] not in known for seed in group)
        ]

        def done(position: int, scores: Sequence[Score]) -> None:
            name, group = missing[position]
            for seed, score in zip(group, scores, strict=True):
                if keys[name, seed] not in known:
                    self.study.set_user_attr(keys[name, seed], score.to_dict())
                    self.progress.final_done += 1

        def failed(position: int, message: str, for_good: bool) -> None:
            (diverged if for_good else lost).add(missing[position][0])
            self.observer.message(f"training on {missing[position][0]} failed: {message}")

        lost: set[str] = set()
        diverged: set[str] = set()
        jobs = [(subjects[name][0], group) for name, group in missing]
        engine.evaluate_many(jobs, test, config.protocol, config.workers, config.gpus, done, failed, self.interrupted)
        if self.interrupted():
            raise Interrupted(f"interrupted: go on with {resume_command(self.folder)}")
        found = self.study.user_attrs
        return {
            name: None
            if name in diverged
            else Evaluation(tuple(Score.read(found[keys[name, seed]]) for seed in seeds), len(test))
            for name, (_, seeds) in subjects.items()
            if name not in lost - diverged
        }


def finish(final: Final) -> None:
    """Fix the front, test its members, write `front.json`. Raises `BudgetoptError` where no trial gave a file."""
    folder, progress = final.folder, final.progress
    finished = [r for r in progress.complete() if r.file and (folder.path / r.file).is_file()]
    if not finished:
        raise BudgetoptError(_why_none(progress))
    table = _read_fixed(final)
    if table is None:
        table = _fix(final, finished)
    _test(final, table)


def _fix(final: Final, finished: list[Record]) -> dict[str, Any]:
    """Retrain the candidates on validation with fresh seeds; only those figures decide. Writes the fixed front."""
    config, progress, seeds = final.config, final.progress, final.config.protocol.seeds
    affordable = config.most_candidates
    while affordable > 2 and progress.final_seconds(affordable, seeds) > max(
        progress.remaining, 0.3 * progress.time_limit
    ):
        affordable -= 1
    sizes, accuracies, errors = (np.array([getattr(r, n) for r in finished]) for n in ("bytes", "accuracy", "error"))
    wanted = len(near_front(sizes, accuracies, errors, config.most_candidates))
    candidates = [finished[i] for i in near_front(sizes, accuracies, errors, affordable)]
    enough = "" if len(candidates) == wanted else f" (of {wanted} near the front; --time-limit allows no more)"
    progress.phase = "retraining candidates on validation"
    final.observer.message(f"search ended: {len(candidates)} candidates{enough} retrained on validation")
    data = {r.file: (final.folder.path / r.file).read_bytes() for r in candidates if r.file}
    subjects = {
        str(r.file): (data[r.file], [seeding.derive("front", config.seed, r.file, i) for i in range(seeds)])
        for r in candidates
        if r.file
    }
    figures = _those_had(final.trainings(subjects, final.dataset.val, "validation"))
    if not figures:
        raise BudgetoptError("every candidate failed when it was retrained on validation; the lines above say why")
    sizes = np.array([len(data[name]) for name in figures])
    accuracies = np.array([e.accuracy for e in figures.values()])
    names = list(figures)
    members = sorted(np.flatnonzero(non_dominated(sizes, accuracies)), key=lambda i: sizes[i])
    by_file = {r.file: r for r in candidates}
    folder = final.folder
    folder.front.mkdir(exist_ok=True)
    for stale in folder.front.glob("*.bopt"):  # of an attempt that was killed before it wrote the front
        stale.unlink()
    table: dict[str, Any] = {
        "state": "fixed on validation",
        "budget": config.budget,
        "dataset": config.dataset,
        "protocol": name_of(config.protocol),
        "protocol_hash": config.protocol.hash,
        "split_hash": final.dataset.spec.split_hash,
        "class_counts": list(final.dataset.spec.class_counts),
        "seed": config.seed,
        "candidates": len(candidates),
        "candidates_near_front": wanted,
        "members": [],
        "references": {LOSSLESS: {"bytes": lossless_bytes(final.dataset, config)}},
        "test_evaluations": 0,
    }
    for rank, i in enumerate(members):
        record = by_file[names[i]]
        assert record.allocation is not None
        target = folder.front / f"{rank:02d}-{sizes[i]}B.bopt"
        write_atomically(target, data[names[i]])
        table["members"].append(
            {
                "file": f"front/{target.name}",
                "bytes": int(sizes[i]),
                "samples": record.samples,
                "trial": record.number,
                "allocation": record.allocation.to_dict(),
                "validation": _figure(figures[names[i]]),
                "test": None,
            }
            | ({"parent": record.parent, "total_steps": record.total_steps} if config.parents else {})
        )
    _choose_best(final, table)
    _write(final, table)
    return table


def _choose_best(final: Final, table: dict[str, Any]) -> None:
    """Of the members, by validation: into the table, and as a file of its own."""
    sizes = np.array([member["bytes"] for member in table["members"]])
    accuracies = np.array([member["validation"]["accuracy"] for member in table["members"]])
    table |= {"best": best(sizes, accuracies), "hypervolume": _hypervolume(final, sizes, accuracies)}
    best_file = final.folder.path / table["members"][table["best"]]["file"]
    write_atomically(final.folder.best, best_file.read_bytes())


def _leave_out(final: Final, table: dict[str, Any], diverging: Collection[str]) -> None:
    """Members on which a training diverges with seeds that follow from the file, those of every receiver who runs
    `eval`. Training saw nothing of the test split: this is no choice by it."""
    for file in diverging:
        final.observer.message(f"{file} is left out of the front: training on it diverges for some seeds")
    table["members"] = [member for member in table["members"] if member["file"] not in diverging]
    if not table["members"]:
        raise BudgetoptError("training diverges on every file of the front: search with a smaller lr in the protocol")
    _choose_best(final, table)


def _test(final: Final, table: dict[str, Any]) -> None:
    """The one look at the test split. Members stay as they are, but for those on which a
    training diverges; those dominated on test are marked as such."""
    config, spec = final.config, final.dataset.spec
    final.progress.phase = "evaluating the front on the test split"
    final.observer.message(f"front of {len(table['members'])} fixed on validation; now the test split, once")
    known = final.dataset.source.notes
    test = final.dataset.load_test()
    for note in final.dataset.source.notes[len(known) :]:  # samples that cannot be read
        final.observer.message(note)
    repeated = final.dataset.repeated(test)
    if repeated:
        final.observer.message(
            f"warning: {repeated:,} of {len(test):,} test samples are in the training part too, byte by byte: figures "
            "on the test split flatter"
        )
    train = final.dataset.train
    seeds = config.protocol.seeds
    subjects: dict[str, tuple[Any, list[int]]] = {}
    for member in table["members"]:
        data = (final.folder.path / member["file"]).read_bytes()
        subjects[member["file"]] = (data, file_seeds(data, seeds))
    everything = TrainingSet(train.x, train.y, spec.classes, spec.mean, spec.std)
    subjects[ALL_DATA] = (everything, [seeding.derive(ALL_DATA, config.seed, i) for i in range(seeds)])
    found = final.trainings(subjects, test, "test")
    reference = found.pop(ALL_DATA, None)  # which may need more memory than a worker has
    if len(found) < len(table["members"]):
        raise BudgetoptError(f"a training on the test split failed: try again with {resume_command(final.folder)}")
    figures = _those_had(found)
    diverging = found.keys() - figures.keys()
    if diverging:
        _leave_out(final, table, diverging)
    sizes = np.array([m["bytes"] for m in table["members"]])
    accuracies = np.array([figures[m["file"]].accuracy for m in table["members"]])
    on_front = non_dominated(sizes, accuracies)
    for member, kept in zip(table["members"], on_front, strict=True):
        evaluation = figures[member["file"]]
        member["test"] = _figure(evaluation) | {
            "binomial_half_width": evaluation.binomial_half_width,
            "dominated": not bool(kept),
        }
    if reference is not None:
        whole = _figure(reference) | {"bytes": int(train.x.nbytes + len(train)), "samples": len(train)}
        table["references"] = {ALL_DATA: whole, **table["references"]}
    table["test_evaluations"] = len(figures) + (reference is not None)
    table["test_samples_in_training"] = repeated
    table["state"] = "final"
    _write(final, table)
    for file in diverging:
        (final.folder.path / file).unlink(missing_ok=True)


def _those_had(found: dict[str, Evaluation | None]) -> dict[str, Evaluation]:
    return {name: evaluation for name, evaluation in found.items() if evaluation is not None}


def lossless_bytes(dataset: Dataset, config: SearchConfig) -> int | None:
    """Length of the file that holds the whole train part exactly: training on it *is* training on all data. None where
    values are not up to 256 whole numbers, which no quantizer of the package holds."""
    x = dataset.train.x
    low, high = float(x.min()), float(x.max())
    levels = int(high - low) + 1
    if (
        x.size > MAX_SYMBOLS
        or levels > 256
        or abs(low) >= MANTISSA_LIMIT
        or not (x.dtype == np.uint8 or np.array_equal(x, np.round(x)))
    ):
        return None
    order = np.argsort(dataset.train.y, kind="stable")
    packed = PackedSet(
        symbols=(x[order] - np.asarray(low, x.dtype)).astype(np.uint8).reshape(len(x), -1),
        shape=dataset.spec.shape,
        counts=dataset.spec.class_counts,
        dequantizer=UniformLevels(max(2, levels), int(low), 1, 0),
        inverse=Identity(),
        mean=dataset.spec.mean,
        std=dataset.spec.std,
        protocol=to_field(config.protocol),
        preparation=dataset.spec.preparation,
    )
    data = pack(packed)
    decoded = unpack(data)
    for start in range(0, len(x), 4096):  # a float copy of everything would be four times the data
        part = slice(start, start + 4096)
        if not np.array_equal(decoded.decode(part), x[order[part]].astype(np.float32)):
            raise AssertionError("the lossless reference is not lossless")
    return len(data)


def _hypervolume(final: Final, sizes: np.ndarray, accuracies: np.ndarray) -> float:
    smallest = final.study.user_attrs["smallest_bytes"]
    if smallest >= final.config.budget:
        return 0.0
    chance = 1.0 / final.dataset.spec.classes
    return hypervolume(sizes, accuracies, smallest, final.config.budget, chance)


def _figure(evaluation: Evaluation) -> dict[str, Any]:
    half = evaluation.half_width
    return {
        "accuracy": evaluation.accuracy,
        "half_width": None if math.isnan(half) else half,
        "accuracies": list(evaluation.accuracies),
        "macro_f1": evaluation.macro_f1,
        "recalls": list(evaluation.recalls),
        "samples": evaluation.samples,
    }


def _write(final: Final, table: dict[str, Any]) -> None:
    write_atomically(final.folder.front_json, (json.dumps(table, indent=2) + "\n").encode())


def _read_fixed(final: Final) -> dict[str, Any] | None:
    """The front that an interrupted run had already fixed: it is never fixed a second time."""
    if not final.folder.front_json.exists():
        return None
    try:
        return json.loads(final.folder.front_json.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BudgetoptError(f"cannot read {str(final.folder.front_json)!r}: {error}") from None


def _why_none(progress: Progress) -> str:
    failed = [r for r in progress.ended if r.state == "failed"]
    if failed and len(failed) == len([r for r in progress.ended if r.state not in ("skipped", "interrupted")]):
        return f"all {len(failed)} trials failed; the last one: {failed[-1].message}"
    if progress.counts["infeasible"]:
        return "no trial could be made to fit the budget: raise it, or lower ipc and levels in the search space"
    return (
        f"no trial finished within {progress.elapsed:.0f} s (one training takes about "
        f"{progress.training_time():.0f} s): raise --time-limit and resume"
    )
