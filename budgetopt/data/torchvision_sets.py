"""Any torchvision classification dataset by name, from a local root or downloaded by torchvision."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from budgetopt.data.dataset import GLYPHS, PICTURES, Arrays, Source, to_channels_first
from budgetopt.errors import InputError

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

    def train_arrays(self) -> Arrays:
        return _arrays(self._open(train=True), self.name)

    def test_arrays(self) -> Arrays:
        return _arrays(self._open(train=False), self.name)

    def _open(self, train: bool) -> Any:
        import platformdirs
        import torchvision.datasets as sets

        root = self._root or Path(platformdirs.user_cache_dir("budgetopt")) / "datasets"
        constructor = getattr(sets, self.name)
        parameters = inspect.signature(constructor).parameters
        part: dict[str, Any] = {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
        try:
            return constructor(root=str(root), download=False, **part)
        except (RuntimeError, OSError):
            pass  # not there yet
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from None
        try:
            root.mkdir(parents=True, exist_ok=True)
            return constructor(root=str(root), download=True, **part)
        except Exception as error:  # whatever a download can raise ends in one line
            raise InputError(
                f"{self.name} is not in {str(root)!r} and could not be downloaded ({type(error).__name__}): "
                "name the folder that holds it with --data-root"
            ) from None


def _arrays(opened: Any, name: str) -> Arrays:
    labels = next((getattr(opened, a) for a in ("targets", "labels", "_labels") if hasattr(opened, a)), None)
    data = getattr(opened, "data", None)
    if data is None or labels is None:
        data, labels = _decode_all(opened, name)
    return to_channels_first(np.asarray(data)), np.asarray(labels).astype(np.int64)


def _decode_all(opened: Any, name: str) -> tuple[np.ndarray, list[int]]:
    """Datasets that keep files: decode every image; all must have one size."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for image, label in opened:
        pixels = np.asarray(image)
        if images and pixels.shape != images[0].shape:
            raise InputError(f"{name}: images have mixed sizes, {images[0].shape} and {pixels.shape}")
        images.append(pixels)
        labels.append(int(label))
    return np.stack(images), labels
