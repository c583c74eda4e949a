"""Every wrong input, through the command line: exit code 2, one line that shows the value, nothing written."""

import gc
import io
import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sets import packed_set

from budgetopt import cli
from budgetopt.packing import UniformLevels, container, pack
from budgetopt.search.config import resolve

pytestmark = pytest.mark.filterwarnings("ignore:.*set_metric_names is experimental")
HINT_BUDGET = "write for example 30kb"
SEARCH = ["search", "--budget", "30kb"]


def packed_digits(ipc=1):
    """A valid file of random 8×8 samples, `ipc` for each of ten classes."""
    symbols = np.random.default_rng(0).integers(0, 2, (10 * ipc, 1, 8, 8)).astype(np.uint8)
    statistics = np.array([4.0], np.float32)
    return pack(packed_set(symbols, (ipc,) * 10, UniformLevels(2, 0, 16, 0), mean=statistics, std=statistics))


def snapshot(folder):
    """Every file's content; without SQLite's own files beside a study, which reading it makes."""
    paths = [p for p in folder.rglob("*") if not p.name.startswith("study.db-")]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


@pytest.fixture
def given(tmp_path):
    """Folder of the inputs of a test."""
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


@pytest.fixture
def call(tmp_path, given, monkeypatch):
    """Runs a command in an empty folder; → (exit code, standard error, standard output)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["budgetopt", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, err.getvalue(), out.getvalue()

    return run


@pytest.fixture
def refused(call, given, tmp_path):
    """Runs a command that must be refused, and checks everything that holds for all of them."""

    def run(arguments, *parts):
        before = snapshot(given)
        code, err, _ = call(*arguments)
        assert code == 2, err
        lines = err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("budgetopt: error: ")
        for part in parts:
            assert str(part) in lines[0]
        assert list((tmp_path / "empty").rglob("*")) == []
        assert snapshot(given) == before
        return lines[0]

    return run


# ----------------------------------------------------------------------------------------------------------------------
# budgets, limits, names
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("budget", "hint"),
    [
        ("much", HINT_BUDGET),
        ("", HINT_BUDGET),
        ("30 k b", HINT_BUDGET),
        ("0", "must be positive"),
        ("0kb", "must be positive"),
        ("-30kb", "must be positive"),
        ("30xb", "unknown unit 'xb'"),
        ("4bit", "less than one byte"),
    ],
)
@pytest.mark.parametrize("command", ["search", "trial"])
def test_budget(refused, command, budget, hint):
    refused([command, "--budget", budget], repr(budget), hint, HINT_BUDGET)


def test_budget_of_pick(refused, given):
    refused(["pick", given, "--budget", "30xb"], "'30xb'", HINT_BUDGET)


def test_budget_too_small_names_the_smallest_that_works(refused, digits):
    from budgetopt.methods.selection import Selector
    from budgetopt.search import config
    from budgetopt.search.design import smallest_file
    from budgetopt.trial import TrialContext

    line = refused(["search", "--budget", "20"], "20 bytes", "too small for digits")
    named = int(line.split("takes ")[1].split(" bytes")[0])
    assert 20 < named < 200
    refused(["search", "--budget", named - 1], f"{named - 1} bytes", f"takes {named} bytes")

    accepted, _ = config.resolve(named)
    context = TrialContext(digits.train, digits.val, digits.spec, accepted.protocol, accepted.objectives, named)
    assert smallest_file(accepted, context, Selector(digits.train, digits.spec)) == named


@pytest.mark.parametrize(
    ("option", "wrong", "nearest"),
    [
        ("--dataset", "digit", "digits"),
        ("--dataset", "fashionmnst", "FashionMNIST"),
        ("--objective", "dmm", "dm"),
        ("--objective", "coresets", "coreset"),
        ("--space", "images", "image"),
        ("--protocol", "glyph1", "glyph-1"),
    ],
)
def test_unknown_names_suggest_the_nearest(refused, option, wrong, nearest):
    refused([*SEARCH, option, wrong], f"{wrong!r}", f"did you mean {nearest!r}?")


@pytest.mark.parametrize("command", [SEARCH, ["trial"]])
def test_unknown_network_in_a_protocol(refused, given, command):
    path = given / "mine.toml"
    path.write_text('network = "convnt"\nsteps = 5\n')
    refused([*command, "--protocol", path], "mine.toml: network: ", "'convnt'", "did you mean 'convnet'?")


def test_unknown_network_of_eval(refused, given):
    (given / "a.bopt").write_bytes(packed_digits())
    command = ["eval", given / "a.bopt", "--dataset", "digits"]
    refused([*command, "--network", "mpl"], "'mpl'", "did you mean 'mlp'?")
    refused([*command, "--seeds", "0"], "seeds must be in 1..1000, got 0")
    refused(["eval", given / "a.bopt"], "a.bopt", "--dataset")


@pytest.mark.parametrize("limit", ["0", "-5", "soon", "5 parsecs", "nan", "inf", ""])
@pytest.mark.parametrize("command", [SEARCH, ["resume", "."]])
def test_time_limit(refused, command, limit):
    refused([*command, "--time-limit", limit], repr(limit), "90, 90s, 5min or 1h")


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--trials", "0", "the trials must be positive, got 0"),
        ("--trials", "-3", "the trials must be positive, got -3"),
        ("--workers", "0", "the workers must be positive, got 0"),
        ("--candidates", "0", "the number of candidates must be positive, got 0"),
        ("--seed", "-1", "the seed must not be negative, got -1"),
    ],
)
def test_numbers(refused, option, value, hint):
    refused([*SEARCH, option, value], hint)


def test_patience_needs_a_sampler_that_expects_something(refused, tmp_path):
    hint = "--patience 3 needs a sampler that expects something: --sampler rate-distortion"
    refused([*SEARCH, "--sampler", "tpe", "--patience", "3"], hint)
    (tmp_path / "run").mkdir()
    config = resolve("1kb", sampler="tpe")[0]
    (tmp_path / "run" / "config.json").write_text(config.model_dump_json())
    refused(["resume", tmp_path / "run", "--patience", "3"], hint)


@pytest.mark.parametrize("option", ["--trials", "--workers", "--seed"])
def test_what_is_no_number(refused, option):
    refused([*SEARCH, option, "two"], option, "integer")


def test_what_is_no_number_is_shown(refused):
    refused([*SEARCH, "--trials", "two"], "two")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--levels", "1"], ["levels must be in 2..256", "got 1"]),
        (["--levels", "257"], ["levels must be in 2..256", "got 257"]),
        (["--quantizer", "apot", "--levels", "5"], ["apot offers 2, 3, 7", "got 5"]),
        (["--clipping", "p2"], ["minmax, p1, p5", "'p2'"]),
        (["--quantizer", "apot", "--clipping", "p1"], ["quadd", "'p1'"]),
        (["--ipc", "0"], ["ipc must be at least 1", "got 0"]),
        (["--quantizer", "unifrm"], ["'unifrm'", "did you mean 'uniform'?"]),
        (["--selection", "herd"], ["'herd'", "did you mean 'herding'?"]),
        (["--transform", "standardise"], ["'standardise'", "did you mean 'standardize'?"]),
        (["--method", "dmm"], ["'dmm'", "did you mean 'dm'?"]),
        (["--steps", "-1"], ["--steps: steps: ", "got -1"]),
        (["--dataset", "digit"], ["'digit'", "did you mean 'digits'?"]),
    ],
)
def test_trial_by_hand(refused, options, parts):
    refused(["trial", *options], *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["serach"], ["'serach'"]),
        (["search"], ["--budget"]),
        (["search", "--budget"], ["--budget", "argument"]),
        ([*SEARCH, "--trails", "3"], ["--trails", "--trials"]),
        ([*SEARCH, "extra"], ["extra"]),
        (["resume"], ["run"]),
        (["front"], ["run"]),
        (["pick"], ["run"]),
        (["pick", "."], ["--budget"]),
        (["dashboard"], ["run"]),
        (["eval"], ["file"]),
        (["inspect"], ["file"]),
        (["export", "a.bopt"], ["--to"]),
    ],
)
def test_unknown_options_and_missing_arguments(refused, arguments, parts):
    line = refused(arguments)
    assert all(part.lower() in line.lower() for part in parts)


def test_dashboard_port(refused, given):
    refused(["dashboard", given, "--port", "70000"], "--port", "65535")


def test_no_argument_at_all_prints_the_help(call):
    code, err, out = call()
    assert code == 2
    assert "Usage" in out + err
    assert "error:" not in err


# ----------------------------------------------------------------------------------------------------------------------
# data
# ----------------------------------------------------------------------------------------------------------------------
def dataset(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(size=(30, 4)).astype(np.float32),
        "y_train": np.arange(30) % 3,
        "x_test": rng.normal(size=(9, 4)).astype(np.float32),
        "y_test": np.arange(9) % 3,
    }
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    return arrays


def with_value(value):
    def change(x):
        x = x.copy()
        x[7, 2] = value
        return x

    return change


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"y_train": lambda y: np.where(y == 1, 2, y)}, ["class 1 has no sample", "0..2"]),
        ({"y_train": lambda y: np.where((y == 1) & (np.arange(30) > 1), 2, y)}, ["class 1 has 1 sample"]),
        ({"x_train": with_value(np.nan)}, ["NaN or infinite", "sample 7"]),
        ({"x_train": with_value(np.inf)}, ["NaN or infinite", "sample 7"]),
        ({"x_train": with_value(-np.inf)}, ["NaN or infinite", "sample 7"]),
        ({"y_train": lambda y: y - 1}, ["labels are out of range", "-1..1", "0..C-1"]),
        ({"y_train": lambda y: y * 100_000}, ["labels are out of range", "0..200000"]),
        ({"y_train": lambda y: y + 0.5}, ["labels must be whole numbers"]),
        ({"y_train": lambda y: y[:-1]}, ["30 samples", "(29,)"]),
    ],
)
@pytest.mark.parametrize("command", [SEARCH, ["trial"]])
def test_data(refused, given, command, changes, parts):
    path = given / "mine.npz"
    np.savez(path, **dataset(**changes))
    refused([*command, "--dataset", path], "mine.npz", *parts)


@pytest.mark.parametrize("name", ["absent.npz", "mine.csv", "folder/mine"])
def test_data_that_is_not_there(refused, name):
    refused([*SEARCH, "--dataset", name], name)


def test_labels_out_of_range_of_the_file_under_evaluation(refused, given):
    np.savez(given / "mine.npz", x_test=np.zeros((4, 1, 8, 8), np.float32), y_test=np.array([0, 1, 2, 10]))
    (given / "a.bopt").write_bytes(packed_digits())
    refused(["eval", given / "a.bopt", "--dataset", given / "mine.npz"], "label 10", "0..9")


def test_file_and_dataset_of_different_shape(refused, given):
    np.savez(given / "mine.npz", **dataset())
    (given / "a.bopt").write_bytes(packed_digits())
    refused(["eval", given / "a.bopt", "--dataset", given / "mine.npz"], "(4,)", "(1, 8, 8)")


def test_data_with_half_a_test_part(given):
    from budgetopt.data import open_source
    from budgetopt.errors import InputError

    arrays = dataset()
    np.savez(given / "mine.npz", **{name: array for name, array in arrays.items() if name != "x_test"})
    with pytest.raises(InputError, match="no x_test: the front"):
        open_source(str(given / "mine.npz")).check_test_part((4,))


def test_network_that_does_not_fit_the_data(refused, given):
    np.savez(given / "mine.npz", **dataset())
    refused(["trial", "--dataset", given / "mine.npz", "--protocol", "glyph-1"], "convnet", "mlp")


@pytest.mark.parametrize(
    ("shape", "augment", "parts"),
    [
        ((4,), "rotate = 12, shift = 0.1", ["(4,)", "rotate 12, shift 0.1: they take no augmentation, leave it out"]),
        ((1, 4, 4, 4), "scale = 1.5", ["(1, 4, 4, 4)", "scale 1.5: they take shift3d, rotate3d, flip3d"]),
        ((1, 4, 4), "flip = 0.5, flip3d = 0.5", ["by flip3d 0.5: they take shift, scale"]),
    ],
)
def test_augmentation_that_the_data_cannot_take(refused, given, shape, augment, parts):
    """Wherever a recipe is chosen for data, before anything is trained or written."""
    rng, y = np.random.default_rng(0), np.arange(24) % 3
    x = rng.integers(0, 9, (24, *shape)).astype(np.uint8)
    np.savez(given / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (given / "a.bopt").write_bytes(pack(packed_set(x[:9] % 4, (3, 3, 3), 4)))
    (given / "p.toml").write_text(f'network = "mlp"\nsteps = 5\naugment = {{ {augment} }}\n')
    data, chosen = ["--dataset", given / "mine.npz"], ["--protocol", given / "p.toml"]
    for command in (
        ["search", "--budget", "1kb", *data],
        ["trial", *data],
        ["eval", given / "a.bopt", *data],
        ["compress", given / "a.bopt", "--budget", "1kb"],
        ["compress", given / "a.bopt", "--budget", "1kb", *data],
        ["merge", given / "a.bopt", given / "a.bopt", "--budget", "1kb"],
    ):
        refused([*command, *chosen], "protocol: samples of shape", *parts)


def test_augmentation_of_an_objective_that_the_data_cannot_take(refused, given):
    y = np.arange(24) % 3
    x = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    np.savez(given / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (given / "a.bopt").write_bytes(pack(packed_set(np.zeros((3, 4), int), (1, 1, 1), 4)))
    (given / "mine.toml").write_text('method = "dsa"\naugment = { rotate = 12 }\n')
    data = ["--dataset", given / "mine.npz"]
    for command in (
        ["search", "--budget", "1kb", *data, "--objective"],
        ["trial", *data, "--method"],
        ["compress", given / "a.bopt", "--budget", "1kb", *data, "--protocol", "tabular-2", "--finetune"],
    ):
        refused([*command, given / "mine.toml"], "objective mine: samples of shape (4,)", "rotate 12", "leave it out")


# ----------------------------------------------------------------------------------------------------------------------
# TOML files of the user's
# ----------------------------------------------------------------------------------------------------------------------
TOML = {
    "--objective": 'method = "dm"\nsteps = 10\n',
    "--protocol": 'network = "mlp"\nsteps = 5\n',
    "--space": textwrap.dedent(
        """
        selection = ["random"]
        transform = ["identity"]
        [ipc]
        min = 1
        [[quantizer]]
        family = "uniform"
        levels = [2]
        clipping = ["minmax"]
        """
    ),
}


@pytest.mark.parametrize(
    ("option", "old", "new", "parts"),
    [
        ("--objective", "steps", "stepz", ["stepz", "unknown key"]),
        ("--objective", "10", '"10"', ["steps", "'10'"]),
        ("--objective", "10", "0", ["steps", "greater than or equal to 1", "got 0"]),
        ("--objective", '"dm"', '"dmm"', ["'dmm'", "'dm'"]),
        ("--protocol", "steps", "stepz", ["stepz", "unknown key"]),
        ("--protocol", "5", "5.5", ["steps", "5.5"]),
        ("--protocol", "5", "-5", ["steps", "greater than or equal to 1", "got -5"]),
        ("--space", "min = 1", "mim = 1", ["ipc.mim", "unknown key"]),
        ("--space", "min = 1", 'min = "1"', ["ipc.min", "'1'"]),
        ("--space", "min = 1", "min = 0", ["ipc.min", "greater than or equal to 1", "got 0"]),
        ("--space", "[2]", "[1]", ["quantizer[0]", "levels must be in 2..256", "got 1"]),
        ("--space", "[2]", '["2"]', ["quantizer[0].levels[0]", "'2'"]),
        ("--space", '"uniform"', '"unifrm"', ["quantizer[0]", "'unifrm'", "uniform"]),
        ("--space", "min = 1", "min = ", ["not valid TOML"]),
    ],
)
def test_toml_files(refused, given, option, old, new, parts):
    assert old in TOML[option]
    path = given / "mine.toml"
    path.write_text(TOML[option].replace(old, new))
    refused([*SEARCH, option, path], "mine.toml: ", *parts)


@pytest.mark.parametrize("option", TOML)
def test_toml_files_that_are_not_there(refused, option):
    refused([*SEARCH, option, "absent.toml"], "'absent.toml'")


# ----------------------------------------------------------------------------------------------------------------------
# run folders
# ----------------------------------------------------------------------------------------------------------------------
def make_run(path, seed=0, finished=()):
    """A run folder as a search leaves it: configuration and study, with (bytes, accuracy) of finished trials."""
    from budgetopt.allocation import Allocation
    from budgetopt.search import config
    from budgetopt.search import study as studies
    from budgetopt.search.folder import RunFolder

    resolved, _ = config.resolve("30kb", seed=seed, workers=1)
    folder = RunFolder(path)
    folder.create(resolved, {})
    study, trial = studies.create(folder.study), None
    for size, accuracy in finished:
        trial = study.ask()
        trial.set_user_attr("allocation", Allocation().to_dict())
        (folder.trials / f"{trial.number}.bopt").write_bytes(bytes(size))
        rung = {"bytes": size, "accuracy": accuracy, "error": 0.01, "file": f"trials/{trial.number}.bopt"}
        trial.set_user_attr("rung/1", rung)
        study.tell(trial, studies.values(size, accuracy))
    del study, trial
    gc.collect()  # closes the database, which merges its log into it: not while a command is watched
    return folder


def test_out_with_a_different_run(refused, given):
    make_run(given / "run", seed=0)
    refused([*SEARCH, "--seed", "1", "--out", given / "run"], "holds a different run", "seed 0", "budgetopt resume")
    refused(["search", "--budget", "20kb", "--out", given / "run"], "holds a different run", "30,000 bytes")


def test_out_with_other_files(refused, given):
    (given / "photo.jpg").write_bytes(b"precious")
    refused([*SEARCH, "--out", given], "given", "not empty and holds no run", "choose another folder")


def test_out_that_is_a_file(refused, given):
    (given / "file").write_bytes(b"precious")
    refused([*SEARCH, "--out", given / "file"], "file", "is not a folder")


def test_out_that_cannot_be_made(refused, given):
    (given / "file").write_bytes(b"precious")
    refused([*SEARCH, "--out", given / "file" / "run"], "file")


def test_trial_out_that_cannot_be_written(refused, given):
    (given / "p.toml").write_text('network = "mlp"\nsteps = 2\n')
    command = ["trial", "--steps", "0", "--ipc", "1", "--protocol", given / "p.toml"]
    refused([*command, "--out", given / "absent" / "a.bopt"], "a.bopt")


RUN_COMMANDS = [["resume"], ["front"], ["dashboard", "--port", "0"], ["pick", "--budget", "1kb"]]


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_run_that_is_not_there(refused, given, command):
    refused([*command, given / "absent"], "absent", "no run folder")


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_folder_that_is_no_run(refused, given, command):
    (given / "photo.jpg").write_bytes(b"precious")
    refused([*command, given], "given", "run folder")


@pytest.mark.parametrize("command", RUN_COMMANDS[1:])
def test_run_without_a_study(refused, given, command):
    make_run(given / "run").study.unlink()
    refused([*command, given / "run"], "run", "without a study", "study.db")


def test_resume_of_a_run_without_a_study(refused, given):
    make_run(given / "run").study.unlink()
    refused(["resume", given / "run"], "run", "without a study", "study.db")


@pytest.mark.parametrize("command", RUN_COMMANDS[1:])
def test_run_whose_study_is_damaged(refused, given, command):
    folder = make_run(given / "run")
    for extra in (given / "run").glob("study.db-*"):
        extra.unlink()
    folder.study.write_bytes(b"not a database at all" * 1000)
    refused([*command, folder], "run", "without a readable study")


def test_eval_in_a_folder_without_a_run(refused, given):
    (given / "a.bopt").write_bytes(packed_digits())
    refused(["eval", given / "a.bopt"], "a.bopt", "lies in no run folder", "--dataset")
    refused(["eval", given / "absent" / "a.bopt"], "absent", "no such file")


def test_pick_below_every_file(refused, given):
    folder = make_run(given / "run", finished=[(500, 0.8), (400, 0.7)])
    refused(["pick", folder, "--budget", "399"], "399 bytes", "the smallest finished file has 400")


def test_pick_without_any_file(refused, given):
    refused(["pick", make_run(given / "run"), "--budget", "1kb"], "1,000 bytes", "no trial has finished yet")


def test_pick_does_not_overwrite(refused, given):
    folder = make_run(given / "run", finished=[(500, 0.8)])
    (given / "mine.bopt").write_bytes(b"precious")
    command = ["pick", folder, "--budget", "1kb", "--out"]
    refused([*command, given / "mine.bopt"], "mine.bopt", "exists already")
    refused([*command, given / "absent" / "a.bopt"], "absent", "cannot write")


def test_pick_copies_the_most_accurate_that_fits(call, given, tmp_path):
    folder = make_run(given / "run", finished=[(400, 0.7), (500, 0.8), (450, 0.8), (900, 0.9)])
    code, err, out = call("pick", folder, "--budget", "600")
    assert (code, err) == (0, "")
    assert "600 bytes (4,800 bits)" in out
    assert (tmp_path / "empty" / "run-600B.bopt").read_bytes() == bytes(450)


def test_run_driven_by_another_process(refused, given):
    folder = make_run(given / "run")
    (folder.path / "lock").touch()
    holder = textwrap.dedent(
        """
        import sys
        from budgetopt.search.folder import RunFolder
        with RunFolder(sys.argv[1]).locked():
            print("locked", flush=True)
            sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        refused(["resume", folder], "run", "another process", "wait for it or stop it")
        refused([*SEARCH, "--out", folder], "run", "another process")
        other.stdin.close()
        other.wait(300)


