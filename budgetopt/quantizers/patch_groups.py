"""Groups of patches that share their levels, and how many a budget can pay for (PTQ for condensation, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

MOST_FITTED = 20_000  # patches that k-means sees; the others join the nearest centre all the same
_AT_ONCE = 1 << 22  # distances in memory


class Groups:
    """k-means centres in the space of `features`, fitted once; patches join the nearest centre at any time, so that
    samples may change or be left out.

    low, high: (patches,) the range of each patch. space: `range`, (min, max), or `scaled`, (α, z) of eq. 2–3, each
    divided by its standard deviation (unscaled, z of flat patches is all that counts). Centres are in order of
    brightness: neighbouring patches have near numbers, which coders can use.
    """

    def __init__(
        self, low: torch.Tensor, high: torch.Tensor, count: int, space: str, flattest: float, seed: int
    ) -> None:
        self._space, self._flattest = space, flattest
        self._scale = torch.ones(2, dtype=torch.float64, device=low.device)
        points = self.features(low, high)
        if space == "scaled":
            spread = points.std(0, correction=0)
            self._scale = torch.where(spread > 0, spread, 1.0)
        points = points / self._scale
        centres = _k_means(points.cpu().numpy(), count, seed)
        if space == "range":
            centres = centres[np.lexsort((centres[:, 0], centres.sum(1)))]
        else:
            centres = centres[np.lexsort((centres[:, 0], centres[:, 1]))]
        self.centres = torch.from_numpy(centres).to(low.device)

    def features(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """(patches, 2) float64, in units of the scale."""
        low, high = low.double(), high.double()
        if self._space == "range":
            return torch.stack([low, high], 1) / self._scale
        alpha = (high - low).clamp_min(self._flattest)
        return torch.stack([alpha, torch.round(-low / alpha)], 1) / self._scale

    def of(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """(patches,) int64: the nearest centre, the first of equally near ones."""
        points = self.features(low, high)
        size = max(1, _AT_ONCE // len(self.centres))
        return torch.cat([_nearest(part, self.centres) for part in points.split(size)])


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)


def _k_means(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(at most `count`, 2) centres; every distinct point is one where there are no more of them."""
    from sklearn.cluster import KMeans

    if len(points) > MOST_FITTED:
        points = np.random.default_rng(seed).choice(points, MOST_FITTED, replace=False)
    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return distinct
    return KMeans(count, n_init=1, max_iter=50, random_state=seed % 2**32).fit(points).cluster_centers_


def largest_groups(
    size: Callable[[int], int], parameters: Callable[[int], float], budget: float, most: int = 256, packs: int = 4
) -> int:
    """The largest number of groups in 1 … most whose file has at most `budget` bytes, packing at most `packs` of them.

    size: packs with a number of groups, → bytes. parameters: the bytes that the groups' own levels take of it, known
    without packing. The rest of the file, assignments and symbols, grows like the logarithm of the number of groups
    (their entropy), so two packed candidates predict all others: size(G) ≈ a + b·log2 G + parameters(G). A packed
    candidate corrects the line; sizes are noisy (k-means), so after a prediction that did not fit the next one aims as
    far below the budget as that one was above it. Only a candidate that was packed is returned, or 1 where none fits.
    """
    tried = {most: size(most)}
    if tried[most] <= budget or most == 1:
        return most
    low, high = 1, most  # `low` fits or is all there is, `high` does not fit
    candidate, margin = max(2, math.isqrt(most)), 0.0
    while len(tried) < packs and low < candidate < high:
        tried[candidate] = size(candidate)
        excess = tried[candidate] - budget
        low, high = (candidate, high) if excess <= 0 else (low, candidate)
        margin = excess if excess > 0 and len(tried) > 2 else 0.0
        candidate = _predicted(tried, parameters, budget - margin, low, high)
    return low


def _predicted(tried: dict[int, int], parameters: Callable[[int], float], budget: float, low: int, high: int) -> int:
    """The largest G below high that fits by the line through the packed candidates around it (the two smallest where
    none fits), at least low + 1."""
    a, b = (low, high) if low in tried else sorted(tried)[:2]
    rest = {g: tried[g] - parameters(g) for g in (a, b)}
    slope = max(0.0, (rest[b] - rest[a]) / (math.log2(b) - math.log2(a)))
    fitting = [
        g for g in range(low + 1, high) if rest[a] + slope * (math.log2(g) - math.log2(a)) + parameters(g) <= budget
    ]
    return fitting[-1] if fitting else low + 1
