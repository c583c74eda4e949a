"""Evaluation networks, built from a data spec and a protocol; weights come from an explicit generator."""

from __future__ import annotations

import math
import re
import threading
from functools import cache

import torch
from torch import nn

from budgetopt import options
from budgetopt.errors import InputError
from budgetopt.networks.base import Network
from budgetopt.networks.convnet import ConvNet, ConvNet1d, ConvNet3d
from budgetopt.networks.mlp import MLP
from budgetopt.networks.plain import VGG11, AlexNet, LeNet
from budgetopt.networks.resnet import ResNet18

NETWORKS: dict[str, type[Network]] = {
    "convnet": ConvNet,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "mlp": MLP,
    "convnet1d": ConvNet1d,
    "convnet3d": ConvNet3d,
}

# Setting torch's global generator aside and putting it back is two steps: of two threads that build at once, the
# second would set aside, and leave behind, what the first has drawn.
_BUILDING = threading.Lock()


@cache
def parse(text: str) -> tuple[type[Network], options.Options]:
    """`"convnet:depth=4,norm=batch"` → the class and its options. Raises `InputError`."""
    name, chosen = options.parse(text, {name: network.options for name, network in NETWORKS.items()}, "network")
    return NETWORKS[name], chosen


def names_in(text: str) -> list[str]:
    """`"convnet:depth=4,norm=batch,vgg11"` → its networks; checked."""
    names = [name.strip() for name in re.split(r",(?![^,:]*=)", text)]
    for name in names:
        parse(name)
    return names


def build(name: str, shape: tuple[int, ...], classes: int, width: int, generator: torch.Generator) -> Network:
    """Build network `name`, with options as in `convnet:norm=batch`, for samples of `shape` (without the batch axis)
    with random weights.

    `generator` must live on the CPU, so that one seed gives the same weights on every device.
    """
    network_class, chosen = parse(name)
    # torch's own weights are overwritten: its global generator stays as it was. (The meta device would draw none, but
    # imports a symbolic algebra system first, over a second in every process.)
    with _BUILDING, torch.random.fork_rng(devices=[]):
        network = network_class(shape, classes, width, chosen)
    initialise(network, generator)
    return network


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise `InputError` where network `name` cannot take samples of `shape`."""
    if len(shape) not in parse(name)[0].axes:
        fitting = ", ".join(n for n, network in NETWORKS.items() if len(shape) in network.axes)
        raise InputError(f"network {name!r} does not take samples of shape {shape}: use a protocol with {fitting}")


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Torch's default initialisation, U(−1/√fan_in, 1/√fan_in), drawn from `generator`."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.reset_parameters()  # and the running statistics
        elif next(module.parameters(recurse=False), None) is not None:
            raise NotImplementedError(f"no initialisation for {type(module).__name__}")
