"""Is a set better, or cheaper, that starts from one made for other levels than one that starts anew?

    python examples/benchmarks/parents.py --out runs/parents

A parent is distilled for some levels in the objective's steps; its child starts from the decoded file and is
fine-tuned for other levels in a third of them, as in a search with `--parents`. It is compared with sets that
start anew from the same real samples: in as many steps as parent and child took together, in the objective's own (what
a search without parents does), and in the child's own. All have as many samples. Finished rows are kept in DIR.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import records
import torch

from budgetopt import methods, objective
from budgetopt.allocation import Allocation
from budgetopt.data import open_source
from budgetopt.errors import InputError
from budgetopt.objective import Optimised
from budgetopt.packing import pack, unpack
from budgetopt.protocol import PRESETS
from budgetopt.representation import InitialSet
from budgetopt.seeding import generator
from budgetopt.trial import CHILD_SHARE

OPTIONS = {
    "ipc": (10, "samples a class"),
    "objective": ("dm", "by name, or by path of a TOML file"),
    "pairs": (("8:4", "4:2", "2:4", "4:3"), "levels of the parent and of the child"),
    "steps": (0, "of a training; 0: the protocol's"),
}


class Parents(records.Bench):
    def made(self, recipe: Optimised, levels: int, draw: int, parent: int = 0) -> bytes:
        """The set of `levels` levels; parent: levels of the set that it starts from, 0 for real samples."""
        steps = recipe.shortened(CHILD_SHARE) if parent else recipe
        key = {"recipe": steps.model_dump(mode="json"), "levels": levels, "parent": parent, "draw": draw}
        key |= {"ipc": self.args.ipc}

        def make() -> bytes:
            initial = self.drawn(draw, self.args.ipc * self.dataset.spec.classes)
            if parent:
                decoded = unpack(self.made(recipe, parent, draw))
                initial = InitialSet(decoded.decode(), decoded.counts)
            representation = self.representation(initial, Allocation(ipc=self.args.ipc, levels=levels), draw)
            known = methods.shared(steps, self.data, 0, self.args.out / "shared")
            method = methods.build(steps, self.data, representation, generator("parents", draw), known)
            records.optimise(method, representation, steps.all_steps)
            return pack(representation.packed())

        return self.file(key, make)


def read_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    try:
        return [(int(a), int(b)) for a, b in (text.split(":") for text in texts)]
    except ValueError:
        raise InputError(f"--pairs are levels of parent and child as in 8:4, got {' '.join(texts)}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    _, recipe = objective.resolve(args.objective)
    if not isinstance(recipe, Optimised):
        raise InputError(f"--objective {args.objective} optimises nothing: dm does")
    if args.quick:
        records.tiny(args, ipc=2, pairs=args.pairs[:2])
        recipe = recipe.model_copy(update={"steps": 3, "bank": 2, "real_batch": 8})
    args.steps = args.steps or PRESETS[open_source(args.dataset, args.data).protocol].steps
    torch.set_num_threads(1)
    bench, pairs = Parents(args, records.console()), read_pairs(args.pairs)
    short = recipe.shortened(CHILD_SHARE)
    longest = recipe.model_copy(update={"steps": recipe.steps + short.steps})
    anew = {"anew, as much in all": longest, "anew, as a search": recipe, "anew, as little": short}
    draws = range(args.files)
    files = {}
    for start, levels in pairs:
        files[start, levels, "child"] = [bench.made(recipe, levels, draw, start) for draw in draws]
        for name, steps in anew.items():
            files[start, levels, name] = [bench.made(steps, levels, draw) for draw in draws]
    found = bench.accuracies({"|".join(map(str, key)): made for key, made in files.items()})
    rows, gains = [], {name: [] for name in anew}
    for (start, levels, name), made in files.items():
        groups = found[f"{start}|{levels}|{name}"]
        own = short if name == "child" else anew[name]
        steps = f"{recipe.all_steps} + {own.all_steps}" if name == "child" else f"{own.all_steps}"
        gain = ""
        if name in gains:
            gains[name].append(found[f"{start}|{levels}|child"] - groups)
            gain = records.interval(gains[name][-1], signed=True)
        rows.append((f"{start} to {levels}", name, steps, records.of_files(made)[1], records.interval(groups), gain))
    # the same draws in every row: the mean of all has as many independent files as one row
    rows += [("mean", name, "", "", "", records.interval(np.mean(of, 0), signed=True)) for name, of in gains.items()]
    setting = f"{args.dataset}, {args.ipc} a class, width {args.width}, {args.steps} steps a training"
    bench.table(f"{setting}: accuracy ({args.split}), %", "levels|set|steps|bytes|accuracy|child minus it", rows)
    bench.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


if __name__ == "__main__":
    main()
