"""Rate–distortion optimised quantization, as video encoders have it: a symbol is not the nearest level but the one that
serves error and bits together.

    minimise Σ_i (x_i − level_i)² / variance + weight · bits(symbols)

Coordinate descent over the static context model of `rate.py`, which charges a symbol for what it does to its
neighbours' code lengths too. Neighbours never move at the same time: values take turns by the parity of their channel,
row and column.
"""

from __future__ import annotations

import numpy as np
import torch

from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.layout import Domain, Layout
from budgetopt.quantizers.base import Quantizer
from budgetopt.representation.rate import Turn, bits_around, check, columns, steps_around

PASSES = 3  # over all values; the third moves fewer than one in a thousand


@torch.no_grad()
def optimised(
    x: torch.Tensor, labels: torch.Tensor, quantizer: Quantizer, layout: Layout, counts: tuple[int, ...], weight: float
) -> torch.Tensor:
    """x: (n, K) coded values, labels: (n,) in class order → (n, K) levels. weight: of a bit, in variances of x. Raises
    `InputError` for a family whose symbols are not levels of single values."""
    stored, side = quantizer.encode(x, labels)
    check(side, "rdoq")
    domain = Domain(layout, counts)
    turns: list[Turn] = [(c, row, column) for c in (0, 1) for row in (0, 1) for column in (0, 1)]
    in_turn = [(turn, columns(layout, turn).to(x.device)) for turn in turns]
    symbols = torch.from_numpy(stored.astype(np.int64)).to(x.device)
    variance = float(x.var(correction=0)) or 1.0
    for _ in range(PASSES):
        for turn, moving in in_turn:
            if len(moving):
                bits = bits_around(symbols, labels, side.levels, layout, turn)
                symbols[:, moving] += _best_move(x, symbols, side, domain, moving, weight * variance * bits)
    level, _, _ = steps_around(symbols.cpu().numpy(), side, domain)
    return torch.from_numpy(level).to(x.device)


def _best_move(
    x: torch.Tensor, symbols: torch.Tensor, side: Dequantizer, domain: Domain, moving: torch.Tensor, price: torch.Tensor
) -> torch.Tensor:
    """−1, 0 or 1 for the symbols of the columns `moving`, (n, m): what lowers error + price most if all others stay.
    price: (n, m, 3) of the symbols below, here and above."""
    level, down, up = (
        torch.from_numpy(a).to(x.device)[:, moving] for a in steps_around(symbols.cpu().numpy(), side, domain)
    )
    levels = torch.stack([level - down, level, level + up], -1)
    there = torch.stack([down, torch.ones_like(down), up], -1) > 0
    cost = ((x[:, moving].unsqueeze(-1) - levels).square() + price).where(there, torch.inf)
    stays = cost[..., 1] <= torch.minimum(cost[..., 0], cost[..., 2])
    return (cost.argmin(-1) - 1).where(~stays, 0)
