"""Evaluation networks, built from a data spec and a protocol; weights come from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import nn

from budgetopt.errors import InputError, unknown_name
from budgetopt.networks.base import Network
from budgetopt.networks.convnet import ConvNet
from budgetopt.networks.mlp import MLP

NETWORKS: dict[str, type[Network]] = {"convnet": ConvNet, "mlp": MLP}


def build(name: str, shape: tuple[int, ...], classes: int, width: int, generator: torch.Generator) -> Network:
    """Build network `name` for samples of `shape` (without the batch axis) with random weights.

    `generator` must live on the CPU, so that one seed gives the same weights on every device.
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    with torch.device("meta"):  # no weights are drawn from torch's global generator
        network = NETWORKS[name](shape, classes, width)
    network = network.to_empty(device="cpu")
    initialise(network, generator)
    return network


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise `InputError` where network `name` cannot take samples of `shape`."""
    if len(shape) not in NETWORKS[name].axes:
        fitting = ", ".join(n for n, network in NETWORKS.items() if len(shape) in network.axes)
        raise InputError(f"network {name!r} does not take samples of shape {shape}: use a protocol with {fitting}")


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Torch's default initialisation, U(−1/√fan_in, 1/√fan_in), drawn from `generator`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif next(module.parameters(recurse=False), None) is not None:
            raise NotImplementedError(f"no initialisation for {type(module).__name__}")
