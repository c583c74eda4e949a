"""Networks side by side are the networks one by one: every architecture, in double precision, through training."""

import pytest
import torch
import torch.nn.functional as F

from budgetopt import networks
from budgetopt.networks.side_by_side import SideBySide

CASES = [
    *((name, (1, 8, 8)) for name in networks.NETWORKS if 3 in networks.parse(name)[0].axes),
    *((f"{name}:norm=batch", (2, 8, 8)) for name in ("convnet", "alexnet", "vgg11", "resnet18")),
    *((f"{name}:norm=none", (1, 9, 5)) for name in ("convnet", "resnet18")),
    ("mlp", (13,)),
    ("mlp:depth=4", (13,)),
    ("convnet1d", (13,)),
    ("convnet1d:norm=batch", (2, 40)),
    ("convnet3d", (1, 6, 8, 9)),
]


def built(name, shape, count=3):
    return [networks.build(name, shape, 4, 6, torch.Generator().manual_seed(i)).double() for i in range(count)]


def train(model, x, y):
    """Four steps of AdamW; x, y: one batch for every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for inputs, labels in zip(x, y, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels, reduction="sum").backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_training_side_by_side_is_training_one_by_one(name, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 5, *shape, generator=generator, dtype=torch.float64)  # (steps, networks, batch, ...)
    y = torch.randint(0, 4, (4, 3, 5), generator=generator)
    alone, several = built(name, shape), built(name, shape)
    together = SideBySide(several)
    assert torch.allclose(together(x[0].flatten(0, 1)), torch.cat([n(x[0, i]) for i, n in enumerate(several)]))
    for i, net in enumerate(alone):
        net(x[0, i])  # running statistics have seen that batch in the twin too
        train(net, x[:, i], y[:, i])
    before = [p.clone() for p in several[0].parameters()]
    train(together, x.flatten(1, 2), y.flatten(1))
    assert all(torch.equal(p, b) for p, b in zip(several[0].parameters(), before, strict=True))  # not written back yet
    together.write_back()
    for net, expected in zip(several, alone, strict=True):
        for (key, value), other in zip(net.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.allclose(value, other, atol=1e-6), key
        for mode in (True, False):
            with torch.no_grad():
                assert torch.allclose(net.train(mode)(x[1, 0]), expected.train(mode)(x[1, 0]), atol=1e-6)


def test_no_value_of_one_network_reaches_another():
    nets = built("resnet18:norm=batch", (1, 8, 8))
    x = torch.randn(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    SideBySide(nets)(x.flatten(0, 1)).unflatten(0, (3, 5))[1].square().sum().backward()
    assert x.grad[1].abs().sum() > 0
    assert x.grad[[0, 2]].abs().sum() == 0


def test_the_global_generator_is_left_alone():
    nets, before = built("convnet", (1, 8, 8)), torch.get_rng_state()
    SideBySide(nets)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_cannot_stand_side_by_side_is_an_error():
    net = torch.nn.Sequential(torch.nn.Bilinear(2, 2, 2))
    with pytest.raises(NotImplementedError, match="Bilinear"):
        SideBySide([net, net])
