"""Random real samples at 30,000 file bytes on Fashion-MNIST: test accuracy at 2, 3 and 4 levels.

    python examples/benchmarks/random_coreset.py --out runs/random-coreset [--label-bits 3]

Uniform levels on [0, 255], as many samples as fit with everything included, 5 draws. The network has width 64
and trains for 500 steps. Finished rows are kept in DIR; sets that decode alike share their trainings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import records
import torch

from budgetopt.allocation import Allocation

TARGET = 0.825
OPTIONS = {
    "budget": (30_000, "bytes of a file"),
    "levels": ((2, 3, 4), "of the uniform quantizer"),
    "files": (5, "draws"),
    "width": (64, "of the network"),
    "steps": (500, "of a training"),
    "label_bits": (0, "of a probability in soft labels; 0: hard labels"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args, budget=1_000, levels=(2, 4))
    torch.set_num_threads(1)
    bench = records.Bench(args, records.console())
    arms = {}
    for levels in args.levels:
        allocation = Allocation(levels=levels, label_bits=args.label_bits)
        key = {"levels": levels, "budget": args.budget, "label_bits": args.label_bits}
        arms[str(levels)] = [
            bench.file(
                key | {"draw": d},
                lambda a=allocation, d=d: bench.largest(
                    args.budget, lambda samples: bench.representation(bench.drawn(d, samples), a, d)
                ),
            )
            for d in range(args.files)
        ]
    found = bench.accuracies(arms)
    rows = [
        (levels, *records.of_files(arms[levels]), *map(records.student_interval, groups), records.interval(groups))
        for levels, groups in found.items()
    ]
    draws = "|".join(f"draw {d}" for d in range(args.files))
    title = f"Random coreset of {args.dataset} at {args.budget:,} bytes: accuracy ({args.split}), %"
    bench.table(title, f"levels|samples|bytes|{draws}|all draws", rows)
    best = max(found, key=lambda levels: found[levels].mean())
    per_draw = np.array(found[best].mean(1))
    bench.console.print(f"best: {best} levels, {records.student_interval(per_draw)} (target: at least {100 * TARGET})")
    bench.console.print("a draw: ± half of a 95 % Student-t interval; all draws: 95 % two-level bootstrap")


if __name__ == "__main__":
    main()