def test_config_that_is_damaged(refused, given):
    folder = make_run(given / "run")
    table = json.loads(folder.config.read_text())
    folder.config.write_text(folder.config.read_text()[:-20])
    refused(["resume", folder], "config.json")
    folder.config.write_text(json.dumps(table | {"budget": -1}))
    refused(["resume", folder], "config.json: budget: ", "got -1")
    folder.config.write_text("[]")
    refused(["resume", folder], "config.json")


# ----------------------------------------------------------------------------------------------------------------------
# packed files
# ----------------------------------------------------------------------------------------------------------------------
def flipped(data):
    return data[:30] + bytes([data[30] ^ 4]) + data[31:]


DAMAGE = {
    "truncated": (lambda data: data[:-5], "checksum does not match"),
    "one byte": (lambda data: data[:1], "not a .bopt file"),
    "flipped": (flipped, "checksum does not match"),
    "foreign": (lambda data: b"PK\x03\x04" + data, "not a .bopt file"),
    "empty": (lambda data: b"", "not a .bopt file"),
    "newer": (lambda data: data[:3] + b"\x09" + data[4:], "format version 9"),
}
FILE_COMMANDS = {
    "eval": lambda path: ["eval", path, "--dataset", "digits"],
    "inspect": lambda path: ["inspect", path],
    "export": lambda path: ["export", path, "--to", "npz"],
    "search": lambda path: [*SEARCH, "--init", path],
    "trial": lambda path: ["trial", "--init", path],
}


