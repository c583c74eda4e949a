"""The point that the search moves: its key names checkpoints and seeds, and never changes."""

import json
import math
from dataclasses import replace

import pytest
from variants import cases

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError

# Keys as the first released version computed them: runs of that version go on under this one.
KEYS = {
    "b69151e5c8d3": Allocation(),
    "85e49de2aa8a": Allocation("dm", "herding", 3, "standardize", "apot", 7, "half"),
    "1c0447c8aaf6": Allocation("coreset", "random", 117, "identity", "uniform", 17, "p5"),
}
LATER = {
    "transform_options": (("keep", 0.25),),
    "quantizer_options": (("surrogate", "noise"),),
    "label_bits": 2,
    "rate_weight": 0.5,
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_those_of_the_first_version(key):
    assert KEYS[key].key == key


@pytest.mark.parametrize("name", LATER)
def test_a_setting_of_a_later_version_is_named_only_where_it_is_used(name):
    plain, used = Allocation(), replace(Allocation(), **{name: LATER[name]})
    assert name not in plain.to_dict()
    assert name in used.to_dict()
    assert used.key != plain.key
    assert used != plain
    assert str(used) != str(plain)


def test_tables_are_plain_json():
    everything = replace(Allocation(), **LATER)
    table = json.loads(json.dumps(everything.to_dict()))
    assert table["transform_options"] == {"keep": 0.25}
    assert Allocation.from_dict(table) == everything
    assert Allocation.from_dict(table).key == everything.key
    assert Allocation.from_dict(dict(reversed(table.items()))) == everything


def test_every_offered_allocation_survives_json_and_has_its_own_key():
    found = {allocation for allocation, _ in cases()}
    for allocation in found:
        assert Allocation.from_dict(json.loads(json.dumps(allocation.to_dict()))) == allocation
        assert hash(allocation) == hash(Allocation.from_dict(allocation.to_dict()))
    assert len({allocation.key for allocation in found}) == len(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ipc": 0}, "ipc must be at least 1, got 0"),
        ({"ipc": True}, "ipc must be int, got True"),
        ({"ipc": 1.0}, "ipc must be int, got 1.0"),
        ({"levels": 1}, r"levels must be in 2\.\.256, got 1"),
        ({"levels": 257}, r"levels must be in 2\.\.256, got 257"),
        ({"selection": "herd"}, "'herd'"),
        ({"objective": 3}, "objective must be str, got 3"),
        ({"label_bits": -1}, r"label_bits must be in 0\.\.8, got -1"),
        ({"label_bits": 9}, r"label_bits must be in 0\.\.8, got 9"),
        ({"rate_weight": -0.5}, "rate_weight must not be negative, got -0.5"),
        ({"rate_weight": math.inf}, "got inf"),
        ({"rate_weight": math.nan}, "got nan"),
        ({"rate_weight": 1}, "rate_weight must be float, got 1"),
        ({"transform_options": {"keep": 1}}, "transform_options must be tuple"),
    ],
)
def test_wrong_values_are_shown(change, message):
    with pytest.raises(InputError, match=message) as raised:
        replace(Allocation(), **change)
    assert "\n" not in str(raised.value)


def test_unknown_keys_are_named():
    with pytest.raises(InputError, match=r"'level'.*did you mean 'levels'"):
        Allocation.from_dict({"level": 3})


def test_as_text():
    assert str(Allocation()) == "coreset (random), 10/class, 2 levels, uniform minmax, identity"
    shown = str(replace(Allocation(transform="dct", objective="dm"), **LATER))
    assert shown == (
        "dm (random), 10/class, 2 levels, uniform:surrogate=noise minmax, dct:keep=0.25, 2-bit labels, rate weight 0.5"
    )
