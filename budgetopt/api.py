"""The Python API behind `budgetopt.search`, `resume`, `compress`, …; the command line calls the same functions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from budgetopt.budget import Budget
from budgetopt.errors import InputError, TrialFailure
from budgetopt.result import Result

if TYPE_CHECKING:
    from budgetopt.comparison import Compared
    from budgetopt.compression import Compressed
    from budgetopt.data import Dataset
    from budgetopt.fisher import Retention
    from budgetopt.scores import Evaluation
    from budgetopt.search.explanation import Explanation
    from budgetopt.search.run import Report


def search(
    budget: str | int | Budget,
    dataset: str | Path = "digits",
    *,
    objectives: Sequence[str | Path] = (),
    space: str | Path | None = None,
    protocol: str | Path | None = None,
    time_limit: float | None = None,
    trials: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    init: str | Path | None = None,
    data_root: str | Path | None = None,
    sampler: str | None = None,
    patience: int | None = None,
    candidates: int | None = None,
    warm_start: Sequence[str | Path] = (),
    storage: str | None = None,
    address: str | None = None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
    parents: bool = False,
    report: Report | None = None,
    verbose: bool = False,
) -> Result:
    """Search the dataset of at most `budget` bytes that trains the best model.

    budget: `"30kb"` = 30,000 bytes, `"240kbit"`, or a number of bytes. dataset: `digits`, a torchvision dataset by
    name, or a path (see `data.open_source`); label: the label column of a table; resize: makes all pictures one size;
    spectrogram: of recordings, as in `mels=32,frames=48,seconds=2`. objectives, space, protocol: names of shipped files
    or paths of your own TOML files (default: by the kind of data). time_limit: seconds of the whole call (default: 270
    for small samples, else 3,600; none if `trials` is given). out: run folder (default: a new one under `runs/`), or a
    URL of one, such as `s3://BUCKET/RUN`; one that holds this very run is gone on with. sampler: what proposes
    allocations, `rate-distortion` (the default) or `tpe`; with the former, patience: end after so many proposals in a
    row that promise less than 0.1 points, warm_start: run folders whose trials it learns from, also of other budgets
    and on other data. candidates: files that are retrained at the end, at most, the front among them
    (default: 16). parents: optimised sets start from the nearest finished one, where one is near, and take a third of
    the steps.

    storage: URL of a database or journal that keeps the study (default: `study.db` in the run folder), `sqlite:///FILE`,
    `journal:///FILE`, `postgresql://…` or `mysql://…`. address: `HOST:PORT` of the Ray cluster that runs the trials
    (default: a private Ray on this machine); workers are then as many as it has cores or, by four, GPUs.

    Raises `InputError` for wrong input before anything is written, `BudgetoptError` if no trial gives a file. Call it
    from the main thread if Ctrl-C is to end it in order. Settings for Ray and the memory allocator of its workers are
    put into `os.environ` where they are not there yet.
    """
    started = time.monotonic()
    from budgetopt.report.display import Silent
    from budgetopt.search import config as configuration
    from budgetopt.search.folder import RunFolder
    from budgetopt.search.run import new_run

    config, source = configuration.resolve(
        budget,
        _text(dataset),
        data_root=data_root,
        objectives=tuple(_text(objective) for objective in objectives),
        space_name=_text(space),
        protocol_name=_text(protocol),
        seed=seed,
        trials=trials,
        time_limit=time_limit,
        workers=workers,
        init=init,
        sampler=sampler,
        patience=patience,
        candidates=candidates,
        warm_start=warm_start,
        address=address,
        label=label,
        resize=resize,
        spectrogram=spectrogram,
        parents=parents,
    )
    folder = RunFolder(out if out is not None else default_out(source.name, config.budget))
    return new_run(config, source, folder, report or Silent(), verbose, time.monotonic() - started, storage, address)


def resume(
    run: str | Path,
    *,
    time_limit: float | None = None,
    trials: int | None = None,
    workers: int | None = None,
    patience: int | None = None,
    candidates: int | None = None,
    address: str | None = None,
    report: Report | None = None,
    verbose: bool = False,
) -> Result:
    """Go on with the run in folder `run`, on this machine or on the Ray cluster at `address`; a finished one is just
    read. Limits are as in `search`, by default those that the run had. Raises `InputError` where there is none."""
    from budgetopt.report.display import Silent
    from budgetopt.search.config import Limits
    from budgetopt.search.folder import RunFolder
    from budgetopt.search.run import resume_run

    limits = Limits(time_limit, trials, workers, patience, candidates)
    return resume_run(RunFolder.existing(run), report or Silent(), verbose, limits, address)


def join(run: str | Path, *, workers: int | None = None, say: Callable[[str], None] = print) -> None:
    """Lend the cores and GPUs of this machine to the process that drives the run in folder `run`, until it ends or
    Ctrl-C. workers: trials at once here. Raises `InputError` where nobody drives the run."""
    from budgetopt.search import joining
    from budgetopt.search.folder import RunFolder
    from budgetopt.search.run import interruptible

    with interruptible() as interrupted:
        joining.join(RunFolder.existing(run), workers, say, interrupted)


def explain(run: str | Path) -> Explanation:
    """What the rate–distortion model makes of the run in folder `run`, also of one that goes on: the front that it
    expects, the sweet spot at each size, the fitted laws, and what one more trial would gain. Raises `InputError` where
    there is no run or no finished trial."""
    from budgetopt.search.folder import RunFolder
    from budgetopt.search.run import explain_run

    return explain_run(RunFolder.existing(run))


def evaluate(
    path: str | Path,
    dataset: str | Path | None = None,
    *,
    network: str | None = None,
    seeds: int | None = None,
    data_root: str | Path | None = None,
    label: str | None = None,
    protocol: str | Path | None = None,
) -> Evaluation:
    """Train on the packed file alone, by the protocol inside it, and test on the test split of `dataset`.

    Without `dataset` the file must lie in a run folder. protocol: a preset or the path of a TOML, in place of the
    file's; network, seeds: override the protocol. With none of them the figure repeats the one that a run reported,
    since the seeds follow from the file. Raises `InputError` for wrong input, `TrialFailure` where a training diverges.
    """
    settings: dict[str, Any] = {"seeds": seeds, "data_root": data_root, "label": label, "protocol": protocol}
    found = next(compare(path, dataset, networks=[network], **settings)).evaluation
    if isinstance(found, TrialFailure):
        raise found
    return found


def compare(
    path: str | Path,
    dataset: str | Path | None = None,
    *,
    networks: Sequence[str | None],
    seeds: int | None = None,
    data_root: str | Path | None = None,
    label: str | None = None,
    protocol: str | Path | None = None,
) -> Iterator[Compared]:
    """As `evaluate`, for one network after another (None: the one of the protocol); a training that fails is its
    network's result."""
    from budgetopt import comparison

    return comparison.compare(path, _text(dataset), networks, seeds, data_root, label, _text(protocol))


