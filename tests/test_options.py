"""Options of families: what is declared, checked, written in a command line and stored in an allocation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from variants import option_sets, option_values

from budgetopt.errors import InputError
from budgetopt.options import Number, OneOf, canonical, complete, parse, show
from budgetopt.quantizers import QUANTIZERS
from budgetopt.transforms import TRANSFORMS

SCHEMA = {
    "keep": Number(1.0, 0.001, 1.0),
    "block": OneOf(("whole", "8x8")),
    "groups": Number(16, 1, 256, whole=True),
    "way": OneOf((2, 1, 0.5)),
}
SCHEMAS = {"dct": SCHEMA, "identity": {}}
REGISTERED = {name: cls.options for name, cls in (*TRANSFORMS.items(), *QUANTIZERS.items())}
DEFAULTS = {"keep": 1.0, "block": "whole", "groups": 16, "way": 2}


@st.composite
def choices(draw):
    """Any options of SCHEMA, given as a table."""
    given = {
        "keep": st.floats(0.001, 1.0) | st.just(1),
        "block": st.sampled_from(["whole", "8x8"]),
        "groups": st.integers(1, 256) | st.sampled_from([1.0, 16.0, 256.0]),
        "way": st.sampled_from([2, 1, 0.5, 2.0, 1.0]),
    }
    named = draw(st.lists(st.sampled_from(sorted(given)), unique=True))
    return {name: draw(given[name]) for name in named}


# --- round trips -----------------------------------------------------------------------------------------------------


@given(choices())
def test_canonical_options_are_sorted_without_defaults_and_of_one_type(table):
    found = canonical(SCHEMA, table, "dct")
    assert list(found) == sorted(found)
    assert canonical(SCHEMA, dict(found), "dct") == found
    assert canonical(SCHEMA, dict(reversed(table.items())), "dct") == found
    assert all(DEFAULTS[name] != value for name, value in found)
    for name, value in found:
        assert value == table[name]
        assert type(value) is {"keep": float, "block": str, "groups": int}.get(name, type(value))


@given(choices())
def test_complete_has_every_option(table):
    found = complete(SCHEMA, canonical(SCHEMA, table, "dct"), "dct")
    assert found == DEFAULTS | table
    assert list(found) == list(SCHEMA)


@given(choices())
def test_equal_choices_are_equal(table):
    """1 and 1.0 are one choice: allocations that differ in that alone have one key."""
    other = {name: float(value) if isinstance(value, int) else value for name, value in table.items()}
    first, second = canonical(SCHEMA, table, "dct"), canonical(SCHEMA, other, "dct")
    assert first == second
    assert repr(first) == repr(second)


@given(choices())
def test_parse_undoes_show(table):
    """Every digit: an allocation that is shown can be made again."""
    options = canonical(SCHEMA, table, "dct")
    assert parse(show("dct", options), SCHEMAS, "transform") == ("dct", options)


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_option_round_trips(name):
    for options in option_sets(REGISTERED[name]):
        assert parse(show(name, options), REGISTERED, "family") == (name, options)
        assert canonical(REGISTERED[name], dict(options), name) == options
        full = complete(REGISTERED[name], options, name)
        assert canonical(REGISTERED[name], full, name) == options


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_defaults_are_offered(name):
    for option, schema in REGISTERED[name].items():
        assert option.isidentifier()
        assert schema.check(option, schema.default) == schema.default
        assert len(option_values(schema)) > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("identity", ("identity", ())),
        ("dct", ("dct", ())),
        ("dct:", ("dct", ())),
        ("dct:keep=0.25", ("dct", (("keep", 0.25),))),
        ("dct:keep=1", ("dct", ())),
        ("dct: groups = 3 , block = 8x8", ("dct", (("block", "8x8"), ("groups", 3)))),
        ("dct:groups=3.0", ("dct", (("groups", 3),))),
        ("dct:keep=5e-1,", ("dct", (("keep", 0.5),))),
        ("dct:way=1.0", ("dct", (("way", 1),))),
        ("dct:way=.5", ("dct", (("way", 0.5),))),
    ],
)
def test_parse(text, expected):
    assert parse(text, SCHEMAS, "transform") == expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dct", (), "dct"),
        ("dct", (("keep", 0.25),), "dct:keep=0.25"),
        ("dct", (("block", "8x8"), ("groups", 3), ("keep", 1e-3)), "dct:block=8x8,groups=3,keep=0.001"),
    ],
)
def test_show(name, options, expected):
    assert show(name, options) == expected


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("dtc", ["transform", "'dtc'", "did you mean 'dct'"]),
        ("", ["transform", "''"]),
        (":keep=1", ["transform", "''"]),
        ("dct:kep=0.5", ["option of dct", "'kep'", "did you mean 'keep'"]),
        ("dct:keep", ["'keep'", "dct:option=value"]),
        ("dct:0.25", ["'0.25'", "dct:option=value"]),
        ("dct:=3", ["option of dct", "''"]),
        ("dct:keep=", ["dct: keep must be in 0.001..1", "got ''"]),
        ("dct:keep=2", ["dct: keep must be in 0.001..1", "got 2"]),
        ("dct:keep=nan", ["dct: keep must be in 0.001..1", "got nan"]),
        ("dct:keep=inf", ["dct: keep must be in 0.001..1", "got inf"]),
        ("dct:keep=a=b", ["dct: keep must be in 0.001..1", "got 'a=b'"]),
        ("dct:groups=1.5", ["dct: groups must be a whole number", "got 1.5"]),
        ("dct:groups=0", ["dct: groups must be in 1..256", "got 0"]),
        ("dct:block=4x4", ["dct: block must be one of whole, 8x8", "got '4x4'"]),
        ("dct:way=3", ["dct: way must be one of 2, 1, 0.5", "got 3"]),
        ("identity:keep=0.5", ["identity has no options", "'keep'"]),
    ],
)
def test_errors_are_one_line_that_shows_the_value(text, parts):
    with pytest.raises(InputError) as raised:
        parse(text, SCHEMAS, "transform")
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("value", [True, False, None, [1], math.nan])
@pytest.mark.parametrize("option", SCHEMA)
def test_values_of_other_types_are_refused(option, value):
    with pytest.raises(InputError, match=f"dct: {option} must be"):
        canonical(SCHEMA, {option: value}, "dct")


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text):
    for written in (text, "dct:" + text, "dct:keep=" + text):
        try:
            name, options = parse(written, SCHEMAS, "transform")
        except InputError:
            continue
        assert name in SCHEMAS
        assert canonical(SCHEMAS[name], dict(options), name) == options
