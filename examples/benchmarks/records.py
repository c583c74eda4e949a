"""What the benchmarks of files share: finished rows on disk, trainings that are made once, and intervals.

A training depends on the decoded set, the protocol and the seed, and on nothing else: files of other coders that decode
to the same set share it. The i-th training of the d-th file of every arm has the same seed, so that arms are paired.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from budgetopt import evaluation, teacher
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, open_source
from budgetopt.data.dataset import Split
from budgetopt.errors import OverBudget
from budgetopt.fitting import largest_fitting
from budgetopt.methods.base import Method, TrainingData
from budgetopt.methods.selection import Selector
from budgetopt.packing import pack, unpack
from budgetopt.packing.coders import CODERS
from budgetopt.protocol import PRESETS, Protocol, to_field
from budgetopt.representation import InitialSet, Representation
from budgetopt.seeding import derive, generator

CPU = torch.device("cpu")
RESAMPLES = 10_000
Arms = Mapping[str, Sequence[bytes]]  # name → one file for every draw


class Rows:
    """Finished rows as JSON lines: `once` makes a row that is not there yet. For several threads."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._lock = folder / "rows.jsonl", threading.Lock()
        text = self._path.read_text() if self._path.exists() else ""
        if text and not text.endswith("\n"):  # killed while writing
            self._path.write_text(text := text[: text.rfind("\n") + 1])
        self._rows = {self._name(row["key"]): row["result"] for row in map(json.loads, text.splitlines())}

    @staticmethod
    def _name(key: Mapping[str, Any]) -> str:
        return json.dumps(key, sort_keys=True)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return self._name(key) in self._rows

    def once(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        if key not in self:
            result = make()
            with self._lock, self._path.open("a") as stream:
                stream.write(json.dumps({"key": key, "result": result}) + "\n")
            self._rows[self._name(key)] = result
        return self._rows[self._name(key)]


@dataclass(frozen=True)
class Bench:
    """Dataset, protocol and rows of one run of a benchmark."""

    args: argparse.Namespace
    console: Console

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.args.out)

    @cached_property
    def protocol(self) -> Protocol:
        preset = PRESETS[open_source(self.args.dataset, self.args.data).protocol]
        network = self.args.network or preset.network
        return preset.model_copy(update={"network": network, "width": self.args.width, "steps": self.args.steps})

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.prepare(open_source(self.args.dataset, self.args.data), 0)

    @cached_property
    def data(self) -> TrainingData:
        return TrainingData(self.dataset.train, self.dataset.spec, self.protocol, CPU)

    @cached_property
    def selector(self) -> Selector:
        return Selector(self.dataset.train, self.dataset.spec)

    @cached_property
    def teacher(self) -> teacher.Teacher:
        return teacher.cached(self.data, 0, self.args.out / "teacher")

    def drawn(self, draw: int, samples: int) -> InitialSet:
        """Random samples of the training part, spread evenly over the classes; fewer samples of one draw are the first
        of more."""
        classes = self.dataset.spec.classes
        whole = self.selector.select("random", -(-samples // classes), derive("draw", draw))
        return InitialSet(*first_samples(whole.x, whole.counts, samples))

    def representation(self, initial: InitialSet, allocation: Allocation, draw: int) -> Representation:
        noise, field = generator("quantizer", draw), to_field(self.protocol)
        taught = self.teacher if allocation.label_bits else None
        return Representation(initial, allocation, self.dataset.spec, field, CPU, noise, taught).train()

    def file(self, key: Mapping[str, Any], make: Callable[[], bytes]) -> bytes:
        """A file that is made once for its key, the protocol, and the coders that there are."""
        coders = [coder.name for coder in CODERS.values()]
        where = {"file": key, "protocol": self.protocol.hash, "dataset": self.args.dataset, "coders": coders}
        path = self.args.out / "files" / f"{digest(json.dumps(where, sort_keys=True).encode())}.bopt"

        def made() -> dict[str, Any]:
            self.console.print("packing " + ", ".join(f"{k} {v}" for k, v in key.items()), style="dim", soft_wrap=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data := make())
            return {"name": path.name, "bytes": len(data)}

        self.rows.once(where, made)
        return path.read_bytes()

    def largest(self, budget: int, make: Callable[[int], Representation]) -> bytes:
        """The file with the most samples within `budget` bytes; `make` gives the set of so many samples."""
        spec = self.dataset.spec
        return fitted(lambda samples: pack(make(samples).packed()), budget, spec.classes, sum(spec.class_counts))

    def accuracies(self, arms: Arms) -> dict[str, np.ndarray]:
        """Of every arm the (files, trainings) accuracies on the test split of the arguments."""
        jobs: dict[str, tuple[dict[str, Any], evaluation.TrainingSet, int]] = {}
        keys: dict[tuple[str, int, int], dict[str, Any]] = {}
        for name, files in arms.items():
            for draw, file in enumerate(files):
                decoded = evaluation.TrainingSet.of(unpack(file))
                parts = [decoded.x, decoded.y, decoded.mean, decoded.std]
                parts += [] if decoded.targets is None else [decoded.targets]
                of_set = digest(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
                for i in range(self.args.trainings):
                    key = {"decoded": of_set, "protocol": self.protocol.hash, "split": self.args.split}
                    key |= {"draw": draw, "training": i, "data": self.dataset.spec.split_hash}
                    keys[name, draw, i] = key
                    if key not in self.rows:
                        jobs[json.dumps(key)] = key, decoded, derive("training", draw, i)
        self._train(list(jobs.values()))
        return {
            name: np.array(
                [
                    [self.rows.once(keys[name, draw, i], lambda: None) for i in range(self.args.trainings)]
                    for draw in range(len(files))
                ]
            )
            for name, files in arms.items()
        }

    @property
    def tested(self) -> Split:
        """What accuracy is measured on."""
        return self.dataset.load_test() if self.args.split == "test" else self.dataset.val

    def _train(self, jobs: Sequence[tuple[dict[str, Any], evaluation.TrainingSet, int]]) -> None:
        if not jobs:
            return
        test = self.tested

        def train(key: dict[str, Any], decoded: evaluation.TrainingSet, seed: int) -> float:
            result = evaluation.evaluate_set(decoded, test, self.protocol, [seed], CPU)
            return float(self.rows.once(key, lambda: result.accuracy))

        self.at_once(train, jobs, "training")

    def at_once(self, work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], what: str) -> None:
        """`work(*job)` of every job, `--parallel` at a time; after an error no other is begun."""
        with ThreadPoolExecutor(self.args.parallel) as pool:
            try:
                futures = [pool.submit(work, *job) for job in jobs]
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    self.console.print(f"{what} {done} of {len(jobs)}", style="dim")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def table(self, title: str, header: str, rows: Sequence[Sequence[str]]) -> None:
        table = Table(*header.split("|"), title=title)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def optimise(method: Method, representation: Representation, steps: int) -> list[float]:
    """Take `steps` of the method; the losses."""
    losses = []
    for step in range(steps):
        representation.quantizer.progress = (step + 1) / steps
        losses.append(method.step())
    return losses


def fitted(make: Callable[[int], bytes], budget: int, least: int, most: int, slack: float = 0.0) -> bytes:
    """The file of the most samples that fits, or one that leaves at most the share `slack` of the budget."""
    found: dict[int, bytes] = {}

    def size(samples: int) -> int:
        found[samples] = make(samples)
        return len(found[samples])

    samples = largest_fitting(size, budget, least, most, slack)
    if samples is None:
        raise OverBudget(f"one sample a class takes {len(found[least])} bytes, the budget is {budget}")
    return found[samples]


def first_rows(counts: Sequence[int], samples: int) -> np.ndarray:
    """Which of the rows in class order are the first ones: the first of every class, then the second ones, …"""
    labels = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(labels)) - np.concatenate([[0], np.cumsum(counts)[:-1]])[labels]
    return np.sort(np.lexsort((labels, rank))[:samples])


def first_samples(x: np.ndarray, counts: Sequence[int], samples: int) -> tuple[np.ndarray, tuple[int, ...]]:
    rows = first_rows(counts, samples)
    labels = np.repeat(np.arange(len(counts)), counts)[rows]
    return x[rows], tuple(np.bincount(labels, minlength=len(counts)).tolist())


def trimmed(representation: Representation, budget: int) -> bytes:
    """As `fit_to_budget`, but sample by sample: with few samples, whole rows of classes would leave bytes unused."""
    whole = representation.packed()
    x, labels = representation.coded().detach(), representation.labels

    def first(samples: int) -> bytes:
        rows = first_rows(whole.counts, samples)
        counts = tuple(np.bincount(whole.labels()[rows], minlength=len(whole.counts)).tolist())
        symbols, side = representation.quantizer.encode(x[rows], labels[rows])
        soft = None if whole.soft is None else whole.soft[rows]
        return pack(replace(whole, symbols=symbols, dequantizer=side, counts=counts, soft=soft))

    data = pack(whole)
    return data if len(data) <= budget else fitted(first, budget, len(whole.counts), len(whole) - 1)


def console() -> Console:
    """Wide enough for the tables where the output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def samples(file: bytes) -> int:
    return sum(unpack(file).counts)


def of_files(files: Sequence[bytes]) -> tuple[str, str]:
    """Mean samples a file and mean bytes, as text."""
    return f"{np.mean([samples(file) for file in files]):.0f}", f"{np.mean([len(file) for file in files]):,.0f}"


def resampled_means(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """groups: (files, trainings) → means of the two-level bootstrap: files are drawn, then trainings of each."""
    rng = np.random.default_rng(seed)
    files, trainings = groups.shape
    of_file = rng.integers(0, files, (RESAMPLES, files, 1))
    return groups[of_file, rng.integers(0, trainings, (RESAMPLES, files, trainings))].mean((1, 2))


def interval(groups: np.ndarray, signed: bool = False) -> str:
    """Mean in per cent and the 95 % interval of the two-level bootstrap."""
    low, high = np.percentile(resampled_means(groups), [2.5, 97.5])
    sign = "+" if signed else ""
    return f"{100 * groups.mean():{sign}.2f} [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"


def student_interval(values: np.ndarray) -> str:
    """Mean in per cent ± half of the 95 % Student-t interval."""
    if len(values) < 2:
        return f"{100 * np.mean(values):.2f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{100 * np.mean(values):.2f} ± {100 * half:.2f}"


def arguments(doc: str | None, options: Mapping[str, tuple[Any, str]]) -> argparse.ArgumentParser:
    """What every benchmark takes. options: name → (default, meaning), over the ones here."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    common: dict[str, tuple[Any, str]] = {
        "dataset": ("FashionMNIST", "any that the package knows"),
        "network": ("", "of the trainings; the protocol's where it is empty"),
        "width": (32, "of the network"),
        "steps": (250, "of a training"),
        "files": (3, "independent files of every arm"),
        "trainings": (3, "of every file"),
        "parallel": (evaluation.default_parallel(CPU), "trainings at once, one thread each"),
    }
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and files; finished ones are kept")
    parser.add_argument("--data", type=Path, default=os.environ.get("BUDGETOPT_DATA") or beside)
    parser.add_argument("--split", choices=("test", "val"), default="test", help="what accuracy is measured on")
    parser.add_argument("--quick", action="store_true", help="everything tiny, on the built-in digits: a smoke run")
    for name, (default, meaning) in (common | dict(options)).items():
        kind, many = (type(default[0]), "+") if isinstance(default, tuple) else (type(default), None)
        text = f"{meaning} (default: {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs=many, default=default, help=text)
    return parser


def tiny(args: argparse.Namespace, **more: Any) -> argparse.Namespace:
    """Settings of a smoke run."""
    settings = {"dataset": "digits", "width": 4, "steps": 2, "files": 2, "trainings": 2}
    for name, value in (settings | more).items():
        setattr(args, name, value)
    return args
