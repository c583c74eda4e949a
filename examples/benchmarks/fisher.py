"""Does the Fisher retention of BCDC Theorem 4.6 predict accuracy beyond the distortion?

    python examples/benchmarks/fisher.py --table tests/golden/digits-table.npz

Takes a table of recorded trials (`record_table.py`). Every coding (quantizer, clipping, levels) gets its retention: the
Fisher information of random samples as it stores them over that of the same samples as they are. The error model is
fitted with and without the logarithm of it as a covariate, on all codings but one, and predicts the accuracies of the
one left out. Printed are the root mean squared errors in log-odds and their difference, with a bootstrap over codings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import records
import torch

from budgetopt import fisher, networks
from budgetopt.allocation import Allocation
from budgetopt.evaluation import Standardize
from budgetopt.packing import unpack
from budgetopt.search import error_model
from budgetopt.search.error_model import Evidence
from budgetopt.search.recorded import Table
from budgetopt.seeding import generator

OPTIONS = {"dataset": ("digits", "that of the table"), "samples": (200, "random ones whose information is measured")}


def retentions(bench: records.Bench, codings: Sequence[Allocation]) -> dict[Allocation, float]:
    """Of every coding: mean information of samples as stored over that of the same samples as they are."""
    spec, initial = bench.dataset.spec, bench.drawn(0, bench.args.samples)
    standardize = Standardize(spec.mean, spec.std, spec.shape, records.CPU)
    x = torch.from_numpy(np.ascontiguousarray(initial.x, np.float32))
    y = torch.eye(spec.classes)[torch.from_numpy(np.repeat(np.arange(spec.classes), initial.counts))]
    nets = [
        networks.build(
            bench.protocol.network, spec.shape, spec.classes, bench.protocol.width, generator("fisher", 0, k)
        )
        for k in range(fisher.NETWORKS)
    ]

    def information(samples: torch.Tensor) -> float:
        return float(np.mean([fisher.traces(net.eval(), standardize(samples), y).mean() for net in nets]))

    real = information(x)
    found = {}
    for coding in codings:
        file = bench.representation(initial, coding, 0).eval().fit_to_budget(None)
        found[coding] = information(torch.from_numpy(unpack(file).decode())) / real
    return found


def coding_of(allocation: Allocation) -> Allocation:
    plain = Allocation()
    return replace(allocation, objective=plain.objective, selection=plain.selection, ipc=1)


def evidence(table: Table, covariate: np.ndarray) -> tuple[Evidence, np.ndarray]:
    """Rows of all entries that were measured, and which entries these are. covariate: (E, k)."""
    mean = np.full(len(table.allocations), np.nan)
    known = np.isfinite(table.final).any(1)
    mean[known] = np.nanmean(table.final[known], 1)
    error = np.zeros_like(mean)
    error[known] = np.nanstd(table.final[known], 1) / np.sqrt(np.isfinite(table.final[known]).sum(1))
    rows = np.flatnonzero(known)
    g, variance = error_model.log_odds(mean[rows], error[rows], table.validation)
    methods = sorted({a.objective for a in table.allocations})
    allocations = [table.allocations[i] for i in rows]
    return (
        Evidence(
            np.array([a.ipc for a in allocations], np.float64),
            table.codings[rows, 0],
            np.array([methods.index(a.objective) for a in allocations]),
            covariate[rows],
            g,
            variance,
        ),
        rows,
    )


def left_out(data: Evidence, group: np.ndarray) -> np.ndarray:
    """(N,) errors of the predictions of every group by a model of all others."""
    residual = np.empty(len(data))
    for one in np.unique(group):
        inside = group == one
        others = Evidence(*(getattr(data, f)[~inside] for f in data.__dataclass_fields__))
        model = error_model.fit(others, int(data.method.max()) + 1)
        here = (data.n[inside], data.delta[inside], data.method[inside], data.choices[inside])
        residual[inside] = data.g[inside] - model.mean(*here)
    return residual


def main(arguments: Sequence[str] | None = None) -> None:
    parser = records.arguments(__doc__, OPTIONS)
    parser.add_argument("--table", type=Path, required=True, help="recorded trials")
    args = parser.parse_args(arguments)
    if args.quick:
        records.tiny(args, samples=20)
    args.steps = 1  # nothing is trained
    torch.set_num_threads(1)
    console = records.console()
    table = Table.load(args.table)
    codings = list(dict.fromkeys(map(coding_of, table.allocations)))
    kept = retentions(records.Bench(args, console), codings)
    group = np.array([codings.index(coding_of(a)) for a in table.allocations])
    z = np.log([kept[codings[i]] for i in group])[:, None]
    z = (z - z.mean()) / max(float(z.std()), 1e-12)
    plain, rows = evidence(table, np.empty((len(z), 0)))
    without = left_out(plain, group[rows])
    having = left_out(evidence(table, z)[0], group[rows])
    values = np.array(list(kept.values()))
    console.print(f"retention of {len(codings)} codings: {values.min():.2f} to {values.max():.2f}")
    rng = np.random.default_rng(0)
    of_group = [np.flatnonzero(group[rows] == one) for one in np.unique(group[rows])]
    differences = []
    for _ in range(records.RESAMPLES):
        drawn = np.concatenate([of_group[i] for i in rng.integers(len(of_group), size=len(of_group))])
        differences.append(root(having[drawn]) - root(without[drawn]))
    low, high = np.quantile(differences, [0.025, 0.975])
    console.print(
        f"error of a coding left out, log-odds: {root(without):.3f} without, {root(having):.3f} with retention; "
        f"difference {root(having) - root(without):+.3f} [{low:+.3f}, {high:+.3f}]"
    )


def root(residual: np.ndarray) -> float:
    return float(np.sqrt(np.mean(residual**2)))


if __name__ == "__main__":
    main()
