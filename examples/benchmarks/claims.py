"""Five claims of the papers, measured again at equal file bytes on Fashion-MNIST.

    python examples/benchmarks/claims.py --out runs/claims --parts loop [--quick]

loop    one and the same distilled set, quantized afterwards; fine-tuned with the quantizer in the loop; and, as a
        control, fine-tuned for as many steps without it and quantized then (QuADD Fig. 8, BCDC Table 8)
apot    APoT against uniform levels, both with the quantizer in the loop, 1 to 4 bits (QuADD Fig. 8)
patches levels for the whole image, for patches (PAQ), for groups of patches (GAQ), then refined, then entropy-coded
        (PTQ for condensation, Table 8)
bits    one budget, 1 to 8 bits a value, as many samples as fit: real ones, and distilled (BCDC Table 10)
transfer at one budget a set in float32 and a quantized one, both distilled for the protocol's network, in others
        (BCDC Table 7, PTQ Table 7)

Sets are distilled by distribution matching, `--files` of them, with 3 trainings of every file. Arms of one comparison
have the same bytes: a longer file loses samples. Finished rows are kept in DIR; intervals are two-level bootstraps.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from unittest import mock

import numpy as np
import records
import torch
from records import Bench

from budgetopt import methods, objective, single
from budgetopt.allocation import Allocation
from budgetopt.methods import target_bank
from budgetopt.methods.target_bank import TargetBank
from budgetopt.objective import CoresetObjective, Objective
from budgetopt.packing import coders, pack
from budgetopt.representation import InitialSet, Representation
from budgetopt.seeding import generator

OPTIONS = {
    "parts": (("loop", "apot", "patches", "bits", "transfer"), "to run"),
    "ipc": (10, "samples a class of the distilled sets of `loop`"),
    "pool": (30, "samples a class of those of `patches`, of which as many as fit are kept"),
    "distil": (500, "steps behind a distilled set"),
    "finetune": (150, "steps k of fine-tuning"),
    "levels": ((2, 3, 4, 8), "of `loop`"),
    "clipping": (("minmax", "p5"), "of `loop`"),
    "budget": (10_000, "bytes of a file of `apot` and `patches`"),
    "patch_levels": ((3, 4), "of `patches`"),
    "side": (5, "of a patch"),
    "groups": (64, "of patches"),
    "bits_budget": (10_000, "bytes of a file of `bits`"),
    "bits": ((1, 2, 3, 4, 6, 8), "of `bits`"),
    "transfer_budget": (31_500, "bytes of a file of `transfer`: one float32 image of 28×28 a class"),
    "transfer_levels": (4, "of `transfer`"),
    "networks": (("convnet", "lenet", "alexnet", "resnet18"), "of `transfer`"),
    "bank": (100, "target embeddings"),
    "real_batch": (256, "real samples a class behind one"),
}


class Claims(Bench):
    @cached_property
    def matching(self) -> Objective:
        """Distribution matching of the package with the arguments' bank."""
        _, shipped = objective.resolve("dm")
        return shipped.model_copy(update={"bank": self.args.bank, "real_batch": self.args.real_batch})

    @cached_property
    def bank(self) -> TargetBank:
        return target_bank.cached(self.matching, self.data, 0, self.args.out / "bank")

    def optimised(self, representation: Representation, task: Objective, steps: int, draw: int) -> Representation:
        bank = self.bank if task is self.matching else None
        method = methods.build(task, self.data, representation, generator("claims", draw), bank)
        records.optimise(method, representation, steps)
        return representation

    def floats(self, initial: InitialSet, draw: int) -> Representation:
        return self.representation(initial, single.allocation("dm", "random", 1, "identity", "none", None, None), draw)

    def kept(self, name: str, make: Callable[[], Representation]) -> InitialSet:
        """A set in float32 that is made once and saved."""
        path = self.args.out / f"{name}-{self.args.dataset}-width{self.args.width}-bank{self.args.bank}.npz"
        if not path.exists():
            self.console.print(f"distilling {name}", style="dim")
            made = make()
            with torch.no_grad():
                x = made().numpy()
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.savez(stream, x=x, counts=np.array(made.counts))
            partial.replace(path)
        with np.load(path, allow_pickle=False) as archive:
            return InitialSet(archive["x"], tuple(int(c) for c in archive["counts"]))

    def distilled(self, ipc: int, draw: int) -> InitialSet:
        steps = self.args.distil

        def make() -> Representation:
            return self.optimised(
                self.floats(self.drawn(draw, ipc * self.dataset.spec.classes), draw), self.matching, steps, draw
            )

        return self.kept(f"distilled-ipc{ipc}-steps{steps}-draw{draw}", make)

    # --- quantization inside the loop or afterwards ------------------------------------------------------------------

    def loop(self) -> None:
        args, arms = self.args, ("afterwards", "in the loop", "control")
        files: dict[str, list[bytes]] = {}
        for levels in args.levels:
            for clipping in args.clipping:
                of_draws = [self._loop_files(levels, clipping, draw) for draw in range(args.files)]
                for arm, of_arm in zip(arms, zip(*of_draws, strict=True), strict=True):
                    files[f"{levels}|{clipping}|{arm}"] = list(of_arm)
        full = {"kind": "floats", "ipc": args.ipc, "distil": args.distil, "bank": args.bank}
        files["float32"] = [
            self.file(full | {"draw": d}, lambda d=d: pack(self.floats(self.distilled(args.ipc, d), d).packed()))
            for d in range(args.files)
        ]
        found = self.accuracies(files)
        rows = []
        for name, groups in found.items():
            start = found[name.rpartition("|")[0] + "|afterwards"] if "|" in name else groups
            cells = name.split("|") if "|" in name else ["", "", name]
            difference = records.interval(groups - start, True) if not name.endswith(arms[0]) and "|" in name else ""
            rows.append((*cells, *records.of_files(files[name]), records.interval(groups), difference))
        title = (
            f"Claim 1: {args.finetune} steps from one distilled set ({args.ipc} a class): accuracy ({args.split}), %"
        )
        self.table(title, "levels|clipping|quantizer|samples|bytes|accuracy|minus afterwards", rows)

    def _loop_files(self, levels: int, clipping: str, draw: int) -> list[bytes]:
        """The files of the three arms, cut to the bytes of the shortest."""
        args, steps = self.args, self.args.finetune
        allocation = Allocation("dm", levels=levels, clipping=clipping)

        def make() -> list[Representation]:
            start = self.distilled(args.ipc, draw)
            looped = self.representation(start, allocation, draw)
            self.optimised(looped, self.matching, steps, draw)
            further = self.kept(
                f"control-ipc{args.ipc}-steps{args.distil}+{steps}-draw{draw}",
                lambda: self.optimised(self.floats(start, draw), self.matching, steps, draw),
            )
            return [
                self.representation(start, allocation, draw),
                looped,
                self.representation(further, allocation, draw),
            ]

        key = {"kind": "loop", "levels": levels, "clipping": clipping, "draw": draw, "finetune": steps}
        key |= {"ipc": args.ipc, "distil": args.distil, "bank": args.bank}
        made: list[Representation] = []

        def cut(arm: int) -> bytes:
            made.extend([] if made else make())
            least = min(len(pack(representation.packed())) for representation in made)
            return records.trimmed(made[arm], least)

        return [self.file(key | {"arm": arm}, lambda arm=arm: cut(arm)) for arm in range(3)]

    # --- APoT against uniform levels ---------------------------------------------------------------------------------

    def apot(self) -> None:
        args = self.args
        files: dict[str, list[bytes]] = {}
        for bits in range(1, 5):
            for family, levels, clipping in (("uniform", 2**bits, "p1"), ("apot", max(2, 2**bits - 1), "half")):
                allocation = Allocation("dm", "random", 1, "standardize", family, levels, clipping)
                key = {"kind": "in the loop", "allocation": str(allocation), "budget": args.budget}
                key |= {"finetune": args.finetune, "bank": args.bank}
                files[f"{bits}|{family}"] = [
                    self.file(key | {"draw": d}, lambda a=allocation, d=d: self._fitted(a, d, args.budget))
                    for d in range(args.files)
                ]
        found = self.accuracies(files)
        rows = []
        for name, groups in found.items():
            bits, family = name.split("|")
            difference = groups - found[f"{bits}|uniform"]
            shown = records.interval(difference, True) if family == "apot" else ""
            rows.append((bits, family, *records.of_files(files[name]), records.interval(groups), shown))
        title = f"Claim 3: {args.finetune} steps with the quantizer, {args.budget:,} bytes: accuracy ({args.split}), %"
        self.table(title, "bits|family|samples|bytes|accuracy|minus uniform", rows)

    def _fitted(self, allocation: Allocation, draw: int, budget: int) -> bytes:
        """Matched with as many samples as fit afterwards: files grow in training, so a second set starts smaller."""

        def start(samples: int) -> Representation:
            return self.representation(self.drawn(draw, samples), allocation, draw)

        samples = records.samples(self.largest(budget, start))
        trained = self.optimised(start(samples), self.matching, self.args.finetune, draw)
        size, classes = len(pack(trained.packed())), self.dataset.spec.classes
        if size > budget and (fewer := max(classes, samples * budget // size + 1)) < samples:
            trained = self.optimised(start(fewer), self.matching, self.args.finetune, draw)
        return records.trimmed(trained, budget)

    # --- patches, refinement, entropy coding -------------------------------------------------------------------------

    def patches(self) -> None:
        args = self.args
        whole = f"patches:side={max(self.dataset.spec.shape[1:])},groups=0"
        paq, gaq = f"patches:side={args.side},groups=0", f"patches:side={args.side},groups={args.groups}"
        kinds = [  # name, quantizer, refined, entropy-coded
            ("whole image", whole, False, False),
            ("PAQ", paq, False, False),
            ("GAQ", gaq, False, False),
            ("GAQ, refined", gaq, True, False),
            ("GAQ, refined, entropy-coded", gaq, True, True),
            ("GAQ, entropy-coded", gaq, False, True),
            ("PAQ, entropy-coded", paq, False, True),
            ("whole image, entropy-coded", whole, False, True),
            ("whole image, refined, entropy-coded", whole, True, True),
            ("one range, entropy-coded", "uniform", False, True),
            ("one range, refined, entropy-coded", "uniform", True, True),
        ]
        files: dict[str, list[bytes]] = {}
        for levels in args.patch_levels:
            for name, quantizer, refined, coded in kinds:
                allocation = single.allocation("dm", "random", 1, "identity", quantizer, levels, None)
                key = {"kind": "patches", "quantizer": quantizer, "levels": levels, "refined": refined, "coded": coded}
                key |= {"budget": args.budget, "pool": args.pool, "distil": args.distil, "bank": args.bank}
                key |= {"finetune": args.finetune}
                files[f"{levels}|{name}"] = [
                    self.file(key | {"draw": d}, lambda a=allocation, r=refined, c=coded, d=d: self._pooled(a, r, c, d))
                    for d in range(args.files)
                ]
        found = self.accuracies(files)
        rows = []
        for name, groups in found.items():
            levels, kind = name.split("|")
            difference = (
                records.interval(groups - found[f"{levels}|whole image"], True) if kind != "whole image" else ""
            )
            rows.append((levels, kind, *records.of_files(files[name]), records.interval(groups), difference))
        title = f"Claim 4: of {args.pool} distilled samples a class, {args.budget:,} bytes: accuracy ({args.split}), %"
        self.table(title, "levels|quantizer|samples|bytes|accuracy|minus whole image", rows)

    def _pooled(self, allocation: Allocation, refined: bool, coded: bool, draw: int) -> bytes:
        """The first samples of the distilled set, as many as fit; those that are coded plainly are packed so."""
        pool = self.distilled(self.args.pool, draw)
        with contextlib.nullcontext() if coded else plain_coding():
            representation = self.representation(pool, allocation, draw)
            if refined:
                task = CoresetObjective(method="coreset", steps=self.args.finetune)
                self.optimised(representation, task, self.args.finetune, draw)
            return records.trimmed(representation, self.args.budget)

    # --- samples or bits ---------------------------------------------------------------------------------------------

    def bits(self) -> None:
        args = self.args
        files: dict[str, list[bytes]] = {}
        for bits in args.bits:
            for method in ("coreset", "dm"):
                allocation = Allocation(method, quantizer="uniform", levels=2**bits)
                key = {"kind": "bits", "allocation": str(allocation), "budget": args.bits_budget}
                key |= {"finetune": args.finetune, "bank": args.bank} if method == "dm" else {}
                files[f"{bits}|{method}"] = [
                    self.file(key | {"draw": d}, lambda a=allocation, d=d: self._of_bits(a, d))
                    for d in range(args.files)
                ]
        found = self.accuracies(files)
        rows = []
        for name, groups in found.items():
            bits, method = name.split("|")
            difference = records.interval(groups - found[f"{bits}|coreset"], True) if method == "dm" else ""
            rows.append((bits, method, *records.of_files(files[name]), records.interval(groups), difference))
        title = f"Claim 2: {args.bits_budget:,} bytes, {args.finetune} steps of dm: accuracy ({args.split}), %"
        self.table(title, "bits|method|samples|bytes|accuracy|minus coreset", rows)

    def _of_bits(self, allocation: Allocation, draw: int) -> bytes:
        budget = self.args.bits_budget
        if allocation.objective == "dm":
            return self._fitted(allocation, draw, budget)
        return self.largest(budget, lambda samples: self.representation(self.drawn(draw, samples), allocation, draw))

    # --- other networks ----------------------------------------------------------------------------------------------

    def transfer(self) -> None:
        args, budget = self.args, self.args.transfer_budget
        arms = {
            "float32": Allocation("dm", quantizer="none", levels=256, clipping="none"),
            f"{args.transfer_levels} levels": Allocation("dm", levels=args.transfer_levels),
        }
        key = {"kind": "transfer", "budget": budget, "finetune": args.finetune, "bank": args.bank}
        files = {
            name: [
                self.file(key | {"arm": name, "draw": d}, lambda a=allocation, d=d: self._fitted(a, d, budget))
                for d in range(args.files)
            ]
            for name, allocation in arms.items()
        }
        rows = []
        for network in args.networks:
            other = Claims(argparse.Namespace(**vars(args) | {"network": network}), self.console)
            found = other.accuracies(files)
            floats, quantized = found.values()
            rows.append((network, *map(records.interval, found.values()), records.interval(quantized - floats, True)))
        held = ", ".join(f"{name}: {records.of_files(of_arm)[0]} samples" for name, of_arm in files.items())
        title = f"Claim 6: {budget:,} bytes ({held}), distilled by dm: accuracy ({args.split}), %"
        self.table(title, "|".join(["network", *arms, "difference"]), rows)


@contextlib.contextmanager
def plain_coding() -> Iterator[None]:
    """Without entropy coding: whole bits for every symbol and parameter."""
    with mock.patch.dict(coders.CODERS, {0: coders.CODERS[0]}, clear=True):
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        small = {"ipc": 2, "pool": 3, "distil": 2, "finetune": 2, "bank": 2, "real_batch": 8, "budget": 700}
        records.tiny(args, **small, levels=(2,), clipping=("minmax",), patch_levels=(3,), side=3, groups=4)
        records.tiny(args, bits_budget=700, bits=(2,), transfer_budget=2_800, networks=("convnet", "lenet"))
    torch.set_num_threads(1)
    claims = Claims(args, records.console())
    for part in args.parts:
        if part not in OPTIONS["parts"][0]:
            raise SystemExit(f"unknown part {part!r}, known are {', '.join(OPTIONS['parts'][0])}")
        getattr(claims, part)()
    claims.console.print("intervals: 95 %, two-level bootstrap over files and trainings; differences are paired")


if __name__ == "__main__":
    main()
