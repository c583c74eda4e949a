"""CIFAR-10 on a GPU: what files of 30,000 and 122,880 bytes are worth, and whether the GPU is kept busy.

    python examples/benchmarks/gpu.py --out runs/gpu --dataset cifar10-jpeg [--parts files search speed]

files    coresets, distribution matching and DATM (at most 10 experts of 20 epochs) at every budget and number of
         levels: as many samples as fit, trained on by the protocol's networks
search   the default search at every budget, for `--minutes`
speed    steps a second of both methods, and the share of the time in which no kernel runs

Accuracy on the test split, 95 % Student-t intervals over the trainings of one file. Finished rows are kept in `--out`:
a command that is cut off after ten minutes goes on where it was. Without a GPU all runs on the CPU, and the share of
the time without kernels is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import records
import torch
from records import Bench, derive, generator

import budgetopt
from budgetopt import evaluation, methods, objective, result, trial
from budgetopt.allocation import Allocation
from budgetopt.fitting import largest_fitting
from budgetopt.methods.base import TrainingData
from budgetopt.objective import Objective
from budgetopt.packing import unpack
from budgetopt.protocol import PRESETS
from budgetopt.trial import TrialContext

PARTS = ("files", "search", "speed")
OPTIONS = {
    "dataset": ("CIFAR10", "any that the package knows"),
    "parts": (PARTS, "to run"),
    "budgets": ((30_000, 122_880), "bytes"),
    "levels": ((2, 4), "of a value"),
    "steps": (0, "of a training; 0: the protocol's"),
    "distillation": (0, "steps of DM and DATM; 0: the objective's"),
    "experts": (10, "of DATM"),
    "expert_epochs": (20, "of each"),
    "minutes": (8.0, "of one search"),
    "timed": (50, "steps of `speed`"),
    "samples": (10, "a class, of `speed`"),
}


class Gpu(Bench):
    def objectives(self) -> dict[str, Objective]:
        args, (_, dm), (_, datm) = self.args, objective.resolve("dm"), objective.resolve("datm")
        more = {"experts": args.experts, "expert_epochs": args.expert_epochs, "max_start": args.expert_epochs // 2}
        fewer: dict[str, Any] = {"steps": args.distillation} if args.distillation else {}
        chosen = {"dm": dm.model_copy(update=fewer), "datm": datm.model_copy(update=fewer | more)}
        return {"coreset": objective.resolve("coreset")[1], **chosen}

    @property
    def material(self) -> TrainingData:
        return TrainingData(self.dataset.train, self.dataset.spec, self.protocol, evaluation.default_device())

    def shared(self, name: str) -> Any:
        """Targets and experts: made once, kept on disk."""
        return methods.shared(self.objectives()[name], self.material, 0, self.args.out / "shared")

    def file(self, name: str, budget: int, levels: int) -> dict[str, Any]:  # type: ignore[override]
        """Distil, pack within the budget, train on the file, test."""
        data, chosen = self.dataset, self.objectives()[name]
        context = TrialContext(
            data.train, data.val, data.spec, self.protocol, {name: chosen}, budget, shared={name: self.shared(name)}
        )
        start = self._fitting(context, name, budget, levels)
        started = time.monotonic()
        *_, last = trial.run(context, Allocation(name, ipc=start, levels=levels), self.material.device)
        seconds, device = time.monotonic() - started, self.material.device
        seeds = evaluation.file_seeds(last.data, self.protocol.seeds)
        found = evaluation.evaluate_file(last.data, self.tested, self.protocol, seeds, device)
        return {
            "bytes": len(last.data),
            "samples": len(unpack(last.data)),
            "seconds": seconds,
            "accuracies": list(found.accuracies),
        }

    def _fitting(self, context: TrialContext, name: str, budget: int, levels: int) -> int:
        """Samples a class of the largest initial set within the budget; what grows over it is cut by the trial."""

        def size(ipc: int) -> int:
            return trial.initial_bytes(context, Allocation(name, ipc=ipc, levels=levels), self.selector)

        return largest_fitting(size, budget, 1, max(context.spec.class_counts)) or 1

    def speed(self, name: str) -> dict[str, Any]:
        """Of steps of a set of `--samples` a class, after a few that are not counted."""
        device, args = self.material.device, self.args
        initial = self.selector.select("random", args.samples, derive("speed"))
        allocation = Allocation(name, ipc=args.samples, levels=4)
        noise = generator("speed")
        representation = records.Representation(initial, allocation, self.dataset.spec, 0, device, noise).train()
        method = methods.build(self.objectives()[name], self.material, representation, noise, self.shared(name))
        for _ in range(3):
            method.step()
        cuda = device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CUDA] if cuda else []
        if cuda:
            torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(args.timed):
            method.step()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
        found: dict[str, Any] = {"device": str(device), "steps_per_second": args.timed / seconds, "idle": None}
        if cuda:  # apart, since the profiler itself takes time
            with torch.profiler.profile(activities=activities) as profile:
                for _ in range(args.timed):
                    method.step()
                torch.cuda.synchronize()
            kernels = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
            found["idle"] = max(0.0, 1.0 - kernels / seconds)
        return found

    def run_files(self) -> None:
        rows = []
        for budget in self.args.budgets:
            for levels in self.args.levels:
                for name in self.objectives():
                    made = self.rows.once(self._key("file", name, budget, levels), self._made(name, budget, levels))
                    accuracy = records.student_interval(np.array(made["accuracies"]))
                    rows.append([f"{budget:,}", name, str(levels), f"{made['samples']:,}", f"{made['bytes']:,}"])
                    rows[-1] += [accuracy, f"{made['seconds']:.0f}"]
        self.table("Files", "budget|method|levels|samples|bytes|accuracy, %|seconds", rows)

    def _key(self, *what: Any) -> dict[str, Any]:
        recipes = {name: o.model_dump(mode="json") for name, o in self.objectives().items()}
        return {"what": what, "data": self.dataset.spec.split_hash, "protocol": self.protocol.hash, "recipes": recipes}

    def _made(self, name: str, budget: int, levels: int) -> Any:
        def make() -> dict[str, Any]:
            self.console.print(f"distilling {name}, {budget:,} bytes, {levels} levels", style="dim")
            return self.file(name, budget, levels)

        return make

    def run_search(self) -> None:
        rows = []
        for budget in self.args.budgets:
            folder = self.args.out / f"search-{budget}"
            plain = {"dataset": self.args.dataset, "data_root": self.args.data, "out": folder}
            done = result.is_final(folder)
            found = (
                result.read(folder) if done else budgetopt.search(budget, time_limit=60 * self.args.minutes, **plain)
            )
            best = found.best
            accuracy = f"{100 * best.accuracy:.2f} ± {100 * best.half_width:.2f}"
            rows.append([f"{budget:,}", f"{best.samples:,}", f"{best.bytes:,}", accuracy, str(best.allocation)])
        self.table("Found by the default search", "budget|samples|bytes|accuracy, %|allocation", rows)

    def run_speed(self) -> None:
        rows = []
        for name in ("dm", "datm"):
            key = self._key("speed", name, self.args.timed, self.args.samples, str(self.material.device))
            made = self.rows.once(key, lambda name=name: self.speed(name))  # type: ignore[misc]
            idle = "" if made["idle"] is None else f"{made['idle']:.0%}"
            rows.append([name, made["device"], f"{made['steps_per_second']:.1f}", idle])
        self.table("Speed", "method|device|steps a second|time without a kernel", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        quick = {"budgets": [600], "levels": [2], "distillation": 2, "experts": 1, "expert_epochs": 2, "timed": 2}
        records.tiny(args, **quick, samples=2, steps=4, parts=["files", "speed"])
    args.steps = args.steps or PRESETS[budgetopt.data.open_source(args.dataset, args.data).protocol].steps
    torch.set_num_threads(1 if not torch.cuda.is_available() else torch.get_num_threads())
    bench = Gpu(args, records.console())
    for part in PARTS:
        if part in args.parts:
            getattr(bench, f"run_{part}")()


if __name__ == "__main__":
    main()
