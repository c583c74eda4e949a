"""A `.pt` or `.pth` file with images and labels, in the layouts that public distillation code saves.

- a dict with both: `images` and `labels`, `image_syn` and `label_syn`, …
- a dict or list with one pair of images and labels for each experiment (`{"data": [[images, labels], …], …}`)
- a pair of both
- images alone in `images….pt`, with `labels….pt` beside it
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetopt.errors import InputError
from budgetopt.packing.container import MAX_FILE_BYTES, MAX_SYMBOLS
from budgetopt.sets.arrays import EXPORTED, NAMES, TARGETS, UNPREPARED, Arrays, whole_labels


def read(path: Path, asked: str) -> Arrays:
    """The arrays, in units that only their values or the user can tell. Only tensors, numbers, strings, lists and dicts
    are unpickled; anything else in the file is an `InputError` before it runs."""
    content = _load(path)
    notes: tuple[str, ...] = ()
    soft = None
    if isinstance(content, dict) and {*EXPORTED, TARGETS} <= content.keys():
        soft = _array(content[TARGETS], TARGETS, path)
    if isinstance(content, torch.Tensor):
        images, labels = content, _labels_beside(path, asked)
        notes = (f"labels from {_beside(path).name}",)
    else:
        images, labels, notes = _pair(content, path, asked)
    x, y = _array(images, "images", path), _array(labels, "labels", path)
    if isinstance(content, dict) and "preparation" in content:
        notes = (*notes, UNPREPARED)
    return Arrays(x, whole_labels(y, "labels", path), certain=False, notes=notes, soft=soft)


def _pair(content: Any, path: Path, asked: str) -> tuple[Any, Any, tuple[str, ...]]:
    if isinstance(content, dict):
        for x_name, y_name in NAMES:
            if x_name in content and y_name in content:
                return content[x_name], content[y_name], ()
        if isinstance(content.get("data"), list | tuple):
            return _pair(content["data"], path, asked)
        held = ", ".join(str(key) for key in list(content)[:10])
        raise InputError(f"{path}: holds {held}; {asked} needs images and labels")
    if isinstance(content, list | tuple) and content:
        if len(content) == 2 and isinstance(content[0], torch.Tensor):
            return content[0], content[1], ()
        if isinstance(content[0], list | tuple) and len(content[0]) >= 2 and isinstance(content[0][0], torch.Tensor):
            several = (f"it holds the sets of {len(content)} experiments, the first is taken",)
            return content[0][0], content[0][1], several[: len(content) > 1]
    raise InputError(f"{path}: holds no images with labels; {asked} needs a dict of both, or a pair")


def _array(value: Any, what: str, path: Path) -> np.ndarray:
    """A dense tensor on the CPU, or a list of numbers, as an array no larger than a packed file can be."""
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return np.array(value)
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise InputError(f"{path}: {what} must be a dense tensor, got {type(value).__name__}")
    if value.numel() > MAX_SYMBOLS:  # views may claim more than the file holds
        raise InputError(f"{path}: {what} hold {value.numel():,} values, at most {MAX_SYMBOLS:,} are read")
    if value.is_quantized or value.is_complex():
        raise InputError(f"{path}: {what} must hold plain numbers, got {value.dtype}")
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


def labels_file(path: Path) -> Path | None:
    """The `labels_*.pt` beside an `images_*.pt`, where there is one."""
    beside = _beside(path)
    return beside if beside != path and beside.is_file() else None


def _beside(path: Path) -> Path:
    return path.with_name(path.name.replace("images", "labels", 1))


def _labels_beside(path: Path, asked: str) -> Any:
    beside = _beside(path)
    if beside == path or not beside.is_file():
        expected = f"and {beside.name!r} is not beside it" if beside != path else "and no labels"
        raise InputError(f"{path}: holds one tensor, {expected}; {asked} needs images and labels")
    return _load(beside)


def _load(path: Path) -> Any:
    try:
        _check_size(path)
        with torch.serialization.safe_globals(_INERT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors and old pickles, refused or read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        held = f"refused, it holds {found[1] or found[2]}" if found else "damaged, or not saved by torch"
        raise InputError(f"{path}: {held}; only tensors and plain values are read") from None
    except Exception as error:  # whatever else a damaged or hostile archive makes the reader raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {str(path)!r}: {reason[:200]}") from None


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size <= MAX_FILE_BYTES and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # members may be compressed
            size = sum(member.file_size for member in archive.infolist())
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: takes {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")


class _Inert:
    """Stands for numpy's numbers, as accuracies are saved beside a set: nothing of numpy runs, nothing is kept."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(module: str, name: str) -> type[_Inert]:
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


_INERT: list[Any] = [_inert(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")]
_INERT += [_inert("numpy", "dtype"), *(_inert("numpy.dtypes", f"Float{bits}DType") for bits in (16, 32, 64))]
