"""Memory and threads of the program's processes."""

import os
import subprocess
import sys

import pytest

from budgetopt import cli, process

FAULTS = """
import resource, sys
from budgetopt import process
if sys.argv[1] == "set up":
    process.set_up()
for _ in range(10):
    b"x" * (1 << 26)  # given back at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in (*process.THREADS, *process.MEMORY):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_do_not_spin_unless_asked_to(monkeypatch, given, expected):
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setattr("sys.argv", ["budgetopt", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_freed_memory_is_kept():
    """Not faulted in again: ten times 64 MB touch the pages of one."""

    def faults(how):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    plain = faults("as it is")
    if plain < 10 * (1 << 26) // 4096:
        pytest.skip("this system keeps freed memory, or has larger pages")
    assert faults("set up") < 0.5 * plain
