import itertools
import json
import math

import optuna
import pytest
from variants import offered_levels, option_values

from budgetopt import space
from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.quantizers import QUANTIZERS
from budgetopt.search.candidates import MOST_KINDS, SpaceCandidates
from budgetopt.search.study import DIRECTIONS
from budgetopt.transforms import TRANSFORMS

OBJECTIVES = ["coreset", "dm"]
MINE = """
selection = ["random", "herding"]
transform = ["identity", "standardize"]

[ipc]
min = 2
max = 40

[[quantizer]]
family = "uniform"
levels = [16, 2, 4]
clipping = ["minmax", "p1"]

[[quantizer]]
family = "apot"
levels = [3, 2]
clipping = ["half"]
"""


@pytest.fixture
def write(tmp_path):
    def run(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return run


@pytest.fixture
def mine(write):
    return space.resolve(write(MINE))


def study(seed=0):
    return optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=seed))


def ask(asked, domain, most_ipc):
    trial = asked.ask()
    return domain.suggest(trial, OBJECTIVES, most_ipc), trial.params


# ----------------------------------------------------------------------------------------------------------------------
# files
# ----------------------------------------------------------------------------------------------------------------------
def test_the_shipped_space_holds_what_the_first_run_needs():
    shipped = space.resolve("image")
    families = {c.family: c for c in shipped.quantizer}
    assert families.keys() == {"uniform", "lloyd-max"}
    assert {2, 17, 256} <= set(families["uniform"].levels)
    assert {2, 3, 4} <= set(families["lloyd-max"].levels)
    assert set(shipped.label_bits) == {0, 3}
    assert shipped.ipc.min == 1
    assert set(shipped.selection) == {"k-centre", "random", "herding"}


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 224, 224)])
def test_the_space_of_large_pictures_can_be_enumerated(shape):
    """With the two default objectives no kind is left to chance, and every quantizer and transform is among them."""
    shipped = space.resolve("image-large")
    candidates = SpaceCandidates(shipped, {"coreset": 0, "dm": 100}, shape, 10, 0)
    kinds = candidates.kinds([], 0)
    assert len(kinds) == len(set(kinds)) <= MOST_KINDS
    assert candidates.kinds([], 1) == kinds
    assert {a.quantizer for a in kinds} == {"webp", "jpeg", "uniform", "lloyd-max"}
    assert {a.transform for a in kinds} == {"identity", "resize"}
    assert "crops" in {a.selection for a in kinds}


def test_levels_are_sorted_and_distinct(write):
    found = space.resolve(write(MINE.replace("[16, 2, 4]", "[16, 2, 4, 2]")))
    assert [c.levels for c in found.quantizer] == [(2, 4, 16), (2, 3)]


