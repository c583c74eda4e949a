"""Time and peak memory of reading a source, all of its processes together, with an empty cache and a full one.

    python examples/benchmarks/reading.py cifar10-jpeg

Memory is the largest sum, over this process and its workers, of the proportional set size: a page that several of them
map counts once.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

POLL = 0.05  # seconds


def proportional(pid):
    """Bytes; 0 for a process that has ended. Where the system does not say, the resident set size."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, IndexError):
        return 0


class PeakMemory:
    """Of this process and its children while the context is open."""

    def __enter__(self):
        import psutil

        self.bytes, self._ended, self._own = 0, threading.Event(), psutil.Process()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.wait(POLL):
            pids = [os.getpid(), *(child.pid for child in self._own.children(recursive=True))]
            self.bytes = max(self.bytes, sum(map(proportional, pids)))

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


def read(source, root, resize):
    """Both parts, as a search has them at its end. → (samples, seconds, peak bytes)."""
    from budgetopt.data import Dataset, open_source

    started = time.monotonic()
    with PeakMemory() as peak:
        data = Dataset.prepare(open_source(source, root, resize=resize), 0)
        test = data.load_test()
        seconds = time.monotonic() - started
    return len(data.train) + len(data.val) + len(test), seconds, peak.bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--data", help="folder with torchvision's files")
    parser.add_argument("--resize")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for state in ("empty", "full"):
            samples, seconds, peak = read(args.source, args.data, args.resize)
            load = os.getloadavg()[0]
            print(
                f"{samples:,} samples, {state} cache: {seconds:.1f} s, {peak / 1e9:.2f} GB at most "
                f"(load {load:.1f} on {os.cpu_count()} cores)",
                flush=True,
            )


if __name__ == "__main__":
    main()