@pytest.mark.parametrize("command", FILE_COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(refused, given, command, damage):
    change, message = DAMAGE[damage]
    (given / "a.bopt").write_bytes(change(packed_digits()))
    refused(FILE_COMMANDS[command](given / "a.bopt"), message)


def test_damaged_files_are_named(refused, given):
    (given / "a.bopt").write_bytes(flipped(packed_digits()))
    refused(["inspect", given / "a.bopt"], "a.bopt")


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_oversized_files(refused, given, command, monkeypatch):
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 1 << 16)
    (given / "a.bopt").write_bytes(packed_digits() + bytes(1 << 16))
    refused(FILE_COMMANDS[command](given / "a.bopt"), "a.bopt", "is larger than 65,536 bytes")


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_files_that_are_not_there(refused, given, command):
    refused(FILE_COMMANDS[command](given / "absent.bopt"), "absent.bopt", "cannot read")


def test_unknown_export(refused, given):
    (given / "a.bopt").write_bytes(packed_digits())
    refused(["export", given / "a.bopt", "--to", "jpeg"], "'jpeg'", "npz, parquet, png")
    command = ["export", given / "a.bopt", "--to", "npz", "--out"]
    refused([*command, given / "absent" / "a.npz"], "absent", "cannot write")


# ----------------------------------------------------------------------------------------------------------------------
# help, and what is imported for it
# ----------------------------------------------------------------------------------------------------------------------
COMMANDS = ["search", "resume", "front", "pick", "eval", "inspect", "export", "trial", "dashboard"]
HEAVY = "sorted({'torch', 'ray', 'optuna', 'numpy', 'sklearn', 'matplotlib', 'PIL'} & sys.modules.keys())"


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(call, command, option):
    code, err, out = call(*command, option)
    assert (code, err) == (0, "")
    assert "Usage" in out
    assert "--help" in out
    if not command:
        assert all(name in out for name in COMMANDS)


