"""The Optuna study of a run: the single source of truth, owned by one driver process.

Concurrency: only the driver writes trials; the dashboard and `budgetopt front` read while it runs (SQLite in WAL mode).
Values of a finished trial: (log2 bytes, validation accuracy). Everything else is a user attribute:
`allocation`, `key`, `rung/R` for every report, `bytes`, `file`, `reason` for what did not finish.
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
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError

NAME = "budgetopt"
DIRECTIONS = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
METRICS = ["log2(bytes)", "validation accuracy"]

# Reasons of PRUNED trials. Only the first says something about accuracy.
STOPPED, OVER_BEFORE, OVER_AFTER, DUPLICATE = "stopped", "over_budget_before", "over_budget_after", "duplicate"
IMPOSSIBLE = "impossible"  # a quantizer that cannot take what the transform makes
# Reasons of FAIL trials that are not the trial's own fault: they are started again by `resume`.
INTERRUPTED = "interrupted"


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


def storage(path: Path) -> RDBStorage:
    """SQLite in WAL mode: readers are not disturbed, a write costs a quarter. NORMAL loses nothing on `kill -9`."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()  # escapes % and ? in folder names
    opened = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})

    @sqlalchemy.event.listens_for(opened.engine, "connect")
    def _normal(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    opened.engine.dispose()  # connections made before the listener
    return opened


def create(path: Path) -> optuna.Study:
    study = optuna.create_study(storage=storage(path), study_name=NAME, directions=DIRECTIONS)
    study.set_metric_names(METRICS)
    return study


def check(path: Path) -> None:
    """Raise `InputError` where there is no study; writes nothing."""
    if not path.is_file():
        raise InputError(f"{str(path.parent)!r} is a run folder without a study ({path.name} is missing)")


def load(path: Path) -> optuna.Study:
    """Raises `InputError` where there is no readable study."""
    check(path)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone():
                raise KeyError("no studies in it")  # before Optuna makes its own tables there
        return optuna.load_study(storage=storage(path), study_name=NAME)
    except (KeyError, sqlite3.DatabaseError, sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{str(path.parent)!r} is a run folder without a readable study: {reason}") from None


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
    )


def records(study: optuna.Study) -> list[Record]:
    return [record(t) for t in study.get_trials(deepcopy=False)]


def values(size: int, accuracy: float) -> list[float]:
    return [math.log2(size), accuracy]


def release_stale(study: optuna.Study) -> list[dict[str, Any]]:
    """Tell trials that a dead driver left RUNNING that they failed; → parameters of those and of others interrupted,
    to be enqueued again, each once."""
    again = []
    trials = study.get_trials(deepcopy=False)
    restarted = {t.user_attrs.get("restart_of") for t in trials}
    for trial in trials:
        stale = trial.state == TrialState.RUNNING
        if stale:
            optuna.trial.Trial(study, trial._trial_id).set_user_attr("reason", INTERRUPTED)
            study.tell(trial.number, state=TrialState.FAIL)
        interrupted = stale or trial.user_attrs.get("reason") == INTERRUPTED
        if interrupted and trial.number not in restarted and trial.params and "allocation" in trial.user_attrs:
            again.append({"number": trial.number, "params": trial.params})
    return again
