"""Quantizer families by name."""

from __future__ import annotations

from budgetopt.errors import unknown_name
from budgetopt.options import Options
from budgetopt.quantizers.apot import Apot
from budgetopt.quantizers.base import Quantizer
from budgetopt.quantizers.uniform import Uniform

QUANTIZERS: dict[str, type[Quantizer]] = {"uniform": Uniform, "apot": Apot}

__all__ = ["QUANTIZERS", "Quantizer", "build"]


def build(family: str, levels: int, clipping: str, chosen: Options = ()) -> Quantizer:
    """A quantizer, not yet fitted. Raises `InputError` for an unknown family or values it does not offer."""
    if family not in QUANTIZERS:
        raise unknown_name("quantizer", family, QUANTIZERS)
    return QUANTIZERS[family](levels, clipping, chosen)
