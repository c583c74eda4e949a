"""What a trial has done up to a rung, on disk, so that it goes on from there after its process has died."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]  # nested dicts and lists of tensors, numbers, strings, bytes and None: nothing else is read back


class Checkpoint:
    """One file of one trial, replaced at every rung and removed when the trial ends. It never decides a result: where
    it is absent, damaged or of another trial, the trial starts anew; where it cannot be written it costs time alone."""

    def __init__(self, path: Path, identity: str) -> None:
        """identity: all that shapes the trial; a checkpoint of anything else is not taken."""
        self.path = path
        self._identity = hashlib.sha256(f"{identity} torch {torch.__version__}".encode()).hexdigest()

    def save(self, state: State) -> None:
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"identity": self._identity, "state": state}, partial)
            partial.replace(self.path)
        except (OSError, RuntimeError):  # torch tells of a full disk by the latter
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def load(self) -> State | None:
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            return held["state"] if held["identity"] == self._identity else None
        except Exception:  # whatever zipfile, torch and its restricted unpickler raise
            return None

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
