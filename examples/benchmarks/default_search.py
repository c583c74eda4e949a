"""The default search as a newcomer runs it: time, memory, first file, front, and what it leaves behind.

    python examples/benchmarks/default_search.py --out /tmp/budgetopt-default [--interrupt 60]

Starts `budgetopt search --budget 30kb` as a process of its own and watches it from outside. Finished runs are kept in
the output folder as JSON and not repeated; `--seeds 3` makes three runs. With `--interrupt S`, Ctrl-C is sent after S
seconds instead of waiting for the end, and only the clean-up is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

LIMITS = {"seconds": 300, "first_file_seconds": 60, "peak_gb": 5.0, "help_seconds": 0.5}


def tree_memory(process: psutil.Process) -> tuple[float, set[int]]:
    """Resident GB of a process and all below it (shared pages counted once per process), and their ids."""
    total, ids = 0, set()
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
            ids.add(member.pid)
        except psutil.NoSuchProcess:
            pass
    return total / 1e9, ids


def help_seconds() -> float:
    """Median of five `budgetopt --help`."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run(["budgetopt", "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - start)
    return sorted(times)[2]


def watch(folder: Path, seed: int, interrupt: float | None) -> dict[str, object]:
    """Run one search and measure it from outside."""
    command = ["budgetopt", "search", "--budget", "30kb", "--seed", str(seed), "--out", str(folder)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watched, peak, first, seen, sent = psutil.Process(process.pid), 0.0, None, set(), False
    while process.poll() is None:
        try:
            memory, ids = tree_memory(watched)
        except psutil.NoSuchProcess:
            break
        peak, seen = max(peak, memory), seen | ids
        if first is None and any((folder / "trials").glob("*.bopt")):
            first = time.monotonic() - start
        if interrupt is not None and not sent and time.monotonic() - start > interrupt:
            process.send_signal(signal.SIGINT)
            sent = True
        time.sleep(0.25)
    output = process.communicate()[0]
    seconds = time.monotonic() - start
    time.sleep(3.0)
    left = [p for p in seen if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
    row: dict[str, object] = {
        "seed": seed,
        "exit": process.returncode,
        "seconds": seconds,
        "first_file_seconds": first,
        "peak_gb": peak,
        "processes_left": len(left),
    }
    if (folder / "front.json").exists():
        members = json.loads((folder / "front.json").read_text())["members"]
        for limit in (1_000, 30_000):
            within = [m for m in members if m["bytes"] <= limit]
            # the member that validation would pick, never the best on test
            chosen = max(within, key=lambda m: (m["validation"]["accuracy"], -m["bytes"]), default=None)
            row[f"test_accuracy_at_{limit}"] = chosen and chosen["test"]["accuracy"]
            row[f"bytes_at_{limit}"] = chosen and chosen["bytes"]
    row["output"] = output
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--interrupt", type=float)
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; limits {LIMITS}")
    print(f"--help: {help_seconds():.2f} s")
    for seed in range(arguments.seeds):
        name = f"seed-{seed}" + ("-interrupted" if arguments.interrupt else "")
        record = arguments.out / f"{name}.json"
        if not record.exists():
            row = watch(arguments.out / name, seed, arguments.interrupt)
            record.write_text(json.dumps(row, indent=2))
        row = json.loads(record.read_text())
        print(
            ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "output")
        )


if __name__ == "__main__":
    main()
