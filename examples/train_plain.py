"""Trains on a packed file in plain PyTorch and prints the accuracy on the test split of the 8×8 digits, or of an `.npz`
with x_test (n, c, h, w) in raw units and y_test.

    python examples/train_plain.py FILE [TEST.npz]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import budgetopt

STEPS, BATCH, WIDTH = 200, 128, 32


def main(path: str, test: str | None = None) -> float:
    torch.manual_seed(0)
    packed = budgetopt.load(path)
    data = packed.to_torch()  # (standardised sample, class), or (standardised sample, probabilities) for soft labels
    loader = torch.utils.data.DataLoader(data, min(BATCH, len(data)), shuffle=True, drop_last=True)
    channels = packed.samples.shape[1]
    layers: list[nn.Module] = []
    for inputs in (channels, WIDTH):
        layers += [nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.GroupNorm(WIDTH, WIDTH), nn.ReLU(), nn.AvgPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(packed.classes))
    net(data[0][0][None])  # tells the last layer its size
    optimizer = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS)
    step = 0
    while step < STEPS:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            step += 1
            if step == STEPS:
                break
            schedule.step()
    x, y = test_split(test)
    with torch.no_grad():
        predicted = net(torch.from_numpy((x - view(packed.mean)) / view(packed.std))).argmax(1).numpy()
    accuracy = float((predicted == y).mean())
    print(f"{len(packed)} samples in {packed.bytes:,} bytes: {accuracy:.1%} of {len(y):,} test samples")
    return accuracy


def view(statistic: np.ndarray) -> np.ndarray:
    return statistic[:, None, None]


def test_split(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """x: (n, c, h, w) float32 in raw units, y: (n,)"""
    if path is None:
        from budgetopt import data

        x, y = data.open_source("digits").test_arrays()
    else:
        with np.load(path, allow_pickle=False) as archive:
            x, y = archive["x_test"], archive["y_test"]
    return x.astype(np.float32), y


if __name__ == "__main__":
    main(*sys.argv[1:])
