import math
from pathlib import Path

import pytest

from budgetopt import declarative, objective, protocol
from budgetopt.errors import InputError
from budgetopt.objective import Augmentation, DistributionMatchingObjective, Objective
from budgetopt.protocol import AUGMENTATIONS, PRESETS, Protocol

GOOD = {
    "objective": 'method = "dm"\nsteps = 7\nlr_image = 0.5\n',
    "protocol": 'network = "mlp"\nsteps = 7\n[augment]\nshift = 0.1\n',
}
RESOLVE = {"objective": objective.resolve, "protocol": protocol.resolve}


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", declarative.shipped("budgetopt.objectives"))
def test_shipped_objectives_parse(name):
    short, parsed = objective.resolve(name)
    assert short == name
    assert isinstance(parsed, Objective)
    assert parsed.method == name


def test_the_baseline_is_shipped():
    assert {"coreset", "dm"} <= declarative.shipped("budgetopt.objectives").keys()
    assert objective.resolve("coreset")[1] == objective.zero_step_coreset()
    assert objective.zero_step_coreset().steps == 0


def test_a_users_objective(write):
    name, parsed = objective.resolve(write(GOOD["objective"]))
    assert name == "mine"
    assert parsed == DistributionMatchingObjective(method="dm", steps=7, lr_image=0.5)


def test_a_users_protocol(write):
    assert protocol.resolve(write(GOOD["protocol"])) == Protocol(network="mlp", steps=7, augment={"shift": 0.1})


@pytest.mark.parametrize(
    ("kind", "old", "new", "leaf", "shown"),
    [
        ("objective", "steps", "stepz", "stepz", "unknown key"),
        ("objective", "7", '"7"', "steps", "got '7'"),
        ("objective", "7", "7.5", "steps", "got 7.5"),
        ("objective", "7", "true", "steps", "got True"),
        ("objective", "7", "0", "steps", "got 0"),
        ("objective", "7", "1_000_001", "steps", "got 1000001"),
        ("objective", "0.5", "0.0", "lr_image", "got 0.0"),
        ("objective", "0.5", "-1", "lr_image", "got -1"),
        ("objective", "0.5", "nan", "lr_image", "got nan"),
        ("objective", "0.5", "inf", "lr_image", "got inf"),
        ("objective", "lr_image = 0.5", "momentum = 1.0", "momentum", "got 1.0"),
        ("objective", "lr_image = 0.5", "bank = -1", "bank", "got -1"),
        ("objective", "lr_image = 0.5", "real_batch = 0", "real_batch", "got 0"),
        ("protocol", "steps", "stepz", "stepz", "unknown key"),
        ("protocol", "steps = 7", "", "steps", "required but missing"),
        ("protocol", "7", "0", "steps", "got 0"),
        ("protocol", "7", "7\nversion = 2", "version", "got 2"),
        ("protocol", "7", "7\nseeds = 4", "seeds", "got 4"),
        ("protocol", "7", "7\nrung_share = 1.5", "rung_share", "got 1.5"),
        ("protocol", "7", "7\nlr = 0", "lr", "got 0"),
        ("protocol", "7", "7\nlr = '0.1'", "lr", "got '0.1'"),
        ("protocol", "0.1", "'a'", "augment.shift", "got 'a'"),
        ("protocol", "0.1", "-0.1", "augment", "the strength of shift must be 0 to 1, not -0.1"),
        ("protocol", "0.1", "1.5", "augment", "the strength of shift must be 0 to 1, not 1.5"),
        ("protocol", "shift = 0.1", "rotate = 1200", "augment", "the strength of rotate must be 0 to 180, not 1200"),
        ("protocol", "0.1", "nan", "augment.shift", "got nan"),
        ("protocol", "shift = 0.1", "scale = 0.5", "augment", "the strength of scale must be 1 to 10, not 0.5"),
        ("protocol", "shift", "shear", "augment", "unknown augmentation 'shear'"),
        ("protocol", "mlp", "conv", "network", "convnet"),
    ],
)
def test_problems_name_file_leaf_and_value(write, kind, old, new, leaf, shown):
    assert old in GOOD[kind]
    path = write(GOOD[kind].replace(old, new, 1))
    with pytest.raises(InputError) as raised:
        RESOLVE[kind](path)
    message = str(raised.value)
    assert "\n" not in message
    assert f"mine.toml: {leaf}: " in message
    assert shown in message


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_protocol_and_an_objective_take_the_same_strengths(name):
    def taken(make, strength):
        try:
            make({name: strength})
        except ValueError:
            return False
        return True

    def trained(augment):
        Protocol(network="mlp", steps=1, augment=augment)

    strengths = (-0.1, 0.0, 0.5, 1.0, 1.1, 10.0, 11.0, 100.0, 101.0, 180.0, 181.0, math.inf, math.nan)
    found = [taken(trained, strength) for strength in strengths]
    assert found == [taken(lambda augment: Augmentation(**augment), strength) for strength in strengths]
    assert any(found)
    assert not all(found)


