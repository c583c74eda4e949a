"""Transforms by name."""

from __future__ import annotations

from budgetopt.errors import unknown_name
from budgetopt.options import Options
from budgetopt.transforms.base import Transform
from budgetopt.transforms.dct import DCT
from budgetopt.transforms.identity import Identity
from budgetopt.transforms.pca import PCA
from budgetopt.transforms.resize import Resize
from budgetopt.transforms.standardize import Standardize
from budgetopt.transforms.ycbcr import YCbCr

TRANSFORMS: dict[str, type[Transform]] = {
    "identity": Identity,
    "standardize": Standardize,
    "dct": DCT,
    "pca": PCA,
    "resize": Resize,
    "ycbcr": YCbCr,
}

__all__ = ["TRANSFORMS", "Transform", "build"]


def build(name: str, chosen: Options = ()) -> Transform:
    """A transform, not yet fitted."""
    if name not in TRANSFORMS:
        raise unknown_name("transform", name, TRANSFORMS)
    return TRANSFORMS[name](chosen)
