"""Whole arrays under names: x (n, …) float32 in raw units, y (n,) int64, mean and std (c,) float32, and targets
(n, classes) float32 where labels are soft. Where samples were made of raw data, `preparation` is JSON of how: text in a
0-d array in npz, in the metadata of safetensors."""

from __future__ import annotations

import io

import numpy as np

from budgetopt.errors import InputError
from budgetopt.exporting.exported import Exported, preparation_of
from budgetopt.packing import PackedSet


def arrays_of(packed: PackedSet) -> dict[str, np.ndarray]:
    targets = packed.targets()
    soft = {} if targets is None else {"targets": targets}
    return {"x": packed.decode(), "y": packed.labels(), "mean": packed.mean, "std": packed.std, **soft}


def npz(packed: PackedSet) -> Exported:
    buffer = io.BytesIO()
    texts = {name: np.array(text) for name, text in preparation_of(packed).items()}
    np.savez_compressed(buffer, **arrays_of(packed), **texts)  # type: ignore[arg-type]
    return Exported(buffer.getvalue(), ".npz")


def safetensors(packed: PackedSet) -> Exported:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise InputError(
            "cannot export to safetensors: its package is not installed (pip install 'budgetopt[safetensors]')"
        ) from None
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays_of(packed).items()}
    return Exported(save(arrays, {"classes": str(len(packed.counts)), **preparation_of(packed)}), ".safetensors")


def torch_file(packed: PackedSet) -> Exported:
    """A dictionary of tensors: `torch.load(path, weights_only=True)` reads it."""
    import torch

    buffer = io.BytesIO()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays_of(packed).items()}
    torch.save({**tensors, **preparation_of(packed)}, buffer)
    return Exported(buffer.getvalue(), ".pt")
