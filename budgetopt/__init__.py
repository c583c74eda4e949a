"""budgetopt: which dataset of at most N bytes trains the best model?

    result = budgetopt.search(budget="30kb", dataset="digits")
    loaded = budgetopt.load(result.best.path)

Names are imported on first use: `import budgetopt` is instant; `budgetopt.load` needs neither torch, Ray nor Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgetopt.allocation import Allocation
    from budgetopt.api import compress, evaluate, explain, merge, resume, search
    from budgetopt.budget import Budget
    from budgetopt.compression import Compressed
    from budgetopt.errors import BudgetoptError, InputError, PackedFileError
    from budgetopt.packing.loading import LoadedSet, load
    from budgetopt.result import FrontPoint, Result
    from budgetopt.scores import Evaluation

__version__ = "0.1.0"

_HOMES = {
    "Allocation": "allocation",
    "Budget": "budget",
    "BudgetoptError": "errors",
    "Compressed": "compression",
    "Evaluation": "scores",
    "FrontPoint": "result",
    "InputError": "errors",
    "LoadedSet": "packing.loading",
    "PackedFileError": "errors",
    "Result": "result",
    "compress": "api",
    "evaluate": "api",
    "explain": "api",
    "load": "packing.loading",
    "merge": "api",
    "resume": "api",
    "search": "api",
}
__all__ = [
    "Allocation",
    "Budget",
    "BudgetoptError",
    "Compressed",
    "Evaluation",
    "FrontPoint",
    "InputError",
    "LoadedSet",
    "PackedFileError",
    "Result",
    "compress",
    "evaluate",
    "explain",
    "load",
    "merge",
    "resume",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'budgetopt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"budgetopt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
