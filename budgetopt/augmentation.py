"""Differentiable augmentation by name and strength (after DSA, Zhao and Bilen, ICML 2021).

A *draw* is separate from its *application*, so that one draw can be applied to real and synthetic samples
alike (siamese), to each class, or to each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Draw:
    """Parameters of m draws. `affine`: (m, 2, 3) output → input map in [−1, 1] coordinates, or (m, 3, 4) for voxels,
    whose linear part is in voxels: a rotation stays one where sides differ. Columns come first, then rows, then slices;
    `brightness` (m,), added, in units of the standardised input; `contrast` (m,), a factor; `cutout` (m, 4), a box
    (top, bottom, left, right) as shares of height and width."""

    affine: torch.Tensor | None
    brightness: torch.Tensor | None
    contrast: torch.Tensor | None
    cutout: torch.Tensor | None

    def __getitem__(self, index: torch.Tensor) -> Draw:
        def pick(t: torch.Tensor | None) -> torch.Tensor | None:
            return None if t is None else t[index]

        return Draw(pick(self.affine), pick(self.brightness), pick(self.contrast), pick(self.cutout))

    def to(self, device: torch.device) -> Draw:
        def move(t: torch.Tensor | None) -> torch.Tensor | None:
            return None if t is None else t.to(device)

        return Draw(move(self.affine), move(self.brightness), move(self.contrast), move(self.cutout))

    @classmethod
    def joined(cls, draws: Sequence[Draw]) -> Draw:
        """Draws by the same strengths, one after another."""

        def join(*parts: torch.Tensor | None) -> torch.Tensor | None:
            found = [part for part in parts if part is not None]
            return torch.cat(found) if found else None

        fields = [(d.affine, d.brightness, d.contrast, d.cutout) for d in draws]
        return cls(*(join(*parts) for parts in zip(*fields, strict=True)))


def draw(strengths: dict[str, float], count: int, generator: torch.Generator) -> Draw:
    """Draw parameters for `count` images or voxel grids (or classes) from a CPU generator.

    `strengths` maps a name of `protocol.AUGMENTATIONS` to its strength: `shift` share of the side, `scale` largest
    factor, `rotate` degrees, `flip` probability, `brightness` standard deviations, `contrast` share, `cutout` share of
    the side; of voxels `shift3d`, `rotate3d` (about an axis uniform on the sphere) and `flip3d` (of columns) likewise.
    """

    def uniform(low: float = -1.0, high: float = 1.0) -> torch.Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    affine = None
    if {"shift", "scale", "rotate", "flip"} & strengths.keys():
        angle = torch.deg2rad(uniform() * strengths.get("rotate", 0.0))
        ratio = strengths.get("scale", 1.0)
        sx, sy = ratio ** uniform(), ratio ** uniform()
        shift = 2.0 * strengths.get("shift", 0.0)
        dx, dy = uniform() * shift, uniform() * shift
        mirror = torch.where(uniform(0.0, 1.0) < strengths.get("flip", 0.0), -1.0, 1.0)
        cos, sin = torch.cos(angle), torch.sin(angle)
        affine = torch.stack(
            [
                torch.stack([mirror * sx * cos, -sx * sin, dx], -1),
                torch.stack([mirror * sy * sin, sy * cos, dy], -1),
            ],
            1,
        )
    elif {"shift3d", "rotate3d", "flip3d"} & strengths.keys():
        turn = _rotations(count, strengths.get("rotate3d", 0.0), generator)
        mirror = torch.where(uniform(0.0, 1.0) < strengths.get("flip3d", 0.0), -1.0, 1.0)
        turn[:, :, 0] *= mirror[:, None]
        offset = torch.stack([uniform(), uniform(), uniform()], -1) * 2.0 * strengths.get("shift3d", 0.0)
        affine = torch.cat([turn, offset[:, :, None]], 2)
    brightness = uniform() * strengths["brightness"] if "brightness" in strengths else None
    contrast = 1.0 + uniform() * strengths["contrast"] if "contrast" in strengths else None
    cutout = None
    if "cutout" in strengths:
        half = strengths["cutout"] / 2.0
        cy, cx = uniform(0.0, 1.0), uniform(0.0, 1.0)
        cutout = torch.stack([cy - half, cy + half, cx - half, cx + half], -1)
    return Draw(affine, brightness, contrast, cutout)


def _rotations(count: int, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """(count, 3, 3) rotations by angles uniform in ±`degrees`, each about an axis uniform on the sphere."""
    angle = torch.deg2rad(torch.empty(count).uniform_(-1.0, 1.0, generator=generator) * degrees)[:, None, None]
    axis = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    # Rodrigues: cos θ · I + sin θ · [a]× + (1 − cos θ) · a aᵀ, row i of [a]× being the cross product of unit i with a
    cross = torch.linalg.cross(torch.eye(3).expand(count, 3, 3), axis[:, None, :].expand(count, 3, 3))
    outer = axis[:, :, None] * axis[:, None, :]
    return torch.cos(angle) * torch.eye(3) + torch.sin(angle) * cross + (1.0 - torch.cos(angle)) * outer


def apply(x: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """Apply one draw to each sample. x: (n, c, h, w) or, if drawn for voxels, (n, c, d, h, w), standardised; `drawn`
    holds n draws, or 1 for all."""
    n, sides = len(x), x.shape[2:]
    if drawn.brightness is not None:
        x = x + drawn.brightness.view(-1, 1, 1, 1)
    if drawn.contrast is not None:
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * drawn.contrast.view(-1, 1, 1, 1) + mean
    if drawn.affine is not None:
        affine = _in_unit_sides(drawn.affine, sides)
        grid = F.affine_grid(affine.expand(n, -1, -1), [n, 1, *sides], align_corners=False)
        # `border` and not zeros: zero is the mean grey of a standardised image, not its background
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if drawn.cutout is not None:
        h, w = sides
        rows = (torch.arange(h, device=x.device) + 0.5) / h
        cols = (torch.arange(w, device=x.device) + 0.5) / w
        top, bottom, left, right = (drawn.cutout[:, i, None] for i in range(4))
        inside = ((rows >= top) & (rows < bottom)).unsqueeze(2) & ((cols >= left) & (cols < right)).unsqueeze(1)
        x = x * (~inside).unsqueeze(1)
    return x


def _in_unit_sides(affine: torch.Tensor, sides: torch.Size) -> torch.Tensor:
    """(m, 2, 3) or (m, 3, 4) with its linear part in pixels or voxels → in [−1, 1] coordinates; sides: (h, w) or (d, h,
    w)."""
    axes = len(sides)
    lengths = torch.tensor(sides[::-1], dtype=affine.dtype, device=affine.device)
    return torch.cat([affine[:, :, :axes] * lengths / lengths[:, None], affine[:, :, axes:]], 2)
