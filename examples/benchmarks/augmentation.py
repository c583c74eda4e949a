"""What the augmentation of the protocol does to accuracy: resampling blurs what a network trains on, not its test data.

    python examples/benchmarks/augmentation.py --out runs/augmentation

Random real samples of several sizes, each trained on by the preset's recipe under different augmentations. Finished
rows are kept in DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import records
import torch

from budgetopt import single
from budgetopt.data import open_source
from budgetopt.protocol import PRESETS, Protocol

SETS = (
    "10|none|256|identity",
    "100|uniform|8|identity",
    "1560|lloyd-max|2|identity",
    "3070|lloyd-max|3|resize:scale=0.5,down=area",
)
OPTIONS = {
    "sets": (SETS, "samples|quantizer|levels|transform"),
    "steps": (0, "of a training; 0: the protocol's"),
}


class Augmented(records.Bench):
    """A bench whose protocol has the augmentation of its arguments."""

    @property
    def protocol(self) -> Protocol:  # type: ignore[override]
        return super().protocol.model_copy(update={"augment": self.args.augment})


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args, sets=("10|uniform|4|identity", "20|uniform|2|identity"))
    source = open_source(args.dataset, args.data)
    args.steps = args.steps or PRESETS[source.protocol].steps
    torch.set_num_threads(1)
    full = dict(source.invariances) or dict(PRESETS[source.protocol].augment)
    flip = {"flip": {"flip": 0.5}} if "shift" in full else {}  # of pictures
    ways = {"none": {}, **flip, ", ".join(full): full}
    bench = records.Bench(args, records.console())
    files = {}
    for name in args.sets:
        samples, quantizer, levels, transform = name.split("|")
        allocation = single.allocation("coreset", "random", 1, transform, quantizer, int(levels), None)
        files[name] = [
            bench.file(
                {"set": name, "draw": d},
                lambda a=allocation, n=int(samples), d=d: records.trimmed(
                    bench.representation(bench.drawn(d, n), a, d), 10**9
                ),
            )
            for d in range(args.files)
        ]
    found = {
        way: Augmented(argparse.Namespace(**vars(args) | {"augment": augment}), bench.console).accuracies(files)
        for way, augment in ways.items()
    }
    rows = []
    for name in files:
        for way, of_way in found.items():
            difference = records.interval(of_way[name] - found["none"][name], signed=True) if way != "none" else ""
            rows.append(
                (
                    name.replace("|", ", "),
                    *records.of_files(files[name]),
                    way,
                    records.interval(of_way[name]),
                    difference,
                )
            )
    title = f"{args.dataset}, width {args.width}, {args.steps} steps a training: accuracy ({args.split}), %"
    bench.table(title, "set|samples|bytes|augmentation|accuracy|minus none", rows)
    bench.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


if __name__ == "__main__":
    main()
