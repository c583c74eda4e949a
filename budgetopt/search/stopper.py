"""Ends a Tune experiment when the run says so: its time is up, or Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper


class StopWhen(Stopper):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it into its own state file, which nothing reads; `stop` may hold the terminal
        return {}
