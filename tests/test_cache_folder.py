"""What is kept between runs: shown by part, and removed on demand."""

import pytest
from command_line import command

from budgetopt import cache_folder
from budgetopt.errors import InputError


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A cache with two parts, and a working copy of a run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for path, size in (("banks/a.npz", 3000), ("banks/b.npz", 4), ("pictures/x.npy", 70), ("runs/k/mine/study.db", 9)):
        file = tmp_path / "budgetopt" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    return tmp_path / "budgetopt"


def test_parts_are_shown_with_what_they_take(held, tmp_path):
    lines = command("data", "cache", folder=tmp_path).stdout.splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["banks", "3,004", "bytes", "in", "2"],
        ["pictures", "70", "bytes", "in", "1"],
        ["runs", "9", "bytes", "in", "1"],
    ]
    assert all(str(held) in line for line in lines)


def test_only_what_is_named_is_removed(held, tmp_path):
    done = command("data", "cache", "--clear", "banks", "--clear", "hub", folder=tmp_path).stdout
    assert done.startswith("3,004 bytes freed\npictures")
    assert not (held / "banks").exists()
    assert (held / "pictures" / "x.npy").exists()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["banks", "picture"], "unknown part of the cache 'picture': did you mean 'pictures'"),
        (["banks", "runs"], "--clear runs: a copy may hold what is not at its URL yet: remove '.*runs' yourself"),
        (["banks", "../.."], r"unknown part of the cache '\.\./\.\.'"),
    ],
)
def test_a_wrong_name_removes_nothing(held, names, says):
    with pytest.raises(InputError, match=says):
        cache_folder.clear(names)
    assert cache_folder.usage("banks") == cache_folder.Usage(2, 3004)
    assert cache_folder.usage("runs").files == 1


def test_every_user_of_the_cache_has_its_part(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert {cache_folder.part(name).parent for name in cache_folder.PARTS} == {tmp_path / "budgetopt"}
    assert all(cache_folder.usage(name) == cache_folder.Usage(0, 0) for name in cache_folder.PARTS)
