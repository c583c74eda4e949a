"""What a quantizer or transform family lets one choose besides its levels and clipping: declared once, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from budgetopt.errors import InputError, unknown_name

Value = str | int | float
Options = tuple[tuple[str, Value], ...]  # sorted, defaults left out: equal choices are equal


@dataclass(frozen=True)
class OneOf:
    """A choice by name or number; the first value is the default."""

    values: tuple[Value, ...]

    @property
    def default(self) -> Value:
        return self.values[0]

    def check(self, name: str, value: Value) -> Value:
        if isinstance(value, bool) or value not in self.values:
            raise InputError(f"{name} must be one of {', '.join(map(str, self.values))}, got {value!r}")
        return next(v for v in self.values if v == value)  # 1.0 and 1 are the same choice


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`."""

    default: int | float
    low: float
    high: float
    whole: bool = False

    def check(self, name: str, value: Value) -> Value:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise InputError(f"{name} must be in {self.low:g}..{self.high:g}, got {value!r}")
        if self.whole and value != round(value):
            raise InputError(f"{name} must be a whole number, got {value!r}")
        return round(value) if self.whole else float(value)


Schema = Mapping[str, OneOf | Number]


def complete(schema: Schema, given: Options, owner: str) -> dict[str, Value]:
    """Every option of the schema with its given or default value. Raises `InputError` for what it does not offer."""
    for name, _ in given:
        if name not in schema:
            raise (
                unknown_name(f"option of {owner}", name, schema)
                if schema
                else InputError(f"{owner} has no options, got {name!r}")
            )
    chosen = dict(given)
    return {
        name: option.check(f"{owner}: {name}", chosen[name]) if name in chosen else option.default
        for name, option in schema.items()
    }


def canonical(schema: Schema, given: Mapping[str, Value], owner: str) -> Options:
    """Checked, sorted, without defaults."""
    values = complete(schema, tuple(given.items()), owner)
    return tuple(sorted((name, value) for name, value in values.items() if value != schema[name].default))


def parse(text: str, schemas: Mapping[str, Schema], what: str) -> tuple[str, Options]:
    """`"dct:keep=0.25,block=8"` → the family's name and its options; the inverse of `show`."""
    name, _, rest = text.partition(":")
    if name not in schemas:
        raise unknown_name(what, name, schemas)
    return name, canonical(schemas[name], assignments(rest, text, f"{name}:option=value,option=value"), name)


def assignments(text: str, shown: str, example: str) -> dict[str, Value]:
    """`"keep=0.25,block=8"` → its values by name; shown, example: what was given and what is expected, for errors."""
    given: dict[str, Value] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"cannot read {item!r} in {shown!r}: write {example}")
        given[key.strip()] = _number(value.strip())
    return given


def show(name: str, options: Options) -> str:
    """`dct:keep=0.25`"""
    return name + ":" * bool(options) + ",".join(f"{key}={_text(value)}" for key, value in options)


def _text(value: Value) -> str:
    """As short as it can be without changing the value."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
