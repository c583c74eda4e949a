"""A whole run: prepare, search, finish. `search` starts one, `resume` goes on with one."""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from typing import Protocol as Interface

import optuna
import torch

from budgetopt import cache_folder, data, initial, methods, networks, objective, protocol, result
from budgetopt import teacher as teachers
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import Dataset
from budgetopt.errors import BudgetoptError, InputError, Interrupted
from budgetopt.evaluation import default_device
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import LEARNED, Selector, learned
from budgetopt.option_text import resume_command
from budgetopt.report import files
from budgetopt.search import engine
from budgetopt.search import storage as storages
from budgetopt.search import study as studies
from budgetopt.search.config import Limits, SearchConfig, check_patience, default_time, default_workers, machine
from budgetopt.search.design import Design, smallest_file
from budgetopt.search.evidence import Earlier
from budgetopt.search.explanation import Explanation, explain
from budgetopt.search.finish import Final, finish
from budgetopt.search.folder import RunFolder
from budgetopt.search.joining import open_to_others
from budgetopt.search.parents import ParentChoice
from budgetopt.search.problem import Measures, problem_of
from budgetopt.search.progress import Observer, Progress
from budgetopt.search.sampler import RateDistortionSampler
from budgetopt.search.storage import Remote
from budgetopt.search.warm_start import WarmStart
from budgetopt.trial import TrialContext

HOPELESS = 20  # failed trials without a finished one, after which the search gives up
DESIGN_SHARE = 3  # trials for each one of the design, under which a search with a model starts from few
PACKAGES = ("budgetopt", "torch", "torchvision", "numpy", "optuna", "ray", "constriction", "moocore", "scikit-learn")


class Report(Interface):
    """How a run speaks: told the plan once, then handed the progress to watch."""

    def plan(self, config: SearchConfig, dataset: Dataset, out: RunFolder, smallest: int) -> None: ...

    def watch(self, progress: Progress) -> Observer: ...

    def finished(self, out: RunFolder) -> None:
        """Instead of both where the run has ended before."""


def new_run(
    config: SearchConfig,
    source: data.Source,
    out: RunFolder,
    report: Report,
    verbose: bool,
    spent: float = 0.0,
    storage: str | None = None,
    address: str | None = None,
) -> result.Result:
    """Run `config` into `out`, or go on where `out` already holds this very run. `spent`: seconds of the time
    limit that have passed already; storage: URL of where the study is kept, by default the folder; address: of the Ray
    cluster that runs the trials."""
    started = time.monotonic()
    _quiet_optuna(verbose)
    url = None if storage is None else storages.parse(storage)
    known = WarmStart.of(config.warm_start) if config.warm_start else None
    config = config.model_copy(update={"warm_start_hash": known.hash if known else None})
    if out.prepare(config) and storages.exists(out.study):
        held = out.study
        if url is not None and getattr(held, "url", None) != url:
            raise InputError(f"the study of the run {str(out)!r} is kept elsewhere: leave out --storage")
        return resume_run(out, report, verbose, config.limits, address)
    place = None if url is None else Remote(url, f"{out.path.name}-{secrets.token_hex(4)}")
    if place is not None:
        storages.opened(place)  # an error of it comes before anything is written
    dataset, context, selector = _prepare(config, source)
    # not where a run goes on: it may be older than this check
    protocol.check_augmentation(config.protocol.augment, dataset.spec.shape)
    for name, chosen in config.objectives.items():
        objective.check_augmentation(name, chosen, dataset.spec.shape)
    smallest = smallest_file(config, context, selector)
    config = config.with_time_limit(dataset.spec.values)
    report.plan(config, dataset, out, smallest)
    with storages.explained(str(out)):
        out.make()
        with out.locked():
            if out.prepare(config, pull=False) and storages.exists(out.study):
                raise InputError(f"another process has begun the run {str(out)!r} meanwhile: {resume_command(out)}")
            # a copy of `init` too: the run must not depend on a file that may change
            out.create(config, versions(), context.init, place, known.model_dump_json() if known else None)
            study = studies.create(place or out.study)
            study.set_user_attr("smallest_bytes", smallest)
            study.set_user_attr("config", config.model_dump(mode="json"))
            if out.mirror:
                out.mirror.push(driving=True)  # a study is at the URL before any trial, whenever this machine dies
            spent += time.monotonic() - started
            return _drive(config, dataset, context, study, out, report, verbose, spent, address)


