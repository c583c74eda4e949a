import math
import threading

import pytest
import torch
from variants import option_sets

from budgetopt import networks
from budgetopt.errors import InputError
from budgetopt.networks.convnet import depth_for
from budgetopt.options import show

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 5, 17), (13,), (2, 40), (1, 6, 8, 9), (3, 1, 1)]
VARIANTS = [
    show(name, chosen) for name, network in networks.NETWORKS.items() for chosen in option_sets(network.options)
]
CASES = [(name, shape) for name in VARIANTS for shape in SHAPES if len(shape) in networks.parse(name)[0].axes]


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


def test_building_in_threads_leaves_the_global_generator_alone(monkeypatch):
    first, second = threading.Event(), threading.Event()

    class Slow(networks.NETWORKS["mlp"]):
        """Built by two threads, each of which would be inside before the other has left."""

        def __init__(self, *given):
            super().__init__(*given)
            if not first.is_set():
                first.set()
                second.wait(0.3)
            else:
                second.set()
                one.join()

    monkeypatch.setitem(networks.NETWORKS, "mlp", Slow)
    monkeypatch.setattr(networks, "parse", networks.parse.__wrapped__)
    before = torch.get_rng_state()
    one, other = (threading.Thread(target=build, args=("mlp", (13,))) for _ in range(2))
    one.start()
    assert first.wait(10)
    other.start()
    other.join(10)
    assert second.is_set()
    assert not one.is_alive()
    assert not other.is_alive()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_initial_weights_are_uniform_within_the_fan_in(name, shape):
    for module in build(name, shape, width=32).modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fan_in = module.weight[0].numel()
            for values in filter(lambda values: values is not None, (module.weight, module.bias)):
                assert values.abs().max() <= 1 / math.sqrt(fan_in)
            if module.weight.numel() > 500:
                assert float(module.weight.detach().std()) == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.15)
        elif isinstance(module, torch.nn.GroupNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_samples_do_not_influence_each_other(name, shape):
    """A sample's logits are the same alone and in company; with batch norm only once training is over."""
    net = build(name, shape).train("norm=batch" not in name)
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


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("depth", range(1, 6))
def test_convnet_depth_and_norm(depth, norm):
    net = build(f"convnet:depth={depth},norm={norm}", (3, 32, 32))
    kinds = {"instance": torch.nn.GroupNorm, "batch": torch.nn.BatchNorm2d, "none": torch.nn.Identity}
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == depth
    assert sum(isinstance(m, kinds[norm]) for m in net.modules()) == depth
    assert net.classifier.in_features == 8 * (32 // 2**depth) ** 2


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_mlp_depth(depth):
    widths = [m.in_features for m in build(f"mlp:depth={depth}", (13,)).modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [13, *[4 * 8] * depth]


def test_features_are_a_signal_of_one_channel():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(build("convnet1d", (40,))(x), build("convnet1d", (1, 40))(x[:, None]))


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        # parameters counted by hand from the tables of the papers, with 10 classes and one linear layer
        ("lenet", (1, 28, 28), 61_706),
        ("alexnet", (3, 32, 32), 1_872_202),
        ("vgg11:norm=none", (3, 32, 32), 9_225_610),
        ("resnet18:norm=batch", (3, 32, 32), 11_173_962),
    ],
)
def test_sizes_are_those_of_the_literature(name, shape, weights):
    net = networks.build(name, shape, 10, 128, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in net.parameters()) == weights


def test_names_with_options_are_told_apart():
    assert networks.names_in("convnet:depth=4,norm=batch,vgg11, resnet18:norm=none") == [
        "convnet:depth=4,norm=batch",
        "vgg11",
        "resnet18:norm=none",
    ]
    for wrong in ("convnet:depth=6", "lenet:norm=batch", "vgg", "convnet,,mlp", ""):
        with pytest.raises(InputError):
            networks.names_in(wrong)


@pytest.mark.parametrize("name", [n for n in VARIANTS if 3 in networks.parse(n)[0].axes])
def test_a_step_down_the_gradient_lowers_the_loss(name):
    net, x = build(name, (1, 8, 8)), torch.randn(14, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.arange(14) % 7
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