def test_ipc_has_defaults(write):
    found = space.resolve(write(MINE.replace("[ipc]\nmin = 2\nmax = 40", "")))
    assert (found.ipc.min, found.ipc.max) == (1, 100_000)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("selection =", "selections =", ["selections: unknown key"]),
        ("selection =", "# selection =", ["selection: required but missing"]),
        ('"herding"]', '"herd"]', ["selection: ", "'herd'", "random, herding"]),
        ('["random", "herding"]', "[]", ["selection: ", "got []"]),
        ('["random", "herding"]', '"random"', ["selection: ", "got 'random'"]),
        ('["random", "herding"]', '["random", 3]', ["selection[1]: ", "got 3"]),
        ('"standardize"]', '"fourier"]', ["transform[1].name: ", "'fourier'", "identity"]),
        ('"standardize"]', "3]", ["transform[1]: ", "got 3"]),
        ('["identity", "standardize"]', "[]", ["transform: ", "got []"]),
        ('["identity", "standardize"]', '"identity"', ["transform: ", "got 'identity'"]),
        ('"standardize"]', '"identity"]', ["transform: a transform appears twice"]),
        (
            '"standardize"]',
            '{name = "standardize", keep = [0.5]}]',
            ["transform[1]: ", "standardize has no options", "'keep'"],
        ),
        ('"standardize"]', '{name = "dct", keeep = [0.5]}]', ["transform[1]: ", "'keeep'", "keep"]),
        ('"standardize"]', '{name = "dct", keep = [0.5, 7]}]', ["transform[1]: ", "keep must be in", "got 7"]),
        ('"standardize"]', '{name = "dct", keep = 0.5}]', ["transform[1]: ", "keep must be a list", "got 0.5"]),
        ('"standardize"]', '{name = "dct", keep = []}]', ["transform[1]: ", "keep must be a list", "got []"]),
        ('"standardize"]', '{name = "dct", keep = [0.5, 0.5]}]', ["transform[1]: ", "keep names a value twice"]),
        ('"standardize"]', '{name = "dct", keep = [true]}]', ["transform[1]: ", "keep must be in", "got True"]),
        ('"standardize"]', "{keep = [0.5]}]", ["transform[1].name: required but missing"]),
        ("[ipc]", "label_bits = [0, 9]\n[ipc]", ["label_bits[1]: ", "got 9"]),
        ("[ipc]", "label_bits = []\n[ipc]", ["label_bits: ", "got []"]),
        ("[ipc]", "label_bits = 2\n[ipc]", ["label_bits: ", "got 2"]),
        ("[ipc]", "label_bits = [2.5]\n[ipc]", ["label_bits[0]: ", "got 2.5"]),
        ("[ipc]", "rate_weight = [-1.0]\n[ipc]", ["rate_weight[0]: ", "got -1"]),
        ("[ipc]", 'rate_weight = ["much"]\n[ipc]', ["rate_weight[0]: ", "got 'much'"]),
        ("[ipc]", "rate_weight = [inf]\n[ipc]", ["rate_weight[0]: ", "got inf"]),
        ("[ipc]", "rate_weight = [nan]\n[ipc]", ["rate_weight[0]: ", "got nan"]),
        ("min = 2", "min = 0", ["ipc.min: ", "got 0"]),
        ("min = 2", "min = 2.5", ["ipc.min: ", "got 2.5"]),
        ("min = 2", "min = true", ["ipc.min: ", "got True"]),
        ("min = 2", "least = 2", ["ipc.least: unknown key"]),
        ("min = 2", "min = 41", ["ipc: ", "min 41 is above max 40"]),
        ('"apot"', '"apott"', ["quantizer[1].family: ", "unknown", "uniform, apot"]),
        ('"apot"', '"uniform"', ["quantizer[1].clipping: ", "'half'"]),
        ("[3, 2]", "[3, 5]", ["quantizer[1].levels: ", "got 5"]),
        ("[3, 2]", "[]", ["quantizer[1].levels: ", "needs a list of levels"]),
        ("levels = [3, 2]", "", ["quantizer[1].levels: ", "apot needs a list of levels"]),
        ("[3, 2]", '["3"]', ["quantizer[1].levels[0]: ", "got '3'"]),
        ("[16, 2, 4]", "[16, 257]", ["quantizer[0].levels: ", "2..256", "got 257"]),
        ("[16, 2, 4]", "[16, 1]", ["quantizer[0].levels: ", "2..256", "got 1"]),
        ('"p1"', '"half"', ["quantizer[0].clipping: ", "minmax", "'half'"]),
        ('["half"]', '["half"]\nbits = [3]', ["quantizer[1]: ", "'bits'"]),
        ('["half"]', '["half"]\nbits = 3', ["quantizer[1]: ", "bits must be a list", "got 3"]),
    ],
)
def test_problems_name_file_leaf_and_value(write, old, new, parts):
    assert old in MINE
    with pytest.raises(InputError) as raised:
        space.resolve(write(MINE.replace(old, new)))
    message = str(raised.value)
    assert "mine.toml: " in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_family_appears_once(write):
    twice = MINE + '\n[[quantizer]]\nfamily = "apot"\nlevels = [7]\nclipping = ["quadd"]\n'
    with pytest.raises(InputError, match=r"mine\.toml: quantizer: a family appears twice"):
        space.resolve(write(twice))


def test_no_family_at_all(write):
    with pytest.raises(InputError, match=r"mine\.toml: quantizer: "):
        space.resolve(write(MINE.split("[[")[0]))


