"""A set of voxels: scikit-learn's 8×8 digits, extruded to a thickness and turned about a random axis.

    python examples/voxel_digits.py voxel_digits.npz
    budgetopt search --dataset voxel_digits.npz --budget 1000

Every digit stands as a slab of 4 slices in the middle of 8×8×8 voxels and is turned by up to 45° about an axis that is
uniform on the sphere. The test part is that of the `digits` dataset; one seed draws all rotations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from budgetopt import data

SIDE = 8
SLICES = slice(2, 6)  # of the depth, that a digit fills before it is turned
MOST_DEGREES = 45.0


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the rotations")
    options = parser.parse_args(arguments)
    digits, rng = data.open_source("digits"), np.random.default_rng(options.seed)
    (x_train, y_train), (x_test, y_test) = digits.train_arrays(), digits.test_arrays()
    parts = {"x_train": turned(x_train[:, 0], rng), "y_train": y_train, "x_test": turned(x_test[:, 0], rng)}
    np.savez_compressed(options.out, **parts, y_test=y_test)
    print(f"{options.out}: {len(y_train):,} + {len(y_test):,} samples of 1×{SIDE}×{SIDE}×{SIDE}, values 0 to 16")
    return options.out


def turned(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """pictures: (n, 8, 8) of 0 … 16 → (n, 1, 8, 8, 8) uint8 of 0 … 16, each turned in its own way."""
    x = np.zeros((len(pictures), 1, SIDE, SIDE, SIDE), np.uint8)
    for slab, picture in zip(x[:, 0], pictures, strict=True):
        solid = np.zeros((SIDE, SIDE, SIDE))
        solid[SLICES] = picture
        slab[:] = np.round(rotated(solid, rotation(rng))).clip(0, 16)
    return x


def rotation(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) matrix of a turn by an angle uniform in ±MOST_DEGREES about an axis uniform on the sphere."""
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(-MOST_DEGREES, MOST_DEGREES))
    return Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()


def rotated(solid: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(d, h, w) voxels about their centre, trilinear; outside is 0."""
    centre = (np.array(solid.shape) - 1) / 2
    return affine_transform(solid, matrix.T, offset=centre - matrix.T @ centre, order=1)


if __name__ == "__main__":
    main()
