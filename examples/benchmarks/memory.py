"""Memory of a receiver that trains: symbols kept and dequantized per batch, against float32 samples of everything.

    python examples/benchmarks/memory.py --out runs/memory

The whole training set is packed once, at `--levels` levels. Every way then runs in a process of its own, which imports
numpy and constriction and no torch: it loads the file and trains a linear classifier for one pass. Printed are the
resident memory of that process at its peak, while it loads or trains, and in the pass alone (Linux: /proc/self).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("only imports", "symbols", "float32")
OPTIONS = {
    "levels": (2, "of the file"),
    "batch": (128, "samples of a step"),
}


def child(way: str, path: str, batch: int) -> dict[str, Any]:
    """Bytes of resident memory: at the peak, and the most while training; and a digest of the weights."""
    from budgetopt import load

    if way == "only imports":
        return {"peak": status("VmHWM"), "pass": status("VmRSS"), "weights": 0}
    packed = load(path)
    mean, std, classes = packed.mean, packed.std, packed.classes
    if way == "symbols":
        batches = packed.batches(batch, seed=0)
    else:
        batches = decoded_batches(packed.samples, packed.labels, batch)
        del packed  # and with it the symbols
    weights, most = None, 0
    for x_batch, y_batch in batches:
        view = (-1,) + (1,) * (x_batch.ndim - 2)
        inputs = ((x_batch - mean.reshape(view)) / std.reshape(view)).reshape(len(x_batch), -1)
        weights = np.zeros((inputs.shape[1], classes), np.float32) if weights is None else weights
        logits = inputs @ weights
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        chances[np.arange(len(y_batch)), y_batch] -= 1
        weights -= 0.01 / len(y_batch) * inputs.T @ chances
        most = max(most, status("VmRSS"))
    return {"peak": status("VmHWM"), "pass": most, "weights": zlib.crc32(weights.tobytes())}


def decoded_batches(x: np.ndarray, y: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same batches as `LoadedSet.batches`."""
    order = np.random.default_rng(0).permutation(len(y))
    for start in range(0, len(y), size):
        rows = order[start : start + size]
        yield x[rows], y[rows]


def status(field: str) -> int:
    """Bytes, as Linux accounts them for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"no {field} in /proc/self/status: this benchmark needs Linux")


def pack_all(source: Any, levels: int) -> bytes:
    """The training arrays at evenly spaced levels over their range."""
    from budgetopt.packing import Identity, PackedSet, UniformLevels, pack

    x, y = source.train_arrays()
    order = np.argsort(y, kind="stable")
    low, high = int(x.min()), int(np.ceil(x.max()))
    symbols = ((x[order].astype(np.uint16) - low) * levels // (high - low + 1)).astype(np.uint8)
    channels = x.shape[1] if x.ndim == 4 else 1
    statistics = (np.full(channels, value, np.float32) for value in (np.float16(x.mean()), np.float16(x.std())))
    table = UniformLevels(levels, low * (levels - 1), high - low, 0)
    counts = tuple(np.bincount(y).tolist())
    return pack(PackedSet(symbols.reshape(len(y), -1), x.shape[1:], counts, table, Identity(), *statistics))


def main(arguments: Sequence[str] | None = None) -> None:
    import records

    from budgetopt.data import open_source

    args = records.arguments(__doc__, OPTIONS).parse_args(arguments)
    if args.quick:
        records.tiny(args)
    console, rows = records.console(), records.Rows(args.out)
    path = args.out / f"{args.dataset}-{args.levels}.bopt"
    if not path.exists():
        console.print("packing", path.name, style="dim")
        partial = path.with_suffix(".partial")
        partial.write_bytes(pack_all(open_source(args.dataset, args.data), args.levels))
        partial.replace(path)
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--child", way, str(path), str(args.batch)]

        def measured(command: list[str] = command, way: str = way) -> Any:
            console.print("training", way, style="dim")
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise SystemExit(done.stderr)
            return json.loads(done.stdout)

        key = {"way": way, "file": path.name, "batch": args.batch}
        found[way] = rows.once(key, measured)
    assert found["symbols"]["weights"] == found["float32"]["weights"]  # the same training, bit for bit
    nothing = found["only imports"]
    table = []
    for way, result in found.items():
        more = [
            f"{(result[what] - nothing[what]) / 1e6:.1f}" if way != "only imports" else "" for what in ("peak", "pass")
        ]
        table.append((way, f"{result['peak'] / 1e6:.1f}", more[0], f"{result['pass'] / 1e6:.1f}", more[1]))
    size = path.stat().st_size
    title = f"{args.dataset}, training set at {args.levels} levels, {size:,} bytes: resident memory, MB"
    header = "kept|peak|beside imports|in the pass|beside imports"
    console.print(records_table(title, header, table))
    console.print("the weights after the pass are the same bits")


def records_table(title: str, header: str, rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(*header.split("|"), title=title)
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