def test_a_wrong_level_is_named_by_its_leaf(write):
    with pytest.raises(InputError, match=r"quantizer\[0\]\.levels"):
        space.resolve(write(MINE.replace("[16, 2, 4]", "[16, 257]")))


def test_what_is_not_named_stays_at_its_default(mine):
    assert (mine.label_bits, mine.rate_weight) == ((0,), (0.0,))
    assert all(choice.option_values == {} for choice in (*mine.transform, *mine.quantizer))


def test_a_family_without_a_choice_leaves_levels_and_clipping_out(write):
    fixed = [name for name, family in QUANTIZERS.items() if family.fixed_levels]
    for name in fixed:
        found = space.resolve(write(f'{MINE}\n[[quantizer]]\nfamily = "{name}"\n')).quantizer[-1]
        assert (found.levels, found.clipping) == ((QUANTIZERS[name].fixed_levels,), QUANTIZERS[name].clippings[:1])
    assert fixed


def test_label_bits_and_rate_weights_are_sorted_and_distinct(write):
    found = space.resolve(write(MINE.replace("[ipc]", "label_bits = [4, 0, 2, 4]\nrate_weight = [1, 0, 0.5]\n[ipc]")))
    assert (found.label_bits, found.rate_weight) == ((0, 2, 4), (0.0, 0.5, 1.0))


# ----------------------------------------------------------------------------------------------------------------------
# parameters
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["image", "mine"])
def test_parameters_are_the_inverse_of_suggest(name, mine):
    domain = mine if name == "mine" else space.resolve(name)
    first, second = study(), study(1)
    for _ in range(60):
        allocation, params = ask(first, domain, 150)
        assert domain.parameters(allocation, 150) == params
        second.enqueue_trial(domain.parameters(allocation, 150))
        again, _ = ask(second, domain, 150)
        assert again == allocation


def test_every_choice_is_reached_and_nothing_else(mine):
    asked = study()
    found = [ask(asked, mine, 150)[0] for _ in range(400)]
    assert {a.objective for a in found} == set(OBJECTIVES)
    assert {a.selection for a in found} == {"random", "herding"}
    assert {a.transform for a in found} == {"identity", "standardize"}
    assert {(a.quantizer, a.levels, a.clipping) for a in found} == {
        *(("uniform", levels, clipping) for levels in (2, 4, 16) for clipping in ("minmax", "p1")),
        *(("apot", levels, "half") for levels in (2, 3)),
    }
    assert min(a.ipc for a in found) == 2
    assert max(a.ipc for a in found) == 40


def test_only_the_chosen_family_is_asked(mine):
    asked = study()
    for _ in range(40):
        allocation, params = ask(asked, mine, 150)
        other = {"uniform": "apot", "apot": "uniform"}[allocation.quantizer]
        assert not any(name.startswith(f"{other}.") for name in params)
        assert f"{allocation.quantizer}.levels" in params


def test_ipc_is_logarithmic(mine):
    asked = study()
    asked_for = []
    for _ in range(400):
        trial = asked.ask()
        asked_for.append(mine.suggest(trial, OBJECTIVES, 150).ipc)
    assert trial.distributions["ipc"].log
    middle = math.sqrt(2 * 40)
    assert 0.4 < sum(ipc < middle for ipc in asked_for) / 400 < 0.6


@pytest.mark.parametrize(("most", "high"), [(10, 10), (40, 40), (1000, 40), (2, 2), (1, 2)])
def test_ipc_is_bounded_by_the_space_and_by_what_fits(mine, most, high):
    asked = study()
    found = {ask(asked, mine, most)[0].ipc for _ in range(200)}
    assert min(found) == 2
    assert max(found) <= high
    assert len(found) > 1 or high == 2


@pytest.mark.parametrize(("ipc", "expected"), [(1, 2), (7, 7), (39, 20), (400, 20)])
def test_parameters_clamp_ipc_to_what_can_be_asked(mine, ipc, expected):
    params = mine.parameters(Allocation(ipc=ipc, levels=4), 20)
    assert params["ipc"] == expected
    asked = study()
    asked.enqueue_trial(params)
    allocation, _ = ask(asked, mine, 20)
    assert (allocation.ipc, allocation.levels) == (expected, 4)


