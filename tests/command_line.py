"""The installed program as a process of its own, for tests that start it, wait for something and kill it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

SCRIPT = str(Path(sys.executable).with_name("budgetopt"))
# A protocol that trains in a tenth of a second; nothing else about the runs is smaller than life.
QUICK = """network = "convnet"
width = 8
steps = 30
search_seeds = 2
augment = { shift = 0.1 }
"""
SLOW = QUICK.replace("steps = 30", "steps = 150")


def command(*arguments, folder, check=True):
    """Run to the end; where `check` is set, a failure shows what was printed."""
    done = subprocess.run([SCRIPT, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=900)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(*arguments, folder):
    """Started, with a process group of its own."""
    return subprocess.Popen(
        [SCRIPT, *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=600):
    """Until it holds. A process that ends before fails the test with what it printed; the limit only ends a hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None or condition(), "ended too early:\n" + "".join(process.communicate())
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.1)


def quick_protocol(folder, text=QUICK):
    """Path of a file with it."""
    path = folder / "quick.toml"
    path.write_text(text)
    return path


def alive(pid, created):
    """Whether the process is still there, and the same one, after five seconds at most."""
    for _ in range(50):
        try:
            process = psutil.Process(pid)
            if process.create_time() != created or process.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.1)
    return True
