"""Four crops of real pictures in one sample, those of which a trained network is surest (RDED, Sun et al., CVPR 2024).

Nothing is optimised. Section 4 of the paper: candidates are cut from every picture, the realism of a crop is how well a
network that was trained on real data recognises it, and the best are tiled. Here they are tiled 2 × 2 at half the
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from budgetopt import cache, teacher
from budgetopt.errors import InputError
from budgetopt.methods.base import TrainingData
from budgetopt.seeding import derive

LEAST_SIDE = 64  # pixels; below it a quarter of a sample shows nothing
CANDIDATES = 5  # crops of a picture that are scored
SMALLEST = 0.5  # side of a crop, as a share of the picture's; the largest is the whole picture
PARTS = 4  # crops of a sample
CHUNK = 128  # crops scored at once


@dataclass(frozen=True, eq=False)
class Crops:
    """rows: (m,) int32 of the train part; boxes: (m, 4) int32, top, left, height and width in pixels; counts:
    (classes,) int32 crops of each class. In class order, best first."""

    rows: np.ndarray
    boxes: np.ndarray
    counts: np.ndarray

    def tiles(self, x: np.ndarray, label: int, count: int) -> np.ndarray:
        """The best `count` samples of a class, as many as there are crops for, best first. x: (n, c, h, w), the train
        part in raw units → (count, c, h, w) float32; whole numbers stay whole numbers."""
        height, width = x.shape[2:]
        start, own = int(self.counts[:label].sum()), int(self.counts[label])
        samples = np.empty((min(count, own // PARTS), *x.shape[1:]), np.float32)
        for k, sample in enumerate(samples):
            for part in range(PARTS):
                crop = start + PARTS * k + part
                down, across = slice(0, height // 2), slice(0, width // 2)
                if part >= 2:
                    down = slice(height // 2, height)
                if part % 2:
                    across = slice(width // 2, width)
                cell = sample[:, down, across]
                cell[:] = resized(x[self.rows[crop]], self.boxes[crop], cell.shape[1:])
        return np.rint(samples) if np.issubdtype(x.dtype, np.integer) else samples


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise `InputError` for samples that are no pictures, or too small ones."""
    if len(shape) != 3 or min(shape[1:]) < LEAST_SIDE:
        raise InputError(
            f"crops need pictures of at least {LEAST_SIDE} pixels a side, got samples of shape {shape}: choose another "
            "selection, such as herding"
        )


def resized(picture: np.ndarray, box: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The part `box` (top, left, height, width) of a picture (c, h, w), → (c, *size) float32, bilinear."""
    top, left, height, width = box
    part = torch.from_numpy(picture[:, top : top + height, left : left + width].astype(np.float32))
    return F.interpolate(part[None], size, mode="bilinear", antialias=True, align_corners=False)[0].numpy()


def boxes(count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) int32 random boxes of the picture's proportions, inside it: side from SMALLEST to 1, uniform."""
    sides = rng.uniform(SMALLEST, 1.0, count)[:, None] * (height, width)
    sides = np.rint(sides)
    corners = np.floor(rng.uniform(size=(count, 2)) * ((height, width) - sides + 1))
    return np.hstack([corners, sides]).astype(np.int32)


def ranked(confidence: np.ndarray) -> np.ndarray:
    """confidence: (n, k) of the k crops of each of n pictures → flat indices, best first: every picture's best crop
    before any picture's second, so that no picture fills a sample alone."""
    rank = np.argsort(np.argsort(-confidence, axis=1, kind="stable"), axis=1)
    return np.lexsort((-confidence.ravel(), rank.ravel()))


def score(data: TrainingData, judge: teacher.Teacher, seed: int, progress: cache.Progress = cache.silent) -> Crops:
    """Cut CANDIDATES crops from every picture of the train part and rank those of a class by what `judge` gives their
    class. `progress(done, total)` counts crops."""
    height, width = data.spec.shape[1:]
    rng = np.random.default_rng(derive("crops", seed, data.spec.split_hash))
    order = np.argsort(data.train.y, kind="stable")
    rows, labels = np.repeat(order, CANDIDATES), np.repeat(data.train.y[order], CANDIDATES)
    cut = boxes(len(rows), height, width, rng)
    confidence = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        pairs = zip(data.train.x[rows[part]], cut[part], strict=True)
        seen = np.stack([resized(picture, box, (height, width)) for picture, box in pairs])
        said = judge.probabilities(torch.from_numpy(seen).to(data.device), temperature=1.0)
        confidence[part] = said[np.arange(len(said)), labels[part]]
        progress(min(start + CHUNK, len(rows)), len(rows))
    found, first = [], 0
    for pictures in data.spec.class_counts:
        own = confidence[first : first + pictures * CANDIDATES].reshape(pictures, CANDIDATES)
        found.append(first + ranked(own))
        first += own.size
    best = np.concatenate(found)
    counts = np.array(data.spec.class_counts, np.int32) * CANDIDATES
    return Crops(rows[best].astype(np.int32), cut[best], counts)


def cached(data: TrainingData, seed: int, folder: Path | None, progress: cache.Progress = cache.silent) -> Crops:
    """`score` by the teacher of soft labels, or the same crops from `folder`; without a folder nothing is kept. Raises
    `InputError` for samples that cannot be cropped, `TrialFailure` where the teacher's training diverges."""
    check_shape(data.spec.shape)
    total = len(data.train) * CANDIDATES

    def good(found: cache.Arrays) -> bool:
        shapes = [(found[name].shape, found[name].dtype) for name in ("rows", "boxes", "counts")]
        expected = [((total,), np.int32), ((total, 4), np.int32), ((data.spec.classes,), np.int32)]
        return shapes == expected

    def make() -> cache.Arrays:
        judge = teacher.cached(data, seed, folder, progress) if folder else teacher.train(data, seed, progress)
        made = score(data, judge, seed, progress)
        return {"rows": made.rows, "boxes": made.boxes, "counts": made.counts}

    key = ("v1", data.spec.split_hash, data.protocol.hash, teacher.STEPS, CANDIDATES, SMALLEST, seed)
    found = cache.arrays(folder, "crops", key, good, make) if folder else make()
    return Crops(found["rows"], found["boxes"], found["counts"])