def printed(program, *arguments, cwd=None):
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    return found.stdout.splitlines()


def test_help_imports_nothing_heavy():
    program = f"""
        import sys
        from budgetopt.cli import main
        print({HEAVY})
        for arguments in (["--help"], *([name, "--help"] for name in {COMMANDS})):
            sys.argv = ["budgetopt", *arguments]
            try:
                main()
            except SystemExit as ended:
                assert ended.code == 0
        print({HEAVY})
        """
    lines = printed(program)
    assert lines[0] == "[]"
    assert lines[-1] == "[]"


def test_trial_by_hand_needs_neither_ray_nor_optuna(tmp_path):
    (tmp_path / "p.toml").write_text('network = "mlp"\nsteps = 5\n')
    program = """
        import sys
        from budgetopt.cli import main
        try:
            main()
        except SystemExit as ended:
            print(ended.code, sorted({"torch", "ray", "optuna"} & sys.modules.keys()))
        """
    arguments = ["trial", "--steps", "0", "--ipc", "2", "--protocol", "p.toml", "--out", "a.bopt", "--budget", "1kb"]
    lines = printed(program, *arguments, cwd=tmp_path)
    assert lines[0] == "budget: 1,000 bytes (8,000 bits)"
    assert sum("validation" in line for line in lines) == 2
    size = (tmp_path / "a.bopt").stat().st_size
    assert lines[-2] == f"a.bopt: {size:,} bytes"
    assert lines[-1] == "0 ['torch']"
    assert size <= 1000


def test_ctrl_c(tmp_path):
    (tmp_path / "p.toml").write_text('network = "mlp"\nsteps = 1000000\n')
    # a shell may have started the tests in the background, where Ctrl-C is ignored and children inherit that
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from budgetopt.cli import main; main()"
    arguments = ["trial", "--budget", "1kb", "--protocol", str(tmp_path / "p.toml")]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline().startswith("budget")  # it is past its imports
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=600)
    assert running.returncode == 130
    assert err == "budgetopt: error: interrupted\n"
