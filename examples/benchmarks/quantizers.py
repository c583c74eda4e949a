"""Every quantizer family and transform at equal file bytes: accuracy of random real samples of Fashion-MNIST.

    python examples/benchmarks/quantizers.py --out runs/quantizers [--refine 100] [--only patches dct]

As many samples as fit 10,000 bytes, 3 draws with 3 trainings each, paired between settings. The differences are
to the best setting of plain uniform levels. With --refine, the samples are refined for so many steps with the quantizer
in the loop. Settings that the data cannot take are left out and named. Finished rows are kept in DIR.
"""

from __future__ import annotations

from collections.abc import Sequence

import records
import torch

from budgetopt import methods, single
from budgetopt.allocation import Allocation
from budgetopt.errors import BudgetoptError
from budgetopt.objective import CoresetObjective
from budgetopt.representation import Representation
from budgetopt.seeding import generator

# (quantizer, levels, clipping, transform); None: the family's own
SETTINGS: list[tuple[str, int | None, str | None, str]] = [
    *(("uniform", levels, "minmax", "identity") for levels in (2, 3, 4, 8)),
    ("uniform", 4, "p5", "identity"),
    ("uniform", 4, "symmetric", "standardize"),
    ("uniform:companding=tanh", 4, "minmax", "standardize"),
    ("uniform:companding=laplace", 4, "minmax", "standardize"),
    ("uniform:granularity=class", 4, "minmax", "identity"),
    ("uniform:granularity=feature", 4, "minmax", "identity"),
    *(("apot", levels, "half", "standardize") for levels in (3, 7, 15)),
    ("ddq", 4, "minmax", "identity"),
    *(("lloyd-max", levels, "minmax", "identity") for levels in (2, 3, 4)),
    *(("palette", levels, None, "identity") for levels in (2, 4)),
    ("palette:learn=median-cut", 4, None, "identity"),
    ("patches:side=28,groups=0", 3, "minmax", "identity"),
    ("patches:side=7,groups=0", 2, "minmax", "identity"),
    ("patches:side=7,groups=16", 3, "minmax", "identity"),
    ("patches:side=7,groups=64", 3, "mse", "identity"),
    *((f"jpeg:quality={quality}", None, None, "identity") for quality in (5, 15, 40)),
    *((f"webp:quality={quality}", None, None, "identity") for quality in (5, 20, 50)),
    ("none:dtype=uint8", None, None, "identity"),
    ("uniform", 4, "minmax", "resize:scale=0.5"),
    ("uniform", 8, "minmax", "resize:scale=0.5"),
    ("uniform", 16, "minmax", "dct:keep=0.1"),
    ("uniform:granularity=band", 16, "minmax", "dct:keep=0.1"),
    ("uniform", 16, "p1", "dct:keep=0.1,block=8x8"),
    ("apot", 15, "half", "dct:keep=0.1"),
    ("uniform", 16, "minmax", "pca:components=32"),
    ("lloyd-max", 8, "minmax", "dct:keep=0.1"),
]
ONLY_TRAINED = "ddq"  # without steps it is uniform
OPTIONS = {
    "budget": (10_000, "bytes of a file"),
    "refine": (0, "refinement steps with the quantizer in the loop"),
    "only": (("",), "parts of the names of the settings to run"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args, budget=900)
    torch.set_num_threads(1)
    bench = records.Bench(args, records.console())
    arms: dict[str, list[bytes]] = {}
    for setting in SETTINGS:
        name = shown(*setting)
        if not any(part in name for part in (*args.only, "uniform, ")):  # those are the reference
            continue
        if setting[0] == ONLY_TRAINED and not args.refine:
            continue
        try:
            arms[name] = [made(bench, name, allocated(*setting), draw) for draw in range(args.files)]
        except BudgetoptError as error:
            bench.console.print(f"left out: {name}: {error}")
    found = bench.accuracies(arms)
    plain = [shown(*setting) for setting in SETTINGS if setting[0] == "uniform" and setting[3] == "identity"]
    reference = max(found.keys() & plain, key=lambda name: found[name].mean())
    rows = [
        (
            name,
            *records.of_files(arms[name]),
            records.interval(groups),
            records.interval(groups - found[reference], True),
        )
        for name, groups in sorted(found.items(), key=lambda item: -item[1].mean())
    ]
    steps = f", refined for {args.refine} steps" if args.refine else ""
    title = f"Random samples of {args.dataset} at {args.budget:,} bytes{steps}: accuracy ({args.split}), %"
    bench.table(title, f"setting|samples|bytes|accuracy|minus {reference}", rows)
    bench.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


def shown(quantizer: str, levels: int | None, clipping: str | None, transform: str) -> str:
    parts = [
        quantizer,
        f"{levels} levels" if levels else None,
        transform if transform != "identity" else None,
        clipping,
    ]
    return ", ".join(part for part in parts if part)


def allocated(quantizer: str, levels: int | None, clipping: str | None, transform: str) -> Allocation:
    return single.allocation("coreset", "random", 1, transform, quantizer, levels, clipping)


def made(bench: records.Bench, name: str, allocation: Allocation, draw: int) -> bytes:
    """The file of the most samples of a draw; with refinement, the most that it has before, and fewer if it grew."""
    args = bench.args

    def coreset(samples: int) -> Representation:
        return bench.representation(bench.drawn(draw, samples), allocation, draw)

    def refined() -> bytes:
        packed = bench.largest(args.budget, coreset)
        if not args.refine:
            return packed
        representation = coreset(records.samples(packed))
        objective = CoresetObjective(method="coreset", steps=args.refine)
        method = methods.build(objective, bench.data, representation, generator("refinement", draw))
        records.optimise(method, representation, args.refine)
        return records.trimmed(representation, args.budget)

    return bench.file({"setting": name, "draw": draw, "budget": args.budget, "refine": args.refine}, refined)


if __name__ == "__main__":
    main()
