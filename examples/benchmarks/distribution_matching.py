"""Distribution matching with a shared target bank against embedding the real images in every step.

    python examples/benchmarks/distribution_matching.py --out results --parts step fit

step        time of one step, and how close it is to forward + backward through the network alone
equal-time  validation accuracy after the same wall-clock time, the building of the bank included
trials      cost of several trials that share one bank
fit         whether sets made with the bank are fitted to it: matching loss under conditions that it does not hold

Every finished part is one line of `results.jsonl` in the output folder and is not repeated; Ctrl-C loses the part that
is running. Accuracy is that of the packed file on the validation split; the test split is never loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from budgetopt import objective, trial
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, open_source
from budgetopt.evaluation import evaluate_file
from budgetopt.methods import target_bank
from budgetopt.methods.base import TrainingData
from budgetopt.methods.distribution_matching import DistributionMatching
from budgetopt.methods.target_bank import Condition, TargetBank
from budgetopt.objective import DistributionMatchingObjective
from budgetopt.packing import pack
from budgetopt.protocol import PRESETS, Protocol
from budgetopt.representation import Representation
from budgetopt.seeding import derive, generator

CPU = torch.device("cpu")
LONGEST, FEW = 30 * 60, 3  # where all naive trials would take longer (seconds), only a few are run


class Log:
    """Finished parts as JSON lines: `once` runs a part that has no line with its key and setting yet."""

    def __init__(self, folder: Path, setting: dict[str, Any], console: Console) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._setting, self._console = folder / "results.jsonl", setting, console
        text = self._path.read_text() if self._path.exists() else ""
        if text and not text.endswith("\n"):  # killed while writing
            self._path.write_text(text := text[: text.rfind("\n") + 1])
        self._lines = [json.loads(line) for line in text.splitlines()]

    def once(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for line in self._lines:
            if line["key"] == key and line["setting"] == self._setting:
                return line["result"]
        self._console.print("running " + ", ".join(f"{k} {v}" for k, v in key.items()), style="dim")
        line = {"key": key, "result": make(), "setting": self._setting, "machine": machine()}
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        self._lines.append(line)
        return line["result"]


@dataclass(frozen=True)
class Benchmark:
    """Both arms start from the same sets; `bank=None` is the naive arm."""

    args: argparse.Namespace
    allocation: Allocation
    objective: DistributionMatchingObjective
    protocol: Protocol
    console: Console

    @cached_property
    def log(self) -> Log:
        setting = {"dataset": self.args.dataset, "threads": self.args.threads, "allocation": self.allocation.to_dict()}
        models = {"objective": self.objective.model_dump(), "protocol": self.protocol.model_dump()}
        return Log(self.args.out, setting | models, self.console)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.prepare(open_source(self.args.dataset, self.args.data), 0)

    @cached_property
    def data(self) -> TrainingData:
        return TrainingData(self.dataset.train, self.dataset.spec, self.protocol, CPU)

    def start(self, seed: int) -> Representation:
        """The packed initial set of one seed, equal in both arms."""
        d = self.dataset
        context = trial.TrialContext(d.train, d.val, d.spec, self.protocol, {"dm": self.objective}, seed=seed)
        return trial.initial_representation(context, self.allocation, CPU)

    def method(self, representation: Representation, bank: TargetBank | None, seed: int) -> DistributionMatching:
        return DistributionMatching(self.objective, self.data, representation, generator("benchmark", seed), bank)

    def distilled(self, bank: TargetBank | None, seed: int) -> tuple[Representation, float]:
        """A set after the objective's steps, and the seconds that the steps took."""
        method = self.method(representation := self.start(seed), bank, seed)
        return representation, seconds(lambda: [method.step() for _ in range(self.objective.steps)])

    def shared_bank(self) -> tuple[TargetBank, float]:
        """The bank of the `trials` and `fit` parts, and the seconds that it took to build."""
        folder = self.args.out / "bank"
        load = partial(target_bank.cached, self.objective, self.data, 0, folder)

        def build() -> dict[str, Any]:
            shutil.rmtree(folder, ignore_errors=True)
            return {"seconds": seconds(load)}

        built = self.log.once({"part": "bank"}, build)["seconds"]
        return load(), built

    def step(self) -> None:
        """Steps of all kinds take turns, so that a busy machine slows them alike."""

        def measure() -> dict[str, Any]:
            small = self.objective.model_copy(update={"bank": min(self.objective.bank, 10)})  # a step costs the same
            arms = (("naive", None), ("bank", target_bank.build(small, self.data, 0)))
            kinds: dict[str, Callable[[], object]] = {arm: self.method(self.start(0), b, 0).step for arm, b in arms}
            network = Condition.from_seed(0, self.data).network
            x = self.data.standardized(self.start(0)()).detach().requires_grad_()
            kinds["network alone"] = lambda: torch.autograd.grad(network.embed(x).sum(), x)
            rounds = [{kind: seconds(run) for kind, run in kinds.items()} for _ in range(self.args.repeats + 1)]
            return {"seconds": {kind: [r[kind] for r in rounds[1:]] for kind in kinds}}  # the first round warms up

        times = self.log.once({"part": "step", "repeats": self.args.repeats}, measure)["seconds"]
        rows = [(kind, *(f"{1e3 * q:.1f}" for q in np.percentile(t, [50, 25, 75]))) for kind, t in times.items()]
        self.table("Time of one step, ms", "step|median|25 %|75 %", rows)
        naive, banked, alone = (float(np.median(t)) for t in times.values())
        self.console.print(f"bank / naive = {banked / naive:.4f} = 1/{naive / banked:.1f} (target: at most 1/8)")
        share = f"{naive / banked:.1f} / {naive / alone:.1f} = {alone / banked:.2f}"
        self.console.print(f"share of the achievable ratio: {share}")

    def fit(self) -> None:
        def measure() -> dict[str, Any]:
            bank, _ = self.shared_bank()
            sets = {"start": self.start(0), "bank": self.distilled(bank, 0)[0], "naive": self.distilled(None, 0)[0]}
            matching = {name: self.method(representation.eval(), None, 0) for name, representation in sets.items()}

            def losses(seed: int, target: torch.Tensor | None = None) -> dict[str, float]:
                condition = Condition.from_seed(seed, self.data)
                if target is None:
                    target = target_bank.real_means(condition, seed, self.objective.real_batch, self.data)
                with torch.no_grad():
                    return {name: float(method.loss(condition, target)) for name, method in matching.items()}

            held = [losses(int(seed), torch.tensor(t)) for seed, t in zip(bank.seeds, bank.means, strict=True)]
            return {"bank": held, "fresh": [losses(derive("fresh", k)) for k in range(self.args.fresh)]}

        result = self.log.once({"part": "fit", "fresh": self.args.fresh}, measure)
        rows = [[name] for name in ("start", "naive", "bank")]
        for row, losses in itertools.product(rows, (result["bank"], result["fresh"])):
            own, start = (np.array([c[name] for c in losses]) for name in (row[0], "start"))
            row += [f"{own.mean():.2f}", shown(own / start)]
        header = f"set|{len(result['bank'])} of the bank|÷ start|{self.args.fresh} fresh|÷ start"
        self.table(f"Mean matching loss after {self.objective.steps} steps, by condition", header, rows)

    def trials(self) -> None:
        bank, built = self.shared_bank()

        def timed(arm: str, seed: int) -> float:
            make = partial(self.distilled, bank if arm == "bank" else None, seed)
            return self.log.once({"part": "trial", "arm": arm, "seed": seed}, lambda: {"seconds": make()[1]})["seconds"]

        count = self.args.trials
        banked = [timed("bank", seed) for seed in range(count)]
        few = count > FEW and timed("naive", 0) * count > LONGEST
        naive = [timed("naive", seed) for seed in range(FEW if few else count)]
        scaled = sum(naive) * count / len(naive)
        with_bank = built + sum(banked)
        how = f"{sum(naive):.0f} s for {len(naive)} trials, scaled to {count}" if few else "all run"
        without = ("naive", "0", f"{scaled:.0f}", f"{scaled:.0f}", how)
        with_it = ("bank", f"{built:.0f}", f"{sum(banked):.0f}", f"{with_bank:.0f}", "all run")
        title = f"{count} trials of {self.objective.steps} steps, s"
        self.table(title, "arm|building the bank|distillation|sum|how", (without, with_it))
        self.console.print(f"bank / naive = {with_bank / scaled:.3f} (target: at most 0.25)")

    def equal_time(self) -> None:
        rows, differences = [], []
        for seed in range(self.args.seeds):
            sets = {arm: self._after_minutes(arm, seed) for arm in ("start", "naive", "bank")}
            paired = np.subtract(sets["bank"]["accuracies"], sets["naive"]["accuracies"])
            differences.append(float(paired.mean()))
            for arm, r in sets.items():
                cells = (str(r["steps"]), f"{r['building']:.0f}", str(r["bytes"]), shown(r["accuracies"]))
                rows.append((str(seed), arm, *cells, shown(paired) if arm == "bank" else ""))
        header = "seed|set|steps|bank, s|bytes|accuracy|bank − naive"
        self.table(f"Validation accuracy after {self.args.minutes:g} minutes", header, rows)
        self.console.print(f"bank − naive over {len(differences)} seeds: {shown(differences)} (target: not below 0)")
        self.console.print(f"±: half of a 95 % Student-t interval, of {self.protocol.seeds} trainings or of the seeds")

    def _after_minutes(self, arm: str, seed: int) -> dict[str, Any]:
        minutes = 0.0 if arm == "start" else self.args.minutes

        def make() -> dict[str, Any]:
            representation = self.start(seed)
            end = (began := time.perf_counter()) + 60 * minutes
            bank = target_bank.build(self.objective, self.data, seed) if arm == "bank" else None
            building = time.perf_counter() - began if bank else 0.0
            method, steps = self.method(representation, bank, seed), 0
            while time.perf_counter() < end:
                method.step()
                steps += 1
            packed = pack(representation.packed())
            seeds = [derive("training", seed, i) for i in range(self.protocol.seeds)]  # the same in all arms
            accuracies = evaluate_file(packed, self.dataset.val, self.protocol, seeds, CPU).accuracies
            return {"building": building, "steps": steps, "bytes": len(packed), "accuracies": accuracies}

        return self.log.once({"part": "equal-time", "minutes": minutes, "arm": arm, "seed": seed}, make)

    def table(self, title: str, header: str, rows: Sequence[Sequence[str]]) -> None:
        table = Table(*header.split("|"), title=title)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def shown(values: Sequence[float] | np.ndarray) -> str:
    """Mean ± half of the 95 % Student-t interval."""
    if len(values) < 2:
        return f"{np.mean(values):.4f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.4f} ± {half:.4f}"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    pairs = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    model = next((value.strip() for name, _, value in pairs if name.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


PARTS = ("step", "fit", "trials", "equal-time")  # methods of Benchmark
OPTIONS = (
    ("dataset", "FashionMNIST", "any that the package knows"),
    ("objective", "dm", "name or path of an objective of method dm"),
    ("width", 32, "of the network"),
    ("ipc", 10, "samples a class"),
    ("levels", 8, "of the uniform quantizer"),
    ("threads", 1, "of torch"),
    ("repeats", 15, "timed steps of each kind"),
    ("fresh", 20, "conditions outside the bank, for `fit`"),
    ("trials", 20, "that share one bank"),
    ("seeds", 3, "of the `equal-time` part"),
    ("minutes", 10.0, "wall-clock time of each arm and seed there"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl")
    default = os.environ.get("BUDGETOPT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="root of torchvision's files")
    parser.add_argument("--steps", type=int, help="of the `trials` and `fit` parts (default: the objective's)")
    for name, value, meaning in OPTIONS:
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{meaning} (default: {value})")
    parser.add_argument("--quick", action="store_true", help="everything tiny, on the built-in digits: a smoke run")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console()
    _, matching = objective.resolve(args.objective)
    if not isinstance(matching, DistributionMatchingObjective):
        parser.error(f"{args.objective} is not an objective of method dm")
    update: dict[str, Any] = {"steps": args.steps} if args.steps else {}
    recipe = PRESETS["image-2"].model_copy(update={"width": args.width})
    if args.quick:
        args.dataset, args.ipc, args.repeats, args.fresh = "digits", 1, 2, 2
        args.trials, args.seeds, args.minutes = 2, 2, 0.003
        update = {"steps": 2, "bank": 3, "real_batch": 8}
        recipe = recipe.model_copy(update={"width": 4, "steps": 2})
    allocation = Allocation(objective="dm", ipc=args.ipc, levels=args.levels)
    console.print(f"{machine()}\n{args.dataset}, {allocation}, width {recipe.width}")
    benchmark = Benchmark(args, allocation, matching.model_copy(update=update), recipe, console)
    for part in args.parts:
        getattr(benchmark, part.replace("-", "_"))()


if __name__ == "__main__":
    main()
