"""`budgetopt eval`: a line for one network, one table for several, recalls on request."""

import io
import json
import re
import sys

import numpy as np
import pytest
from rich.console import Console

from budgetopt import api, cli, evaluation, terminal
from budgetopt.allocation import Allocation
from budgetopt.comparison import Compared
from budgetopt.data import open_source
from budgetopt.errors import InputError, TrialFailure
from budgetopt.methods.selection import Selector
from budgetopt.packing import pack
from budgetopt.protocol import Protocol, to_field
from budgetopt.representation import Representation
from budgetopt.scores import Evaluation, Score

PROTOCOL = Protocol(network="convnet", width=4, steps=20, batch=32)


@pytest.fixture
def given(digits, tmp_path, monkeypatch):
    """A folder with `a.bopt`, two digits a class, and `mine.npz`, a test set without nines."""
    initial = Selector(digits.train, digits.spec).select("random", 2, 0)
    allocation = Allocation(ipc=2, levels=4)
    packed = Representation(initial, allocation, digits.spec, to_field(PROTOCOL), evaluation.default_device()).packed()
    (tmp_path / "a.bopt").write_bytes(pack(packed))
    some = np.flatnonzero(digits.val.y < 9)[:60]
    np.savez(tmp_path / "mine.npz", x_test=digits.val.x[some], y_test=digits.val.y[some])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def printed(given, monkeypatch):
    """→ what `budgetopt eval a.bopt --dataset mine.npz …` prints through a pipe."""

    def run(*arguments):
        out = io.StringIO()
        command = ["budgetopt", "eval", "a.bopt", "--dataset", "mine.npz", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return out.getvalue()

    return run


FIGURE = r"\d+\.\d\d%"


def test_the_line_of_one_network(printed, given):
    found = api.evaluate("a.bopt", "mine.npz")
    text = printed()
    assert text == (
        f"test accuracy {found.accuracy:.2%} ± {found.half_width:.2%} (95 %) over 5 trainings, "
        f"± {found.binomial_half_width:.2%} from 60 test samples, macro-F1 {found.macro_f1:.2%}; "
        f"{(given / 'a.bopt').stat().st_size} bytes\n"
    )
    one = printed("--network", "mlp", "--seeds", "1").strip()
    assert re.fullmatch(rf"mlp: test accuracy {FIGURE} over 1 training \(a look: .* 5 or more\), .*", one)
    assert "over 2 trainings (a look: figures are means of 5 or more), " in printed("--seeds", "2")
    with pytest.raises(InputError, match=r"'\.' is a folder: name a file in it, such as 'best\.bopt'"):
        api.evaluate(".", "mine.npz")


def test_another_protocol_takes_the_place_of_the_files(printed, given):
    (given / "short.toml").write_text('network = "mlp"\nwidth = 8\nsteps = 3\nseeds = 6\n')
    content, test = (given / "a.bopt").read_bytes(), open_source("mine.npz").checked_test((1, 8, 8), 10)
    protocol, seeds = Protocol(network="mlp", width=8, steps=3, seeds=6), evaluation.file_seeds(content, 6)
    expected = evaluation.evaluate_file(content, test, protocol, seeds, evaluation.default_device())
    assert api.evaluate("a.bopt", "mine.npz", protocol="short.toml").accuracies == expected.accuracies
    assert printed("--protocol", "short.toml").startswith(f"test accuracy {expected.accuracy:.2%}")
    with pytest.raises(InputError, match="did you mean 'glyph-1'"):
        api.evaluate("a.bopt", "mine.npz", protocol="glyph")


def test_recalls_of_one_network(printed):
    found = api.evaluate("a.bopt", "mine.npz", seeds=2)
    lines = printed("--seeds", "2", "--per-class").splitlines()
    assert lines[0].startswith("test accuracy")
    rows = dict(line.split() for line in lines[2:])
    assert rows == {str(i): f"{r:.2%}" for i, r in enumerate(found.recalls[:9])} | {"9": "none"}


def test_several_networks_are_one_table_of_the_named_ones(printed):
    lines = printed("--network", "mlp,convnet:norm=batch,lenet", "--seeds", "2").splitlines()
    assert lines[0].split() == ["network", "test", "accuracy", "macro-F1", "seconds"]
    for line, name in zip(lines[1:4], ("mlp", "convnet:norm=batch", "lenet"), strict=True):
        assert re.fullmatch(rf"{re.escape(name)} +{FIGURE} ± {FIGURE} +{FIGURE} +\d+\.\d", line.strip())
        assert line.split()[1] == f"{api.evaluate('a.bopt', 'mine.npz', network=name, seeds=2).accuracy:.2%}"
    assert lines[4].startswith("intervals: 95 %, over trainings; 2 trainings for each network; 60 test samples")
    assert len(lines) == 5
    assert "\x1b" not in "".join(lines)


def test_recalls_of_several_networks(printed):
    lines = printed("--network", "mlp,lenet", "--seeds", "1", "--per-class").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class"))
    assert lines[start].split() == ["class", "mlp", "lenet"]
    assert [line.split()[0] for line in lines[start + 1 : start + 11]] == [str(i) for i in range(10)]
    assert lines[start + 10].split() == ["9", "none", "none"]


def test_wrong_names_are_found_before_any_training(given, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate_file", None)
    with pytest.raises(InputError, match="did you mean 'lenet'"):
        api.compare("a.bopt", "mine.npz", networks=["mlp", "lnet"])
    with pytest.raises(InputError, match="does not take samples of shape"):
        api.compare("a.bopt", "mine.npz", networks=["mlp", "convnet1d"])


def test_a_network_that_does_not_train_has_a_row_without_figures(given, monkeypatch):
    whole = evaluation.evaluate_file

    def fails(content, test, protocol, *rest):
        if protocol.network == "lenet":
            raise TrialFailure("training diverged")
        return whole(content, test, protocol, *rest)

    monkeypatch.setattr(evaluation, "evaluate_file", fails)
    with pytest.raises(TrialFailure):
        api.evaluate("a.bopt", "mine.npz", network="lenet", seeds=1)
    out = Console(record=True, width=120, file=io.StringIO())
    terminal.print_compared(out, api.compare("a.bopt", "mine.npz", networks=["lenet", "mlp"], seeds=1), 99, True)
    text = out.export_text()
    assert "training diverged" in text
    assert re.search(rf"mlp +{FIGURE} ", text)
    assert re.search("class +mlp", text)


def test_looks_at_the_test_split_are_counted_one_by_one(given):
    (given / "study.db").touch()
    (given / "config.json").write_text(json.dumps({"dataset": "mine.npz"}))
    list(api.compare("a.bopt", networks=["mlp", "lenet"], seeds=1))
    assert len((given / "test_evaluations.jsonl").read_text().splitlines()) == 2


def rows(shown, out):
    for name in ("mlp", "lenet"):
        shown.append(out.file.getvalue())
        yield Compared(name, Evaluation((Score(0.5, 0.4, (0.5,)),), 100), 1.0)


def test_rows_that_were_finished_before_ctrl_c_are_printed():
    out = Console(width=100, file=io.StringIO())

    def interrupted():
        yield from rows([], out)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        terminal.print_compared(out, interrupted(), 99, False)
    assert [line.split()[0] for line in out.file.getvalue().splitlines()] == ["network", "mlp", "lenet"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_rows_appear_as_they_are_finished_on_a_terminal_only(is_terminal):
    out = Console(width=100, file=io.StringIO(), force_terminal=is_terminal)
    shown = []
    terminal.print_compared(out, rows(shown, out), 99, False)
    assert ("mlp" in shown[1]) == is_terminal
    assert out.file.getvalue().count("network") >= 1
    if not is_terminal:
        assert out.file.getvalue().count("mlp") == 1
