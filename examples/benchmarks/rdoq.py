"""What rate–distortion optimised quantization is worth at equal file bytes: random real samples, more of them the more
a bit weighs.

    python examples/benchmarks/rdoq.py --out runs/rdoq [--dataset digits --budget 1000]

As many samples as fit `--budget`, 3 draws with 3 trainings each, paired with the nearest levels (weight 0). The first
column of bytes is that of the same samples, as many as fit at weight 0. Finished rows are kept in DIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import records
import torch

from budgetopt import single
from budgetopt.packing import pack
from budgetopt.representation import Representation

OPTIONS = {
    "dataset": ("FashionMNIST", "any that the package knows"),
    "budget": (10_000, "bytes of a file"),
    "levels": ((2, 4), "of Lloyd–Max"),
    "weights": ((0.0, 0.1, 0.2, 0.4), "of a bit; 0, the nearest levels, is always among them"),
    "transform": ("identity", "with options as in resize:scale=0.75"),
}


class Thrift(records.Bench):
    """Coresets by number of levels and weight of a bit."""

    def coreset(self, levels: int, weight: float, samples: int, draw: int) -> Representation:
        allocation = single.allocation("coreset", "random", 1, self.args.transform, "lloyd-max", levels, "minmax")
        return self.representation(self.drawn(draw, samples), replace(allocation, rdoq=weight), draw)

    def filled(self, levels: int, weight: float, draw: int) -> bytes:
        """The file of the most samples."""
        args = self.args
        key = {"levels": levels, "rdoq": weight, "draw": draw, "budget": args.budget, "transform": args.transform}
        return self.file(key, lambda: self.largest(args.budget, lambda n: self.coreset(levels, weight, n, draw)))

    def same_samples(self, levels: int, weight: float, files: Sequence[bytes]) -> float:
        """Mean bytes of the samples that `files` hold, coded at this weight."""
        sets = (self.coreset(levels, weight, records.samples(file), draw) for draw, file in enumerate(files))
        return float(np.mean([len(pack(made.packed())) for made in sets]))


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args, budget=900, levels=(2,), weights=(0.3,))
    args.weights = sorted({0.0, *args.weights})
    torch.set_num_threads(1)
    bench = Thrift(args, records.console())
    arms = [(levels, weight) for levels in args.levels for weight in args.weights]
    files = {shown(*arm): [bench.filled(*arm, draw) for draw in range(args.files)] for arm in arms}
    found = bench.accuracies(files)
    rows = []
    for levels, weight in arms:
        name, nearest = shown(levels, weight), shown(levels, 0.0)
        difference = records.interval(found[name] - found[nearest], True) if weight else ""
        size = f"{bench.same_samples(levels, weight, files[nearest]):,.0f}"
        rows.append((name, size, *records.of_files(files[name]), records.interval(found[name]), difference))
    title = f"RDOQ on {args.dataset} at {args.budget:,} bytes, {args.transform}: accuracy ({args.split}), %"
    bench.table(title, "setting|bytes of the same samples|samples|bytes|accuracy|minus weight 0", rows)
    bench.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


def shown(levels: int, weight: float) -> str:
    return f"{levels} levels, weight {weight:g}"


if __name__ == "__main__":
    main()
