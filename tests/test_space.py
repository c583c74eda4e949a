import math

import optuna
import pytest

from budgetopt import space
from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.search.study import DIRECTIONS

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
    assert families.keys() == {"uniform", "apot"}
    assert {2, 17, 256} <= set(families["uniform"].levels)
    assert 2 in families["apot"].levels
    assert shipped.ipc.min == 1
    assert set(shipped.selection) == {"random", "herding"}


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
        ('"standardize"]', '"dct"]', ["transform: ", "'dct'", "identity"]),
        ("min = 2", "min = 0", ["ipc.min: ", "got 0"]),
        ("min = 2", "min = 2.5", ["ipc.min: ", "got 2.5"]),
        ("min = 2", "min = true", ["ipc.min: ", "got True"]),
        ("min = 2", "least = 2", ["ipc.least: unknown key"]),
        ("min = 2", "min = 41", ["ipc: ", "min 41 is above max 40"]),
        ('"apot"', '"apott"', ["quantizer[1].family: ", "unknown", "uniform, apot"]),
        ('"apot"', '"uniform"', ["quantizer[1].clipping: ", "'half'"]),
        ("[3, 2]", "[3, 5]", ["quantizer[1].levels: ", "got 5"]),
        ("[3, 2]", "[]", ["quantizer[1].levels: ", "got []"]),
        ("[3, 2]", '["3"]', ["quantizer[1].levels[0]: ", "got '3'"]),
        ("[16, 2, 4]", "[16, 257]", ["quantizer[0].levels: ", "2..256", "got 257"]),
        ("[16, 2, 4]", "[16, 1]", ["quantizer[0].levels: ", "2..256", "got 1"]),
        ('"p1"', '"half"', ["quantizer[0].clipping: ", "minmax", "'half'"]),
        ('["half"]', '["half"]\nbits = 3', ["quantizer[1].bits: unknown key"]),
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
    found = mine.smallest("dm")
    assert {(a.transform, a.quantizer) for a in found} == {
        (transform, family) for transform in ("identity", "standardize") for family in ("uniform", "apot")
    }
    assert all((a.objective, a.ipc, a.levels) == ("dm", 2, 2) for a in found)
