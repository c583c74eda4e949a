"""Length of packed files against the bound 1.01·N·H0/8 + (L−1)/2·log2(N)/8 + 64 bytes, on digits and synthetic symbols.

    python examples/benchmarks/file_size.py

N symbols, L levels, H0 their zeroth-order entropy in bits. Prints the worst slack for every number of levels.
"""

from __future__ import annotations

import math

import numpy as np
from sklearn.datasets import load_digits

from budgetopt.packing import Identity, PackedSet, UniformLevels, pack


def entropy(symbols: np.ndarray) -> float:
    """Zeroth-order entropy in bits a symbol."""
    share = np.bincount(symbols.ravel()) / symbols.size
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def file_bytes(symbols: np.ndarray, levels: int) -> int:
    """symbols: (n, c, h, w) in ten equal or nearly equal classes → length of the file."""
    counts = tuple(len(part) for part in np.array_split(np.arange(len(symbols)), 10))
    one = np.ones(symbols.shape[1], np.float32)
    return len(pack(PackedSet(symbols, counts, UniformLevels(levels, 0, 1, 0), Identity(), one, one)))


def sources(levels: int, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Symbols (count, 1, 8, 8) of several kinds."""
    shape = (count, 1, 8, 8)
    digits = load_digits().data[rng.permutation(1797)[:count]].reshape(-1, 1, 8, 8)
    skewed = np.minimum(rng.geometric(0.6, shape) - 1, levels - 1)
    uniform = rng.integers(0, levels, shape)
    return {
        "digits": np.round(digits / 16 * (levels - 1)),
        "uniform": uniform,
        "skewed": skewed,
        "sorted": np.sort(uniform.ravel()).reshape(shape),
        "constant": np.zeros(shape),
    }


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'levels':>6}  {'source':<9}{'samples':>8}{'file':>9}{'bound':>10}{'of bound':>9}")
    for levels in (2, 3, 4, 5, 6, 8, 12, 16, 17, 32, 64):
        rows = []
        for count in (10, 30, 100, 300, 1000):
            for name, values in sources(levels, count, rng).items():
                symbols = values.astype(np.uint8)
                n, h0 = symbols.size, entropy(symbols)
                bound = 1.01 * n * h0 / 8 + (levels - 1) / 2 * math.log2(n) / 8 + 64
                rows.append((file_bytes(symbols, levels) / bound, name, count, file_bytes(symbols, levels), bound))
        share, name, count, size, bound = max(rows)
        print(f"{levels:>6}  {name:<9}{count:>8}{size:>9,}{bound:>10,.0f}{share:>9.3f}  (the worst of {len(rows)})")


if __name__ == "__main__":
    main()