def test_smallest_has_every_transform_and_family_at_the_least_of_all(mine):
    found = mine.smallest("dm", (1, 8, 8))
    assert {(a.transform, a.quantizer) for a in found} == {
        (transform, family) for transform in ("identity", "standardize") for family in ("uniform", "apot")
    }
    assert all((a.objective, a.ipc, a.levels) == ("dm", 2, 2) for a in found)


# ----------------------------------------------------------------------------------------------------------------------
# options of families
# ----------------------------------------------------------------------------------------------------------------------
def written(value):
    return f'"{value}"' if isinstance(value, str) else repr(value)


def with_every_option(label_bits=(0, 2, 4), rate_weights=(0.0, 0.5)):
    """A space of every registered family and transform with every value of every option."""
    lines = ['selection = ["random"]', "transform = ["]
    for name, cls in TRANSFORMS.items():
        lists = [f"{o} = [{', '.join(map(written, option_values(s)))}]" for o, s in cls.options.items()]
        lines.append("  {" + ", ".join([f'name = "{name}"', *lists]) + "},")
    lines += ["]", f"label_bits = {list(label_bits)}", f"rate_weight = {list(rate_weights)}"]
    for name, cls in QUANTIZERS.items():
        offered = sorted({levels for levels, _ in offered_levels(name)})
        lines += ["[[quantizer]]", f'family = "{name}"', f"levels = {offered}"]
        lines.append(f"clipping = [{', '.join(map(written, cls.clippings))}]")
        lines += [f"{o} = [{', '.join(map(written, option_values(s)))}]" for o, s in cls.options.items()]
    return "\n".join(lines)


@pytest.fixture
def everything(write):
    return space.resolve(write(with_every_option()))


def test_every_option_of_every_family_may_be_named(everything):
    for choice, registry in [(c, TRANSFORMS) for c in everything.transform] + [
        (c, QUANTIZERS) for c in everything.quantizer
    ]:
        schema = registry[choice.name if registry is TRANSFORMS else choice.family].options
        assert choice.option_values == {name: tuple(option_values(option)) for name, option in schema.items()}


def test_parameters_are_the_inverse_of_suggest_with_options(everything):
    first, second = study(), study(1)
    reached = set()
    for _ in range(400):
        allocation, params = ask(first, everything, 150)
        assert everything.parameters(allocation, 150) == params
        second.enqueue_trial(everything.parameters(allocation, 150))
        assert ask(second, everything, 150)[0] == allocation
        assert Allocation.from_dict(json.loads(json.dumps(allocation.to_dict()))) == allocation
        reached |= {allocation.label_bits, allocation.rate_weight, allocation.transform, allocation.quantizer}
        reached |= {name for name, _ in (*allocation.transform_options, *allocation.quantizer_options)}
    assert reached >= {0, 2, 4, 0.5, *TRANSFORMS, *QUANTIZERS}
    for schema in [cls.options for cls in (*TRANSFORMS.values(), *QUANTIZERS.values())]:
        assert reached >= {name for name, option in schema.items() if len(option_values(option)) > 1}


