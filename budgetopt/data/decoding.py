"""Encoded pictures of a part → one (n, c, h, w) uint8 array on disk, decoded in worker processes and kept by content.

The cache folder may be emptied at any time. An entry is `KEY.npy`, mapped into memory, and `KEY.json`, which is written
after it and holds its CRC-32: what is damaged, or was cut off while it was made, is made again. KEY is a hash of the
encoded bytes of all pictures in their order and of what they are made into.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from loky import ProcessPoolExecutor

from budgetopt import cache_folder
from budgetopt.data import pictures
from budgetopt.errors import InputError
from budgetopt.packing.resized import Resized, channels_first, converted_to

READER = 2  # goes up where pictures are read in another way: entries of before are made again
DIGEST = 16  # bytes
MOST_WORKERS = 8  # each takes some 80 MB
WORTH_WORKERS = 2000  # pictures, from which starting processes pays
TOLERATED = 0.01  # share of pictures that may be unreadable
T = TypeVar("T")


class Shard(Protocol):
    """Some of the encoded pictures of a part. Small, and can be pickled: workers read it themselves."""

    def __len__(self) -> int: ...

    def read(self) -> Iterator[bytes]:
        """The pictures in their order; empty bytes for one that cannot be had."""

    def name(self, at: int) -> str:
        """Of one of them, for messages."""


@dataclass(frozen=True)
class Surveyed:
    """What was seen of a shard without decoding. digests: of the encoded bytes; grey: whether all pictures are."""

    digests: tuple[bytes, ...]
    grey: bool


@dataclass(frozen=True, eq=False)
class Decoded:
    """x: (n, c, h, w) uint8, mapped; kept: (n,) rows of the part; notes: what was skipped."""

    x: np.ndarray
    kept: np.ndarray
    notes: tuple[str, ...]


def survey(shards: Sequence[Shard], headers: bool) -> Surveyed:
    """Digests of all pictures; with `headers` also whether all are grey."""
    tasks = [(shard, headers) for shard in shards]
    # hashing alone is not worth the start of a process
    found = _on_workers(_survey, tasks, sum(map(len, shards))) if headers else list(map(_survey, tasks))
    return Surveyed(tuple(d for one in found for d in one.digests), all(one.grey for one in found))


def decode(shards: Sequence[Shard], how: Resized, exact: bool, digests: Sequence[bytes], where: str) -> Decoded:
    """All pictures made `how`; with `exact` only those of that very size and of such channels are taken. Raises
    `InputError` for other ones, and where more than 1 % cannot be read."""
    import PIL

    count = sum(map(len, shards))
    facts = f"{READER} {PIL.__version__} {how} {exact} {count}"
    key = hashlib.sha256(facts.encode() + b"".join(digests)).hexdigest()[:32]
    entry = cache_folder.part("pictures") / f"{key}.npy"
    held = _read(entry, (count, how.channels, how.height, how.width))
    if held is None:
        held = _made(entry, shards, how, exact, count)
    x, skipped = held
    if not skipped:
        return Decoded(x, np.arange(count), ())
    first = f"the first is {_name(shards, skipped[0][0])} ({skipped[0][1]})"
    if len(skipped) > TOLERATED * count:
        raise InputError(f"{where}: {len(skipped):,} of {count:,} pictures cannot be read, {first}")
    kept = np.setdiff1d(np.arange(count), [row for row, _ in skipped])
    note = f"{where}: {len(skipped):,} of {count:,} pictures cannot be read and are left out, {first}"
    return Decoded(x[: len(kept)], kept, (note,))


def decode_here(shards: Sequence[Shard], how: Resized, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """A few pictures, in this process and in memory. → x, and the rows that could be read."""
    x = np.zeros((sum(map(len, shards)), how.channels, how.height, how.width), np.uint8)
    skipped = _decoded_into(x, shards, how, exact)
    kept = np.setdiff1d(np.arange(len(x)), [row for row, _ in skipped])
    return x[kept], kept


def first_picture(shards: Sequence[Shard], where: str) -> tuple[int, int, int]:
    """(channels, height, width) of the first picture that can be opened. Raises `InputError` where none can."""
    problem, seen = "", 0
    for shard in shards:
        for data in shard.read():
            try:
                image = pictures.opened(data)
                return (1 if pictures.is_grey(image) else 3), image.size[1], image.size[0]
            except Exception as error:  # damaged pictures raise whatever the decoder finds first
                problem = problem or f"{shard.name(0)}: {pictures.reason(error)}"
                seen += 1
            if seen > 1000:
                break
    raise InputError(f"{where}: no picture can be read, the first is {problem}")


def check_headers(shards: Sequence[Shard], how: Resized) -> None:
    """Raise `InputError` for a picture of another size or colour than `how`; unreadable ones are named later."""
    for shard in shards:
        for at, data in enumerate(shard.read()):
            try:
                _check(pictures.opened(data), how, shard, at)
            except Mixed as error:
                raise InputError(str(error)) from None
            except Exception:
                continue


# ----------------------------------------------------------------------------------------------------------------------
# the cache
# ----------------------------------------------------------------------------------------------------------------------
Skipped = list[tuple[int, str]]  # row, reason


def _read(entry: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, Skipped] | None:
    """What `_made` left there; None where it is absent or damaged."""
    try:
        facts = json.loads(entry.with_suffix(".json").read_text())
        x = np.load(entry, mmap_mode="r", allow_pickle=False)
        if x.shape != shape or x.dtype != np.uint8 or _crc(entry) != facts["crc"]:
            return None
        return x, [(int(row), str(reason)) for row, reason in facts["skipped"]]
    except Exception:  # whatever a damaged entry raises
        return None


def _crc(path: Path) -> int:
    found = 0
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            found = zlib.crc32(piece, found)
    return found


def _made(entry: Path, shards: Sequence[Shard], how: Resized, exact: bool, count: int) -> tuple[np.ndarray, Skipped]:
    """Decode into the cache; where that cannot be written, into a temporary file that vanishes with the process."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(".partial", entry.stem + ".", entry.parent)
    except OSError:
        descriptor, name = tempfile.mkstemp(".npy", "budgetopt-")
    os.close(descriptor)
    partial = Path(name)
    try:
        try:
            x, skipped = _filled(partial, shards, how, exact, count)
        except OSError as error:
            raise InputError(f"cannot write the decoded pictures to {name!r}: {error.strerror or error}") from None
        if partial.suffix == ".partial":
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not results
                facts = {"crc": _crc(partial), "skipped": skipped}
                stated = partial.with_suffix(".json.partial")
                stated.write_text(json.dumps(facts))
                partial.replace(entry)
                stated.replace(entry.with_suffix(".json"))
        return x, skipped
    finally:
        partial.unlink(missing_ok=True)  # what is mapped stays readable


