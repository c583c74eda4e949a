"""Continual learning at equal bytes: GDumb (Prabhu, Torr and Dokania, ECCV 2020) with packed memories.

    python examples/continual_gdumb.py --out runs/gdumb [--dataset FOLDER --budgets 10000]

Classes arrive in tasks. After every task the memory is one `.bopt` file of at most so many bytes, made anew from the
file before it and the data of the task and from nothing else; every class seen so far gets as many samples. After the
last task a network is trained from scratch on the memory alone and tested on all classes. Arms:

- as stored: random samples, 8 bits a value without entropy coding, what GDumb keeps
- 8 bits: the same values through the package's coder
- random, herding: samples of few levels
- ours: random, symbols of new samples chosen for error and bits together (RDOQ)
- ours, soft: with soft labels, by a teacher that is trained on the memory and the task and labels all samples anew

Every run draws its own order of classes and its own samples, the same in all arms. Finished files and trainings are
kept in the folder. `--dataset` takes what the package takes, such as a folder of Parquet files with pictures.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import records

from budgetopt import evaluation, single
from budgetopt.packing import FORMAT_VERSION, PackedSet, SoftLabels, pack, unpack
from budgetopt.packing.container import header
from budgetopt.protocol import to_field
from budgetopt.representation import InitialSet, Representation
from budgetopt.representation.rdoq import optimised
from budgetopt.seeding import derive
from budgetopt.teacher import Teacher

SLACK = 0.01  # of the budget that may stay unused: every sample more is one more packing
FIRST = 16  # samples a class of the first guess
TEMPERATURE = 2.0  # of the teacher
REFERENCES = ("as stored", "random")  # arms that the others are paired with


@dataclass(frozen=True)
class Arm:
    """How a memory holds its samples. levels: 0 for those of `--levels`; coded: by the package's coder, else in whole
    bits; rdoq: weight of a bit; label_bits: of soft labels."""

    selection: str = "random"
    quantizer: str = "lloyd-max"
    levels: int = 0
    coded: bool = True
    rdoq: float = 0.0
    label_bits: int = 0


ARMS = {
    "as stored": Arm(quantizer="none:dtype=uint8", levels=256, coded=False),
    "8 bits": Arm(quantizer="none:dtype=uint8", levels=256),
    "random": Arm(),
    "herding": Arm("herding"),
    "ours": Arm(rdoq=0.2),
    "ours, soft": Arm(rdoq=0.2, label_bits=3),
}
OPTIONS = {
    "steps": (150, "of a training"),
    "trainings": (2, "of every memory"),
    "files": (3, "runs: orders of the classes"),
    "budgets": ((10_000, 30_000), "bytes of a memory"),
    "tasks": (5, "that the classes are shared out to"),
    "levels": (2, "of the arms of few levels"),
    "arms": (tuple(ARMS), "of these"),
    "teacher_steps": (100, "of a training of the teacher"),
    "teacher_samples": (1000, "of a class that the teacher sees"),
}


class Learner(records.Bench):
    """Memories of several runs."""

    def memory(self, name: str, budget: int, run: int) -> bytes:
        """The file after the last task."""
        args, data = self.args, b""
        arm = replace(ARMS[name], levels=ARMS[name].levels or args.levels)
        for at, classes in enumerate(self.tasks(run), 1):
            key = {"arm": name, "how": str(arm), "budget": budget, "run": run, "task": at, "of": args.tasks}
            key |= {"teacher": [args.teacher_steps, args.teacher_samples]} if arm.label_bits else {}
            task = Task(self, arm, budget, run, classes, unpack(data) if data else None)
            data = self.file(key, task.memory)
        return data

    def tasks(self, run: int) -> list[np.ndarray]:
        """The classes of each task."""
        order = np.random.default_rng(derive("class order", run)).permutation(self.dataset.spec.classes)
        return np.array_split(order, self.args.tasks)


@dataclass(frozen=True, eq=False)
class Task:
    """What is there while one task is learnt: the memory before it, and the data of its classes."""

    learner: Learner
    arm: Arm
    budget: int
    run: int
    classes: np.ndarray
    before: PackedSet | None

    def memory(self) -> bytes:
        """The file of the most samples, every class as many, within the budget."""
        write = pack if self.arm.coded else stored
        most = max(self.before.counts) if self.before else FIRST
        representation, whole = self._whole(most)
        while len(write(whole)) <= self.budget and most < len(self.learner.dataset.train):
            most *= 2
            representation, whole = self._whole(most)
        if self.arm.label_bits:
            samples = torch.from_numpy(whole.decode())
            targets = self._teacher(representation).probabilities(samples, TEMPERATURE)
            whole = replace(whole, soft=SoftLabels.nearest(targets, self.arm.label_bits))
        return largest(whole, self.budget, write)

    def _whole(self, most: int) -> tuple[Representation, PackedSet]:
        """All samples of the memory before, whose symbols stay, and the first `most` of every new class."""
        train, spec = self.learner.dataset.train, self.learner.dataset.spec
        parts = []
        for label in range(spec.classes):
            if label in self.classes:
                parts.append(train.x[self._picked(label, most)].astype(np.float32))
            else:
                parts.append(self._kept(label))
        initial = InitialSet(np.concatenate(parts), tuple(map(len, parts)))
        mean, std = self._statistics
        allocation = single.allocation(
            "coreset", "random", 1, "identity", self.arm.quantizer, self.arm.levels, clipping=None
        )
        representation = Representation(
            initial, allocation, replace(spec, mean=mean, std=std), to_field(self.learner.protocol), records.CPU
        ).train()
        if self.arm.rdoq:
            self._be_thrifty(representation)
        return representation, representation.packed()

    def _be_thrifty(self, representation: Representation) -> None:
        """Of the new samples alone: to those of the memory it was done before."""
        coded, labels = representation.coded().detach(), representation.labels
        new = np.isin(labels.numpy(), self.classes)
        counts = tuple(count * (label in self.classes) for label, count in enumerate(representation.counts))
        layout = representation.transform.layout
        coded[new] = optimised(coded[new], labels[new], representation.quantizer, layout, counts, self.arm.rdoq)
        representation.set_coded(coded)

    def _teacher(self, representation: Representation) -> Teacher:
        """Trained on as many samples of every class seen so far, those of the memory repeated, all at few levels: told
        apart by their number of levels, old and new classes would have nothing in common."""
        args, train, protocol = self.learner.args, self.learner.dataset.train, self.learner.protocol
        spec, found, labels = representation.spec, [], []
        for label in range(spec.classes):
            if label in self.classes:
                x = torch.from_numpy(train.x[self._picked(label, args.teacher_samples)].astype(np.float32)).flatten(1)
                seen = representation.quantizer.quantized(x, torch.full((len(x),), label)).numpy()
                found.append(seen.reshape(-1, *spec.shape))
            else:
                kept = self._kept(label)
                found.append(np.resize(kept, (args.teacher_samples if len(kept) else 0, *spec.shape)))
            labels.append(np.full(len(found[-1]), label))
        y = np.concatenate(labels)
        subject = evaluation.TrainingSet(np.concatenate(found), y, spec.classes, spec.mean, spec.std)
        recipe = protocol.model_copy(update={"steps": args.teacher_steps})
        net = evaluation.train_network(subject, recipe, derive("teacher", self.run, len(y)), records.CPU)
        weights = {name: value.detach().numpy() for name, value in net.state_dict().items()}
        return Teacher(protocol.network, protocol.width, spec.shape, spec.classes, spec.mean, spec.std, weights)

    def _picked(self, label: int, most: int) -> np.ndarray:
        """Rows of the first `most` samples of a class of this task."""
        return self.learner.selector.order(self.arm.selection, label, most, derive("samples", self.run))

    def _kept(self, label: int) -> np.ndarray:
        if self.before is None:
            return np.empty((0, *self.learner.dataset.spec.shape), np.float32)
        return self.before.decode(np.flatnonzero(self.before.labels() == label))

    @cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std of the inputs: those of the first task's data, since no other is there yet."""
        if self.before is not None:
            return self.before.mean, self.before.std
        train = self.learner.dataset.train
        x = train.x[np.isin(train.y, self.classes)].astype(np.float32)
        mean, std = (f(x, axis=(0, 2, 3)).astype(np.float16).astype(np.float32) for f in (np.mean, np.std))
        return mean, std


