"""What the text of a command-line option means."""

from __future__ import annotations

import math
import shlex

from budgetopt.errors import InputError


def resume_command(run: object, options: str = "") -> str:
    """What goes on with a run, as it can be typed: in quotation marks, unless the name needs some itself."""
    name = shlex.quote(str(run))
    command = f"budgetopt resume {name}{options}"
    return f"'{command}'" if name == str(run) else command


def seconds(text: str | None) -> float | None:
    """'90', '90s', '5min', '1h' → seconds."""
    if text is None:
        return None
    units = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text.strip()[len(number) :]
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"cannot read the time {text!r}: write for example 90, 90s, 5min or 1h")
    return value


def numbers(text: str | None, option: str) -> list[float] | None:
    """'0.5,0.25' → [0.5, 0.25]"""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise InputError(f"cannot read {option} {text!r}: write numbers with commas between them")
    return found
