import math

import pytest
import torch

from budgetopt import networks
from budgetopt.errors import InputError
from budgetopt.networks.convnet import depth_for

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 5, 17), (13,)]
CASES = [(name, shape) for name in networks.NETWORKS for shape in SHAPES if len(shape) == 3 or name == "mlp"]


def build(name, shape, seed=0, width=8):
    return networks.build(name, shape, 7, width, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("resolution", "depth"), [(8, 2), (16, 2), (17, 3), (28, 3), (32, 3), (33, 4), (128, 5)])
def test_depth(resolution, depth):
    assert depth_for(resolution) == depth == max(2, math.ceil(math.log2(resolution)) - 2)


@pytest.mark.parametrize(("shape", "features"), [((1, 8, 8), 8 * 2 * 2), ((1, 28, 28), 8 * 3 * 3), ((3, 32, 32), 128)])
def test_convnet_is_that_deep(shape, features):
    net = build("convnet", shape)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == depth_for(shape[1])
    assert net.embed(torch.zeros(2, *shape)).shape == (2, features)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_output_shapes(name, shape):
    net = build(name, shape)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    assert net(x).shape == (5, 7)
    assert net.embed(x).dim() == 2
    assert torch.equal(net(x), net.classifier(net.embed(x)))
    assert torch.isfinite(net(x)).all()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_weights_follow_from_the_generator_alone(name, shape):
    before = torch.get_rng_state()
    one, same, other = build(name, shape), build(name, shape), build(name, shape, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.device.type == "cpu"
        assert a.requires_grad
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_initial_weights_are_uniform_within_the_fan_in(name, shape):
    for module in build(name, shape, width=32).modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fan_in = module.weight[0].numel()
            for values in (module.weight, module.bias):
                assert values.abs().max() <= 1 / math.sqrt(fan_in)
            if module.weight.numel() > 500:
                assert float(module.weight.detach().std()) == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.15)
        elif isinstance(module, torch.nn.GroupNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_samples_do_not_influence_each_other(name, shape):
    """Instance norm, not batch norm: a sample's logits are the same alone and in company."""
    net = build(name, shape)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(net(x)[2], net(x[2:3])[0], atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_gradient_reaches_samples_and_weights(name, shape):
    net = build(name, shape)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    net(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_images(side):
    assert build("convnet", (1, side, side))(torch.zeros(4, 1, side, side)).shape == (4, 7)


def test_unknown_network_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'convnet'"):
        build("ConvNets", (1, 8, 8))


def test_a_layer_without_a_rule_is_an_error():
    with pytest.raises(NotImplementedError, match="Bilinear"):
        networks.initialise(torch.nn.Bilinear(2, 2, 2), torch.Generator())
