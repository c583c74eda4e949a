"""A recorded table that was never recorded: a known law of accuracy and bytes, misfit of every entry, and noise."""

import math

import numpy as np

from budgetopt.allocation import Allocation
from budgetopt.search.recorded import Table

OBJECTIVES, IPCS, LEVELS = ("coreset", "dm"), (1, 2, 5, 10, 20, 40, 70, 120), (2, 3, 4, 8, 16)
CODINGS = (("uniform", "minmax"), ("uniform", "p1"), ("uniform", "p5"), ("lloyd-max", "minmax"), ("lloyd-max", "p1"))
RUNGS = {"coreset": 2, "dm": 3}
VALIDATION, CLASSES = 210, 10


def law_table(seed: int = 0, seeds: int = 3, budget: int = 5000, misfit: float = 0.07) -> Table:
    """400 entries. An optimised set costs twice a coreset, and grows by a tenth."""
    rng = np.random.default_rng(seed)
    allocations, rows = [], []
    for objective in OBJECTIVES:
        for quantizer, clipping in CODINGS:
            for levels in LEVELS:
                worse = {"minmax": 1.0, "p1": 1.1, "p5": 1.4}[clipping] * (0.8 if quantizer == "lloyd-max" else 1.0)
                delta, bits = min(1.0, 0.9 * worse * levels**-2.0), 60 * math.log2(levels)
                own = rng.normal() * misfit
                for ipc in IPCS:
                    better = objective == "dm"
                    g = 4.3 - (2.4 if better else 3.3) * ipc ** (-0.5 if better else -0.35)
                    g += -(0.9 if better else 1.8) * delta**0.5 - 0.4 * delta + own + rng.normal() * misfit
                    allocations.append(Allocation(objective, "random", ipc, "identity", quantizer, levels, clipping))
                    rows.append((g, delta, bits, 45 + 0.75 * CLASSES * ipc * bits / 8, RUNGS[objective]))
    g, delta, bits, initial, rungs = np.array(rows).T
    entries, most = len(rows), max(RUNGS.values())
    at = np.arange(most)[None, None] < rungs[:, None, None]
    behind = 0.4 * (rungs[:, None, None] - 1 - np.arange(most))
    p = 1 / (1 + np.exp(-(g[:, None, None] - behind + rng.normal(0, 0.1, (entries, seeds, most)))))
    error = np.sqrt(p * (1 - p) / VALIDATION)
    noisy = np.clip(p + rng.normal(size=p.shape) * error * 0.5, 0.02, 1.0)
    seconds = (np.arange(most) + 1)[None, None] * np.where(rungs[:, None, None] == 3, 4.0, 3.0) * np.ones(p.shape)
    start = np.repeat(initial[:, None], seeds, 1).astype(np.int64)
    grown = np.round(start * np.where(rungs == 3, 1.1, 1.0)[:, None]).astype(np.int64)
    samples = np.repeat(CLASSES * np.array([a.ipc for a in allocations])[:, None], seeds, 1)
    return Table(
        tuple(allocations),
        np.where(at, noisy, np.nan),
        np.where(at, error, np.nan),
        np.where(at, seconds, np.nan),
        grown,
        samples,
        start,
        np.column_stack([delta, bits, np.full(entries, 64.0)]),
        budget,
        1 / CLASSES,
        (150,) * CLASSES,
        VALIDATION,
        frozenset({"dm"}),
    )
