"""Evaluation protocols, versioned and hashed: exactly one per run, stored in every packed file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator

from budgetopt import declarative
from budgetopt.errors import InputError, unknown_name

# What samples of so many axes can take; feature vectors take none. Implemented in augmentation.py, which needs torch: a
# protocol must be readable without it.
AUGMENTATIONS_OF = {
    3: ("shift", "scale", "rotate", "flip", "brightness", "contrast", "cutout"),
    4: ("shift3d", "rotate3d", "flip3d"),
}
AUGMENTATIONS = tuple(name for names in AUGMENTATIONS_OF.values() for name in names)
# least and largest strength, where it is not a share or a probability
STRENGTHS = {"scale": (1.0, 10.0), "rotate": (0.0, 180.0), "rotate3d": (0.0, 180.0)}
STRENGTHS |= dict.fromkeys(("brightness", "contrast"), (0.0, 100.0))
# Upper bounds: a protocol may come with a stranger's file, which must not ask for years of training
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=4096)]
Batch = Annotated[int, Field(ge=1, le=65_536)]


class Protocol(declarative.Strict):
    """How a network is trained on a packed set. Steps and batch do not depend on the number of samples."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    network: str
    width: Width = 32
    steps: Steps  # optimiser steps of one training
    batch: Batch = 128  # samples a step; all samples where there are fewer
    # of AdamW, at the peak of a one-cycle schedule: up for 20 % of the steps and down, both by a cosine, while β₁ goes
    # from 0.95 to 0.85 and back
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    augment: dict[str, float] = Field(default_factory=dict)  # name → strength, drawn per image
    seeds: Annotated[int, Field(ge=5, le=100)] = 5  # trainings behind every reported figure
    search_seeds: Annotated[int, Field(ge=1, le=100)] = 2  # trainings at a trial's last rung
    rung_share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of `steps`, for the one training of a lower rung

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, augment: dict[str, float]) -> dict[str, float]:
        for name, strength in augment.items():
            if name not in AUGMENTATIONS:
                raise ValueError(f"unknown augmentation {name!r}, known are {', '.join(AUGMENTATIONS)}")
            least, most = STRENGTHS.get(name, (0.0, 1.0))
            if not least <= strength <= most:
                raise ValueError(f"the strength of {name} must be {least:g} to {most:g}, not {strength:g}")
        return augment

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of all parameters."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:12]

    def to_bytes(self) -> bytes:
        """Canonical JSON of what differs from the defaults: equal protocols give equal bytes."""
        return json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True, separators=(",", ":")).encode()


# The position in this list is what a packed file stores: append, never reorder or change.
PRESETS: dict[str, Protocol] = {
    # digits and letters: no flip
    "glyph-1": Protocol(network="convnet", steps=200, augment={"shift": 0.1, "scale": 1.15, "rotate": 12.0}),
    "image-1": Protocol(
        network="convnet", steps=400, augment={"shift": 0.1, "scale": 1.15, "rotate": 10.0, "flip": 0.5}
    ),
    "tabular-1": Protocol(network="mlp", steps=400),
    "tabular-2": Protocol(network="mlp", steps=1000, weight_decay=0.3),
    # no augmentation: its resampling blurs what a network trains on and not what it is tested on
    "image-2": Protocol(network="convnet", steps=400),
    "audio-1": Protocol(network="convnet", steps=200),
    "voxel-1": Protocol(network="convnet3d", steps=200),
    # few solids are seen from more sides: on validation (width 16, three sets, one of them never turned) 0 to 10 points
    # up for 3 to 30 samples a class in 0.4 to 4 kB; 1 to 2 down for 80 a class without loss, in 20 to 70 kB
    "voxel-2": Protocol(network="convnet3d", steps=200, augment={"rotate3d": 30.0}),
    # columns in an order, such as the beams of a sweep
    "signal-1": Protocol(network="convnet1d", steps=1000, weight_decay=0.3),
}


def resolve(name: str) -> Protocol:
    """A preset by name, or a TOML file of the user's by path."""
    if name.endswith(".toml") or "/" in name:
        source, text = declarative.read("protocol", name, "budgetopt")
        return check_network(declarative.parse(text, source, Protocol), f"{source}: network: ")
    if name not in PRESETS:
        raise unknown_name("protocol", name, PRESETS, also=", or a path that ends in .toml")
    return PRESETS[name]


def taken(augment: Mapping[str, float], shape: tuple[int, ...]) -> dict[str, float]:
    """The part of `augment` that samples of `shape` can take. A file may name more: it was never applied."""
    return {name: strength for name, strength in augment.items() if name in AUGMENTATIONS_OF.get(len(shape), ())}


def check_augmentation(augment: Mapping[str, float], shape: tuple[int, ...], where: str = "protocol") -> None:
    """Raise `InputError` where a recipe that is chosen for samples of `shape` names strengths that they cannot take."""
    left_out = [f"{name} {strength:g}" for name, strength in augment.items() if name not in taken(augment, shape)]
    if left_out:
        possible = ", ".join(AUGMENTATIONS_OF.get(len(shape), ()))
        said = f"they take {possible}" if possible else "they take no augmentation, leave it out"
        raise InputError(f"{where}: samples of shape {shape} cannot be augmented by {', '.join(left_out)}: {said}")


def check_network(protocol: Protocol, where: str = "") -> Protocol:
    from budgetopt import networks

    try:
        networks.parse(protocol.network)
    except InputError as error:
        raise InputError(f"{where}{error}") from None
    return protocol


def name_of(protocol: Protocol) -> str:
    """The preset's name, or `custom`."""
    return next((name for name, preset in PRESETS.items() if preset == protocol), "custom")


def to_field(protocol: Protocol) -> int | bytes:
    """What the packed file stores: the number of a preset, or the whole protocol."""
    name = name_of(protocol)
    return list(PRESETS).index(name) if name in PRESETS else protocol.to_bytes()


def from_field(stored: int | bytes) -> Protocol:
    """Inverse of `to_field`; raises `InputError` for an unknown number or an invalid protocol."""
    if isinstance(stored, int):
        if stored >= len(PRESETS):
            raise InputError(f"the file names protocol preset {stored}; this package has {len(PRESETS)}")
        return list(PRESETS.values())[stored]
    try:
        table = json.loads(stored)
    except (ValueError, RecursionError):
        raise InputError("the protocol inside the file is not valid JSON") from None
    if not isinstance(table, dict):
        raise InputError("the protocol inside the file is not a table")
    return check_network(declarative.validate(table, "protocol in the file", Protocol), "protocol in the file: ")
