"""Any torchvision classification dataset by name, from a local root or downloaded by torchvision."""

from __future__ import annotations

import inspect
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from budgetopt import cache_folder
from budgetopt.data import pictures
from budgetopt.data.dataset import GLYPHS, PICTURES, Arrays, Source, picture_space, to_channels_first
from budgetopt.data.resizing import ResizedArrays, Size
from budgetopt.errors import InputError, first_line
from budgetopt.packing.resized import Resized

_GLYPHS = {"MNIST", "KMNIST", "SVHN", "USPS"}  # mirrored digits and letters are other ones
# no class per image, or no train and test split of the usual names
_NOT_CLASSIFICATION = {"WIDERFace", "Kitti", "LFWPairs", "Middlebury2014Stereo", "CelebA", "PhotoTour", "MovingMNIST"}
_NOT_CLASSIFICATION |= {"Kinetics", "HMDB51", "UCF101", "FakeData", "LFWPeople", "Places365", "OxfordIIITPet"}
_NOT_CLASSIFICATION |= {"Imagenette"}


@cache
def names() -> list[str]:
    """Classes of torchvision.datasets that take a root, and `train` or a `split` with train and test."""
    import torchvision.datasets as sets

    found = []
    for name in sets.__all__:
        candidate = getattr(sets, name)
        if not inspect.isclass(candidate) or name in _NOT_CLASSIFICATION:
            continue
        parameters = inspect.signature(candidate).parameters
        if "root" in parameters and "download" in parameters and ("train" in parameters or "split" in parameters):
            found.append(name)
    return found


class TorchvisionSet(Source):
    def __init__(self, name: str, root: Path | None) -> None:
        self.name = name
        glyphs = name in _GLYPHS
        self.protocol, self.invariances = ("glyph-1", GLYPHS) if glyphs else ("image-2", PICTURES)
        self._root = root

    @cached_property
    def _first(self) -> Any:
        """The training part as torchvision opens it."""
        return self._open(train=True)

    @property
    def space(self) -> str:  # type: ignore[override]
        first = self._first[0][0]
        return picture_space(*(first.size if hasattr(first, "size") else np.asarray(first).shape[:2]))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, getattr(self._first, "classes", ())))

    def train_arrays(self) -> Arrays:
        return _arrays(self._first, self.name)

    def test_arrays(self) -> Arrays:
        return _arrays(self._open(train=False), self.name)

    def resized(self, size: Size) -> Source:
        return _Resized(self, size)

    def _open(self, train: bool) -> Any:
        import torchvision.datasets as sets

        root = self._root or cache_folder.part("datasets")
        constructor = getattr(sets, self.name)
        parameters = inspect.signature(constructor).parameters
        part: dict[str, Any] = {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
        try:
            return constructor(root=str(root), download=False, **part)
        except (RuntimeError, OSError):
            pass  # not there yet
        except Exception as error:  # files that are not what their names say make torchvision raise anything
            reason = first_line(error) or type(error).__name__
            raise InputError(f"{self.name} in {str(root)!r} cannot be read: {reason}") from None
        try:
            root.mkdir(parents=True, exist_ok=True)
            return constructor(root=str(root), download=True, **part)
        except Exception as error:  # whatever a download can raise ends in one line
            raise InputError(
                f"{self.name} is not in {str(root)!r} and could not be downloaded ({type(error).__name__}): "
                "name the folder that holds it with --data-root"
            ) from None


class _Resized(ResizedArrays):
    """Of datasets that keep files the sizes may differ: every picture is made the wanted one as it is decoded."""

    _inner: TorchvisionSet

    def train_arrays(self) -> Arrays:
        return self._decoded(self._inner._first) or super().train_arrays()

    def test_arrays(self) -> Arrays:
        return self._decoded(self._inner._open(train=False)) or super().test_arrays()

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        """Torchvision's sets have one."""

    def _decoded(self, opened: Any) -> Arrays | None:
        """None for datasets that keep an array."""
        if _kept(opened) is not None:
            return None
        first = opened[0][0]
        self._how = self._how or self._size.to(1 if pictures.is_grey(first) else 3)
        return _decode_all(opened, self.name, self._how)


def _kept(opened: Any) -> tuple[Any, Any] | None:
    """The arrays of pictures and labels, of datasets that keep them."""
    labels = next((getattr(opened, a) for a in ("targets", "labels", "_labels") if hasattr(opened, a)), None)
    data = getattr(opened, "data", None)
    return None if data is None or labels is None else (data, labels)


def _arrays(opened: Any, name: str) -> Arrays:
    kept = _kept(opened)
    data, labels = kept if kept is not None else _decode_all(opened, name, None)
    return to_channels_first(np.asarray(data)), np.asarray(labels).astype(np.int64)


def _decode_all(opened: Any, name: str, how: Resized | None) -> Arrays:
    """Datasets that keep files: decode every picture; all must have one size, or are made it."""
    found: np.ndarray | None = None
    labels = np.empty(len(opened), np.int64)
    for at, (image, label) in enumerate(opened):
        values = np.asarray(image) if how is None else how.pixels(image)
        if found is None:
            found = np.empty((len(opened), *values.shape), np.uint8)
        if values.shape != found.shape[1:]:
            raise InputError(
                f"{name}: pictures have mixed sizes, {found.shape[1:]} and {values.shape}: make them one, "
                f"say with --resize {min(found.shape[1:3])}"
            )
        found[at], labels[at] = values, int(label)
    if found is None:
        raise InputError(f"{name}: no pictures")
    return found, labels
