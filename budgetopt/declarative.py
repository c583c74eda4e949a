"""TOML files that ship with the package or belong to the user: found by name or path, validated by pydantic.

A wrong key, type or range names the file and the path of the leaf: `dm.toml: lr_image: …`.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from budgetopt.errors import InputError, unknown_name


class Strict(BaseModel):
    """Immutable; unknown keys are errors; no silent conversions (`steps = "40"` is wrong)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def _folder(package: str) -> Any:
    try:
        return resources.files(package)
    except ModuleNotFoundError:
        # run from the root of a checkout: the sources beside the script hide the installed package, and these folders
        # lie beside `budgetopt`, not inside it
        return Path(__file__).resolve().parents[1] / package.rpartition(".")[2]


def shipped(package: str) -> dict[str, Any]:
    """{name: file} of the TOML files inside `package`."""
    return {Path(entry.name).stem: entry for entry in _folder(package).iterdir() if entry.name.endswith(".toml")}


def read(kind: str, name: str, package: str) -> tuple[str, str]:
    """→ (file name for messages, text) of a shipped file by its name, or of the user's own by its path."""
    if name.endswith(".toml") or "/" in name:
        try:
            return name, Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the {kind} file {name!r}: {error}") from None
    known = shipped(package)
    if name not in known:
        raise unknown_name(kind, name, known, also=", or a path that ends in .toml")
    return f"{name}.toml", known[name].read_text(encoding="utf-8")


def parse(text: str, source: str, model: type[M]) -> M:
    """Parse and validate; every problem is reported with the file and the path of the leaf, on one line."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not valid TOML: {error}") from None
    return validate(table, source, model)


def validate(table: dict[str, Any], source: str, model: type[M]) -> M:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise InputError("; ".join(_problem(source, table, e) for e in error.errors())) from None


def _problem(source: str, table: dict[str, Any], error: Any) -> str:
    leaf, path = "", error["loc"]
    if len(path) > 1 and path[0] not in table:  # the tag that pydantic puts before the leaves of a tagged union
        path = path[1:]
    for part in path:
        leaf += f"[{part}]" if isinstance(part, int) else f".{part}" if leaf else str(part)
    value = "" if error["type"] in ("missing", "extra_forbidden") else f", got {error['input']!r}"
    message = {"extra_forbidden": "unknown key", "missing": "required but missing"}.get(error["type"], error["msg"])
    return f"{source}: {leaf or 'file'}: {message.removeprefix('Value error, ')}{value}"