@pytest.mark.parametrize("family", QUANTIZERS)
def test_all_combinations_of_a_family_round_trip(write, family):
    """Every level × clipping × set of options: `parameters` names them, `suggest` gives them back."""
    domain = space.resolve(write(with_every_option((0,), (0.0,))))
    choice = next(c for c in domain.quantizer if c.family == family)
    asked = study()
    sets = choice.option_sets()
    assert len(set(sets)) == len(sets) == math.prod(len(v) for v in choice.option_values.values())
    combinations = list(itertools.product(choice.levels, choice.clipping, sets))
    for levels, clipping, options in combinations[:: 1 + len(combinations) // 150]:
        wanted = Allocation("dm", "random", 5, "identity", family, levels, clipping, (), options)
        asked.enqueue_trial(domain.parameters(wanted, 150))
        assert ask(asked, domain, 150)[0] == wanted


@pytest.mark.parametrize("name", TRANSFORMS)
def test_all_options_of_a_transform_round_trip(write, name):
    domain = space.resolve(write(with_every_option()))
    choice = next(c for c in domain.transform if c.name == name)
    asked = study()
    for options in choice.option_sets():
        for bits, weight in ((0, 0.0), (4, 0.5)):
            wanted = Allocation("dm", "random", 5, name, "uniform", 16, "p1", options, (), bits, weight)
            asked.enqueue_trial(domain.parameters(wanted, 150))
            assert ask(asked, domain, 150)[0] == wanted


def test_only_options_of_what_was_chosen_are_asked(everything):
    asked = study()
    for _ in range(100):
        allocation, params = ask(asked, everything, 150)
        owners = {name.split(".")[0] for name in params if "." in name}
        assert owners <= {allocation.transform, allocation.quantizer}


def test_numbers_keep_their_order_for_the_sampler(everything):
    """As an index: a categorical would lose that 0.25 lies between 0.1 and 0.5."""
    asked = study()
    for _ in range(60):
        trial = asked.ask()
        everything.suggest(trial, OBJECTIVES, 150)
        kinds = {name: type(found).__name__ for name, found in trial.distributions.items()}
        assert kinds["label_bits"] == kinds["rate_weight"] == "IntDistribution"
        for name, kind in kinds.items():
            owner, _, option = name.partition(".")
            schema = {**TRANSFORMS, **QUANTIZERS}[owner].options if option else {}
            if option in schema:
                values = option_values(schema[option])
                numbers = all(isinstance(v, int | float) for v in values)
                assert kind == ("IntDistribution" if numbers else "CategoricalDistribution")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (64,)])
def test_smallest_and_kinds_are_all_possible(everything, shape):
    smallest, kinds = everything.smallest("dm", shape), everything.kinds("dm", shape)
    assert set(kinds) <= set(smallest)
    assert all(space.possible(a, shape) for a in smallest)
    assert {(a.ipc, a.label_bits, a.rate_weight) for a in smallest} == {(1, 0, 0.0)}
    pairs = {(a.transform, a.quantizer) for a in smallest}
    assert {(a.transform, a.quantizer) for a in kinds} == pairs
    assert len(kinds) == len(pairs)
    assert ("identity", "uniform") in pairs
    for transform, family in itertools.product(TRANSFORMS, QUANTIZERS):
        levels, clipping = offered_levels(family)[0]
        first = Allocation(transform=transform, quantizer=family, levels=levels, clipping=clipping)
        assert space.possible(first, shape) == ((transform, family) in pairs)


def test_possible_says_what_samples_can_take():
    pictures, columns = (3, 32, 32), (64,)
    assert space.possible(Allocation(), pictures)
    assert space.possible(Allocation(), columns)
    assert space.possible(Allocation(transform="resize"), pictures)
    assert not space.possible(Allocation(transform="resize"), columns)
    assert not space.possible(Allocation(quantizer="jpeg", levels=256, clipping="none"), columns)
    assert not space.possible(Allocation(transform="dct", transform_options=(("keep", 9.0),)), pictures)
    assert space.possible(Allocation(rate_weight=0.5), pictures)
    assert not space.possible(Allocation(quantizer="jpeg", levels=256, clipping="none", rate_weight=0.5), pictures)


def test_a_space_without_weight_zero_holds_coresets_too(write):
    found = space.resolve(write("rate_weight = [0.3, 1.0]\n" + MINE))
    start = found.kinds("coreset", (1, 8, 8))[0]
    assert start.rate_weight == 0.0
    assert found.parameters(start, 10)["rate_weight"] == 0


def test_tables_are_not_normalised_by_default_and_ranges_are_shared_or_of_each_feature():
    """As QuADD has it for wireless data (appendices B and C)."""
    offered = space.resolve("tabular")
    assert [transform.name for transform in offered.transform] == ["identity", "standardize"]
    for choice in offered.quantizer:
        granularities = [dict(options).get("granularity", "tensor") for options in choice.option_sets()]
        assert set(granularities) == {"tensor", "feature"}
        assert granularities[0] == "tensor"
