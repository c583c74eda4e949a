"""Ray: started quietly and closed completely; trials through Tune, trainings of the final phase as tasks."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from budgetopt import mapped, process, scratch
from budgetopt.errors import InputError, TrialFailure, first_line

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: a flag that the stopper reads
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
_ALWAYS = {
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the searcher alone says how many trials there may be
    **process.MEMORY,
}


def environment() -> dict[str, str]:
    """Environment of Ray's processes."""
    return _QUIET | _ALWAYS


def cluster_resources(address: str) -> tuple[int, int]:
    """(CPU cores, GPUs) of the cluster at `address`. Raises `InputError` where there is none."""
    with ray_session(0, 0, verbose=False, address=address):
        import ray

        found = ray.cluster_resources()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))


@contextmanager
def ray_session(workers: int, gpus: int, verbose: bool, address: str | None = None) -> Iterator[Path]:
    """A private Ray on this machine, closed and its folder removed at the end, or a connection to the cluster at
    `address`; → a folder for what Ray writes. A Ray that the caller has already started is used, and left running.
    Raises `InputError` where no cluster answers."""
    for name, value in (_ALWAYS if verbose else environment()).items():
        os.environ.setdefault(name, value)
    folder = scratch.folder(sockets=True)
    started = False
    try:
        # Ray listens on all interfaces: nobody else may use this one. It reads the mode when it is first imported.
        if not address and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        import ray

        if not ray.is_initialized():
            level = logging.INFO if verbose else logging.CRITICAL
            quiet: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": verbose}
            if address:
                _connect(address, quiet)
            else:
                ray.init(
                    num_cpus=workers,
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=512 * 1024**2,
                    _temp_dir=str(folder),
                    **quiet,
                )
            started = True
        if not address:  # large data are mapped by the workers, not copied for them
            ray.util.register_serializer(np.memmap, serializer=mapped.by_reference, deserializer=mapped.opened)
        if not verbose:
            for name in ("ray", "ray.tune", "ray.train", "ray.data"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield folder
    finally:
        if started:
            import ray

            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str, quiet: dict[str, Any]) -> None:
    import ray

    try:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError("write HOST:PORT")
        socket.create_connection((host, int(port)), timeout=10.0).close()  # Ray itself asks for minutes
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise InputError(
            f"cannot join the Ray cluster at {address!r}: {first_line(error)} (start one with 'ray start "
            f"--head', and set its RAY_AUTH_TOKEN here, if it has one)"
        ) from None


def gpu_share(workers: int, gpus: int) -> float:
    """GPU of one worker: as many workers share one GPU as must, so that all find a place (3 on 2 GPUs take halves)."""
    return 1.0 / math.ceil(workers / gpus) if gpus else 0.0


def proposed_ahead(workers: int) -> int:
    """Proposals made before there is a worker for them, so that none waits for the sampler. With one worker there are
    none: what is asked then must not depend on how far the trial that runs has come."""
    return math.ceil(workers / 2) if workers > 1 else 0


class Places:
    """How many trials there may be at a time, those proposed ahead included: `workers`, and as many more as machines
    that joined since have room for. Needs an open Ray session."""

    def __init__(self, workers: int, gpus: int) -> None:
        self._workers, self._kind = workers, "GPU" if gpus else "CPU"
        self._share = gpu_share(workers, gpus) or 1.0
        self._first = self._room()
        self._looked, self._found = -math.inf, 0

    def _room(self) -> int:
        import ray

        return int(ray.cluster_resources().get(self._kind, 0.0) / self._share)

    def __call__(self) -> int:
        if time.monotonic() - self._looked > 1.0:
            room = self._room()
            workers = max(1, self._workers + room - self._first)
            # a proposal made ahead runs at once where Ray has room for more than `workers`
            self._found = workers + (proposed_ahead(workers) if workers >= room else 0)
            self._looked = time.monotonic()
        return self._found


def run_trials(
    context: Any,
    searcher: Any,
    scheduler: Any,
    out: Path,
    share: float,
    stop: Callable[[], bool],
    scratch: Path,
    verbose: bool,
    cluster: bool = False,
) -> None:
    """Run trials until the searcher has no more or `stop()` is true. What is running then is abandoned. share: GPU of
    one trial; cluster:
    workers may be on machines that do not see the run folder; their files come to this one."""
    from ray import tune

    from budgetopt.search.stopper import StopWhen

    resources = {"cpu": 1, "gpu": share} if share else {"cpu": 1}
    receiver = _receiver(out) if cluster else None
    trainable = tune.with_parameters(_trial_in_worker, context=context, out=str(out), share=share, receiver=receiver)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch / "tune"),
            stop=StopWhen(stop),
            verbose=2 if verbose else 0,
            failure_config=tune.FailureConfig(max_failures=1),  # where a worker dies the trial starts again
        ),
    )
    tuner.fit()


