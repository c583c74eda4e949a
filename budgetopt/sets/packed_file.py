"""A `.bopt` file, with all it says of itself."""

from __future__ import annotations

from pathlib import Path

from budgetopt.packing import unpack_file
from budgetopt.sets.sample_set import SampleSet


def read(path: Path) -> SampleSet:
    """Raises as `packing.unpack_file`."""
    _, packed = unpack_file(path)
    return SampleSet(
        str(path),
        packed.decode(),
        packed.labels(),
        len(packed.counts),
        packed.targets(),
        packed.mean,
        packed.std,
        packed.protocol,
        packed,
        preparation=packed.preparation,
    )
