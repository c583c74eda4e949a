"""The `.bopt` format and its complete decoder. numpy and constriction only; FORMAT.md is the specification.

Invariants, numbered so that code and tests can name them:

1. No float decides a decoded symbol or value: symbols come from integer counts, values are integers times one
   power of two. The same bytes decode to the same float32 bits on every machine.
2. The decoder reads the file and nothing else: no dataset, no weights, no table outside FORMAT.md.
3. Every read is checked against the bytes that are there, and the declared size against what such a file can hold,
   before memory is taken.
4. Every rule of the format that a file breaks has its own error, a subclass of `PackedFileError`.
5. `unpack(pack(s)) == s`, and `pack(unpack(b)) == b` for every `b` that this version's `pack` wrote.
"""

from budgetopt.packing.container import FORMAT_VERSION, PackedSet, pack, read_file, sections, unpack, unpack_file
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.inverse import Identity, InverseTransform, Standardize
from budgetopt.packing.layout import Domain, Layout, Plane
from budgetopt.packing.levels import ApotLevels, LevelTable, UniformLevels
from budgetopt.packing.loading import LoadedSet, load
from budgetopt.packing.preparation import Preparation
from budgetopt.packing.soft_labels import SoftLabels
from budgetopt.packing.table import TablePreparation

__all__ = [
    "FORMAT_VERSION",
    "ApotLevels",
    "Dequantizer",
    "Domain",
    "Identity",
    "InverseTransform",
    "Layout",
    "LevelTable",
    "LoadedSet",
    "PackedSet",
    "Plane",
    "Preparation",
    "SoftLabels",
    "Standardize",
    "TablePreparation",
    "UniformLevels",
    "load",
    "pack",
    "read_file",
    "sections",
    "unpack",
    "unpack_file",
]