def largest(whole: PackedSet, budget: int, write: Callable[[PackedSet], bytes]) -> bytes:
    """The file of the most samples, every class as many, within `budget` bytes; where not even one of each fits, some
    classes have none."""
    data = write(whole)
    if len(data) <= budget:
        return data
    likely = max(1, int((1 - SLACK) * len(whole) * budget / len(data)))  # packings are few: the first is near
    data = write(first(whole, likely))
    if (1 - SLACK) * budget <= len(data) <= budget:
        return data
    least, most = (likely, len(whole)) if len(data) <= budget else (1, likely)
    return records.fitted(lambda samples: write(first(whole, samples)), budget, least, most, SLACK)


def first(packed: PackedSet, samples: int) -> PackedSet:
    """The first of every class, then the second ones, …"""
    rows = records.first_rows(packed.counts, samples)
    counts = tuple(np.bincount(packed.labels()[rows], minlength=len(packed.counts)).tolist())
    soft = None if packed.soft is None else packed.soft[rows]
    return replace(packed, symbols=packed.symbols[rows], counts=counts, soft=soft)


def stored(packed: PackedSet) -> bytes:
    """The file of 8-bit values without entropy coding."""
    data = b"BOP" + bytes([FORMAT_VERSION]) + header(packed) + b"\0" + packed.symbols.tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args, files=1, budgets=(700,), tasks=2, teacher_steps=2, teacher_samples=20)
    torch.set_num_threads(1)
    learner = Learner(args, records.console())
    unknown = set(args.arms) - set(ARMS)
    if unknown:
        raise SystemExit(f"unknown arm {sorted(unknown)[0]!r}, known are {', '.join(ARMS)}")
    for budget in args.budgets:
        jobs = [(name, budget, run) for name in args.arms for run in range(args.files)]
        learner.dataset, learner.selector  # noqa: B018 - made once, before there are threads
        learner.at_once(learner.memory, jobs, "memory")
        files = {name: [learner.memory(name, budget, run) for run in range(args.files)] for name in args.arms}
        found = learner.accuracies(files)
        rows = []
        for name, groups in found.items():
            differences = [
                records.interval(groups - found[other], True) if other in found and other != name else ""
                for other in REFERENCES
            ]
            rows.append((name, *records.of_files(files[name]), records.interval(groups), *differences))
        title = f"GDumb on {Path(args.dataset).stem}, {args.tasks} tasks, {budget:,} bytes: accuracy ({args.split}), %"
        header_ = "|".join(["memory", "samples", "bytes", "accuracy", *(f"minus {name}" for name in REFERENCES)])
        learner.table(title, header_, rows)
    learner.console.print("intervals: 95 %, two-level bootstrap over runs and trainings; differences are paired")


if __name__ == "__main__":
    main()
