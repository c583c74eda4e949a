"""The Optuna study of a run: the single source of truth, owned by one driver process.

Concurrency: only the driver writes trials; the dashboard and `budgetopt front` read while it runs (SQLite in WAL mode).
Values of a finished trial: (log2 bytes, validation accuracy). Everything else is a user attribute:
`allocation`, `key`, `rung/R` for every report, `bytes`, `file`, `reason` for what did not finish; where trials may
start from others, `parent` before the first report and `total_steps` from then on.
"""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.search import storage
from budgetopt.search.storage import Place, Remote

DIRECTIONS = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
METRICS = ["log2(bytes)", "validation accuracy"]

# Reasons of PRUNED trials. Only the first says something about accuracy.
STOPPED, OVER_BEFORE, OVER_AFTER, DUPLICATE = "stopped", "over_budget_before", "over_budget_after", "duplicate"
IMPOSSIBLE = "impossible"  # a quantizer that cannot take what the transform makes
UNPROPOSED = "unproposed"  # its driver died before it was an allocation
# Reasons of FAIL trials that are not the trial's own fault: they are started again by `resume`.
INTERRUPTED = "interrupted"

# User attributes where trials may start from others: a `search.parents.Parent`, or None for one that starts anew, and
# the distillation steps behind a trial's last report, those of its parents included.
PARENT, TOTAL_STEPS = "parent", "total_steps"


@dataclass(frozen=True)
class Record:
    """One trial as the study holds it."""

    number: int
    state: str  # complete, stopped, infeasible, skipped, failed, interrupted or running
    allocation: Allocation | None
    bytes: int | None
    samples: int | None
    accuracy: float | None  # on validation
    error: float | None  # standard error of `accuracy`
    file: str | None
    message: str | None
    rungs: dict[int, dict[str, Any]] = field(default_factory=dict)
    parent: int | None = None  # the trial whose set this one started from
    total_steps: int | None = None  # of distillation, those of the parents included


def create(place: Place) -> optuna.Study:
    """A new study. A run folder's own file is there whole or not at all: Optuna fills in what a half-made one lacks, so
    that somebody who only looks would break what the driver is making."""
    if not isinstance(place, Path):
        return _created(storage.opened(place), place)
    partial = place.with_name(f".{place.name}.partial")
    for left in place.parent.glob(f"{partial.name}*"):  # by a killed process
        left.unlink()
    made = storage.opened(partial)
    _created(made, place)
    assert isinstance(made, RDBStorage)
    made.remove_session()
    made.engine.dispose()
    with closing(sqlite3.connect(partial)) as connection:
        # empties the log, which goes with the last connection: it would not be renamed with the file. That stays in WAL
        # mode, so that nobody who opens it has to change it.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    partial.replace(place)
    return optuna.load_study(storage=storage.opened(place), study_name=storage.name_of(place))


def _created(made: BaseStorage, place: Place) -> optuna.Study:
    study = optuna.create_study(storage=made, study_name=storage.name_of(place), directions=DIRECTIONS)
    study.set_metric_names(METRICS)
    return study


def check(place: Place) -> None:
    """Raise `InputError` where there is no study; writes nothing."""
    if isinstance(place, Path) and not place.is_file():
        raise InputError(f"{str(place.parent)!r} is a run folder without a study ({place.name} is missing)")
    if isinstance(place, Remote) and not storage.exists(place):
        raise InputError(f"there is no study {place.study!r} in {place.public}")


def load(place: Place) -> optuna.Study:
    """Raises `InputError` where there is no readable study."""
    check(place)
    try:
        source = storage.readable(place)  # errors name the place itself
        if isinstance(source, Path) and not storage.holds_studies(source):
            raise KeyError("no studies in it")  # before Optuna makes its own tables there
        return optuna.load_study(storage=storage.opened(source), study_name=storage.name_of(place))
    except (KeyError, ValueError, sqlite3.DatabaseError, sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        where = f"{str(place.parent)!r} is a run folder" if isinstance(place, Path) else f"{place.public} is a storage"
        raise InputError(f"{where} without a readable study: {str(error).splitlines()[0]}") from None


def record(trial: FrozenTrial) -> Record:
    attributes = trial.user_attrs
    rungs = {int(k.split("/")[1]): v for k, v in attributes.items() if k.startswith("rung/")}
    last = rungs[max(rungs)] if rungs else {}
    reason = attributes.get("reason")
    state = {
        TrialState.COMPLETE: "complete",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
        TrialState.FAIL: "interrupted" if reason == INTERRUPTED else "failed",
    }.get(trial.state, "stopped" if reason == STOPPED else "infeasible" if reason == OVER_AFTER else "skipped")
    parent = attributes.get(PARENT)
    return Record(
        number=trial.number,
        state=state,
        allocation=Allocation.from_dict(attributes["allocation"]) if "allocation" in attributes else None,
        bytes=last.get("bytes"),
        samples=last.get("samples"),
        accuracy=last.get("accuracy"),
        error=last.get("error"),
        file=last.get("file"),
        message=attributes.get("message") or reason,
        rungs=rungs,
        parent=parent["trial"] if parent else None,
        total_steps=attributes.get(TOTAL_STEPS, last.get("step")),
    )


def records(study: optuna.Study) -> list[Record]:
    return [record(t) for t in study.get_trials(deepcopy=False)]


def values(size: int, accuracy: float) -> list[float]:
    return [math.log2(size), accuracy]


def release_stale(study: optuna.Study) -> list[dict[str, Any]]:
    """End the trials that a dead driver left RUNNING; → parameters of those and of others that were interrupted, to be
    enqueued again, each once. One that was only being proposed has ended as skipped, unless it came from the queue."""
    again = []
    trials = study.get_trials(deepcopy=False)
    # by a trial that waits or has begun: one that died as it left the queue has restarted nothing
    restarted = {t.user_attrs.get("restart_of") for t in trials if t.state == TrialState.WAITING or _begun(t)}
    for trial in trials:
        queued = trial.system_attrs.get("fixed_params") if "restart_of" not in trial.user_attrs else None
        params = trial.params if _begun(trial) else queued
        interrupted = trial.user_attrs.get("reason") == INTERRUPTED
        if trial.state == TrialState.RUNNING:
            interrupted = bool(params)
            reason, state = (INTERRUPTED, TrialState.FAIL) if interrupted else (UNPROPOSED, TrialState.PRUNED)
            optuna.trial.Trial(study, trial._trial_id).set_user_attr("reason", reason)
            study.tell(trial.number, state=state)
        if interrupted and params and trial.number not in restarted:
            again.append({"number": trial.number, "params": params})
    return again


def _begun(trial: FrozenTrial) -> bool:
    return "allocation" in trial.user_attrs and bool(trial.params)
