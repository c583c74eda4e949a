"""`Result`: the front of a finished run, read from its `front.json`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.errors import InputError
from budgetopt.option_text import resume_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FrontPoint:
    """One file of the front. `accuracy` is the mean over trainings on the test split, `interval` its 95 % Student-t
    interval; `validation` is the figure that put it on the front."""

    bytes: int
    samples: int  # in the file; fewer than IPC × classes where classes are small or the budget cut some off
    accuracy: float
    half_width: float  # of the 95 % interval, before it is cut at 0 and 1
    interval: tuple[float, float]
    binomial: float  # half of the 95 % interval from the finite test split
    validation: float
    validation_half_width: float
    dominated_on_test: bool
    allocation: Allocation
    path: Path
    macro_f1: float | None = None  # on the test split; None in runs of earlier versions
    parent: int | None = None  # the trial whose set it was fine-tuned from
    total_steps: int | None = None  # of distillation, the parents' included; None in runs without parents


@dataclass(frozen=True)
class Result:
    """A run's answer."""

    folder: Path
    budget: Budget
    dataset: str
    protocol: str
    front: list[FrontPoint]  # by size
    best: FrontPoint  # highest validation accuracy, ties to fewer bytes; also `best.bopt`
    references: dict[str, Any]
    test_evaluations: int
    hypervolume: float
    class_counts: tuple[int, ...] = ()  # of the train part; none in runs of earlier versions

    @property
    def title(self) -> str:
        """The dataset's name, without the folder that it lies in."""
        return Path(self.dataset).name if Path(self.dataset).is_absolute() else self.dataset

    @property
    def imbalanced(self) -> bool:
        """Whether accuracy says little of the smaller classes: one has half the samples of another, or fewer."""
        return bool(self.class_counts) and max(self.class_counts) >= 2 * min(self.class_counts)

    def plot(self) -> Figure:
        """Accuracy against bytes with intervals and reference lines, as a matplotlib figure."""
        from budgetopt.report.plots import front_figure

        return front_figure(self)


def is_final(folder: str | Path) -> bool:
    """Whether the front in `folder` has been tested."""
    try:
        return json.loads((Path(folder) / "front.json").read_text(encoding="utf-8")).get("state") == "final"
    except (OSError, ValueError, AttributeError):
        return False


def read(folder: str | Path) -> Result:
    """The result in a run folder. Raises `InputError` where the run is not finished."""
    folder = Path(folder)
    path = folder / "front.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table.get("state") != "final":
            raise InputError(f"the run {str(folder)!r} is not finished: go on with {resume_command(folder)}")
        points = [_point(folder, member) for member in table["members"]]
        return Result(
            folder=folder,
            budget=Budget(table["budget"]),
            dataset=table["dataset"],
            protocol=table["protocol"],
            front=points,
            best=points[table["best"]],
            references=table["references"],
            test_evaluations=table["test_evaluations"] + _later_evaluations(folder),
            hypervolume=table["hypervolume"],
            class_counts=tuple(table.get("class_counts", ())),
        )
    except FileNotFoundError:
        what = "is not finished" if folder.is_dir() else "does not exist"
        raise InputError(f"the run {str(folder)!r} {what}: it has no front.json") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {str(path)!r}: {error}") from None


def _later_evaluations(folder: Path) -> int:
    """Evaluations by `budgetopt eval` on files inside the run folder."""
    path = folder / "test_evaluations.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _point(folder: Path, member: dict[str, Any]) -> FrontPoint:
    test, validation = member["test"], member["validation"]
    half = test["half_width"] if test["half_width"] is not None else math.nan
    return FrontPoint(
        bytes=member["bytes"],
        samples=member["samples"],
        accuracy=test["accuracy"],
        half_width=half,
        interval=(max(0.0, test["accuracy"] - half), min(1.0, test["accuracy"] + half)),
        binomial=test["binomial_half_width"],
        validation=validation["accuracy"],
        validation_half_width=validation["half_width"],
        dominated_on_test=test["dominated"],
        allocation=Allocation.from_dict(member["allocation"]),
        path=folder / member["file"],
        macro_f1=test.get("macro_f1"),
        parent=member.get("parent"),
        total_steps=member.get("total_steps"),
    )
