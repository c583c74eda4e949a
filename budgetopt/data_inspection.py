"""`budgetopt data inspect`: what is understood of a dataset, what its samples cost, and what a search would take here.

Data that take long to read are looked at through a sample. Nothing is written, and of the test part only labels and
hashes are looked at.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from budgetopt import data, evaluation, networks, space
from budgetopt import protocol as protocols
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import Dataset, validated_labels, validation_size
from budgetopt.errors import InputError
from budgetopt.methods.selection import Selector
from budgetopt.objective import zero_step_coreset
from budgetopt.packing import pack
from budgetopt.packing.container import header
from budgetopt.protocol import Protocol
from budgetopt.representation import Representation
from budgetopt.search import config as configuration
from budgetopt.search.design import smallest_file
from budgetopt.seeding import generator
from budgetopt.trial import TrialContext, rung_protocol

LOOKED_AT = 1000  # training samples of data that take long to read
PACKED = 1 << 13  # about so many bits of values are packed to see what a sample costs, one sample at least
SMALLEST_VALUES = 1 << 19  # of one sample a class, up to which the smallest file is made, not estimated
TIMED_STEPS = 3  # of training, after one that is not counted
SHOWN = 12  # classes in the text
BITS = range(1, 9)


@dataclass(frozen=True)
class Estimate:
    """Of a search on this machine, from a few training steps. memory: bytes, of all processes together."""

    workers: int
    training_seconds: float
    trial_seconds: float  # of a set that is not distilled
    time_limit: float  # the default one, seconds
    trials: int  # that fit it
    memory: int


@dataclass(frozen=True)
class Understood:
    """low, high: the range of the training values looked at; sample_bytes: bits → bytes of one more sample;
    smallest_budget: bytes; class_counts: of training and validation part together, and of the test part."""

    dataset: str
    train: int
    validation: int
    test: int | None
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    looked_at: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    protocol: str
    space: str
    sample_bytes: dict[int, float]
    smallest_budget: int
    smallest_is_estimate: bool
    estimate: Estimate | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def facts(self) -> list[tuple[str, str]]:
        """[(what, value)], a line each."""
        counts, n = self.class_counts, sum(self.class_counts)
        named = zip(self.class_names or map(str, range(len(counts))), counts, strict=True)
        classes = [f"{name} {count:,}" for name, count in named]
        more = f", … ({len(classes) - SHOWN} more)" if len(classes) > SHOWN else ""
        least, most = min(counts), max(counts)
        test = "none" if self.test is None else f"{self.test:,} test"
        looked = "" if self.looked_at == n else f", seen in {self.looked_at:,} of them"
        approximately = "about " if self.smallest_is_estimate else ""
        found = [
            ("dataset", self.dataset),
            ("samples", f"{self.train:,} training, {self.validation:,} validation, {test}"),
            ("shape", f"{'×'.join(map(str, self.shape))}, {self.dtype}, values {self.low:g} to {self.high:g}{looked}"),
            ("classes", f"{len(counts)}: {', '.join(classes[:SHOWN])}{more} (training and validation)"),
            ("balance", "equal" if least == most else f"{least:,} to {most:,} a class, a factor of {most / least:.1f}"),
            ("protocol", f"{self.protocol}, search space {self.space}"),
            ("bytes a sample", ", ".join(f"{self.sample_bytes[b]:,.0f} at {b}" for b in self.sample_bytes) + " bits"),
            ("smallest budget", f"{approximately}{self.smallest_budget:,} bytes"),
        ]
        if self.estimate is not None:
            e = self.estimate
            found += [
                ("a training", f"about {_duration(e.training_seconds)}, a trial about {_duration(e.trial_seconds)}"),
                (
                    "a search",
                    f"about {e.trials:,} such trials on {e.workers} workers in the default {_duration(e.time_limit)}",
                ),
                ("memory", f"about {e.memory / 1e9:.1f} GB in all"),
                ("estimates", f"the three lines above, from {TIMED_STEPS} steps on this machine as it is now"),
            ]
        return [*found, *(("note", note) for note in self.notes), *(("warning", w) for w in self.warnings)]


def inspect(
    dataset: str,
    data_root: str | Path | None = None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
) -> Understood:
    """Raises `InputError` for data that a search would refuse."""
    opened = data.open_source(dataset, data_root, label, resize, spectrogram)
    sample = opened.sampled(LOOKED_AT)
    few = Dataset.prepare(sample, 0)
    source = few.source if sample is opened else opened  # with what the samples of a table need of the data
    y = source.train_labels()
    y = validated_labels(y, len(y), f"{source.name}, training part")
    spec, looked_at = few.spec, len(few.train) + len(few.val)
    counts = np.bincount(y, minlength=spec.classes)
    warnings, test_y = [], None
    try:
        source.check_test_part(spec.shape)
        test_y = source.test_labels()
        test_y = validated_labels(test_y, len(test_y), f"{source.name}, test part")
    except InputError as error:
        test_y = None
        warnings.append(f"no test part that could be used: {error}")
    test_counts = np.bincount(test_y, minlength=spec.classes) if test_y is not None else np.zeros(0, int)
    if test_y is not None:
        twice = _duplicates(source)
        if twice:
            warnings.append(f"{twice:,} of {len(test_y):,} test samples are training samples too, byte by byte")
    protocol = protocols.resolve(source.protocol)
    sample_bytes = _sample_bytes(few)
    smallest, is_estimate = _smallest(few, dataset, source, sample_bytes)
    train = np.concatenate([few.train.x[:LOOKED_AT], few.val.x[:LOOKED_AT]])
    validation = validation_size(len(y), len(counts))
    return Understood(
        dataset=source.name,
        train=len(y) - validation,
        validation=validation,
        test=None if test_y is None else len(test_y),
        shape=spec.shape,
        dtype=str(train.dtype),
        low=float(train.min()),
        high=float(train.max()),
        looked_at=looked_at,
        class_names=source.class_names[: len(counts)],  # metadata may name more than there are
        class_counts=tuple(counts.tolist()),
        test_counts=tuple(test_counts.tolist()),
        protocol=source.protocol,
        space=source.space,
        sample_bytes=sample_bytes,
        smallest_budget=smallest,
        smallest_is_estimate=is_estimate,
        estimate=_estimate(few, protocol, validation, len(y)),
        notes=source.notes,
        warnings=tuple(warnings),
    )


def _duplicates(source: data.Source) -> int:
    """Test samples that are training samples, by the hash of their bytes."""
    known = set(source.fingerprints(test=False))
    return sum(print_ in known for print_ in source.fingerprints(test=True))


def _sample_bytes(few: Dataset) -> dict[int, float]:
    """Bits → bytes of the symbols of one sample, among some random ones, by the coder that makes them shortest."""
    spec, found = few.spec, {}
    selector = Selector(few.train, spec)
    for bits in BITS:
        rows = max(1, PACKED // (bits * spec.values))
        ipc = max(1, rows // spec.classes)
        chosen = selector.select("random", ipc, 0)
        if len(chosen.x) > rows:  # more classes than samples are packed
            counts = (1,) * rows + (0,) * (spec.classes - rows)
            chosen = replace(chosen, x=chosen.x[:rows], counts=counts)
        allocation = Allocation(ipc=ipc, levels=2**bits)
        packed = Representation(chosen, allocation, spec, 0, torch.device("cpu")).packed()
        found[bits] = (len(pack(packed)) - len(header(packed))) / len(chosen.x)
    return found


def _smallest(few: Dataset, dataset: str, source: data.Source, sample_bytes: dict[int, float]) -> tuple[int, bool]:
    """Bytes of the smallest file of the search space, and whether that is an estimate: of one sample a class at 1 bit
    where making the files takes too long."""
    spec = few.spec
    if spec.classes * spec.values > SMALLEST_VALUES:
        return math.ceil(spec.classes * sample_bytes[1]), True
    protocol, chosen = protocols.resolve(source.protocol), space.resolve(source.space)
    objective: dict[str, Any] = {configuration.BASELINE: zero_step_coreset()}
    config = configuration.SearchConfig(
        dataset=dataset, budget=sys.maxsize, objectives=objective, space_name=source.space, space=chosen,
        protocol=protocol, workers=1,
    )  # fmt: skip
    context = TrialContext(few.train, few.val, spec, protocol, objective)
    return smallest_file(config, context, Selector(few.train, spec)), len(few.train) < LOOKED_AT


def _estimate(few: Dataset, protocol: Protocol, validation: int, samples: int) -> Estimate | None:
    """None where a step cannot be done at all."""
    device, spec = evaluation.default_device(), few.spec
    cores, gpus = configuration.machine()
    workers = configuration.default_workers(cores, gpus)
    try:
        with evaluation.one_thread(torch.device("cpu")):  # as in a search
            net = networks.build(protocol.network, spec.shape, spec.classes, protocol.width, generator("look")).to(
                device
            )
            standardize = evaluation.Standardize(spec.mean, spec.std, spec.shape, device)
            x, y = torch.from_numpy(few.train.x[: protocol.batch]), torch.from_numpy(few.train.y[: protocol.batch])
            marks = []
            # without an optimiser, whose first use takes longer than all this
            for _ in range(1 + TIMED_STEPS):
                functional.cross_entropy(net(standardize(x.to(device))), y.to(device)).backward()
                marks.append(time.monotonic())
            step = (marks[-1] - marks[0]) / TIMED_STEPS * protocol.batch / len(x)
            seen = replace(few.val, x=few.val.x[:128], y=few.val.y[:128])
            started = time.monotonic()
            evaluation.score(net, seen, standardize, device, spec.classes)
            scoring = (time.monotonic() - started) / len(seen) * validation
    except InputError:  # the network does not take such samples
        return None
    training = protocol.steps * step + scoring
    short = rung_protocol(protocol, last=False).steps * step + scoring
    trial = short + protocol.search_seeds * training
    limit = configuration.default_time(spec.values)
    # every process maps the data once and holds what this one holds now
    memory = samples * spec.values * few.train.x.itemsize + (workers + 1) * _peak_memory()
    return Estimate(workers, training, trial, limit, int(workers * limit / trial), memory)


def _peak_memory() -> int:
    """Bytes of this process at its largest."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
