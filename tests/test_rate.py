"""The differentiable estimate of the coded size, against a loop over values; and what it does to real files."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from budgetopt import methods, quantizers
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, open_source
from budgetopt.errors import InputError
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import Selector
from budgetopt.objective import CoresetObjective, DistributionMatchingObjective
from budgetopt.packing import pack
from budgetopt.packing.coders import CODERS
from budgetopt.packing.layout import Plane
from budgetopt.protocol import Protocol
from budgetopt.representation import Representation, rate
from budgetopt.seeding import generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(network="convnet", width=8, steps=4)
COUNTS = (3, 2, 1)
LABELS = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
LAYOUTS = {
    "grey picture": (Plane(1, 4, 5),),
    "colour picture": (Plane(3, 3, 4),),
    "columns": (Plane(7),),
    "blocks of bands": (Plane(6, 2, 3),),
    "two planes": (Plane(1, 4, 4), Plane(2, 2, 2)),
}


# --- the naive twin ------------------------------------------------------------------------------------------------


def naive_context(grid, place, levels):
    """Of one value: reduced neighbours and band. grid: {(plane, channel, row, column): symbol} of one sample."""
    (plane, number), c, y, x = place
    bands = plane.channels > 4 or plane.height * plane.width == 1
    around = [(0, 0, -1), (0, -1, 0)] if bands else [(0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1), (-1, 0, 0)]
    near = [grid.get((number, c + dc, y + dy, x + dx), 0) for dc, dy, dx in around]
    if plane.height * plane.width == 1:
        near = []
    return number, c if bands else None, *(s * min(levels, 4) // levels for s in near)


def naive_bits(symbols, labels, levels, layout):
    """Twin of `bits_around`: symbols (n, K) → {(sample, value): [bits of s − 1, s, s + 1]}."""
    places = [
        ((plane, number), c, y, x)
        for number, plane in enumerate(layout)
        for c in range(plane.channels)
        for y in range(plane.height)
        for x in range(plane.width)
    ]
    keys = [(number, c, y, x) for (_, number), c, y, x in places]
    grids = [dict(zip(keys, row, strict=True)) for row in symbols.tolist()]
    seen = Counter()
    for grid, label in zip(grids, labels.tolist(), strict=True):
        for place, key in zip(places, keys, strict=True):
            context, s = naive_context(grid, place, levels), grid[key]
            seen.update([(key[0], s), (context, s), (context, label, s)])

    def bits(context, label, s, own):
        """−log2 P; `own`: the symbol that stands there now and is not counted, if the context is its own."""
        number = context[0]
        total = sum(seen[number, k] for k in range(levels))
        p = (seen[number, s] + 0.5) / (total + levels / 2)
        for where in ((context,), (context, label)):
            of_s = seen[*where, s] - (own == s)
            of_all = sum(seen[*where, k] for k in range(levels)) - (own is not None)
            p = (of_s + rate.SMOOTHING * p) / (of_all + rate.SMOOTHING)
        return -math.log2(p)

    result = {}
    for i, (grid, label) in enumerate(zip(grids, labels.tolist(), strict=True)):
        contexts = {k: naive_context(grid, place, levels) for place, k in zip(places, keys, strict=True)}
        for v, key in enumerate(keys):
            of_three = []
            for s in (grid[key] - 1, grid[key], grid[key] + 1):
                if not 0 <= s < levels:
                    of_three.append(None)
                    continue
                cost = bits(contexts[key], label, s, grid[key])
                changed = {**grid, key: s}
                for place, other in zip(places, keys, strict=True):
                    then = naive_context(changed, place, levels)
                    if then != contexts[other]:
                        cost += bits(then, label, grid[other], None) - bits(
                            contexts[other], label, grid[other], grid[other]
                        )
                of_three.append(cost)
            result[i, v] = of_three
    return result


@pytest.mark.parametrize("levels", [2, 3, 6])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_bits_of_levels_equal_the_loop(layout, levels):
    rng = np.random.default_rng(levels)
    values = sum(plane.size for plane in layout)
    symbols = np.minimum(rng.geometric(0.5, (len(LABELS), values)) - 1, levels - 1)
    bits = rate.bits_around(torch.from_numpy(symbols), LABELS, levels, layout)
    for (i, v), of_three in naive_bits(symbols, LABELS, levels, layout).items():
        for found, expected in zip(bits[i, v].tolist(), of_three, strict=True):
            assert expected is None or found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("levels", [2, 3, 17, 300])
@pytest.mark.parametrize("name", LAYOUTS)
def test_bits_of_a_turn_are_those_of_its_columns(name, levels):
    layout = LAYOUTS[name]
    rng = np.random.default_rng(levels)
    values = sum(plane.size for plane in layout)
    symbols = torch.from_numpy(np.minimum(rng.geometric(0.3, (len(LABELS), values)) - 1, levels - 1))
    everywhere, seen = rate.bits_around(symbols, LABELS, levels, layout), []
    for turn in itertools.product((0, 1), repeat=3):
        moving = rate.columns(layout, turn)
        found = rate.bits_around(symbols, LABELS, levels, layout, turn)
        assert torch.allclose(found, everywhere[:, moving], rtol=1e-6)
        seen += moving.tolist()
    assert sorted(seen) == rate.columns(layout).tolist() == list(range(values))


def test_class_is_left_out_of_a_context_that_would_be_too_large(monkeypatch):
    symbols = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (6, 20)))
    layout = LAYOUTS["grey picture"]
    monkeypatch.setattr(rate, "MOST_ENTRIES", 2 * 2**4)
    without = rate.bits_around(symbols, LABELS, 2, layout)
    assert torch.equal(without, rate.bits_around(symbols, torch.zeros_like(LABELS), 2, layout))


# --- estimate and gradient -----------------------------------------------------------------------------------------


def sized(levels=4, family="uniform", layout=LAYOUTS["grey picture"], seed=0):
    """(CodedSize after a look, x) of values that are no levels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(LABELS), sum(p.size for p in layout), generator=g)
    quantizer = quantizers.build(family, levels, quantizers.QUANTIZERS[family].clippings[0])
    quantizer.fit(x, LABELS, layout)
    size = rate.CodedSize(quantizer, layout, COUNTS)
    size.refresh(x, LABELS)
    return size, quantizer, x


