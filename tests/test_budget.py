from fractions import Fraction

import pytest

from budgetopt.budget import Budget
from budgetopt.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30kb", 30_000),
        ("30kB", 30_000),
        ("30KB", 30_000),
        ("30Kb", 30_000),
        ("30KiB", 30_720),
        ("30kib", 30_720),
        ("240kbit", 30_000),
        ("240 kbit", 30_000),
        ("240Kibit", 30_720),
        ("2Mbit", 250_000),
        ("8bit", 1),
        ("8 bits", 1),
        ("30000", 30_000),
        ("300b", 300),
        ("300 bytes", 300),
        ("1byte", 1),
        ("1MB", 1_000_000),
        ("1MiB", 1 << 20),
        ("2GB", 2_000_000_000),
        ("1GiB", 1 << 30),
        ("0.5kb", 500),
        (".5kb", 500),
        ("1.5KiB", 1536),
        ("+3kb", 3000),
        (30_000, 30_000),
        (1, 1),
    ],
)
def test_units(text, expected):
    assert Budget.parse(text).bytes == expected


@pytest.mark.parametrize("text", ["30kb", " 30kb ", "30 kb", "30\tkb\n", "30_000", "30,000", "30,000 b", "30_000bytes"])
def test_whitespace_underscores_and_commas(text):
    assert Budget.parse(text) == Budget(30_000)


@pytest.mark.parametrize("prefix", ["", "k", "m", "g"])
@pytest.mark.parametrize("number", ["1", "3.25", "17", "1024"])
def test_decimal_units_against_fractions(prefix, number):
    expected = Fraction(number) * 1000 ** ["", "k", "m", "g"].index(prefix)
    assert Budget.parse(f"{number}{prefix}b").bytes == int(expected)


def test_decimal_fractions_are_exact():
    # 0.29 * 1000 is 290.0 only in decimal arithmetic; 1.001 * 1000**2 loses a byte in binary
    assert Budget.parse("0.29kb").bytes == 290
    assert Budget.parse("1.001mb").bytes == 1_001_000


def test_a_budget_parses_to_itself():
    assert Budget.parse(Budget(7)) == Budget(7)


@pytest.mark.parametrize(
    "text",
    ["", " ", "abc", "kb", "30kb10", "3 0 kb", "1e3", "0x10", "NaN", "nan", "inf", "--3", "3..2", "3.", "None", "1/2"],
)
def test_unparsable_shows_the_value(text):
    with pytest.raises(InputError) as raised:
        Budget.parse(text)
    assert repr(text) in str(raised.value)
    assert "30kb" in str(raised.value)  # says what would work
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["30kx", "30 kilobytes", "3TB", "3k", "3bytess"])
def test_unknown_unit_shows_the_unit(text):
    with pytest.raises(InputError, match="unit") as raised:
        Budget.parse(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["0", "0kb", "-1", "-30kb", "-0.5kb", 0, -3])
def test_zero_and_negative(text):
    with pytest.raises(InputError) as raised:
        Budget.parse(text)
    assert str(text) in str(raised.value)


@pytest.mark.parametrize("text", ["0.5", "7bit", "0.0009kb", "0.1b"])
def test_less_than_a_byte(text):
    with pytest.raises(InputError, match="less than one byte") as raised:
        Budget.parse(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("value", [True, False, None, float("nan"), float("inf"), [], "３０kb"])
def test_other_types_and_digits(value):
    with pytest.raises(InputError):
        Budget.parse(value)


def test_str_shows_bytes_and_bits():
    assert str(Budget.parse("30kb")) == "30,000 bytes (240,000 bits)"
    assert Budget(30_000).bits == 240_000


def test_budgets_are_ordered_and_hashable():
    assert Budget(1) < Budget(2)
    assert len({Budget(3), Budget.parse("3b")}) == 1
