"""Errors that end in one clear line for the user (exit code 2), never in a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BudgetoptError(Exception):
    """Base of all errors this package raises on purpose. The message is one line, shows the bad value
    and says what would work."""


class InputError(BudgetoptError, ValueError):
    """A wrong value given by the user: budget, option, TOML leaf, dataset, folder."""


class PackedFileError(BudgetoptError, ValueError):
    """A `.bopt` file that cannot be decoded. `packing` raises one subclass for every rule of the format."""


class TrialFailure(BudgetoptError, RuntimeError):
    """A trial that cannot give a figure (NaN, diverged, out of memory). Recorded; the search goes on."""


class OverBudget(InputError):
    """The set of an allocation cannot be made to fit the budget: the trial is infeasible."""


class Interrupted(BudgetoptError):
    """Ctrl-C: what is finished is kept, the run can be resumed."""


def unknown_name(kind: str, name: str, known: Iterable[str], also: str = "") -> InputError:
    """An `InputError` for an unknown name that suggests the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    suggestion = next((n for n in names if near and n.lower() == near[0]), None)
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    return InputError(f"unknown {kind} {name!r}: {hint}known are {', '.join(names)}{also}")


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