def test_every_problem_is_reported(write):
    with pytest.raises(InputError) as raised:
        objective.resolve(write('method = "dm"\nsteps = 0\nbank = -1\nnew = 3\n'))
    assert all(leaf in str(raised.value) for leaf in ("steps", "bank", "new"))


@pytest.mark.parametrize("text", ['method = "magic"', "steps = 3", ""])
def test_unknown_or_missing_method(write, text):
    with pytest.raises(InputError, match=r"mine\.toml: .*method") as raised:
        objective.resolve(write(text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", RESOLVE)
@pytest.mark.parametrize("text", ["steps = ", "= 3", "[a", "steps = 1\nsteps = 2", "\x00"])
def test_not_toml(write, kind, text):
    with pytest.raises(InputError, match=r"mine\.toml: not valid TOML") as raised:
        RESOLVE[kind](write(text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", RESOLVE)
def test_files_that_cannot_be_read(tmp_path, kind):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.toml", tmp_path, binary):
        with pytest.raises(InputError, match=f"cannot read the {kind} file") as raised:
            RESOLVE[kind](f"{path}")
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        ("objective", "coresett", "coreset"),
        ("objective", "DM", "dm"),
        ("protocol", "image1", "image-1"),
        ("protocol", "glyph", "glyph-1"),
    ],
)
def test_unknown_name_suggests_the_nearest(kind, wrong, right):
    with pytest.raises(InputError, match=f"did you mean '{right}'") as raised:
        RESOLVE[kind](wrong)
    assert repr(wrong) in str(raised.value)
    assert ".toml" in str(raised.value)


# --- protocols -------------------------------------------------------------------------------------------------------

CHANGES = {
    "network": "mlp",
    "width": 33,
    "steps": 201,
    "batch": 127,
    "lr": 0.011,
    "weight_decay": 0.0,
    "augment": {"shift": 0.1},
    "seeds": 6,
    "search_seeds": 3,
    "rung_share": 0.4,
}


def test_every_field_is_in_the_hash():
    assert CHANGES.keys() == Protocol.model_fields.keys() - {"version"}
    base = Protocol(network="convnet", steps=200)
    hashes = {base.hash} | {base.model_copy(update={field: value}).hash for field, value in CHANGES.items()}
    assert len(hashes) == len(CHANGES) + 1


def test_equal_protocols_have_equal_bytes():
    a = Protocol(network="mlp", steps=3, augment={"shift": 1, "flip": 0.5}, width=32)
    b = Protocol(augment={"flip": 0.5, "shift": 1.0}, steps=3, network="mlp")
    assert a == b
    assert a.to_bytes() == b.to_bytes()
    assert a.hash == b.hash


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_stored_as_a_number(name):
    stored = protocol.to_field(PRESETS[name])
    assert isinstance(stored, int)
    assert protocol.from_field(stored) == PRESETS[name]
    assert protocol.name_of(PRESETS[name]) == name
    assert protocol.resolve(name) is PRESETS[name]
    assert f"{stored} `{name}`" in (Path(protocol.__file__).parent / "packing" / "FORMAT.md").read_text()


def test_presets_never_change():
    """A packed file stores the position: these hashes may be added to, never edited."""
    assert [(name, preset.hash) for name, preset in PRESETS.items()] == [
        ("glyph-1", "cbb92ea90896"),
        ("image-1", "a1e2ccae20c6"),
        ("tabular-1", "4e021eaf4454"),
        ("tabular-2", "35b5662f6556"),
        ("image-2", "81144a5c07e3"),
        ("audio-1", "15632ef37b7d"),
        ("voxel-1", "8f91c8e8be93"),
        ("voxel-2", "a1a90ec43948"),
        ("signal-1", "b21f5d09a595"),
    ]


@pytest.mark.parametrize("field", CHANGES)
def test_custom_protocols_are_stored_whole(field):
    custom = PRESETS["glyph-1"].model_copy(update={field: CHANGES[field]})
    stored = protocol.to_field(custom)
    assert isinstance(stored, bytes)
    assert protocol.from_field(stored) == custom
    assert protocol.name_of(custom) == "custom"


def test_unknown_preset_number():
    with pytest.raises(InputError, match=f"preset {len(PRESETS)}"):
        protocol.from_field(len(PRESETS))


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff",
        b"[" * 60_000,
        b'{"network":"mlp"}',
        b'{"network":"mlp","steps":NaN}',
        b'{"network":"mlp","steps":1e400}',
        b'{"network":"mlp","steps":' + b"9" * 5000 + b"}",
        b'{"network":"mlpp","steps":3}',
        b'{"network":"mlp","steps":3,"evil":1}',
        b'{"network":"mlp","steps":3,"augment":{"evil":1}}',
        b'{"network":"mlp","steps":3,"augment":[]}',
    ],
    ids=lambda stored: repr(stored[:40]),
)
def test_hostile_protocols(stored):
    with pytest.raises(InputError, match="file") as raised:
        protocol.from_field(stored)
    assert "\n" not in str(raised.value)


def test_wrong_network_suggests_the_nearest(write):
    with pytest.raises(InputError, match=r"mine\.toml: network: .*did you mean 'convnet'"):
        protocol.resolve(write('network = "convnets"\nsteps = 3'))
