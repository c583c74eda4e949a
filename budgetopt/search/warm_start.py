"""Earlier runs as prior knowledge of a search. A run keeps a copy of what they found out, since they may change or go.

Runs of other budgets on the same data by the same protocol count as if their trials were this search's; those on other
data say how accuracy falls with fewer samples and coarser levels, but not how easy these data are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from budgetopt import declarative
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import DataSpec
from budgetopt.errors import InputError
from budgetopt.search import study as studies
from budgetopt.search.config import SearchConfig
from budgetopt.search.evidence import Earlier, Observed
from budgetopt.search.folder import RunFolder
from budgetopt.space import possible

Count = Annotated[int, Field(ge=1)]


class KeptTrial(declarative.Strict):
    """A finished trial. accuracy, error: on validation, and its standard error."""

    allocation: dict[str, Any]
    initial_bytes: Count | None
    bytes: Count
    samples: Count
    accuracy: Annotated[float, Field(ge=0, le=1)]
    error: Annotated[float, Field(ge=0)]


class KeptRun(declarative.Strict):
    """A run, and what its figures rest on. source: hash of the data's place and how they are read; validation: samples
    of that part."""

    run: str
    dataset: str
    source: str | None = None  # earlier versions had none
    split_hash: str
    init_hash: str | None
    protocol: str  # its hash
    objectives: dict[str, dict[str, Any]]
    classes: Count
    validation: Count
    trials: list[KeptTrial]

    @classmethod
    def of(cls, path: str | Path) -> KeptRun:
        """Of the run in folder `path`, also of one that goes on. Raises `InputError` where there is nothing to learn
        from."""
        folder = RunFolder.existing(path)
        config, study = SearchConfig.load(folder.config), studies.load(folder.study)
        facts = study.user_attrs
        if "validation" not in facts:
            raise InputError(f"the run {str(path)!r} does not say on how much data its accuracies were measured")
        trials = []
        for trial in study.get_trials(deepcopy=False):
            record = studies.record(trial)
            if record.state == "complete" and record.allocation is not None:
                held = {name: getattr(record, name) for name in ("bytes", "samples", "accuracy")}
                size, error = trial.user_attrs.get("initial_bytes"), record.error or 0.0
                allocation = record.allocation.to_dict()
                trials.append(KeptTrial(allocation=allocation, initial_bytes=size, error=error, **held))
        if not trials:
            raise InputError(f"no trial of the run {str(path)!r} has finished: it cannot warm-start another")
        return cls(
            run=str(path),
            dataset=Path(config.dataset).name,
            source=_source_hash(config),
            split_hash=facts["split_hash"],
            init_hash=config.init_hash,
            protocol=config.protocol.hash,
            objectives={name: o.model_dump(mode="json") for name, o in config.objectives.items()},
            classes=facts["classes"],
            validation=facts["validation"],
            trials=trials,
        )


class WarmStart(declarative.Strict):
    """What a search knows of earlier runs; the content of `warm_start.json`."""

    runs: list[KeptRun]

    @classmethod
    def of(cls, paths: Sequence[str | Path]) -> WarmStart:
        """Raises `InputError` for a folder that is no run, or one that has no finished trial."""
        return cls(runs=[KeptRun.of(path) for path in paths])

    @property
    def hash(self) -> str:
        """Of what the search learns; where the runs lie is no part of it."""
        content = [run.model_dump(mode="json", exclude={"run"}) for run in self.runs]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> WarmStart:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {str(path)!r}: {error}") from None
        return declarative.validate(table, str(path), cls)

    def earlier(self, config: SearchConfig, spec: DataSpec) -> list[Earlier]:
        """What the sampler learns: trials of objectives that this search has too, with the same hyperparameters, and
        of allocations that its samples allow."""
        own = {name: o.model_dump(mode="json") for name, o in config.objectives.items()}
        return [_relevant(run, own, config, spec) for run in self.runs]


def _source_hash(config: SearchConfig) -> str:
    """Files of the same name in two folders are different data; so is one file with another label column."""
    place = (config.dataset, config.label, config.resize, config.spectrogram)
    return hashlib.sha256(json.dumps(place).encode()).hexdigest()


def _relevant(run: KeptRun, own: dict[str, Any], config: SearchConfig, spec: DataSpec) -> Earlier:
    found = []
    for number, trial in enumerate(run.trials):
        allocation = Allocation.from_dict(trial.allocation)
        name = allocation.objective
        if run.objectives.get(name) != own.get(name, ...) or not possible(allocation, spec.shape):
            continue
        kind = replace(allocation, ipc=1)
        held = (trial.initial_bytes, float(trial.bytes), trial.samples, trial.accuracy, trial.error)
        found.append(Observed(number, allocation, kind, "complete", *held, rungs={}))
    same_start = run.init_hash == config.init_hash
    same_data = run.split_hash == spec.split_hash or run.source == _source_hash(config)
    return Earlier(
        tuple(found),
        run.classes,
        run.validation,
        comparable=same_start and same_data and run.protocol == config.protocol.hash,
        same_sizes=same_start and run.split_hash == spec.split_hash,
    )