def fisher(
    path: str | Path,
    dataset: str | Path | None = None,
    *,
    data_root: str | Path | None = None,
    label: str | None = None,
    seed: int = 0,
) -> list[Retention]:
    """Fisher information of the file's samples beside that of the train part of `dataset` (default: that of the run
    folder around the file), class by class: what BCDC Theorem 4.6 bounds the loss of. The test split is not read.
    Raises `InputError`."""
    from budgetopt import data, networks
    from budgetopt import fisher as information
    from budgetopt import protocol as protocols
    from budgetopt.packing import unpack_file
    from budgetopt.search.folder import dataset_of

    _, packed = unpack_file(path)
    source = data.open_source(*dataset_of(Path(path), _text(dataset), data_root, label)).prepared_by(packed.preparation)
    prepared = data.Dataset.prepare(source, seed)
    if packed.shape != prepared.spec.shape or len(packed.counts) != prepared.spec.classes:
        raise InputError(
            f"{path}: {len(packed.counts)} classes of shape {packed.shape}, those of {prepared.spec.name} are "
            f"{prepared.spec.classes} of shape {prepared.spec.shape}"
        )
    protocol = protocols.from_field(packed.protocol)
    networks.check_shape(protocol.network, packed.shape)
    return information.retention(packed, prepared.train, protocol, seed)


