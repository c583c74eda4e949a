"""Quantizer families by name."""

from __future__ import annotations

from budgetopt.errors import unknown_name
from budgetopt.options import Options
from budgetopt.quantizers.apot import Apot
from budgetopt.quantizers.base import Quantizer
from budgetopt.quantizers.ddq import Ddq
from budgetopt.quantizers.floats import Floats
from budgetopt.quantizers.lloyd_max import LloydMax
from budgetopt.quantizers.palette import Palette
from budgetopt.quantizers.patches import Patches
from budgetopt.quantizers.pictures import Jpeg, Webp
from budgetopt.quantizers.uniform import Uniform

QUANTIZERS: dict[str, type[Quantizer]] = {
    "uniform": Uniform,
    "apot": Apot,
    "ddq": Ddq,
    "lloyd-max": LloydMax,
    "patches": Patches,
    "palette": Palette,
    "jpeg": Jpeg,
    "webp": Webp,
    "none": Floats,
}

__all__ = ["QUANTIZERS", "Quantizer", "build"]


def build(family: str, levels: int, clipping: str, chosen: Options = ()) -> Quantizer:
    """A quantizer, not yet fitted. Raises `InputError` for an unknown family or values it does not offer."""
    if family not in QUANTIZERS:
        raise unknown_name("quantizer", family, QUANTIZERS)
    return QUANTIZERS[family](levels, clipping, chosen)
