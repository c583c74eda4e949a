"""WebDataset: a tar with `000000.png` or `000000.npy`, `000000.cls`, and `000000.json` (targets) where labels are soft.

Pictures whose values are whole numbers 0 … 255 are PNG; all else is float32 in `.npy`, nothing is rounded. Keys go up
in class order: shuffle when reading. The input statistics, and the preparation of raw data where there is one, are
in the tar's PAX header.
"""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np

from budgetopt.exporting.exported import Exported, preparation_of
from budgetopt.exporting.pixels import is_picture, png, to_pixels
from budgetopt.packing import PackedSet


def write(packed: PackedSet) -> Exported:
    pixels = to_pixels(packed) if is_picture(packed.shape) else None
    whole = pixels is not None and not pixels.changed
    targets = packed.targets()
    statistics = {f"budgetopt.{name}": json.dumps(getattr(packed, name).tolist()) for name in ("mean", "std")}
    statistics |= {f"budgetopt.{name}": text for name, text in preparation_of(packed).items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=statistics) as tar:
        for i, label in enumerate(packed.labels()):
            if whole and pixels is not None:
                _add(tar, f"{i:06}.png", png(pixels.x[i]))
            else:
                _add(tar, f"{i:06}.npy", _npy(packed.decode(np.array([i]))[0]))
            _add(tar, f"{i:06}.cls", str(label).encode())
            if targets is not None:
                _add(tar, f"{i:06}.json", json.dumps({"targets": targets[i].tolist()}).encode())
    exported = Exported(buffer.getvalue(), ".tar")
    if pixels is None or whole:
        return exported
    return exported.noting(f"samples are .npy: {pixels.changed:,} of {pixels.x.size:,} values are no whole 0…255")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same set gives the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _npy(sample: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, sample)
    return buffer.getvalue()
