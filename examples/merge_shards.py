"""Five nodes hold different parts of Fashion-MNIST. Each sends one small file; a server joins them into one.

    python examples/merge_shards.py --data-root DATA

What each node holds is drawn class by class (Dirichlet: no node is like the whole). Printed are the bytes and test
accuracy of every node's file, of the merged file, and of a file of the same size made from all data at one place.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import budgetopt
from budgetopt import data
from budgetopt.budget import Budget
from budgetopt.data.dataset import Dataset


def main(arguments: list[str] | None = None) -> dict[str, tuple[int, float]]:
    """→ {what: (bytes, test accuracy)}"""
    options = parsed(arguments)
    dataset = Dataset.prepare(data.open_source(options.dataset, options.data_root), options.seed)
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        protocol = folder / "protocol.toml"
        protocol.write_text(f'network = "convnet"\nwidth = {options.width}\nsteps = {options.steps}\n')
        common = {"protocol": str(protocol), "classes": dataset.spec.classes}
        found: dict[str, tuple[int, float]] = {}

        def report(what: str, path: Path) -> None:
            tested = budgetopt.evaluate(path, options.dataset, seeds=options.seeds, data_root=options.data_root)
            loaded = budgetopt.load(path)
            found[what] = path.stat().st_size, tested.accuracy
            classes = sum(count > 0 for count in loaded.packed.counts)
            print(
                f"{what:<8}{found[what][0]:>9,} bytes{len(loaded):>7,} samples{classes:>4} classes"
                f"{tested.accuracy:>9.1%}",
                flush=True,
            )

        print(
            f"{options.nodes} nodes of {Budget.parse(options.node_budget)}, a server of {Budget.parse(options.budget)}"
        )
        files = []
        for node, rows in enumerate(shards(dataset.train.y, options.nodes, options.alpha, rng)):
            rows = rng.permutation(rows)[: options.most]
            np.savez(folder / f"node{node}.npz", x=dataset.train.x[rows], y=dataset.train.y[rows])
            files.append(fresh(folder / f"node{node}.bopt"))
            budgetopt.compress(folder / f"node{node}.npz", options.node_budget, out=files[-1], **common)
            report(f"node {node}", files[-1])
        merged = fresh(folder / "merged.bopt")
        budgetopt.merge(files, options.budget, out=merged, **common)
        report("merged", merged)
        rows = rng.permutation(len(dataset.train))[: options.nodes * options.most]
        np.savez(folder / "central.npz", x=dataset.train.x[rows], y=dataset.train.y[rows])
        central = fresh(folder / "central.bopt")
        budgetopt.compress(folder / "central.npz", merged.stat().st_size, out=central, **common)
        report("central", central)
    return found


def shards(labels: np.ndarray, nodes: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each node: every class is dealt out by shares drawn from a Dirichlet distribution. The smaller `alpha`,
    the fewer nodes hold a class."""
    dealt: list[list[np.ndarray]] = [[] for _ in range(nodes)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(rng.dirichlet([alpha] * nodes)) * len(rows)).astype(int)
        for held, part in zip(dealt, np.split(rows, ends[:-1]), strict=True):
            held.append(part)
    return [np.concatenate(parts) for parts in dealt]


def fresh(path: Path) -> Path:
    """A file of an earlier run is made again; `compress` never writes over one."""
    path.unlink(missing_ok=True)
    return path


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="FashionMNIST")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=0.2, help="Dirichlet concentration: small is unlike")
    parser.add_argument("--most", type=int, default=200, help="samples that a node picks from, at random")
    parser.add_argument("--node-budget", default="4kb")
    parser.add_argument("--budget", default="15kb", help="of the merged file")
    parser.add_argument("--width", type=int, default=16, help="of the network that is trained")
    parser.add_argument("--steps", type=int, default=150, help="of each training")
    parser.add_argument("--seeds", type=int, default=2, help="trainings for each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="keep the files here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
