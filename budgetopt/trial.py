"""One allocation, from start to its last rung. Knows neither Ray nor Optuna."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from budgetopt import methods, seeding
from budgetopt.allocation import Allocation
from budgetopt.balance import shared_out
from budgetopt.checkpoint import Checkpoint, State
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.errors import TrialFailure
from budgetopt.evaluation import evaluate_file, one_thread
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import LEARNED, Selector
from budgetopt.objective import Objective, Optimised
from budgetopt.packing import pack, unpack
from budgetopt.protocol import Protocol, to_field
from budgetopt.representation import InitialSet, Representation
from budgetopt.scores import Evaluation, Score
from budgetopt.teacher import Teacher

CHILD_SHARE = 1 / 3  # of the objective's steps, for a set that starts from a parent
RUNGS = 3  # reports of an optimised set; a set without steps reports after one training and after all


@dataclass(frozen=True, eq=False)
class TrialContext:
    """What every trial of a run shares. Arrays only, so that it can be mapped read-only into workers."""

    train: Split
    val: Split
    spec: DataSpec
    protocol: Protocol
    objectives: Mapping[str, Objective]
    budget: int | None = None  # bytes; None: no limit
    seed: int = 0
    shared: Mapping[str, Any] = field(default_factory=dict)  # objective → what its method shares of the real data
    learned: Mapping[str, Any] = field(default_factory=dict)  # selection → what it learns of the train part
    init: InitialSet | None = None  # every method starts from this set
    teacher: Teacher | None = None  # of soft labels


@dataclass(frozen=True, eq=False)
class RungReport:
    """A trial's state at a rung: the packed file and its accuracy on validation."""

    rung: int
    last: bool
    step: int
    data: bytes
    evaluation: Evaluation
    loss: float  # of the last distillation step, NaN without steps
    training_seconds: float  # of one training of this rung
    seconds: float  # since the trial began, in all processes that it took

    @property
    def samples(self) -> int:
        """Samples in the file: fewer than asked for where classes are small or the budget cut some off."""
        return sum(unpack(self.data).counts)

    def to_dict(self) -> dict[str, Any]:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return held | {"evaluation": [score.to_dict() for score in self.evaluation.scores]}

    @classmethod
    def read(cls, held: Mapping[str, Any], tested: int) -> RungReport:
        """Inverse of `to_dict`; tested: samples of the evaluation."""
        scores = tuple(Score.read(score) for score in held["evaluation"])
        return cls(**{**held, "evaluation": Evaluation(scores, tested)})


def trial_seed(run_seed: int, allocation: Allocation) -> int:
    """Hash of run seed and allocation: a trial is a pure function of both, also after a restart."""
    return seeding.derive("trial", run_seed, allocation.key)


def class_counts(context: TrialContext) -> tuple[int, ...]:
    """Samples that there are to start from, of each class."""
    return context.spec.class_counts if context.init is None else context.init.counts


def initial_set(
    context: TrialContext, allocation: Allocation, selector: Selector | None = None, parent: bytes | None = None
) -> InitialSet:
    """The real samples (or the first of the parent, or of the `init` set) that the allocation starts from."""
    if parent is not None:
        wanted = shared_out(class_counts(context), allocation.ipc, allocation.balance)
        return _decoded(parent, context.spec, wanted).taking(wanted)
    if context.init is None:
        selector = selector or Selector(context.train, context.spec, context.learned)
        return selector.select(allocation.selection, allocation.ipc, trial_seed(context.seed, allocation), allocation)
    return context.init.taking(shared_out(context.init.counts, allocation.ipc, allocation.balance))


def _decoded(parent: bytes, spec: DataSpec, wanted: tuple[int, ...]) -> InitialSet:
    """What a receiver makes of the file. Raises `TrialFailure` where it does not hold the wanted samples."""
    packed = unpack(parent)
    alike = packed.shape == spec.shape and len(packed.counts) == len(wanted)
    if not alike or any(there < count for there, count in zip(packed.counts, wanted, strict=True)):
        raise TrialFailure(
            f"a parent of shape {packed.shape} and counts {packed.counts} holds no {wanted} to start from"
        )
    return InitialSet(packed.decode(), packed.counts, packed.soft)


def initial_representation(
    context: TrialContext,
    allocation: Allocation,
    device: torch.device,
    selector: Selector | None = None,
    parent: bytes | None = None,
) -> Representation:
    initial = initial_set(context, allocation, selector, parent)
    noise = seeding.generator("quantizer", trial_seed(context.seed, allocation))
    protocol, teacher = to_field(context.protocol), context.teacher
    representation = Representation(initial, allocation, context.spec, protocol, device, noise, teacher, context.budget)
    return representation.train()


def initial_bytes(context: TrialContext, allocation: Allocation, selector: Selector) -> int:
    """Length of the file of the untrained set: exact for coresets, a low guess for optimised sets, and for soft labels
    while there is no teacher. While a selection that learns has not learned yet, that of random samples."""
    if allocation.selection in LEARNED and allocation.selection not in context.learned:
        allocation = replace(allocation, selection="random")
    return len(pack(initial_representation(context, allocation, torch.device("cpu"), selector).packed()))


