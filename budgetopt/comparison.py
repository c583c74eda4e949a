"""One packed file, trained on by several networks: what it is worth to those that it was not made for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from budgetopt import data, evaluation, networks
from budgetopt import protocol as protocols
from budgetopt.errors import InputError, TrialFailure
from budgetopt.packing import unpack_file
from budgetopt.scores import Evaluation
from budgetopt.search.folder import RunFolder, dataset_of


@dataclass(frozen=True)
class Compared:
    """One network: its evaluation, or why there is none."""

    network: str
    evaluation: Evaluation | TrialFailure
    seconds: float  # of all its trainings and tests


def compare(
    path: str | Path,
    dataset: str | None,
    names: Sequence[str | None],
    seeds: int | None,
    data_root: str | Path | None,
    label: str | None = None,
    protocol: str | None = None,
) -> Iterator[Compared]:
    """Of each network in turn (None: the one of the protocol) the accuracy on the test split of `dataset`, by default
    that of the run folder around the file. protocol: a preset or TOML file in place of the file's. Raises `InputError`
    before any training."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{str(file)!r} is a folder: name a file in it, such as {str(file / 'best.bopt')!r}")
    if not file.is_file():
        raise InputError(f"cannot read {str(file)!r}: no such file")
    content, packed = unpack_file(file)
    given = protocols.resolve(protocol) if protocol else protocols.from_field(packed.protocol)
    for name in names:
        networks.check_shape(name or given.network, packed.shape)
    if protocol:  # the file's own recipe means what it meant when the file was made
        protocols.check_augmentation(given.augment, packed.shape)
    if seeds is not None and not 1 <= seeds <= 1000:
        raise InputError(f"seeds must be in 1..1000, got {seeds}")
    run = RunFolder.enclosing(file)
    source = data.open_source(*dataset_of(file, dataset, data_root, label)).prepared_by(packed.preparation)
    test = source.checked_test(packed.shape, len(packed.counts))
    device = evaluation.default_device()
    chosen = evaluation.file_seeds(content, seeds or given.seeds)
    parallel = evaluation.default_parallel(device)

    def one(name: str | None) -> Compared:
        recipe = given if name is None else given.model_copy(update={"network": name})
        started = time.monotonic()
        found: Evaluation | TrialFailure
        try:
            found = evaluation.evaluate_file(content, test, recipe, chosen, device, parallel)
            if run is not None:
                run.count_test_evaluation(file)
        except TrialFailure as failure:
            found = failure
        return Compared(recipe.network, found, time.monotonic() - started)

    return map(one, names)
