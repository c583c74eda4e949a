"""Does the protocol, at a tenth of the steps, measure what the papers' recipe of 1,000 epochs measures?

    python examples/benchmarks/recipe.py --out runs/recipe

The recipe (DC, ICLR 2021, and most papers after it): SGD with momentum 0.9, weight decay 5e-4, learning rate 0.01,
divided by 10 after half of the epochs, batches of 256. Of at most 256 samples an epoch is one step. Both without
augmentation, on the same files: random samples of 1 and 10 a class, and sets of three methods. Finished rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import records
import torch
import torch.nn.functional as F
from methods import QUICK, Methods, smaller

from budgetopt import networks, objective
from budgetopt.data.dataset import Split
from budgetopt.evaluation import Standardize, TrainingSet, score
from budgetopt.packing import unpack
from budgetopt.protocol import Protocol
from budgetopt.seeding import derive, generator

OPTIONS = {
    "epochs": (1000, "of the recipe; the protocol takes a tenth of its steps"),
    "objectives": (("dc", "dsa", "mtt"), "of the sets with one sample a class"),
    "ipc": ((1, 10), "samples a class of the random sets"),
    "files": (1, "of every kind"),
    "trainings": (3, "of every file by each of the two"),
}
BATCH = 256


def by_recipe(train: TrainingSet, test: Split, protocol: Protocol, epochs: int, seed: int) -> float:
    """Accuracy on `test` of one network that was trained on `train` by the papers' recipe."""
    g, shape = generator("recipe", seed), train.x.shape[1:]
    network = networks.build(protocol.network, shape, train.classes, protocol.width, g)
    standardize = Standardize(train.mean, train.std, shape, records.CPU)
    x, y = standardize(torch.from_numpy(train.x)), torch.from_numpy(train.y)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2 + 1], 0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=g).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    return score(network, test, standardize, records.CPU, train.classes).accuracy


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    args.levels = 0  # float32, as in the papers
    recipes = dict(objective.resolve(name) for name in args.objectives)
    if args.quick:
        records.tiny(args, epochs=20, ipc=(1,), files=1)
        recipes = {name: smaller(recipe, QUICK) for name, recipe in recipes.items()}
    args.steps = args.epochs // 10  # of the protocol; with at most BATCH samples an epoch is one step
    torch.set_num_threads(1)
    bench = Methods(args, records.console())
    files = {f"{name}, 1 a class": bench.made_all(name, recipe, 1) for name, recipe in recipes.items()}
    files |= {f"random, {ipc} a class": bench.made_all("random", None, ipc) for ipc in args.ipc}
    test = bench.dataset.load_test() if args.split == "test" else bench.dataset.val

    def reference(job: tuple[bytes, int, int]) -> float:
        file, draw, i = job
        if records.samples(file) > BATCH:
            raise SystemExit(f"{records.samples(file)} samples: the comparison of steps holds up to {BATCH}")

        def made() -> float:
            bench.console.print(f"training by the recipe: {args.epochs} epochs, {len(file)} bytes", style="dim")
            return by_recipe(TrainingSet.of(unpack(file)), test, bench.protocol, args.epochs, derive("recipe", draw, i))

        key = {"recipe": args.epochs, "file": records.digest(file), "split": args.split, "training": i, "draw": draw}
        return float(bench.rows.once(key | {"protocol": bench.protocol.hash}, made))

    found, rows, differences = bench.accuracies(files), [], []
    with ThreadPoolExecutor(args.parallel) as pool:
        for name, of_kind in files.items():
            jobs = [(file, draw, i) for draw, file in enumerate(of_kind) for i in range(args.trainings)]
            papers = np.array(list(pool.map(reference, jobs))).reshape(len(of_kind), args.trainings)
            differences.append(found[name] - papers)
            shown = [records.student_interval(accuracies.ravel()) for accuracies in (papers, found[name])]
            rows.append((name, *shown, f"{100 * differences[-1].mean():+.2f}"))
    rows.append(("mean of all files", "", "", records.interval(np.concatenate(differences), signed=True)))
    title = f"{args.dataset}, width {args.width}: accuracy ({args.split}), %"
    bench.table(title, f"set|{args.epochs:,} epochs of SGD|protocol, {args.steps:,} steps|difference", rows)


if __name__ == "__main__":
    main()