def _filled(path: Path, shards: Sequence[Shard], how: Resized, exact: bool, count: int) -> tuple[np.ndarray, Skipped]:
    shape = (count, how.channels, how.height, how.width)
    room = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize
    if room < np.prod(shape):  # a mapped file that finds the disk full kills its process
        raise InputError(f"{str(path.parent)!r} has room for {room:,} bytes, the pictures take {np.prod(shape):,}")
    x = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    starts = np.cumsum([0, *map(len, shards)])
    tasks = [(str(path), shape, int(start), shard, how, exact) for start, shard in zip(starts, shards, strict=False)]
    skipped = [pair for found in _on_workers(_decode_shard, tasks, count) for pair in found]
    if skipped:  # those that were read move up, in their order
        kept = np.setdiff1d(np.arange(count), [row for row, _ in skipped])
        rows = max(1, (1 << 24) // x[0].size)
        for at in range(0, len(kept), rows):
            part = kept[at : at + rows]
            x[at : at + len(part)] = x[part]
    x.flush()
    return np.load(path, mmap_mode="r"), skipped


# ----------------------------------------------------------------------------------------------------------------------
# in workers
# ----------------------------------------------------------------------------------------------------------------------
def _survey(task: tuple[Shard, bool]) -> Surveyed:
    shard, headers = task
    digests, grey = [], True
    for data in shard.read():
        digests.append(hashlib.blake2b(data, digest_size=DIGEST).digest())
        if headers and grey:
            with contextlib.suppress(Exception):  # unreadable ones are named when they are decoded
                grey = pictures.is_grey(pictures.opened(data))
    return Surveyed(tuple(digests), grey)


def _decode_shard(task: tuple[str, tuple[int, ...], int, Shard, Resized, bool]) -> Skipped:
    path, shape, start, shard, how, exact = task
    x = np.load(path, mmap_mode="r+")
    assert x.shape == shape
    skipped = _decoded_into(x[start : start + len(shard)], [shard], how, exact)
    return [(start + row, reason) for row, reason in skipped]


def _decoded_into(x: np.ndarray, shards: Sequence[Shard], how: Resized, exact: bool) -> Skipped:
    """Fill x: (n, c, h, w) with the pictures of `shards`. → rows that could not be read, and why."""
    skipped, row = [], 0
    for shard in shards:
        for at, data in enumerate(shard.read()):
            try:
                image = pictures.opened(data)
                if exact:
                    _check(image, how, shard, at)
                    x[row] = channels_first(converted_to(image, how.channels))
                else:
                    x[row] = how.pixels(image)
            except Mixed as error:
                raise InputError(str(error)) from None
            except Exception as error:  # damaged pictures raise whatever the decoder finds first
                skipped.append((row, pictures.reason(error)))
            row += 1
    return skipped


class Mixed(Exception):
    """A picture of another size or colour than the first one."""


def _check(image: Any, how: Resized, shard: Shard, at: int) -> None:
    found = (1 if pictures.is_grey(image) else 3), image.size[1], image.size[0]
    if found != (how.channels, how.height, how.width):
        names = {1: "grey", 3: "colour"}
        raise Mixed(
            f"pictures must have one size and be all grey or all colour: the first is {how.height}×{how.width} "
            f"{names[how.channels]}, {shard.name(at)} {found[1]}×{found[2]} {names[found[0]]}; "
            f"make them so with --resize {how.height if how.height == how.width else f'{how.height}x{how.width}'}"
        )


def _name(shards: Sequence[Shard], row: int) -> str:
    for shard in shards:
        if row < len(shard):
            return shard.name(row)
        row -= len(shard)
    raise IndexError(row)


def _on_workers(call: Callable[[Any], T], tasks: list[Any], count: int) -> list[T]:
    """`call` of every task, in their order; in worker processes where there are many pictures."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, MOST_WORKERS, len(tasks))
    if count < WORTH_WORKERS or workers < 2:
        return list(map(call, tasks))
    # loky's workers are no forks, which may hang where there are threads, as torch and pyarrow have them; and they do
    # not import the caller's script, which need not have an `if __name__ == "__main__"`
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        return list(pool.map(call, tasks))
    except BrokenProcessPool:  # memory is short
        return list(map(call, tasks))
    finally:
        pool.shutdown(kill_workers=True)


def _start_worker(caller: int) -> None:
    """Ctrl-C is the caller's to answer; a worker whose caller was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        while os.getppid() == caller:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
