"""Transforms by name."""

from __future__ import annotations

from budgetopt.errors import unknown_name
from budgetopt.options import Options
from budgetopt.transforms.base import Transform
from budgetopt.transforms.identity import Identity
from budgetopt.transforms.standardize import Standardize

TRANSFORMS: dict[str, type[Transform]] = {"identity": Identity, "standardize": Standardize}

__all__ = ["TRANSFORMS", "Transform", "build"]


def build(name: str, chosen: Options = ()) -> Transform:
    """A transform, not yet fitted."""
    if name not in TRANSFORMS:
        raise unknown_name("transform", name, TRANSFORMS)
    return TRANSFORMS[name](chosen)
