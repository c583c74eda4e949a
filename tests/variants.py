"""Every registered quantizer family and transform, with every option: a new one is covered by being registered.

Every value of every option occurs, and some combinations; numbers take their default, both ends, and the middle.
"""

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch

from budgetopt.allocation import Allocation
from budgetopt.data.dataset import GLYPHS, DataSpec
from budgetopt.errors import InputError
from budgetopt.options import OneOf, canonical, show
from budgetopt.quantizers import QUANTIZERS
from budgetopt.quantizers import build as build_quantizer
from budgetopt.representation import InitialSet, Representation
from budgetopt.space import possible
from budgetopt.transforms import TRANSFORMS

COMBINATIONS = 6
LEVELS = (2, 3, 4, 7, 15, 16, 31, 100, 127, 255, 256)
CPU = torch.device("cpu")


def _smooth(rng, count, channels, side):
    """Pictures of a few waves, 0 … 255, noisy."""
    at = np.arange(side) / side
    wave = np.zeros((count, channels, side, side))
    for fy, fx in ((1, 0), (0, 1), (2, 1)):
        phase = fy * at[:, None] + fx * at + rng.random((count, 1, 1, 1))
        wave += rng.normal(size=(count, channels, 1, 1)) * np.cos(np.pi * phase)
    return np.clip(128 + 50 * wave + 6 * rng.normal(size=wave.shape), 0, 255).round().astype(np.float32)


def _digits(counts):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    index = np.concatenate([np.flatnonzero(y == c)[:count] for c, count in enumerate(counts)])
    return x[index].reshape(-1, 1, 8, 8).astype(np.float32)


@lru_cache
def initial_sets():
    """{name: InitialSet}: pictures of one and three channels, not square and of odd size, columns, and voxels; the
    counts of the classes differ, some are empty."""
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(14, 11)) * np.geomspace(0.1, 3, 11) + rng.normal(size=11)
    return {
        "digits": InitialSet(_digits((3, 3, 3, 3)), (3, 3, 3, 3)),
        "colour": InitialSet(_smooth(rng, 9, 3, 8), (4, 0, 5, 0)),
        "odd": InitialSet(np.ascontiguousarray(_smooth(rng, 5, 1, 11)[..., :9]), (2, 3)),
        "columns": InitialSet(columns.astype(np.float32), (5, 0, 6, 3)),
        "voxels": InitialSet(_smooth(rng, 7, 6, 5).reshape(7, 2, 3, 5, 5)[..., :4], (4, 0, 3)),
    }


def spec_of(initial):
    """What stages before would say of the dataset that `initial` comes from."""
    channels = initial.x.shape[1] if initial.x.ndim > 2 else 1
    axes = (0, *range(2, initial.x.ndim)) if initial.x.ndim > 2 else None
    mean, std = (np.reshape(f(initial.x, axis=axes), channels).astype(np.float32) for f in (np.mean, np.std))
    std = np.where(std > 0, std, np.float32(1))
    return DataSpec("test", initial.x.shape[1:], initial.counts, mean, std, "", "glyph-1", GLYPHS)


def option_values(option):
    """Values of one option, the default first."""
    if isinstance(option, OneOf):
        return list(option.values)
    middle = (option.low + option.high) / 2
    chosen = (option.default, option.low, option.high, round(middle) if option.whole else middle)
    return list(dict.fromkeys(option.check("it", value) for value in chosen))


def option_sets(schema):
    """Options as allocations store them: the defaults, every value of every option by itself, and some combinations
    of all (the same in every run)."""
    values = {name: option_values(option) for name, option in schema.items()}
    found = [canonical(schema, {}, "it"), *(canonical(schema, {n: v}, "it") for n in values for v in values[n])]
    rng = np.random.default_rng(len(values))
    for _ in range(COMBINATIONS if len(values) > 1 else 0):
        drawn = {name: choices[rng.integers(len(choices))] for name, choices in values.items()}
        found.append(canonical(schema, drawn, "it"))
    return list(dict.fromkeys(found))


def offered_levels(family, chosen=()):
    """The numbers among LEVELS that a family has with these options, each with every clipping that goes with it."""
    found = []
    cls = QUANTIZERS[family]
    for levels in dict.fromkeys((cls.fixed_levels,) if cls.fixed_levels else LEVELS):
        for clipping in cls.clippings:
            try:
                build_quantizer(family, levels, clipping, chosen)
            except InputError:
                continue
            found.append((levels, clipping))
    return found