@pytest.mark.parametrize(("family", "levels"), [("uniform", 2), ("uniform", 5), ("apot", 7)])
def test_hard_limit_is_the_code_length_of_the_symbols(family, levels):
    size, quantizer, x = sized(levels, family)
    symbols, _ = quantizer.encode(x, LABELS)
    static = sum(three[1] for three in naive_bits(symbols, LABELS, levels, LAYOUTS["grey picture"]).values())
    assert float(size.near.code_length) == pytest.approx(static, rel=1e-4)
    assert float(size.near.expected(x, 1e-9)) == pytest.approx(static, rel=1e-4)
    assert float(size.bits(x, LABELS)) == pytest.approx(static, rel=1e-4)


@pytest.mark.parametrize(("family", "levels"), [("uniform", 3), ("apot", 7)])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_expected_bits_are_the_mean_over_noise(family, levels, width):
    """The definition, by a sum over noise: a value with noise takes the nearest of the three levels."""
    size, _, x = sized(levels, family)
    near, noise = size.near, (np.arange(1000) + 0.5) / 1000 - 0.5
    total = 0.0
    for at, cost in zip(range(x.numel()), near.cost.reshape(-1, 3).tolist(), strict=True):
        away = float(x.flatten()[at] - near.level.flatten()[at])
        step = float((near.up if away > 0 else near.down).flatten()[at])
        moved = away / step + width * noise
        nearest = np.clip(np.round(moved), -1, 1).astype(int)
        total += np.array(cost)[nearest + 1].mean()
    assert float(near.expected(x, width)) == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize(("family", "levels"), [("uniform", 2), ("uniform", 5), ("apot", 7)])
def test_gradient_equals_finite_differences(family, levels):
    size, _, x = sized(levels, family)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(size.bits(x, LABELS), x)
    near = rate.Near(*(part.double() for part in (size.near.level, size.near.down, size.near.up, size.near.cost)))
    assert (gradient != 0).any()
    at_a_level = (x - size.near.level).abs() < 1e-5  # where the slope changes
    assert at_a_level.sum() <= 2
    for i, v in (~at_a_level).nonzero().tolist():
        step = torch.zeros_like(x).double()
        step[i, v] = 1e-6
        up, down = (near.expected(x.detach().double() + sign * step, rate.WIDTH) for sign in (1, -1))
        assert float(gradient[i, v]) == pytest.approx(float(up - down) / 2e-6, rel=1e-3, abs=1e-3)


def test_values_outside_the_range_are_not_pulled():
    size, quantizer, x = sized()
    far = (x * 100).requires_grad_()
    size.refresh(far.detach(), LABELS)
    (gradient,) = torch.autograd.grad(size.bits(far, LABELS), far)
    low, high = quantizer.side_information().values()[[0, -1]]
    outside = (far < low) | (far > high)
    assert outside.any()
    assert (gradient[outside] == 0).all()


def test_a_lone_value_is_pulled_to_its_surroundings():
    """One bright dot in dark pictures: its bits fall where it gets darker, even from its level; the dark ones stay."""
    for dot in (1.0, 0.7):
        x = torch.zeros(6, 20)
        x[0, 7], x[1:, 19] = dot, 1.0
        quantizer = quantizers.build("uniform", 2, "minmax")
        quantizer.fit(x, LABELS, LAYOUTS["grey picture"])
        size = rate.CodedSize(quantizer, LAYOUTS["grey picture"], COUNTS)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(size.bits(x, LABELS), x)
        assert gradient[0, 7] > 3.0
        assert (gradient[1:, :19] == 0).all()


def test_symbols_are_looked_at_again_after_some_estimates():
    size, _, x = sized()
    first = float(size.bits(x, LABELS))
    estimates = [float(size.bits(torch.zeros_like(x), LABELS)) for _ in range(rate.REFRESH)]
    assert all(e == pytest.approx(first) for e in estimates[:-1])
    assert estimates[-1] < first / 3


