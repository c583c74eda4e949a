"""Rate–distortion optimised quantization against a loop over single values, and in files of every family."""

import numpy as np
import pytest
import torch
from variants import initial_sets, spec_of

from budgetopt import quantizers
from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.methods.selection import Selector
from budgetopt.packing import pack, unpack
from budgetopt.packing.layout import Domain
from budgetopt.representation import Representation
from budgetopt.representation.rate import bits_around, steps_around
from budgetopt.representation.rdoq import optimised
from budgetopt.teacher import Teacher

CPU = torch.device("cpu")
WEIGHTS = (0.05, 0.2, 0.5)
CODED = [name for name, family in quantizers.QUANTIZERS.items() if family.has_rate and name != "none"]


def represent(rdoq, name="digits", teacher=None, **choices):
    initial = initial_sets()[name]
    allocation = Allocation(**({"ipc": 3, "levels": 4, "rdoq": rdoq} | choices))
    return Representation(initial, allocation, spec_of(initial), 0, CPU, teacher=teacher).train()


def parts(name="digits", levels=4, **choices):
    """(coded values, labels, quantizer, layout, counts) before any optimisation."""
    r = represent(0.0, name, levels=levels, **choices)
    return r.coded().detach(), r.labels, r.quantizer, r.transform.layout, r.counts


def cost_of(symbols, x, labels, quantizer, layout, counts, weight):
    """Error and bits of symbols, each in all."""
    _, side = quantizer.encode(x, labels)
    level, _, _ = steps_around(symbols.numpy(), side, Domain(layout, counts))
    error = float((x - torch.from_numpy(level)).square().sum()) / float(x.var(correction=0))
    return error, float(bits_around(symbols, labels, side.levels, layout)[..., 1].sum())


def symbols_of(x, labels, quantizer):
    return torch.from_numpy(quantizer.encode(x, labels)[0].astype(np.int64))


@pytest.mark.parametrize("levels", [2, 3, 16])
def test_bits_are_bought_at_their_price(digits, levels):
    """On 200 digits: the heavier bits weigh, the fewer there are and the larger the error; their weighted sum falls."""
    initial = Selector(digits.train, digits.spec).select("random", 20, 0)
    r = Representation(initial, Allocation(ipc=20, levels=levels), digits.spec, 0, CPU).train()
    x, labels, quantizer, where = r.coded().detach(), r.labels, r.quantizer, (r.transform.layout, r.counts)
    before = cost_of(symbols_of(x, labels, quantizer), x, labels, quantizer, *where, 0.0)
    last = before
    for weight in WEIGHTS:
        found = optimised(x, labels, quantizer, *where, weight)
        error, bits = cost_of(symbols_of(found, labels, quantizer), x, labels, quantizer, *where, weight)
        assert error + weight * bits <= before[0] + weight * before[1]
        assert bits <= last[1]
        assert error >= before[0]
        last = error, bits
    assert last[1] < 0.9 * before[1]


@pytest.mark.parametrize("family", CODED)
def test_weightless_bits_change_nothing(family):
    clipping = quantizers.QUANTIZERS[family].clippings[0]
    levels = quantizers.QUANTIZERS[family].fixed_levels or (3 if family == "apot" else 4)
    x, labels, quantizer, *where = parts(quantizer=family, clipping=clipping, levels=levels)
    found = optimised(x, labels, quantizer, *where, 1e-12)
    assert torch.equal(symbols_of(found, labels, quantizer), symbols_of(x, labels, quantizer))


@pytest.mark.parametrize("family", CODED)
def test_the_file_holds_the_chosen_levels(family):
    """What is chosen is what is packed and what a receiver decodes, in a shorter file."""
    clipping = quantizers.QUANTIZERS[family].clippings[0]
    levels = quantizers.QUANTIZERS[family].fixed_levels or (3 if family == "apot" else 4)
    choices = {"quantizer": family, "clipping": clipping, "levels": levels}
    plain, thrifty = represent(0.0, **choices), represent(0.3, **choices)
    packed = thrifty.packed()
    assert len(pack(packed)) < len(pack(plain.packed()))
    with torch.no_grad():
        seen = thrifty.eval()().numpy()
    assert np.array_equal(unpack(pack(packed)).decode(), seen)
    chosen = thrifty.coded().detach()
    # the levels of patches follow from their values: those are chosen once more
    assert family == "patches" or torch.allclose(chosen, thrifty.quantizer.eval()(chosen, thrifty.labels), atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "colour"])
def test_against_a_loop_over_single_values(name):
    """One pass of single moves, each tried in turn with all that it does to its neighbours counted from their own code
    lengths, lowers the same sum about as far."""
    x, labels, quantizer, *where = parts(name, 2)
    weight, symbols = 0.2, symbols_of(x, labels, quantizer)
    _, side = quantizer.encode(x, labels)
    variance = float(x.var(correction=0))
    for row in range(symbols.shape[1]):
        level, down, up = (torch.from_numpy(a) for a in steps_around(symbols.numpy(), side, Domain(*where)))
        bits = bits_around(symbols, labels, side.levels, where[0])
        for i in range(len(symbols)):
            best, move = 0.0, 0
            for step, side_of, distance in ((-1, 0, -down), (1, 2, up)):
                if distance[i, row] == 0:
                    continue
                there, here = level[i, row] + distance[i, row], level[i, row]
                error = float((x[i, row] - there) ** 2 - (x[i, row] - here) ** 2) / variance
                gain = error + weight * float(bits[i, row, side_of] - bits[i, row, 1])
                best, move = (gain, step) if gain < best else (best, move)
            symbols[i, row] += move
    error, bits = cost_of(symbols, x, labels, quantizer, *where, weight)
    found = optimised(x, labels, quantizer, *where, weight)
    own_error, own_bits = cost_of(symbols_of(found, labels, quantizer), x, labels, quantizer, *where, weight)
    assert own_error + weight * own_bits < 1.05 * (error + weight * bits)


def test_families_without_levels_are_refused():
    with pytest.raises(InputError, match="rdoq must be 0 for the quantizer"):
        represent(0.2, "colour", quantizer="palette", clipping="none")


def test_a_teacher_sees_the_samples_before(digits):
    """Soft labels do not change with the symbols."""
    seen = []

    class Watching(Teacher):
        def probabilities(self, x, temperature=4.0):
            seen.append(x)
            return np.full((len(x), 4), 0.25)

    teacher = Watching("convnet", 4, (1, 8, 8), 4, np.zeros(1), np.ones(1), {})
    for rdoq in (0.0, 0.5):
        represent(rdoq, teacher=teacher, label_bits=3).soft_labels()
    assert torch.allclose(seen[0], seen[1], atol=1e-4)
    assert torch.allclose(seen[0], torch.from_numpy(initial_sets()["digits"].x), atol=1e-4)