def _few(found):
    """Of all numbers of levels the least, the most and one in the middle, with one clipping each; all clippings at
    one of them."""
    levels = sorted({n for n, _ in found})
    few = dict.fromkeys([levels[0], levels[len(levels) // 2], levels[-1]]) if levels else []
    by_level = [next(pair for pair in found if pair[0] == n) for n in few]
    return list(dict.fromkeys(by_level + [pair for pair in found if levels and pair[0] == levels[len(levels) // 2]]))


@lru_cache
def cases():
    """[(allocation, name of an initial set)]: every family by default on every transform and set, and with every
    option on some; every transform with every option on some. Which transform and set goes with an option rotates."""
    found = []
    for family, cls in QUANTIZERS.items():
        for number, chosen in enumerate(option_sets(cls.options)):
            offered = offered_levels(family, chosen)
            if not offered:
                continue
            if number == 0:
                for at, (transform, pair) in enumerate(product(TRANSFORMS, _few(offered))):
                    found += _rotated(_allocation(family, *pair, transform, chosen), at)
                found += [(a, s) for a in [_allocation(family, *offered[0], "identity", chosen)] for s in sets_for(a)]
            else:
                found += _first_able(family, offered[number % len(offered)], chosen, number)
    for transform, cls in TRANSFORMS.items():
        for number, chosen in enumerate(option_sets(cls.options)):
            made = _allocation("uniform", 16, "minmax", transform, (), chosen)
            found += [(made, s) for s in sets_for(made)] if number == 0 else _rotated(made, number)
    return list(dict.fromkeys(found))


def _allocation(family, levels, clipping, transform, options, transform_options=()):
    return Allocation("coreset", "random", 99, transform, family, levels, clipping, transform_options, options)


def _rotated(allocation, number):
    # not on voxels, which every default is tried on: the golden files were made by the cases of the other sets
    able = [name for name in sets_for(allocation) if name != "voxels"]
    return [(allocation, able[number % len(able)])] if able else []


def _first_able(family, pair, chosen, number):
    """With the first transform, starting at another one for each option, that the family takes."""
    names = list(TRANSFORMS)
    for transform in [*names[number % len(names) :], *names]:
        found = _rotated(_allocation(family, *pair, transform, chosen), number)
        if found:
            return found
    return []


def one_case_each():
    """For every family its defaults, and for every transform its defaults, on the first set that can take them."""
    found = {}
    for allocation, name in cases():
        plain = not allocation.quantizer_options and not allocation.transform_options
        found.setdefault((allocation.quantizer, allocation.transform), (allocation, name)) if plain else None
    return list(found.values())


@lru_cache
def one_of_each():
    """Cases that together make every kind of dequantizer and transform of the format, the fewest options first."""
    found, reached = [], set()
    plain_first = sorted(cases(), key=lambda case: len(case[0].quantizer_options) + len(case[0].transform_options))
    for case in plain_first:
        packed = packed_variant(*case)
        kinds = {type(packed.dequantizer), type(packed.inverse)}
        if not kinds <= reached:
            found.append(case)
            reached |= kinds
    return found


def plain_case(name):
    """16 uniform levels of the initial set of that name, without a transform."""
    return _allocation("uniform", 16, "minmax", "identity", ()), name


def label(allocation, name):
    quantizer, transform = (
        show(allocation.quantizer, allocation.quantizer_options),
        show(allocation.transform, allocation.transform_options),
    )
    return f"{quantizer}-{allocation.levels}-{allocation.clipping}-{transform}-{name}"


def parametrize(chosen):
    """A test of all `chosen` cases, with readable names."""
    return pytest.mark.parametrize(("allocation", "name"), [pytest.param(*case, id=label(*case)) for case in chosen])


def sets_for(allocation):
    """Names of the initial sets that can take an allocation."""
    return [name for name, made in initial_sets().items() if possible(allocation, made.x.shape[1:])]


def represented(allocation, initial, protocol=0):
    """A fitted representation of a set or of the one of that name, in training mode."""
    initial = initial_sets()[initial] if isinstance(initial, str) else initial
    return Representation(initial, allocation, spec_of(initial), protocol, CPU).train()


@lru_cache(maxsize=4096)
def packed_variant(allocation, name):
    """The set that a trial without steps makes; NOT to be changed."""
    return represented(allocation, name).packed()
