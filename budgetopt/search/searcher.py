"""Our Ray Tune searcher: asks and tells the Optuna study, the only record of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from budgetopt.allocation import Allocation
from budgetopt.methods.selection import Selector
from budgetopt.search import study as records
from budgetopt.search.evidence import Earlier
from budgetopt.search.parents import ParentChoice
from budgetopt.search.problem import Measures, problem_of
from budgetopt.search.progress import Observer, Progress
from budgetopt.search.sampler import RateDistortionSampler
from budgetopt.seeding import derive
from budgetopt.space import SearchSpace, possible
from budgetopt.trial import TrialContext, checkpoint

GAIN = "expected_gain"  # user attribute of trials that the model proposed
STARTUP = 12  # trials before TPE models anything
LEAST_GAIN = 0.001  # of accuracy, or of the hypervolume's rectangle: a proposal that expects less is not worth a trial
IDLE = 0.05  # seconds of thinking ahead between two looks at the trials
MOST_ASKS = 200  # proposals in a row that are too large or known, before the space counts as exhausted


def _hopeless_in_a_row(study: optuna.Study) -> int:
    """Proposals at the end of the study that expected less than LEAST_GAIN."""
    gains = [t.user_attrs[GAIN] for t in study.get_trials(deepcopy=False) if GAIN in t.user_attrs]
    return next((i for i, gain in enumerate(reversed(gains)) if gain >= LEAST_GAIN), len(gains))


# of a rung, in the study
RECORDED = (
    "step", "bytes", "samples", "accuracy", "error", "accuracies", "loss", "began", "seconds", "training_seconds",
    "file",
)  # fmt: skip


class StudySearcher(Searcher):
    """Proposals that are over budget before they start, or that repeat an earlier allocation, are recorded as PRUNED
    and never run; a neighbour that fits is enqueued in their place. A proposal is a pure function of the study and
    the run seed. `places()`: how many trials there may be at a time.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        context: TrialContext,
        selector: Selector,
        most_ipc: int,
        trials: int | None,
        progress: Progress,
        observer: Observer,
        checkpoints: Path,
        places: Callable[[], int],
        sampler: str = "tpe",
        patience: int | None = None,
        warm_start: Sequence[Earlier] = (),
        parents: ParentChoice | None = None,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._study, self._space, self._context = study, space, context
        self._most_ipc, self._trials, self._progress, self._observer = most_ipc, trials, progress, observer
        self._checkpoints, self._places, self._parents = checkpoints, places, parents
        self._live: dict[str, optuna.Trial] = {}
        self._thought = self._just_ended = False
        self._measures = Measures(context, selector)
        self._guided: RateDistortionSampler | None = None
        self._unmeasured: Iterator[Allocation] = iter(())  # kinds that the model will ask about
        if sampler == "rate-distortion" and context.budget is not None:
            problem = problem_of(context, space, most_ipc, self._measures)
            self._unmeasured = iter(problem.candidates.kinds([], 0))
            self._guided = RateDistortionSampler(problem, warm_start=warm_start)
        earlier = records.records(study)
        self._seen = {
            r.allocation: r.number
            for r in earlier
            if r.allocation and r.state in ("complete", "stopped", "infeasible", "failed")
        }
        # smallest IPC known to be over budget, by allocation with its IPC set aside
        self._too_large: dict[Allocation, int] = {}
        for r in earlier:
            if r.allocation and r.message == records.OVER_BEFORE:
                self._remember_too_large(r.allocation)
        self.count = sum(r.state in ("complete", "stopped", "infeasible", "failed") for r in earlier)
        self.exhausted = False
        self.reason: str | None = None  # why there are no more proposals
        self._patience = patience
        self._hopeless = _hopeless_in_a_row(study)
        self.unwritable: str | None = None  # why a worker could not write its file: the trial's fault is none
        self.closing = False  # the run is being stopped: what ends now is interrupted, not judged

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles searchers into its own state file, which nothing reads: the study is the record
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("runs are resumed from the study")

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._trials is not None and self.count >= self._trials:
            return Searcher.FINISHED
        if len(self._live) >= self._places():
            self._think_ahead()
            return None
        ended, self._just_ended = self._just_ended, False
        if ended and self._live:  # Tune first starts the proposal that waits for the worker that is free now
            return None
        for _ in range(MOST_ASKS):
            number_of_trials = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._sampler(derive("sampler", self._context.seed, number_of_trials) % 2**32)
            if self._patience and self._hopeless >= self._patience:
                self.exhausted = True
                self.reason = f"no more than {LEAST_GAIN:.1%} expected of any of the last {self._hopeless} proposals"
                return Searcher.FINISHED
            trial = self._study.ask()
            allocation = self._space.suggest(trial, list(self._context.objectives), self._most_ipc)
            if self._context.objectives[allocation.objective].steps == 0:  # nothing is trained: no weight of a loss
                allocation = replace(allocation, rate_weight=0.0)
            gain = self._guided.expected_gain if self._guided else None
            if gain is not None:
                trial.set_user_attr(GAIN, gain)
                self._hopeless = self._hopeless + 1 if gain < LEAST_GAIN else 0
            trial.set_user_attr("allocation", allocation.to_dict())
            trial.set_user_attr("key", allocation.key)
            if self._rejected(trial, allocation):
                continue
            self._seen[allocation] = trial.number
            self._live[trial_id], self._thought = trial, False
            self._progress.running.add(trial.number)
            self.count += 1
            config = {"allocation": allocation.to_dict(), "number": trial.number}
            return config if self._parents is None else config | {"parent": self._parent(trial, allocation)}
        self.exhausted = True
        return Searcher.FINISHED

    def _think_ahead(self) -> None:
        """While all workers are busy: measure what the model asks of every kind, IDLE seconds at a time; then, where
        there is one worker, once what would be proposed now. Most of it is asked again when the trial has ended, and
        the sizes that it packed for are known then. Proposals stay what they would have been."""
        if self._guided is None:
            return
        until = time.monotonic() + IDLE
        for kind in self._unmeasured:
            self._measures.coding(kind)
            if time.monotonic() > until:
                return
        if not self._thought and len(self._live) == 1:
            self._thought = True
            self._guided.propose(self._study, len(self._study.get_trials(deepcopy=False)))

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._guided is not None:
            self._guided.fallback = optuna.samplers.RandomSampler(seed)
            return self._guided
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True
        )

    def _parent(self, trial: optuna.Trial, allocation: Allocation) -> dict[str, Any] | None:
        """Chosen once, and in the study before the trial starts: one that is started again has the parent it had, if
        its file is still there."""
        assert self._parents is not None
        of_twin: dict[str, Any] = {}
        if "restart_of" in trial.user_attrs:
            of_twin = self._study.get_trials(deepcopy=False)[trial.user_attrs["restart_of"]].user_attrs
        chosen = of_twin.get(records.PARENT)
        if records.PARENT not in of_twin or (chosen and not self._parents.is_there(chosen["file"])):
            parent = self._parents.of(allocation, self._progress.complete())
            chosen = None if parent is None else asdict(parent)
        trial.set_user_attr(records.PARENT, chosen)
        return chosen

    def _rejected(self, trial: optuna.Trial, allocation: Allocation) -> bool:
        """Tell PRUNED what need not run, and enqueue the nearest allocation that does."""
        if allocation in self._seen:
            trial.set_user_attr("duplicate_of", self._seen[allocation])
            self._prune(trial, records.DUPLICATE)
            self._enqueue_unseen(allocation)
            return True
        if not possible(allocation, self._context.spec.shape):
            self._prune(trial, records.IMPOSSIBLE)
            return True
        size, budget = self._measures.initial_bytes(allocation), self._context.budget
        trial.set_user_attr("initial_bytes", size)
        if budget is None:
            return False
        trial.set_constraint("bytes over the budget", float(size - budget))
        if size <= budget:
            return False
        self._prune(trial, records.OVER_BEFORE)
        self._remember_too_large(allocation)
        # the file grows a little faster than the samples, since small sets pay for fewer rare symbols
        smaller = int(min(allocation.ipc, max(self._context.spec.class_counts)) * budget / size * 0.98)
        if smaller >= self._space.ipc.min:
            self._enqueue(allocation, smaller)
        return True

    def _prune(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self._study.tell(trial, state=TrialState.PRUNED)

    def _enqueue_unseen(self, allocation: Allocation) -> None:
        """Enqueue the allocation of the nearest IPC that has not run and is not known to be too large."""
        bound = self._too_large.get(replace(allocation, ipc=1), self._most_ipc + 1)
        for distance in range(1, self._most_ipc):
            for ipc in (allocation.ipc + distance, allocation.ipc - distance):
                if self._space.ipc.min <= ipc < bound and replace(allocation, ipc=ipc) not in self._seen:
                    self._enqueue(allocation, ipc)
                    return

    def _remember_too_large(self, allocation: Allocation) -> None:
        kind = replace(allocation, ipc=1)
        self._too_large[kind] = min(allocation.ipc, self._too_large.get(kind, allocation.ipc))

    def _enqueue(self, allocation: Allocation, ipc: int) -> None:
        self._study.enqueue_trial(self._space.parameters(replace(allocation, ipc=ipc), self._most_ipc))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._live and "rung" in result:
            self._record(self._live[trial_id], result)

    def _record(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        trial.set_user_attr(f"rung/{result['rung']}", {name: result.get(name) for name in RECORDED})
        if self._parents is not None:
            parent = trial.user_attrs[records.PARENT]
            trial.set_user_attr(records.TOTAL_STEPS, result["step"] + (parent["steps"] if parent else 0))
        if result["last"]:
            self._progress.training_seconds.append(result["training_seconds"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._live.pop(trial_id, None)
        if trial is None:
            return
        self._just_ended = True
        result = dict(result or {})
        if "rung" in result:  # the report that made the scheduler stop it did not pass through on_trial_result
            self._record(trial, result)
        if not math.isfinite(result.get("accuracy", 0.0)):
            result["failure"] = f"the accuracy is {result['accuracy']}"
        if result.get("unwritable"):
            self.unwritable, self.closing = result["unwritable"], True
            error = False
        if result.get("over_budget"):
            self._explain(trial, records.OVER_AFTER, result["over_budget"])
            self._study.tell(trial, state=TrialState.PRUNED)
        elif error or result.get("failure"):
            self._explain(trial, "failure", result.get("failure", "its worker process died"))
            self._study.tell(trial, state=TrialState.FAIL)
        elif result.get("last") and not result.get("unwritable"):
            trial.set_user_attr("bytes", result["bytes"])
            trial.set_user_attr("accuracy", result["accuracy"])
            self._attach_picture(trial, result)
            self._study.tell(trial, values=records.values(result["bytes"], result["accuracy"]))
        elif "rung" in result and not self.closing:
            trial.set_user_attr("reason", records.STOPPED)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:  # ended by the time limit, Ctrl-C or a full disk
            trial.set_user_attr("reason", records.INTERRUPTED)
            self.count -= 1
            self._seen.pop(Allocation.from_dict(trial.user_attrs["allocation"]), None)  # it may be tried again
            self._study.tell(trial, state=TrialState.FAIL)
        self._progress.running.discard(trial.number)
        ended = records.record(self._study.get_trials(deepcopy=False)[trial.number])
        if ended.state != "interrupted":
            assert ended.allocation is not None
            checkpoint(self._context, ended.allocation, self._checkpoints).remove()
        self._progress.ended.append(ended)
        self._study.set_user_attr("seconds", self._progress.elapsed)
        self._observer.trial_ended(ended)

    def abandon_running(self) -> None:
        """Tell the study of trials that Tune left without a word when it was stopped."""
        for trial_id in list(self._live):
            self.on_trial_complete(trial_id)

    def _explain(self, trial: optuna.Trial, reason: str, message: str) -> None:
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("message", message)

    def _attach_picture(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        """Show the packed samples beside the trial in the dashboard."""
        if result.get("picture") and Path(result["picture"]).is_file():
            folder = Path(result["picture"]).parent.parent / "artifacts"
            store = optuna.artifacts.FileSystemArtifactStore(str(folder))
            with suppress(OSError):  # a full disk costs the picture, not the trial
                optuna.artifacts.upload_artifact(
                    artifact_store=store, file_path=result["picture"], study_or_trial=trial, mimetype="image/png"
                )
