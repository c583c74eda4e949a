"""Pictures of few colours: median cut, or colours that are learned with the samples (AutoPalette-like)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from budgetopt.errors import InputError
from budgetopt.options import Number, OneOf, Options
from budgetopt.packing.layout import Layout
from budgetopt.packing.palette import PaletteColours
from budgetopt.quantizers.base import Quantizer
from budgetopt.quantizers.uniform_levels import uniform_table

TRANSFORMS = ("identity", "standardize")
NEAR = 4  # colours that share a pixel in the surrogate
FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.01  # in squared distances between neighbouring colours
MOST_FITTED = 50_000  # pixels that k-means sees
AT_ONCE = 1 << 22  # distances in memory


class Palette(Quantizer):
    """One symbol for all channels of a pixel: the nearest of `levels` colours, of the dataset or of its class.

    learn: `median-cut` (Pillow's; fixed), or `learned`: k-means colours that then follow the gradient, each pixel's
    being shared by its nearest colours in proportion to softmax(−distance²/τ), τ falling as training goes on. The
    gradient to the samples is straight-through. precision: bits of a stored colour value, on a grid over the range of
    the initial set. Of grey pictures it is a codebook of scalar levels.
    """

    has_rate = False
    options: ClassVar = {
        "learn": OneOf(("learned", "median-cut")),
        "scope": OneOf(("dataset", "class")),
        "precision": Number(8, 2, 8, whole=True),
    }

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        self.per_class = self.chosen["scope"] == "class"
        if self.chosen["learn"] == "learned":
            self.colours: torch.Tensor = nn.Parameter(torch.ones(1, levels, 1))
        else:
            self.colours = torch.ones(1, levels, 1)

    @classmethod
    def check_transform(cls, transform: str, shape: tuple[int, ...]) -> None:
        if transform not in TRANSFORMS or len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError(
                f"palette needs pictures of 1 or 3 channels, without a transform or standardised, not {transform} "
                f"of {shape}"
            )

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self._layout, (self._plane,) = layout, layout
        self._grid = uniform_table(float(x.min()), float(x.max()), 2 ** int(self.chosen["precision"]))
        pixels = self._pixels(x).cpu().numpy()
        seed = int(torch.randint(2**31, (), generator=self.generator))
        classes = int(labels.max()) + 1 if self.per_class else 1
        owner = labels.cpu().numpy() if self.per_class else np.zeros(len(x), np.int64)
        found = np.zeros((classes, self.levels, self._plane.channels))
        for c in np.unique(owner):
            part = pixels[owner == c].reshape(-1, self._plane.channels)
            colours = self._median_cut(part) if self.chosen["learn"] == "median-cut" else self._k_means(part, seed)
            found[c] = np.resize(colours, found[c].shape)  # fewer distinct ones are repeated
        self.colours.data = torch.from_numpy(found).float().to(x.device)
        spread = self.colours.flatten(0, 1).var(0, correction=0).sum()
        self._spacing = float(spread) / self.levels ** (2 / self._plane.channels) or 1.0  # squared

    @torch.no_grad()
    def encode(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, PaletteColours]:
        indices = self._indices()
        present = torch.unique(labels) if self.per_class else torch.zeros(1, dtype=torch.int64, device=x.device)
        palette = labels if self.per_class else torch.zeros_like(labels)
        nearest = self._nearest(self._pixels(x), self._on_file(indices), palette, 1)[..., 0]
        stored = indices[present].to(torch.uint8).cpu().numpy()
        return nearest.to(torch.uint8).cpu().numpy(), PaletteColours(self._grid, stored, self.per_class)

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        out = self.quantized(x, labels) + (x - x.detach())  # the second term is zero in value
        if not isinstance(self.colours, nn.Parameter):
            return out
        soft = self._pixels_back(self._soft(x.detach(), labels))
        return out + (soft - soft.detach())

    def _soft(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(n, h·w, c): mixtures of the nearest colours, differentiable with respect to these."""
        palette = labels if self.per_class else torch.zeros_like(labels)
        order = self._order()
        colours = self.colours.gather(1, order[..., None].expand_as(self.colours))
        pixels = self._pixels(x)
        with torch.no_grad():
            near = self._nearest(pixels, colours, palette, min(NEAR, self.levels))
        chosen = colours[palette[:, None, None], near]  # (n, h·w, NEAR, c)
        distance = ((pixels[:, :, None] - chosen) ** 2).sum(3)
        temperature = self._spacing * FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** self.progress
        return (torch.softmax(-distance / temperature, 2)[..., None] * chosen).sum(2)

    def _order(self) -> torch.Tensor:
        """(p, L): colours by brightness, so that near symbols look alike (coders' contexts count on it)."""
        return self.colours.detach().sum(2).argsort(dim=1, stable=True)

    def _indices(self) -> torch.Tensor:
        """(p, L, c): the colours on the file's grid, in order of brightness."""
        order = self._order()
        colours = self.colours.detach().gather(1, order[..., None].expand_as(self.colours)).double()
        scaled = (colours * 2.0**self._grid.exponent - self._grid.low) / self._grid.step
        return torch.round(scaled).clamp(0, self._grid.count - 1).long()

    def _on_file(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._grid.values()).to(indices.device)[indices]

    def _pixels(self, x: torch.Tensor) -> torch.Tensor:
        """(n, K) → (n, h·w, c)"""
        return x.reshape(len(x), self._plane.channels, -1).transpose(1, 2)

    def _pixels_back(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.transpose(1, 2).reshape(len(pixels), -1)

    def _nearest(self, pixels: torch.Tensor, colours: torch.Tensor, palette: torch.Tensor, count: int) -> torch.Tensor:
        """(n, h·w, count) indices of the nearest colours, nearest first, the first of equally near ones."""
        found = torch.empty((*pixels.shape[:2], count), dtype=torch.int64, device=pixels.device)
        size = max(1, AT_ONCE // (pixels.shape[1] * self.levels))
        for first in range(0, len(pixels), size):
            part = slice(first, first + size)
            table = colours[palette[part]]  # (m, L, c)
            distance = sum((pixels[part, :, None, c] - table[:, None, :, c]) ** 2 for c in range(self._plane.channels))
            assert isinstance(distance, torch.Tensor)
            if count == 1:
                found[part] = distance.argmin(2, keepdim=True)
            else:
                found[part] = distance.topk(count, dim=2, largest=False).indices
        return found

    def _k_means(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        from sklearn.cluster import KMeans

        if len(pixels) > MOST_FITTED:
            pixels = np.random.default_rng(seed).choice(pixels, MOST_FITTED, replace=False)
        distinct = np.unique(pixels, axis=0)
        if len(distinct) <= self.levels:
            return distinct
        return KMeans(self.levels, n_init=1, max_iter=30, random_state=seed).fit(pixels).cluster_centers_

    def _median_cut(self, pixels: np.ndarray) -> np.ndarray:
        """Pillow's median cut of all pixels as one RGB picture (Heckbert 1982), in 256 levels over the grid's range."""
        from PIL import Image

        low, high = self._grid.values()[[0, -1]].astype(np.float64)
        scaled = np.round((pixels.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        rgb = np.repeat(scaled, 3, axis=1) if self._plane.channels == 1 else scaled
        picture = Image.fromarray(rgb[None]).quantize(self.levels, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        colours = np.asarray(picture.getpalette(), np.float64).reshape(-1, 3)[: self.levels, : self._plane.channels]
        return low + colours * (high - low) / 255
