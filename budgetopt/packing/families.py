"""What a `.bopt` file may hold: the ids of quantizer and transform families. Append, never reorder or reuse."""

from __future__ import annotations

from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.inverse import Identity, InverseTransform, Standardize
from budgetopt.packing.levels import ApotLevels, UniformLevels

QUANTIZERS: dict[int, type[Dequantizer]] = {family.family: family for family in (UniformLevels, ApotLevels)}
TRANSFORMS: dict[int, type[InverseTransform]] = {family.family: family for family in (Identity, Standardize)}
