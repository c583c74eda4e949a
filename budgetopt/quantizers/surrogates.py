"""Differentiable stand-ins for rounding (QuADD A.1; BCDC eq. 6-7), in index units: level k lies at k."""

from __future__ import annotations

import torch

# sharpness kΔ of the smooth staircase at the start and at the end of training: nearly a straight line (slopes 0.85 to
# 1.08), and nearly steps (values are within 5 % of a step of a level, but for 9 % of the way from one to the next)
FIRST_SHARPNESS, LAST_SHARPNESS = 1.0, 32.0


def annealed(progress: float, last: float = LAST_SHARPNESS) -> float:
    """Sharpness at `progress` 0 … 1 of training, growing exponentially from `FIRST_SHARPNESS`."""
    return FIRST_SHARPNESS * (last / FIRST_SHARPNESS) ** min(1.0, max(0.0, progress))


def soft_round(v: torch.Tensor, sharpness: float) -> torch.Tensor:
    """⌊v⌋ + ½ + tanh(kΔ·(v − ⌊v⌋ − ½)) / (2·tanh(kΔ/2)), BCDC eq. 6-7 and QuADD's soft rounding in index units.

    Meets v at whole numbers and midway between them; v itself for kΔ → 0, where the quotient of two hyperbolic tangents
    is replaced by its series, and rounding for kΔ → ∞.
    """
    whole = v.detach().floor()
    centred = v - whole - 0.5
    if sharpness < 1e-2:  # tanh(ks)/tanh(k/2) = 2s·(1 + k²(1/4 − s²)/3) + O(k⁴)
        step = centred * (1.0 + sharpness**2 * (0.25 - centred**2) / 3.0)
    else:
        half = torch.tensor(sharpness / 2, dtype=v.dtype, device=v.device)
        step = torch.tanh(2 * half * centred) / (2 * torch.tanh(half))
    return whole + 0.5 + step


def clamped(v: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """→ (v within 0 … L − 1; zero in value with gradient 1 where v is outside), so that values outside still move."""
    inside = v.clamp(0, levels - 1)
    outside = v - inside
    return inside, outside - outside.detach()


def uniform_noise(v: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """v + u, u uniform in [−½, ½): additive noise of the width of one step, QuADD A.1; and the continuous variant of
    the noise of its eq. 13, uniform in [−1, 1]/(L − 1) on levels that span [−1, 1]."""
    noise = torch.rand(v.shape, generator=generator, dtype=v.dtype) - 0.5
    return v + noise.to(v.device)


def sign_noise(v: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """v ± ½: the noise of QuADD eq. 13 as printed, ±1/(L − 1) on levels that span [−1, 1]."""
    noise = torch.randint(0, 2, v.shape, generator=generator).to(v.dtype) - 0.5
    return v + noise.to(v.device)


def noisy_step(generator: torch.Generator) -> bool:
    """Whether this step of the hybrid (QuADD eq. 13) takes the noise branch: half of them do."""
    return bool(torch.randint(0, 2, (), generator=generator))
