"""The search: an Optuna study as the only record, our own Ray Tune searcher and scheduler.

Importing any module of this package gives `budgetopt` an attribute of the same name as its function `search`, so the
package itself can be called: `budgetopt.search("30kb")` means the same before and after.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from budgetopt.api import search

        return search(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