def resume_run(
    out: RunFolder,
    report: Report,
    verbose: bool,
    limits: Limits,
    address: str | None = None,
) -> result.Result:
    """Go on with a run after anything: no finished trial is lost, interrupted ones start again once.

    Without a new time limit the run has what was left of its own.
    """
    _quiet_optuna(verbose)
    config = SearchConfig.load(out.config)
    check_patience(limits.patience, config.sampler)
    cores, gpus = machine(address)  # the run may go on on another one
    workers = config.workers if gpus == config.gpus and not address else default_workers(cores, gpus)
    config = config.model_copy(update={"workers": workers, **limits.given, "gpus": gpus})
    studies.check(out.study)  # before the lock is written
    if all(path.exists() for path in (out.front_json, out.front_csv, out.front_png)) and result.is_final(out.path):
        if out.mirror:
            out.mirror.push()  # what the end of the run could not
        report.finished(out)
        return result.read(out.path)  # also where nothing can be written
    with storages.explained(str(out)), out.locked():
        storages.mend(out.study)
        study = studies.load(out.study)
        if result.is_final(out.path):
            found = result.read(out.path)
            if not all(path.exists() for path in (out.front_csv, out.front_png)):  # killed before the reports
                files.write_reports(found, studies.records(study))
            return found
        source = _source(config)
        kept = config.model_copy(update={"init": out.init_copy(config)})
        dataset, context, selector = _prepare(kept, source)
        if study.user_attrs.get("split_hash", dataset.spec.split_hash) != dataset.spec.split_hash:
            raise InputError(f"{config.dataset} is not the dataset that the run {str(out)!r} was started with")
        if "smallest_bytes" not in study.user_attrs:
            study.set_user_attr("smallest_bytes", smallest_file(config, context, selector))
        for again in studies.release_stale(study):
            study.enqueue_trial(again["params"], user_attrs={"restart_of": again["number"]}, skip_if_exists=False)
        config = config.with_time_limit(dataset.spec.values)
        report.plan(config, dataset, out, study.user_attrs["smallest_bytes"])
        earlier = 0.0 if limits.time_limit else float(study.user_attrs.get("seconds", 0.0))
        return _drive(config, dataset, context, study, out, report, verbose, earlier, address)


def _source(config: SearchConfig) -> data.Source:
    return data.open_source(config.dataset, config.data_root, config.label, config.resize, config.spectrogram)


def _prepare(config: SearchConfig, source: data.Source) -> tuple[Dataset, TrialContext, Selector]:
    dataset = Dataset.prepare(source, config.seed)
    networks.check_shape(config.protocol.network, dataset.spec.shape)
    dataset.source.check_test_part(dataset.spec.shape)
    init = None if config.init is None else initial.read(config.init, dataset.spec)
    context = TrialContext(
        train=dataset.train,
        val=dataset.val,
        spec=dataset.spec,
        protocol=config.protocol,
        objectives=config.objectives,
        budget=config.budget,
        seed=config.seed,
        init=init,
    )
    return dataset, context, Selector(dataset.train, dataset.spec)


PATIENCE = 10.0  # seconds of making what an objective needs, before its length is foretold


@dataclass(frozen=True, eq=False)
class _Run:
    """What the search works on."""

    config: SearchConfig
    dataset: Dataset
    context: TrialContext
    study: optuna.Study
    out: RunFolder
    progress: Progress
    observer: Observer
    interrupted: Callable[[], bool]


