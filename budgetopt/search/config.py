"""The resolved configuration of a run: all that decides its result, with the contents of every TOML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field

from budgetopt import data, declarative, objective, protocol, space
from budgetopt.budget import Budget
from budgetopt.errors import InputError, unknown_name
from budgetopt.objective import Objective
from budgetopt.protocol import Protocol
from budgetopt.search.mirror import is_url
from budgetopt.space import SearchSpace

BASELINE = "coreset"  # in every search, whatever objectives are named
DEFAULT_OBJECTIVES = ("coreset", "dm")
SMALL_SAMPLE = 256  # values; searches on larger samples get an hour by default
NO_LIMIT = 30 * 86_400.0  # seconds
Sampler = Literal["rate-distortion", "tpe"]
DEFAULT_SAMPLER: Sampler = "rate-distortion"
DEFAULT_TIME, DEFAULT_TIME_LARGE = 270.0, 3600.0  # seconds
MOST_CANDIDATES = 16


@dataclass(frozen=True)
class Limits:
    """What may change when a run goes on; None: as it was, or the default. time_limit: seconds."""

    time_limit: float | None = None
    trials: int | None = None
    workers: int | None = None
    patience: int | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` for one that is not positive."""
        names = {"time_limit": "time limit", "candidates": "number of candidates"}
        for name, value in self.given.items():
            if value <= 0:
                raise InputError(f"the {names.get(name, name)} must be positive, got {value}")

    @property
    def given(self) -> dict[str, Any]:
        """By name, those that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class SearchConfig(declarative.Strict):
    """Everything a run needs. `identity` ignores what may change on resume: limits and workers."""

    dataset: str
    data_root: str | None = None
    label: str | None = None  # the label column of a table
    resize: str | None = None  # what all pictures are made
    spectrogram: str | None = None  # how those of recordings are made
    budget: Annotated[int, Field(ge=1)]  # bytes
    objectives: dict[str, Annotated[Objective, Field(discriminator="method")]]
    space_name: str
    space: SearchSpace
    protocol: Protocol
    seed: Annotated[int, Field(ge=0)] = 0
    trials: Annotated[int, Field(ge=1)] | None = None
    time_limit: Annotated[float, Field(gt=0)] | None = None  # seconds, of the whole command
    patience: Annotated[int, Field(ge=1)] | None = None  # proposals in a row that promise nothing, before a search ends
    candidates: Annotated[int, Field(ge=1)] | None = None  # files that are retrained at the end, at most
    workers: Annotated[int, Field(ge=1)]
    gpus: Annotated[int, Field(ge=0)] = 0
    init: str | None = None
    parents: bool = False  # whether trials may start from finished sets
    sampler: Sampler = "tpe"  # what proposes allocations; runs of earlier versions knew no other
    init_hash: str | None = None  # of the file's content: the same path may hold another set later
    warm_start: list[str] = Field(default_factory=list)  # run folders that the sampler learns from
    warm_start_hash: str | None = None  # of what it learned there

    @property
    def identity(self) -> str:
        """Hash of what decides the result of a trial: two runs with the same identity are the same run."""
        table = self.model_dump(exclude={*asdict(self.limits), "gpus", "data_root", "init", "warm_start"})
        if self.sampler == "tpe":
            del table["sampler"]
        if not self.parents:
            del table["parents"]
        for name in ("warm_start_hash", "resize", "spectrogram"):  # earlier versions had none
            if table[name] is None:
                del table[name]
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def limits(self) -> Limits:
        return Limits(self.time_limit, self.trials, self.workers, self.patience, self.candidates)

    @property
    def most_candidates(self) -> int:
        return self.candidates or MOST_CANDIDATES

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def with_time_limit(self, values: int) -> SearchConfig:
        """The time limit resolved for samples of `values` values, where none was given."""
        default = default_time(values)
        if self.trials is not None:  # the trials are the limit: the clock must not decide what comes out
            default = NO_LIMIT
        return self.model_copy(update={"time_limit": self.time_limit or default})

    @classmethod
    def load(cls, path: Path) -> SearchConfig:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{str(path.parent)!r} is not a run folder: it has no {path.name}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {str(path)!r}: {error}") from None
        return declarative.validate(table, str(path), cls)


def default_time(values: int) -> float:
    """Seconds of a search on samples of `values` values, where none are given."""
    return DEFAULT_TIME if values <= SMALL_SAMPLE else DEFAULT_TIME_LARGE


def resolve(
    budget: str | int | Budget,
    dataset: str = "digits",
    *,
    data_root: str | Path | None = None,
    objectives: tuple[str, ...] | list[str] = (),
    space_name: str | None = None,
    protocol_name: str | None = None,
    seed: int = 0,
    trials: int | None = None,
    time_limit: float | None = None,
    workers: int | None = None,
    init: str | Path | None = None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
    sampler: str | None = None,
    patience: int | None = None,
    candidates: int | None = None,
    warm_start: Sequence[str | Path] = (),
    address: str | None = None,
    parents: bool = False,
) -> tuple[SearchConfig, data.Source]:
    """Turn names into contents, and check them all before anything is written; address: of the Ray cluster that runs
    the trials. Raises `InputError`."""
    size = Budget.parse(budget).bytes
    limits = Limits(time_limit, trials, workers, patience, candidates)
    check_patience(patience, sampler or DEFAULT_SAMPLER)
    if warm_start and (sampler or DEFAULT_SAMPLER) != "rate-distortion":
        raise InputError(f"--warm-start {warm_start[0]} needs a sampler that learns from it: --sampler rate-distortion")
    if seed < 0:
        raise InputError(f"the seed must not be negative, got {seed}")
    if sampler is not None and sampler not in get_args(Sampler):
        raise unknown_name("sampler", sampler, get_args(Sampler))
    source = data.open_source(dataset, data_root, label, resize, spectrogram)
    space_name = space_name or source.space
    pairs = [objective.resolve(name) for name in objectives or DEFAULT_OBJECTIVES]
    named: dict[str, Any] = dict(pairs)
    if len(named) < len(pairs):
        raise InputError(f"two objectives have the same name: {', '.join(n for n, _ in pairs)}; rename one file")
    if not any(o.method == "coreset" and o.steps == 0 for o in named.values()):
        free = BASELINE if BASELINE not in named else f"{BASELINE}-unrefined"
        named = {free: objective.zero_step_coreset(), **named}
    if parents and not any(isinstance(o, objective.Optimised) for o in named.values()):
        raise InputError(f"--parents needs sets that are optimised, not {', '.join(named)} alone: --objective dm")
    cores, gpus = machine(address)
    config = SearchConfig(
        dataset=dataset if source.path is None else str(source.path.resolve()),
        data_root=None if data_root is None else str(Path(data_root).resolve()),
        label=label,
        resize=resize,
        spectrogram=spectrogram,
        parents=parents,
        sampler=cast(Sampler, sampler or DEFAULT_SAMPLER),
        budget=size,
        objectives=named,
        space_name=space_name,
        space=space.resolve(space_name),
        protocol=protocol.resolve(protocol_name or source.protocol),
        seed=seed,
        **{"workers": default_workers(cores, gpus), **limits.given},
        gpus=gpus,
        init=None if init is None else str(Path(init).resolve()),
        init_hash=None if init is None else _content_hash(Path(init)),
        warm_start=[str(run) if is_url(str(run)) else str(Path(run).resolve()) for run in warm_start],
    )
    return config, source


def check_patience(patience: int | None, sampler: str) -> None:
    """Raise `InputError` for a sampler that expects nothing of its proposals."""
    if patience is not None and sampler != "rate-distortion":
        raise InputError(f"--patience {patience} needs a sampler that expects something: --sampler rate-distortion")


def _content_hash(path: Path) -> str:
    from budgetopt import sets

    try:
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sets.files_of(path)]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def machine(address: str | None = None) -> tuple[int, int]:
    """(CPU cores, GPUs) of this machine, or of the Ray cluster at `address`."""
    if address is not None:
        from budgetopt.search.engine import cluster_resources

        return cluster_resources(address)
    import os

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, torch.cuda.device_count() if torch.cuda.is_available() else 0


def default_workers(cores: int, gpus: int) -> int:
    """One per CPU core; with GPUs four per GPU (small networks leave most of a GPU idle), at most one per core."""
    return max(gpus, min(4 * gpus, cores)) if gpus else max(1, cores)