def rung_steps(steps: int) -> list[int]:
    """Distillation steps after which a trial reports: RUNGS equal parts, or the two evaluations of a coreset."""
    return [0, 0] if steps == 0 else [max(1, math.ceil(steps * (r + 1) / RUNGS)) for r in range(RUNGS)]


def _objective(context: TrialContext, allocation: Allocation, parent: bytes | None) -> Objective:
    """The objective with the steps that the trial takes: CHILD_SHARE of them where the set starts from a parent."""
    objective = context.objectives[allocation.objective]
    if parent is None:
        return objective
    if not isinstance(objective, Optimised):
        raise ValueError(
            f"{allocation.objective} optimises nothing: its sets start from real samples, not from a parent"
        )
    return objective.shortened(CHILD_SHARE)


def checkpoint(context: TrialContext, allocation: Allocation, folder: Path, parent: bytes | None = None) -> Checkpoint:
    """Where the trial keeps what it has done, by allocation and trial seed: one that is started again finds its own."""
    seed = trial_seed(context.seed, allocation)
    objective = _objective(context, allocation, parent)
    shaped_by: tuple[Any, ...] = (allocation, seed, context.spec.split_hash, context.protocol.hash, objective)
    shaped_by += (context.budget,) if parent is None else (context.budget, hashlib.sha256(parent).hexdigest())
    return Checkpoint(folder / f"{allocation.key}-{seed:016x}.pt", repr(shaped_by))


def run(
    context: TrialContext,
    allocation: Allocation,
    device: torch.device,
    kept: Checkpoint | None = None,
    parent: bytes | None = None,
) -> Iterator[RungReport]:
    """Distil with the quantizer in the loop; at each rung pack → unpack → train → validation accuracy.

    Lower rungs train one network for `rung_share` of the steps; the last trains `search_seeds` networks. Where `kept`
    holds what an earlier process did of this trial, its reports come again and the trial goes on after them. parent:
    packed file of the finished set that is fine-tuned, in CHILD_SHARE of the steps. Raises `TrialFailure` or
    `OverBudget`, `PackedFileError` for a damaged parent; stops where the caller stops iterating.
    """
    if allocation.label_bits and context.teacher is None:
        raise ValueError(f"{allocation.label_bits}-bit labels need a teacher in the context")
    started, seed = time.monotonic(), trial_seed(context.seed, allocation)
    objective = _objective(context, allocation, parent)
    representation = initial_representation(context, allocation, device, parent=parent)
    data = TrainingData(context.train, context.spec, context.protocol, device)
    generator = seeding.generator("method", seed)
    shared = context.shared.get(allocation.objective)
    with one_thread(device):  # rounding depends on how many there are, here and in the steps
        method = methods.build(objective, data, representation, generator, shared) if objective.steps else None
    done, loss = 0, math.nan
    targets = rung_steps(objective.all_steps)
    reports: list[RungReport] = []
    known = kept.load() if kept else None
    if known is not None:
        reports = [RungReport.read(held, len(context.val)) for held in known["reports"]]
        done, started = reports[-1].step, started - reports[-1].seconds
        representation.load_state_dict(known["representation"])
        generator.set_state(known["generator"])
        if method is not None:
            method.restore(known["method"])
        yield from reports
    for rung, target in list(enumerate(targets))[len(reports) :]:
        with one_thread(device):
            for done in range(done + 1, target + 1):  # noqa: B020 - `done` goes on from the last rung
                assert method is not None
                representation.quantizer.progress = done / targets[-1]
                loss = method.step()
                if not math.isfinite(loss):
                    raise TrialFailure(f"distillation diverged: the loss is {loss} at step {done}")
        last = rung == len(targets) - 1
        packed = representation.fit_to_budget(context.budget)
        seeds = _rung_seeds(context, seed, rung, last)
        began = time.monotonic()
        evaluation = evaluate_file(packed, context.val, rung_protocol(context.protocol, last), seeds, device)
        now = time.monotonic()
        of_training = (now - began) / len(seeds)
        reports.append(RungReport(rung, last, done, packed, evaluation, loss, of_training, now - started))
        if kept and not last:
            state: State = {"reports": [report.to_dict() for report in reports], "generator": generator.get_state()}
            state |= {"representation": representation.state_dict(), "method": method.state() if method else None}
            kept.save(state)
        yield reports[-1]


def rung_protocol(protocol: Protocol, last: bool) -> Protocol:
    """The full protocol at the last rung, fewer steps below it."""
    steps = max(1, round(protocol.steps * protocol.rung_share))
    return protocol if last else protocol.model_copy(update={"steps": steps})


def _rung_seeds(context: TrialContext, seed: int, rung: int, last: bool) -> list[int]:
    count = context.protocol.search_seeds if last else 1
    return [seeding.derive("rung", seed, rung, i) for i in range(count)]