def _drive(
    config: SearchConfig,
    dataset: Dataset,
    context: TrialContext,
    study: optuna.Study,
    out: RunFolder,
    report: Report,
    verbose: bool,
    earlier: float = 0.0,
    address: str | None = None,
) -> result.Result:
    spec = dataset.spec
    facts = {"split_hash": spec.split_hash, "classes": spec.classes, "validation": len(dataset.val)}
    for name, value in facts.items():
        study.set_user_attr(name, value)
    assert config.time_limit is not None
    progress = Progress(config.time_limit, config.workers, earlier)
    progress.remember(studies.records(study))
    threads = torch.get_num_threads()
    observer = report.watch(progress)
    try:
        session = engine.ray_session(config.workers, config.gpus, verbose, address)
        with interruptible() as interrupted, session as scratch, open_to_others(out):
            run = _Run(config, dataset, context, study, out, progress, observer, interrupted)
            if not out.front_json.exists():
                _search(run, scratch, verbose, address is not None)
            if interrupted():
                raise Interrupted(f"interrupted: go on with {resume_command(out)}")
            shutil.rmtree(out.checkpoints, ignore_errors=True)  # of trials that nobody will go on with
            finish(Final(config, out, study, dataset, progress, observer, interrupted))
            progress.phase = "closing"
    finally:
        torch.set_num_threads(threads)
        observer.close()
    found = result.read(out.path)
    files.write_reports(found, progress.ended)
    return found


def _search(run: _Run, scratch: Path, verbose: bool, cluster: bool) -> None:
    """Trials until the limit on them, the time left after the final phase, or the end of the space."""
    # Ray reads its environment when it is imported: not before `ray_session` has set it
    from budgetopt.search.halving import FrontHalving
    from budgetopt.search.searcher import StudySearcher

    config, progress = run.config, run.progress
    progress.phase = "preparing targets"
    context = with_shared(run)
    selector = Selector(context.train, context.spec, context.learned)
    design = Design(config, context, selector)
    earlier = _earlier(run.out, config, context)
    if not run.study.get_trials(deepcopy=False):
        design.enqueue(run.study, _first(config, design, context.spec.values)[: 1 if earlier else None])
    torch.set_num_threads(1)  # the workers have the cores; asking the sampler is faster on one thread too
    progress.phase = "searching"
    searcher = StudySearcher(
        run.study,
        config.space,
        context,
        selector,
        design.most_ipc,
        config.trials,
        progress,
        run.observer,
        run.out.checkpoints,
        engine.Places(config.workers, config.gpus),
        config.sampler,
        config.patience,
        earlier,
        ParentChoice(context, run.out.path) if config.parents else None,
    )

    def stop() -> bool:
        finished = len(progress.complete())
        candidates = min(config.most_candidates, max(2, finished))
        reserve = min(progress.final_seconds(candidates, config.protocol.seeds), 0.5 * progress.time_limit)
        # a late file is better than none: without one the limit counts twice
        late = progress.elapsed > (progress.time_limit - reserve if finished else 2 * progress.time_limit)
        hopeless = not finished and progress.counts["failed"] >= HOPELESS
        searcher.closing = run.interrupted() or late or hopeless or searcher.unwritable is not None
        return searcher.closing

    scheduler = FrontHalving(len(run.dataset.val), studies.records(run.study))
    while not stop():
        before = len(progress.ended)
        reason = ""
        try:
            engine.run_trials(
                context,
                searcher,
                scheduler,
                run.out.path.resolve(),
                engine.gpu_share(config.workers, config.gpus),
                stop,
                scratch,
                verbose,
                cluster,
            )
        except Exception as error:  # Tune ends its whole experiment for one killed worker or one failed write
            if run.interrupted() or storages.unwritable(error):
                raise
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        searcher.abandon_running()
        if searcher.unwritable is not None:
            raise storages.cannot_be_written(str(run.out), searcher.unwritable)
        if reason and len(progress.ended) == before:
            raise BudgetoptError(f"the trials ended early: {reason}; go on with {resume_command(run.out)}")
        if searcher.reason:
            run.observer.message(f"search ended by --patience: {searcher.reason}")
        done = config.trials is not None and searcher.count >= config.trials
        if done or searcher.exhausted or len(progress.ended) == before:
            break  # else: Tune itself ended early, say after a worker was killed for memory; go on


def _first(config: SearchConfig, design: Design, values: int) -> list[Allocation]:
    """Allocations that start the search: the whole design, unless there is a model that can do without most of it and a
    limit that leaves few trials beside it."""
    guided = config.sampler == "rate-distortion"
    if guided and config.time_limit is not None and config.time_limit < default_time(values):
        return design.few()  # the whole design is not even packed
    whole = design.allocations()
    few_trials = config.trials is not None and config.trials < DESIGN_SHARE * len(whole)
    return design.few() if guided and few_trials else whole


