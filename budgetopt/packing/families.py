"""What a `.bopt` file may hold: the ids of quantizers, transforms and preparations. Append, never reorder or reuse."""

from __future__ import annotations

from budgetopt.packing.codebook import CodebookLevels
from budgetopt.packing.companding import CompandedLevels
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.floats import FloatValues
from budgetopt.packing.inverse import Identity, InverseTransform, Standardize
from budgetopt.packing.inverse_basis import Basis
from budgetopt.packing.inverse_dct import Cosine
from budgetopt.packing.inverse_resize import Resize
from budgetopt.packing.inverse_ycbcr import LumaChroma
from budgetopt.packing.levels import ApotLevels, UniformLevels
from budgetopt.packing.log_mel import LogMel
from budgetopt.packing.palette import PaletteColours
from budgetopt.packing.patches import PatchLevels
from budgetopt.packing.pictures import JpegPictures, WebpPictures
from budgetopt.packing.preparation import Preparation
from budgetopt.packing.resized import Resized
from budgetopt.packing.table import TablePreparation

QUANTIZERS: dict[int, type[Dequantizer]] = {
    family.family: family
    for family in (
        UniformLevels,
        ApotLevels,
        CompandedLevels,
        CodebookLevels,
        PatchLevels,
        PaletteColours,
        JpegPictures,
        WebpPictures,
        FloatValues,
    )
}
TRANSFORMS: dict[int, type[InverseTransform]] = {
    family.family: family for family in (Identity, Standardize, Cosine, Basis, Resize, LumaChroma)
}
# of raw data at a receiver's
PREPARATIONS: dict[int, type[Preparation]] = {kind.kind: kind for kind in (LogMel, TablePreparation, Resized)}
