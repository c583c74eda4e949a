"""What a packed file says of itself. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from budgetopt import protocol as protocols
from budgetopt.allocation import Allocation
from budgetopt.packing import LevelTable, PackedSet, sections, unpack
from budgetopt.packing.container import FORMAT_VERSION
from budgetopt.search.folder import RunFolder


def describe(data: bytes) -> tuple[list[tuple[str, str]], list[tuple[str, int]]]:
    """→ ([(what, value)], [(section, bytes)]); the sections add up to the file's length."""
    packed, parts = unpack(data), sections(data)
    protocol = protocols.from_field(packed.protocol)
    counts = packed.counts
    per_class = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    symbol_bytes = next(size for name, size in parts if name.startswith("symbols"))
    values = packed.symbols.size
    augment = ", ".join(f"{k} {v:g}" for k, v in protocol.augment.items()) or "none"
    facts = [
        ("format", f"version {FORMAT_VERSION}, {len(data):,} bytes ({8 * len(data):,} bits)"),
        ("samples", f"{sum(counts):,} of shape {'×'.join(map(str, packed.shape))}"),
        ("classes", f"{len(counts)}, {per_class} samples each"),
        ("quantizer", f"{packed.dequantizer.name}, {packed.dequantizer.levels} levels{_levels(packed)}"),
        ("transform", packed.inverse.name),
        ("bits a value", f"{8 * symbol_bytes / values:.3f} coded, {np.log2(packed.dequantizer.levels):.3f} nominal"),
        ("bytes a sample", f"{len(data) / sum(counts):.1f}"),
        ("input statistics", f"mean {_list(packed.mean)}, std {_list(packed.std)}"),
        *_soft_labels(packed, parts),
        *_preparation(packed),
        ("protocol", f"{protocols.name_of(protocol)} ({protocol.hash}): {protocol.network} width {protocol.width}"),
        ("training", f"{protocol.steps} steps of {protocol.batch}, lr {protocol.lr:g}, {protocol.seeds} seeds"),
        ("augmentation", augment),
    ]
    return facts, parts


def allocation_of(path: Path, data: bytes) -> Allocation | None:
    """How the run that `path` lies in made this file: the file itself holds what a receiver needs, not its history."""
    run = RunFolder.enclosing(path)
    if run is None or not run.front_json.exists():
        return None
    for member in json.loads(run.front_json.read_text(encoding="utf-8"))["members"]:
        if (run.path / member["file"]).read_bytes() == data:
            return Allocation.from_dict(member["allocation"])
    return None


def _soft_labels(packed: PackedSet, parts: list[tuple[str, int]]) -> list[tuple[str, str]]:
    if packed.soft is None:
        return []
    coded = 8 * dict(parts)["soft labels"] / len(packed)
    return [("soft labels", f"{packed.soft.bits} bits a probability, {coded:.2f} bits a sample coded")]


def _preparation(packed: PackedSet) -> list[tuple[str, str]]:
    return [] if packed.preparation is None else [("made of", packed.preparation.summary)]


def _levels(packed: PackedSet) -> str:
    """The levels of a scalar table; other quantizers have too many to show."""
    if not isinstance(packed.dequantizer, LevelTable):
        return ""
    values = packed.dequantizer.values()
    shown = [f"{v:.4g}" for v in (values if len(values) <= 8 else [*values[:3], *values[-3:]])]
    return ": " + ", ".join(shown if len(values) <= 8 else [*shown[:3], "…", *shown[3:]])


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
