"""A second process on a run lends it the cores and GPUs of its machine: `budgetopt resume RUN --join`.

The driver of a run leaves in the run folder where its Ray listens, for those who may read the folder; a joiner starts a
node there, whose workers are like all others. Only the driver talks to the study.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from budgetopt.errors import InputError
from budgetopt.option_text import resume_command
from budgetopt.search import engine
from budgetopt.search.config import Limits, SearchConfig, default_workers, machine
from budgetopt.search.folder import RunFolder

PATIENCE = 3.0  # seconds for which the driver may not answer


@contextmanager
def open_to_others(out: RunFolder) -> Iterator[None]:
    """While a Ray session is open: the run folder says where."""
    import ray

    found = {"address": ray.get_runtime_context().gcs_address, "token": os.environ.get("RAY_AUTH_TOKEN")}
    with suppress(OSError):  # a full disk keeps others away and nothing else
        descriptor = os.open(out.driver, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)  # the token is a password
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump({**found, "run": str(out.path.resolve())}, stream)
    try:
        yield
    finally:
        with suppress(OSError):
            out.driver.unlink()


def join(out: RunFolder, workers: int | None, say: Callable[[str], None], interrupted: Callable[[], bool]) -> None:
    """Work for the driver of the run `out` until it ends or `interrupted()`. Raises `InputError` where nobody drives
    the run."""
    Limits(workers=workers)  # which refuses a wrong one
    SearchConfig.load(out.config)  # an error where there is no run
    address, token = _driver(out)
    cores, gpus = machine()
    count = workers or default_workers(cores, gpus)
    settings = (
        os.environ | engine.environment() | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
    )
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += [f"--address={address}", f"--num-cpus={count}", f"--num-gpus={gpus}"]
    node = subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    what = f"{count} worker{'s'[: count > 1]}{f' on {gpus} GPU(s)' if gpus else ''}"
    say(f"{what} lent to the run {str(out)!r}, until it ends or Ctrl-C")
    try:
        last_seen = time.monotonic()
        while not interrupted() and time.monotonic() - last_seen < PATIENCE:
            if _answers(address) and out.driver.exists():
                last_seen = time.monotonic()
            if node.poll() is not None and _answers(address):
                printed = (node.stdout.read() if node.stdout else "").strip().splitlines()
                raise InputError(f"cannot join the run {str(out)!r}: {printed[-1] if printed else 'Ray did not start'}")
            time.sleep(0.5)
    finally:
        node.terminate()  # Ray's own command ends its node
        try:
            node.wait(15)
        except subprocess.TimeoutExpired:
            node.kill()


def _driver(out: RunFolder) -> tuple[str, str | None]:
    """Where the Ray of the run's driver listens, and its token."""
    nobody = f"nobody drives the run {str(out)!r} now: {resume_command(out)} does"
    try:
        found = json.loads(out.driver.read_text(encoding="utf-8"))
        address, token, path = found["address"], found["token"], found["run"]
    except FileNotFoundError:
        raise InputError(nobody) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {str(out.driver)!r}: {error}") from None
    if not _answers(address):
        raise InputError(nobody)
    if str(out.path.resolve()) != path:
        raise InputError(f"the run is {path!r} where it is driven and {str(out.path.resolve())!r} here: mount it alike")
    return address, token


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True