def compress(
    source: str | Path,
    budget: str | int | Budget,
    *,
    out: str | Path | None = None,
    dataset: str | Path | None = None,
    space: str | Path = "compress",
    levels: Sequence[int] = (),
    refine: str = "none",
    refine_steps: int = 100,
    network: str | Path | None = None,
    finetune: str | Path | None = None,
    steps: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    raw: bool = False,
    classes: int | None = None,
    protocol: str | Path | None = None,
    trials: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Compressed:
    """The best packed file of an existing set within `budget`, by quantization after the fact.

    source: `.npz`, `.pt`, `.pth`, `.bopt`, or a folder of images. mean, std, raw: the units of a set that was saved
    standardised, as `budgetopt.sets.Units` says. dataset: real data; its validation part decides. See
    `budgetopt.compression.Settings` for the rest. out: written only if all went well, never over another file.
    Raises `InputError`.
    """
    from budgetopt import compression, sets

    limit, target = Budget.parse(budget), _new_file(out)
    settings = compression.Settings(
        _text(space), tuple(levels), _text(protocol), refine, refine_steps,
        None if network is None else Path(network), _text(finetune), steps, trials, time_limit, seed,
    )  # fmt: skip
    if classes is not None and classes < 1:
        raise InputError(f"the number of classes must be positive, got {classes}")
    real = _prepared(dataset, data_root, label, resize, spectrogram, seed)
    statistics = None if real is None else (real.spec.mean, real.spec.std)
    units = sets.Units(None if mean is None else tuple(mean), None if std is None else tuple(std), statistics, raw)
    brought = sets.read(source, units, "compress").in_class_order(classes)
    return _written(compression.compress(brought, limit, settings, real, say), target)


def merge(
    files: Sequence[str | Path],
    budget: str | int | Budget,
    *,
    out: str | Path | None = None,
    dataset: str | Path | None = None,
    space: str | Path = "compress",
    classes: int | None = None,
    protocol: str | Path | None = None,
    trials: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Compressed:
    """The `.bopt` files of several nodes joined into one within `budget`.

    Symbols are kept where all files share their levels and fit together; else near twins go first, and the rest is
    quantized anew as by `compress`. classes: how many there are in all, where nodes lack the last ones. Raises
    `InputError` that names the file which does not fit.
    """
    from budgetopt import compression, merging

    limit, target = Budget.parse(budget), _new_file(out)
    settings = compression.Settings(
        _text(space), protocol=_text(protocol), trials=trials, time_limit=time_limit, seed=seed
    )
    real = _prepared(dataset, data_root, label, resize, spectrogram, seed)
    return _written(merging.merge(files, limit, settings, classes, real, say), target)


def _prepared(
    dataset: str | Path | None,
    data_root: str | Path | None,
    label: str | None,
    resize: str | None,
    spectrogram: str | None,
    seed: int,
) -> Dataset | None:
    from budgetopt import data

    if dataset is None:
        asked = {"--label": label, "--resize": resize, "--spectrogram": spectrogram}
        for option, value in asked.items():
            if value is not None:
                raise InputError(f"{option} {value} is for real data: name them with --dataset")
        return None
    return data.Dataset.prepare(data.open_source(_text(dataset), data_root, label, resize, spectrogram), seed)


def _new_file(out: str | Path | None) -> Path | None:
    """Checked before the work, not after it."""
    target = None if out is None else Path(out)
    if target is not None and target.exists():
        raise InputError(f"{str(target)!r} exists already: name another file with --out")
    if target is not None and not target.resolve().parent.is_dir():
        raise InputError(f"cannot write {str(target)!r}: no such folder")
    if target is not None and not os.access(target.resolve().parent, os.W_OK):
        raise InputError(f"cannot write {str(target)!r}: its folder may not be written")
    return target


def _written(found: Compressed, target: Path | None) -> Compressed:
    if target is None:
        return found
    try:
        with target.open("xb") as stream:  # another program may have made it meanwhile
            stream.write(found.data)
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return replace(found, path=target)


@overload
def _text(named: str | Path) -> str: ...
@overload
def _text(named: None) -> None: ...
def _text(named: str | Path | None) -> str | None:
    """A name, or a path: a `Path` stays one, so that the folder `digits` is not the dataset of that name."""
    if named is None or isinstance(named, str):
        return named
    return named.as_posix() if "/" in named.as_posix() else f"./{named}"


def default_out(dataset: str, budget: int) -> Path:
    """`runs/DATASET-BYTES-TIME` in the current folder, numbered where another search began in the same second."""
    name = f"{Path(dataset).stem}-{budget}B-{time.strftime('%Y%m%d-%H%M%S')}"
    found, number = Path("runs") / name, 2
    while found.exists():
        found, number = Path("runs") / f"{name}-{number}", number + 1
    return found