def _earlier(out: RunFolder, config: SearchConfig, context: TrialContext) -> list[Earlier]:
    """What the run's own copy holds of the runs that it was started with."""
    return WarmStart.load(out.warm_start).earlier(config, context.spec) if config.warm_start else []


def with_shared(run: _Run) -> TrialContext:
    """The context with what every objective shares of the real data, what selections of the space learn of it, and the
    teacher where the space has soft labels; from the cache, or made now."""
    config, progress = run.config, run.progress
    device = default_device() if config.gpus else torch.device("cpu")  # of this machine, whatever a cluster has
    material = TrainingData(run.dataset.train, run.dataset.spec, config.protocol, device)
    found = {}

    def told(done: int, total: int) -> None:
        progress.final_done, progress.final_total = done, total
        if run.interrupted():
            raise Interrupted(f"interrupted: go on with {resume_command(run.out)}")

    def in_time(name: str) -> Callable[[int, int], None]:
        """Tells of the progress of one objective, and ends the run where no trial could begin after it: a search
        without a file ends after twice the limit."""
        began = time.monotonic()

        def told_of_it(done: int, total: int) -> None:
            told(done, total)
            spent = time.monotonic() - began
            if done and spent > PATIENCE and progress.elapsed + spent * (total / done - 1) > 2 * progress.time_limit:
                raise BudgetoptError(
                    f"what {name} needs of the real data takes about {spent * total / done:,.0f} s, and the time limit "
                    f"is {progress.time_limit:,.0f} s: raise --time-limit, or search without --objective {name}"
                )

        return told_of_it

    for name, chosen in config.objectives.items():
        found[name] = methods.shared(chosen, material, config.seed, cache_folder.part("banks"), in_time(name))
    known: dict[str, Any] = {}
    if run.context.init is None:
        offered = config.space.selections(run.dataset.spec.shape)
        for name in [name for name in LEARNED if name in offered]:
            progress.phase = f"scoring samples for {name}"
            known |= learned([name], material, config.seed, cache_folder.part("banks"), told)
    teacher = None
    if max(config.space.label_bits):
        progress.phase = "training the teacher"
        teacher = teachers.cached(material, config.seed, cache_folder.part("banks"), told)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the workers need it
    return replace(run.context, shared=found, learned=known, teacher=teacher)


def explain_run(out: RunFolder) -> Explanation:
    """What the rate–distortion model makes of a run, whatever sampler proposed its trials. Reads the data and the
    study, trains and writes nothing. Raises `InputError` where no trial has finished."""
    study = studies.load(out.study)
    sampler, smallest = sampler_of(out)
    view = sampler.view(study, len(study.get_trials(deepcopy=False)))
    if not view.model.finished:
        raise InputError(f"no trial of the run {str(out)!r} has finished: there is nothing to explain yet")
    return explain(view, study.user_attrs.get("smallest_bytes") or smallest())


def sampler_of(out: RunFolder) -> tuple[RateDistortionSampler, Callable[[], int]]:
    """→ the rate–distortion sampler of a run, whatever sampler it had, and what finds the bytes of its smallest file.
    Reads the data."""
    config = SearchConfig.load(out.config)
    kept = config.model_copy(update={"init": out.init_copy(config)})
    _, context, selector = _prepare(kept, _source(config))
    most_ipc = Design(kept, context, selector).most_ipc
    problem = problem_of(context, config.space, most_ipc, Measures(context, selector))
    sampler = RateDistortionSampler(problem, warm_start=_earlier(out, config, context))
    return sampler, lambda: smallest_file(kept, context, selector)


def _quiet_optuna(verbose: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.ERROR)
    if not verbose:  # `group` of the TPE sampler and metric names are called experimental; versions are recorded
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.machine()} {platform.system()}"}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM set a flag that ends the run in order; a second Ctrl-C is Python's own."""
    pressed: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if pressed and time.monotonic() - pressed[0] > 1.0:  # the same key press may arrive twice
            signal.default_int_handler(number, frame)
        pressed.append(time.monotonic())

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
