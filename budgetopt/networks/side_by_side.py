"""Several networks of one architecture as one: their channels side by side, so that a layer of all of them is one call.

A small layer takes less time to compute than to call. A convolution of k networks is one grouped convolution, a
normalisation per channel one of k times the channels, a linear layer one batched product; what has no weights acts on
every channel alone and stays as it is. No value of one network reaches another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from budgetopt.networks.base import Network

GROUPED = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PER_CHANNEL = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SIZES = ("in_channels", "out_channels", "groups", "num_groups", "num_channels", "num_features")

# Networks at once, and the most values of a first map (width times positions) up to which that is faster. One CPU
# thread: three convnets of width 32 on 8×8 digits take 1.2 to 1.8 times less than one after another, of width 8 on
# 28×28 as long or longer. On a GPU the limit is estimated, not measured: where a step of one network is shorter than
# its some 100 launches of 10 µs, which keep the processor busy for each network alone.
CPU_AT_ONCE, CPU_LIMIT = 3, 64 * 64
GPU_AT_ONCE, GPU_LIMIT = 5, 32 * 32 * 32


def at_once(shape: tuple[int, ...], width: int, device: torch.device) -> int:
    """How many networks of `width` for samples of `shape` are best trained side by side."""
    most, limit = (CPU_AT_ONCE, CPU_LIMIT) if device.type == "cpu" else (GPU_AT_ONCE, GPU_LIMIT)
    return most if width * math.prod(shape[1:]) <= limit else 1


class SideBySide(nn.Module):
    """x: (k·b, ...), the batches of k networks one after another → logits (k·b, classes) in that order.

    Starts from the weights of `networks`; `write_back` gives them the trained ones.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self._networks = tuple(networks)  # no submodules: their weights take no part
        self.wide = copy.deepcopy(networks[0])
        for name, module in list(self.wide.named_modules()):
            _widen(module, [network.get_submodule(name) for network in networks])
            if isinstance(module, nn.Linear):
                parent, _, attribute = name.rpartition(".")
                setattr(self.wide.get_submodule(parent), attribute, _Linear(module, len(networks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = len(self._networks)
        x = x.unflatten(0, (k, -1)).transpose(0, 1).flatten(1, 2)
        return self.wide(x).unflatten(1, (k, -1)).transpose(0, 1).flatten(0, 1)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give every network its part of the weights and of the running statistics."""
        for name, value in self.wide.state_dict().items():
            parts = [value] * len(self._networks) if value.dim() == 0 else value.chunk(len(self._networks))
            for network, part in zip(self._networks, parts, strict=True):
                network.state_dict()[name].copy_(part)


class _Linear(nn.Module):
    """k linear layers, whose weights `layer` holds one below another. (b, k·features) → (b, k·outputs)."""

    def __init__(self, layer: nn.Linear, k: int) -> None:
        super().__init__()
        self.k, self.weight, self.bias = k, layer.weight, layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.unflatten(0, (self.k, -1)), self.bias.view(self.k, 1, -1)
        x = x.unflatten(1, (self.k, -1)).transpose(0, 1)
        return torch.baddbmm(bias, x, weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def _widen(module: nn.Module, twins: Sequence[nn.Module]) -> None:
    """Give `module` the weights and running statistics of all `twins`, one below another."""
    weights = dict(module.named_parameters(recurse=False))
    if weights and not isinstance(module, GROUPED + PER_CHANNEL + (nn.Linear,)):
        raise NotImplementedError(f"no layer that is several {type(module).__name__}")
    for name in weights:
        parts = [twin.get_parameter(name).detach() for twin in twins]
        module.register_parameter(name, nn.Parameter(torch.cat(parts)))
    for name, value in list(module.named_buffers(recurse=False)):
        if value.dim() > 0:
            module.register_buffer(name, torch.cat([twin.get_buffer(name) for twin in twins]))
    for size in SIZES:
        if isinstance(getattr(module, size, None), int):
            setattr(module, size, getattr(module, size) * len(twins))