class _Receiver:
    """Runs as an actor on the driver's machine: writes the files of workers elsewhere into the run folder, and reads
    those of parents for them."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def write(self, name: str, data: bytes) -> dict[str, str]:
        return _write(self._out, name, data)

    def read(self, file: str) -> bytes:
        return _read(self._out, file)


def _receiver(out: Path) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Receiver)
    return actor.options(scheduling_strategy=here).remote(out)


def _trial_in_worker(config: dict[str, Any], context: Any, out: str, share: float, receiver: Any = None) -> None:
    """Runs in a Ray worker: reports every rung, or why it cannot. Files are written before they are reported."""
    import ray
    import torch
    from ray import tune

    from budgetopt.allocation import Allocation
    from budgetopt.errors import OverBudget
    from budgetopt.search import storage

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    allocation, began = Allocation.from_dict(config["allocation"]), time.time()
    reports = _reports(allocation, config.get("parent"), context, Path(out), _device(share), receiver)
    while True:
        try:
            report = next(reports, None)
            if report is None:
                return
            result: dict[str, Any] = {
                "rung": report.rung,
                "last": report.last,
                "step": report.step,
                "key": allocation.key,
                "child": config.get("parent") is not None,
                "bytes": len(report.data),
                "samples": report.samples,
                "accuracy": report.evaluation.accuracy,
                "accuracies": list(report.evaluation.accuracies),
                "error": report.evaluation.standard_error,
                "loss": None if report.loss != report.loss else report.loss,
                "began": began,
                "seconds": report.seconds,
                "training_seconds": report.training_seconds,
            }
            if report.last:
                name = f"{config['number']:05d}-{allocation.key}"
                if receiver is None:
                    result |= _write(Path(out), name, report.data)
                else:
                    result |= ray.get(receiver.write.remote(name, report.data))
        except OverBudget as error:
            result = {"over_budget": str(error), "last": True}
        except Exception as error:  # any failure of one trial is recorded, and the search goes on
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            full = storage.unwritable(error)
            last_line = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
            result = {"unwritable": full, "last": True} if full else {"failure": last_line[:500], "last": True}
        tune.report(result)  # raises SystemExit where the scheduler stops the trial
        if "rung" not in result:
            return


def _reports(
    allocation: Any, chosen: dict[str, Any] | None, context: Any, out: Path, device: Any, receiver: Any
) -> Iterator[Any]:
    """Of the trial; its parent is read when the first is asked for, so that an error of it is one of the trial."""
    import ray

    from budgetopt import trial
    from budgetopt.search.folder import RunFolder

    parent = None
    if chosen is not None:
        file = chosen["file"]
        parent = _read(out, file) if receiver is None else ray.get(receiver.read.remote(file))
    kept = trial.checkpoint(context, allocation, RunFolder(out).checkpoints, parent) if out.is_dir() else None
    yield from trial.run(context, allocation, device, kept, parent)


def _read(out: Path, file: str) -> bytes:
    from budgetopt.packing import read_file

    return read_file(out / file)


def _write(out: Path, name: str, data: bytes) -> dict[str, str]:
    from budgetopt.packing import unpack
    from budgetopt.report.picture import sample_sheet
    from budgetopt.search.atomic import write_atomically

    write_atomically(out / "trials" / f"{name}.bopt", data)
    written = {"file": f"trials/{name}.bopt"}
    sheet = sample_sheet(unpack(data))
    if sheet is not None:
        write_atomically(out / "trials" / f"{name}.png", sheet)
        written["picture"] = str(out / "trials" / f"{name}.png")
    return written


def _device(share: float) -> Any:
    """The GPU that Ray gave to this trial, never another one, and only its share of the memory."""
    import torch

    if not share or not torch.cuda.is_available():
        torch.set_num_threads(1)
        return torch.device("cpu")
    device = torch.device("cuda", 0)  # Ray hides the others
    torch.cuda.set_per_process_memory_fraction(0.9 * share, device)  # the driver has a context there too
    return device


def evaluate_many(
    jobs: Sequence[tuple[Any, Sequence[int]]],
    test: Any,
    protocol: Any,
    workers: int,
    gpus: int,
    done: Callable[[int, list[Any]], None],
    failed: Callable[[int, str, bool], None],
    stop: Callable[[], bool],
) -> None:
    """Train and test every (training set or file, seeds that are trained at once); `done(position, scores)` or
    `failed(position, message, for_good)` in order of completion, `for_good` where the training diverges, as it would
    again. Returns early where `stop()` turns true."""
    import ray

    share = gpu_share(workers, gpus)

    @ray.remote(num_cpus=1, num_gpus=share, max_retries=2)
    def train(subject: Any, seeds: Sequence[int], test: Any, protocol: Any, share: float) -> list[Any]:
        from budgetopt.evaluation import TrainingSet, train_and_test
        from budgetopt.packing import unpack

        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        subject = TrainingSet.of(unpack(subject)) if isinstance(subject, bytes) else subject
        return train_and_test(subject, test, protocol, seeds, _device(share))

    shared_test = ray.put(test)
    references: dict[int, Any] = {}  # one object for each subject, however many jobs
    for subject, _ in jobs:
        if id(subject) not in references:
            references[id(subject)] = ray.put(subject)
    pending = {
        train.remote(references[id(subject)], seeds, shared_test, protocol, share): i
        for i, (subject, seeds) in enumerate(jobs)
    }
    while pending:
        ready, _ = ray.wait(list(pending), timeout=0.5)
        for reference in ready:
            position = pending.pop(reference)
            try:
                scores = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                failed(position, str(cause).strip().splitlines()[-1][:500], isinstance(cause, TrialFailure))
            else:
                done(position, scores)
        if stop():
            for reference in pending:
                ray.cancel(reference, force=True)
            return
