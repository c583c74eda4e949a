"""How processes of the program are set up: memory and threads, for many small steps beside other processes."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30  # bytes up to which freed memory is kept; older versions of glibc take less
KEPT_BY_OLDER = 1 << 25

# Read by glibc when a process starts: keep freed activations instead of returning them to the system and faulting them
# in again at every step (a training step of 128 28×28 images: 95 → 57 ms on one core).
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(KEPT), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
# Read by torch's OpenMP when it is imported. Threads that spin while they wait for one another take the cores from each
# other where something else is running: packing sets then took four times as long, on twice the cores.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


def set_up() -> None:
    """Of this process, before torch is imported; what the user's environment says is left as it is."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    if MEMORY.keys() & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    _ = mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, KEPT_BY_OLDER)
    mallopt(M_TRIM_THRESHOLD, KEPT)