# --- through the representation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(digits):
    return TrainingData(digits.train, digits.spec, PROTOCOL, CPU)


def represent(data, **choices):
    allocation = Allocation(**({"ipc": 8, "levels": 4} | choices))
    initial = Selector(data.train, data.spec).select("random", allocation.ipc, 0)
    return Representation(initial, allocation, data.spec, 0, CPU).train()


def distilled(data, objective, **choices):
    """→ (length of the file, last loss) after the steps of the objective."""
    representation = represent(data, **choices)
    method = methods.build(objective, data, representation, generator("rate", 0))
    losses = [method.step() for _ in range(objective.steps)]
    return len(pack(representation.packed())), float(np.mean(losses[-5:]))


@pytest.mark.parametrize("family", quantizers.QUANTIZERS)
def test_every_family_has_a_rate_or_says_that_it_has_none(family, data):
    kind = quantizers.QUANTIZERS[family]
    choices = {"quantizer": family, "levels": kind.fixed_levels or 3, "clipping": kind.clippings[0]}
    try:
        plain = represent(data, **choices)
    except InputError as error:
        pytest.skip(f"{family} takes no digits: {error}")
    if not rate.takes(type(plain.packed().dequantizer)):
        with pytest.raises(InputError, match="rate_weight must be 0"):
            represent(data, **choices, rate_weight=1.0)
        return
    representation = represent(data, **choices, rate_weight=1.0)
    bits = representation.rate()
    (gradient,) = torch.autograd.grad(bits, representation.latent)
    assert 0 < float(bits.detach()) < 2 * 8 * len(pack(representation.packed()))
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()


def test_without_a_weight_nothing_is_estimated(data):
    class NoRate(Representation):
        def rate(self):
            raise AssertionError("not asked for")

    initial = Selector(data.train, data.spec).select("random", 2, 0)
    objective = CoresetObjective(method="coreset", steps=1)
    for weight in (0.0, 1.0):
        representation = NoRate(initial, Allocation(ipc=2, rate_weight=weight), data.spec, 0, CPU).train()
        method = methods.build(objective, data, representation, generator("rate", 0))
        if weight:
            with pytest.raises(AssertionError, match="not asked for"):
                method.step()
        else:
            method.step()


def test_weight_is_relative_to_the_first_loss(data):
    """λ·(first loss)·bits/(bits at the start): the gradient of the rate in the first step is that of the definition."""
    found = {}
    for weight in (0.0, 0.7):
        representation = represent(data, rate_weight=weight)
        objective = DistributionMatchingObjective(method="dm", guard=0, bank=0, real_batch=8, momentum=0.0)
        method = methods.build(objective, data, representation, generator("rate", 0))
        first = method.step()
        found[weight] = representation.latent.grad
    fresh = represent(data)
    bits = fresh.rate()
    (of_rate,) = torch.autograd.grad(bits, fresh.latent)
    expected = found[0.0] + 0.7 * first / float(bits.detach()) * of_rate
    assert torch.allclose(found[0.7], expected, rtol=1e-4, atol=1e-6)


MATCHING = DistributionMatchingObjective(method="dm", guard=0, steps=30, bank=0, real_batch=16)
APOT = {"quantizer": "apot", "levels": 7, "clipping": "half", "transform": "standardize"}
REFINEMENT = CoresetObjective(method="coreset", steps=40, lr_image=0.01)


@pytest.mark.parametrize("objective", [MATCHING, REFINEMENT], ids=["dm", "coreset"])
@pytest.mark.parametrize("choices", [{}, APOT], ids=["uniform", "apot"])
def test_files_of_digits_get_shorter_with_the_weight(objective, choices, data):
    if max(CODERS) < 2:
        pytest.skip("no coder of the package uses neighbours, so files hardly follow the estimate")
    sizes, losses = zip(*(distilled(data, objective, rate_weight=w, **choices) for w in (0.0, 4.0, 12.0)), strict=True)
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 0.95 * sizes[0]
    assert losses[1] < 2.0 * losses[0]


def test_a_lossless_start_can_be_made_cheaper(data):
    plain, _ = distilled(data, REFINEMENT, levels=17)
    assert distilled(data, REFINEMENT, levels=17, rate_weight=1.0)[0] < plain


def test_files_of_fashion_mnist_get_shorter_with_the_weight(fashion_mnist_root):
    prepared = Dataset.prepare(open_source("FashionMNIST", fashion_mnist_root), 0)
    data = TrainingData(prepared.train, prepared.spec, PROTOCOL, CPU)
    objective = MATCHING.model_copy(update={"steps": 25})
    results = [distilled(data, objective, ipc=5, levels=4, rate_weight=w) for w in (0.0, 1.0, 4.0)]
    sizes, losses = zip(*results, strict=True)
    assert sizes[0] > sizes[1] > sizes[2]
    assert losses[2] < 1.5 * losses[0]


def test_one_seed_one_result(data):
    objective = MATCHING.model_copy(update={"steps": 12})  # more than one look at the symbols
    assert distilled(data, objective, rate_weight=1.0) == distilled(data, objective, rate_weight=1.0)
