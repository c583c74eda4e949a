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
    """Parameters of m draws. `affine`: (m, 2, 3) output → input map in [−1, 1] coordinates; `brightness`
    (m,), added, in units of the standardised input; `contrast` (m,), a factor; `cutout` (m, 4), a box
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
    """Draw parameters for `count` images (or classes) from a CPU generator.

    `strengths` maps a name of `protocol.AUGMENTATIONS` to its strength: `shift` share of the side, `scale` largest
    factor, `rotate` degrees, `flip` probability, `brightness` standard deviations, `contrast` share, `cutout` share of
    the side.
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
    brightness = uniform() * strengths["brightness"] if "brightness" in strengths else None
    contrast = 1.0 + uniform() * strengths["contrast"] if "contrast" in strengths else None
    cutout = None
    if "cutout" in strengths:
        half = strengths["cutout"] / 2.0
        cy, cx = uniform(0.0, 1.0), uniform(0.0, 1.0)
        cutout = torch.stack([cy - half, cy + half, cx - half, cx + half], -1)
    return Draw(affine, brightness, contrast, cutout)


def apply(x: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """Apply one draw to each image. x: (n, c, h, w), standardised; `drawn` holds n draws, or 1 for all."""
    n, _, h, w = x.shape
    if drawn.brightness is not None:
        x = x + drawn.brightness.view(-1, 1, 1, 1)
    if drawn.contrast is not None:
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * drawn.contrast.view(-1, 1, 1, 1) + mean
    if drawn.affine is not None:
        grid = F.affine_grid(drawn.affine.expand(n, 2, 3), [n, 1, h, w], align_corners=False)
        # `border` and not zeros: zero is the mean grey of a standardised image, not its background
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if drawn.cutout is not None:
        rows = (torch.arange(h, device=x.device) + 0.5) / h
        cols = (torch.arange(w, device=x.device) + 0.5) / w
        top, bottom, left, right = (drawn.cutout[:, i, None] for i in range(4))
        inside = ((rows >= top) & (rows < bottom)).unsqueeze(2) & ((cols >= left) & (cols < right)).unsqueeze(1)
        x = x * (~inside).unsqueeze(1)
    return x
