"""Which finished set a trial starts from, and what it makes of it."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import command, quick_protocol, start, wait_for

from budgetopt import trial
from budgetopt.allocation import Allocation
from budgetopt.balance import shared_out
from budgetopt.errors import InputError, PackedFileError, TrialFailure
from budgetopt.objective import CoresetObjective, DistributionMatchingObjective
from budgetopt.packing import unpack
from budgetopt.protocol import Protocol
from budgetopt.representation import InitialSet
from budgetopt.search import config as configuration
from budgetopt.search import engine
from budgetopt.search.parents import FARTHEST, Parent, ParentChoice, distance, holds, nearest
from budgetopt.search.study import Record, record, records
from budgetopt.search.study import load as load_study

CPU = torch.device("cpu")
COUNTS = (100,) * 10
OBJECTIVES = {
    "coreset": CoresetObjective(method="coreset"),
    "refined": CoresetObjective(method="coreset", steps=3),
    "dm": DistributionMatchingObjective(method="dm", steps=6, bank=0, real_batch=8),
}
SET = Allocation("dm", ipc=8, levels=4)


def finished(number, allocation=SET, accuracy=0.5, samples=None, **more):
    samples = sum(shared_out(COUNTS, allocation.ipc, allocation.balance)) if samples is None else samples
    known = {"bytes": 100, "error": 0.01, "file": f"trials/{number}.bopt", "message": None}
    return Record(number, "complete", allocation, samples=samples, accuracy=accuracy, **(known | more))


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "far"),
    [
        ({}, 0.0),
        ({"ipc": 4}, 1.0),
        ({"levels": 2}, 1.0),
        ({"levels": 5}, math.inf),
        ({"levels": 3}, math.log2(4 / 3)),
        ({"ipc": 2, "levels": 2}, 3.0),
        ({"quantizer": "lloyd-max"}, 1.0),
        ({"quantizer": "apot", "clipping": "half", "levels": 3}, 1.0 + math.log2(4 / 3)),
        ({"clipping": "p5"}, 0.25),
        ({"clipping": "p5", "rdoq": 0.2, "rate_weight": 1.0}, 0.75),
        ({"quantizer_options": (("surrogate", "noise"),)}, 0.25),
        ({"ipc": 9}, math.inf),
        ({"objective": "mtt"}, math.inf),
        ({"selection": "herding"}, math.inf),
        ({"transform": "standardize"}, math.inf),
        ({"transform": "dct", "transform_options": (("keep", 0.5),)}, math.inf),
        ({"label_bits": 3}, math.inf),
        ({"balance": "sqrt"}, math.inf),
    ],
)
def test_distance(change, far):
    assert distance(SET, replace(SET, **change)) == pytest.approx(far)


def test_the_nearest_is_chosen():
    there = [
        finished(0, replace(SET, ipc=32)),
        finished(1, replace(SET, levels=8, clipping="p5")),
        finished(2, replace(SET, levels=8)),
        finished(3, replace(SET, quantizer="lloyd-max", levels=8)),
    ]
    child = replace(SET, levels=3)
    assert nearest(child, there, COUNTS).number == 2
    assert nearest(child, there[::-1], COUNTS).number == 2
    assert nearest(child, [*there, finished(4)], COUNTS).number == 4


def test_of_equally_near_ones_the_more_accurate_then_the_earlier():
    other = replace(SET, quantizer="lloyd-max")
    level = [finished(5, replace(SET, levels=8)), finished(3, other), finished(4, replace(SET, levels=8))]
    child = replace(SET, ipc=7)
    assert nearest(child, level, COUNTS).number == 3
    better = finished(9, replace(SET, levels=8), accuracy=0.6)
    assert nearest(child, [*level, better], COUNTS).number == 9


@pytest.mark.parametrize(
    "there",
    [
        [],
        [finished(0, replace(SET, levels=64))],  # farther than FARTHEST
        [finished(0, replace(SET, ipc=4))],  # too few samples
        [finished(0, samples=79)],  # the budget cut one off
        [finished(0, replace(SET, levels=3), samples=0)],
        [finished(0, replace(SET, levels=2))],  # the very allocation
        [replace(finished(0), state="stopped")],
        [replace(finished(0), state="infeasible", accuracy=None)],
    ],
)
def test_no_parent(there):
    assert math.log2(64 / 2) > FARTHEST
    assert nearest(replace(SET, levels=2), there, COUNTS) is None


def test_a_parent_that_was_cut_still_has_parents_enough_for_fewer():
    cut = finished(0, replace(SET, ipc=20), samples=100)  # ten a class
    assert nearest(replace(SET, ipc=10), [cut], COUNTS) is cut
    assert nearest(replace(SET, ipc=11), [cut], COUNTS) is None


@pytest.mark.parametrize("seed", range(20))
def test_holds_against_the_samples_that_a_cut_file_has(seed):
    rng = np.random.default_rng(seed)
    there, wanted = rng.integers(1, 9, (2, 4))
    for most in range(1, 9):
        kept = np.minimum(there, most)  # what `fit_to_budget` leaves
        assert holds(int(kept.sum()), there, wanted) == bool((kept >= wanted).all())


@pytest.fixture(scope="module")
def context(digits):
    protocol = Protocol(network="convnet", width=4, steps=8, batch=32)
    return trial.TrialContext(digits.train, digits.val, digits.spec, protocol, OBJECTIVES)


def test_only_files_that_are_there_and_sets_that_are_optimised(context, tmp_path):
    choice, child = ParentChoice(context, tmp_path), replace(SET, levels=2)
    made = finished(7, total_steps=300)
    assert choice.of(child, [made]) is None
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "7.bopt").write_bytes(b"")
    assert choice.of(child, [made]) == Parent(7, "trials/7.bopt", 300)
    for name in ("coreset", "refined"):
        same = [finished(7, replace(SET, objective=name))]
        assert choice.of(replace(child, objective=name), same) is None


def test_samples_that_there_are_come_from_the_given_set(context, tmp_path):
    """With `init` a class may have fewer samples than the data."""
    few = replace(context, init=InitialSet(np.zeros((30, 1, 8, 8), np.float32), (3,) * 10))
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "7.bopt").write_bytes(b"")
    made = finished(7, samples=30)  # all that there are, of 8 a class asked for
    assert ParentChoice(few, tmp_path).of(replace(SET, levels=2), [made]) == Parent(7, "trials/7.bopt", 0)
    assert ParentChoice(context, tmp_path).of(replace(SET, levels=2), [made]) is None


# --- the trial -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent(context):
    *_, last = trial.run(context, replace(SET, ipc=3), CPU)
    return last.data


def outcome(reports):
    return repr([(r.rung, r.last, r.step, r.data, r.evaluation, r.loss) for r in reports])


def test_a_child_starts_from_what_a_receiver_of_the_parent_sees(context, parent):
    """Where nothing changes it is the parent's set again, bit for bit; fewer samples are the first of each class."""
    decoded = unpack(parent).decode()
    same = trial.initial_representation(context, replace(SET, ipc=3), CPU, parent=parent).packed()
    assert np.array_equal(same.decode(), decoded)
    assert same.counts == (3,) * 10
    fewer = trial.initial_set(context, replace(SET, ipc=2), parent=parent)
    assert np.array_equal(fewer.x, decoded.reshape(10, 3, 1, 8, 8)[:, :2].reshape(20, 1, 8, 8))
    finer = trial.initial_representation(context, replace(SET, ipc=3, levels=16), CPU, parent=parent).packed()
    assert np.abs(finer.decode() - decoded).max() <= np.ptp(decoded) / 15 / 2 + 1e-4


def test_a_child_keeps_the_labels_of_its_parent(context):
    """A teacher takes decoded samples for other classes than the real ones that it has labelled."""
    from budgetopt.methods.base import TrainingData
    from budgetopt.teacher import train

    context = replace(context, teacher=train(TrainingData(context.train, context.spec, context.protocol, CPU), 0))
    labelled = replace(SET, ipc=3, levels=2, label_bits=3, label_temperature=2.0)
    *_, last = trial.run(context, labelled, CPU)
    there = unpack(last.data)
    child = trial.initial_representation(context, replace(labelled, ipc=2), CPU, parent=last.data)
    rows = np.flatnonzero(np.arange(30) % 3 < 2)
    assert np.array_equal(child.soft_labels().symbols, there.soft.symbols[rows])
    assert np.array_equal(child.packed().soft.targets(), there.soft.targets()[rows])
    learned = child.learn_labels(torch.zeros(20, 10))
    torch.testing.assert_close(torch.softmax(learned, 1), torch.from_numpy(there.soft.targets()[rows]))
    hard = trial.initial_representation(context, replace(SET, ipc=2, levels=2), CPU, parent=last.data)
    assert hard.soft_labels() is None


def test_a_child_takes_a_third_of_the_steps(context, parent):
    reports = list(trial.run(context, replace(SET, ipc=2, levels=2), CPU, parent=parent))
    assert [r.step for r in reports] == trial.rung_steps(2)
    assert unpack(reports[-1].data).counts == (2,) * 10
    for steps, refine, expected in ((150, 0, (50, 0)), (1, 0, (1, 0)), (7, 4, (3, 2))):
        dm = OBJECTIVES["dm"].model_copy(update={"steps": steps, "refine_steps": refine})
        short = dm.shortened(trial.CHILD_SHARE)
        assert (short.steps, short.refine_steps) == expected


def test_a_child_is_a_pure_function_of_allocation_and_parent(context, parent):
    child = replace(SET, ipc=2, levels=2)
    first = outcome(trial.run(context, child, CPU, parent=parent))
    assert outcome(trial.run(context, child, CPU, parent=parent)) == first
    *_, other = trial.run(context, replace(SET, ipc=2, levels=8), CPU)
    assert outcome(trial.run(context, child, CPU, parent=other.data)) != first
    assert outcome(trial.run(context, child, CPU)) != first


def test_a_child_goes_on_from_its_checkpoint_with_its_own_parent_only(context, parent, tmp_path):
    child = replace(SET, ipc=2, levels=2)
    whole = outcome(trial.run(context, child, CPU, parent=parent))
    kept = trial.checkpoint(context, child, tmp_path, parent)
    next(trial.run(context, child, CPU, kept, parent))
    *_, other = trial.run(context, replace(SET, ipc=2, levels=8), CPU)
    for another in (None, other.data):
        stranger = trial.checkpoint(context, child, tmp_path, another)
        assert stranger.path == kept.path  # so that whoever records the trial's end removes it without knowing
        assert stranger.load() is None
    assert kept.load() is not None
    assert outcome(trial.run(context, child, CPU, kept, parent)) == whole


def test_a_parent_that_does_not_fit_is_named(context, parent):
    with pytest.raises(TrialFailure, match=r"counts \(3, 3.* holds no \(4, 4"):
        next(trial.run(context, replace(SET, ipc=4), CPU, parent=parent))
    with pytest.raises(PackedFileError):
        next(trial.run(context, replace(SET, ipc=2), CPU, parent=parent[:-3]))
    other = replace(context, spec=replace(context.spec, shape=(1, 4, 16)))
    with pytest.raises(TrialFailure, match="a parent of shape"):
        trial.initial_set(other, replace(SET, ipc=2), parent=parent)
    with pytest.raises(ValueError, match="refined optimises nothing"):
        next(trial.run(context, replace(SET, objective="refined", ipc=2), CPU, parent=parent))


def test_a_worker_reads_the_parent_that_its_config_names(context, parent, tmp_path):
    """As a child of that file; one that is gone, or damaged, is a failure of the trial, not of the worker."""
    child = replace(SET, ipc=2, levels=2)
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "7.bopt").write_bytes(parent)
    config = {"parent": {"trial": 7, "file": "trials/7.bopt", "steps": 6}}
    made = outcome(engine._reports(child, config["parent"], context, tmp_path, CPU, None))
    assert made == outcome(trial.run(context, child, CPU, parent=parent))
    assert (tmp_path / "checkpoints").is_dir()
    assert engine._Receiver(tmp_path).read("trials/7.bopt") == parent  # for workers that do not see the folder
    for broken, error in ((b"", PackedFileError), (None, FileNotFoundError)):
        (tmp_path / "trials" / "7.bopt").unlink()
        if broken is not None:
            (tmp_path / "trials" / "7.bopt").write_bytes(broken)
        reports = engine._reports(child, config["parent"], context, tmp_path, CPU, None)  # nothing is read yet
        with pytest.raises(error):
            next(reports)


# --- the setting -----------------------------------------------------------------------------------------------------


def test_parents_are_a_setting_of_the_run():
    plain, with_parents = (configuration.resolve("1kb", parents=on)[0] for on in (False, True))
    assert (plain.parents, with_parents.parents) == (False, True)
    assert plain.identity != with_parents.identity
    stored = plain.model_dump(mode="json")
    del stored["parents"]  # as earlier versions wrote it
    assert configuration.SearchConfig.model_validate(stored).identity == plain.identity
    with pytest.raises(InputError, match="--parents needs sets that are optimised, not coreset alone: --objective dm"):
        configuration.resolve("1kb", objectives=("coreset",), parents=True)


SPACE = """selection = ["random"]
[ipc]
min = 2
max = 4
[[transform]]
name = "identity"
[[quantizer]]
family = "uniform"
levels = [2, 3]
clipping = ["minmax"]
"""


def started_from(run):
    """(number, parent, steps at every rung, all steps) of the trials that started from another."""
    found = [r for r in records(load_study(run / "study.db")) if r.parent is not None]
    return [(r.number, r.parent, [r.rungs[i]["step"] for i in sorted(r.rungs)], r.total_steps) for r in found]


@pytest.mark.long
def test_a_search_with_parents_says_what_they_cost(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "quickly.toml").write_text('method = "dm"\nsteps = 12\nbank = 3\nreal_batch = 16\n')
    arguments = ("search", "--budget", "1kb", "--trials", 6, "--workers", 1, "--objective", "quickly.toml", "--space",
                 "space.toml", "--protocol", quick_protocol(tmp_path), "--parents")  # fmt: skip
    done = command(*arguments, "--out", "first", folder=tmp_path)
    ended = records(load_study(tmp_path / "first" / "study.db"))
    assert "parents: an optimised set starts from the nearest finished one" in done.stdout
    children = started_from(tmp_path / "first")
    assert children
    for number, parent, steps, total in children:
        assert ended[parent].state == "complete"
        assert parent < number
        assert steps == [2, 3, 4][: len(steps)]
        assert total in [12 + 4 * generation + steps[-1] for generation in range(len(children))]
    front = json.loads((tmp_path / "first" / "front.json").read_text())
    of_trial = {r.number: r for r in records(load_study(tmp_path / "first" / "study.db"))}
    for member in front["members"]:
        record = of_trial[member["trial"]]
        assert (member["parent"], member["total_steps"]) == (record.parent, record.total_steps)
    assert json.loads((tmp_path / "first" / "config.json").read_text())["parents"] is True
    other = command(*arguments[:-1], "--out", "first", folder=tmp_path, check=False)
    assert (other.returncode, other.stderr.count("holds a different run")) == (2, 1)


@pytest.mark.long
def test_a_killed_child_goes_on_from_its_last_rung_with_its_parent(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "slowly.toml").write_text('method = "dm"\nsteps = 2000\nbank = 0\nreal_batch = 64\nguard = 0\n')
    run = tmp_path / "run"
    search = start(
        "search", "--budget", "2kb", "--workers", 1, "--out", "run", "--time-limit", "10min", "--trials", 4,
        "--candidates", 2, "--objective", "slowly.toml", "--space", "space.toml", "--parents",
        "--protocol", quick_protocol(tmp_path), "--sampler", "tpe",  # the other one leaves sets alone that take so long
        folder=tmp_path,
    )  # fmt: skip

    def killable():
        if not (run / "study.db").exists():
            return False
        found = records(load_study(run / "study.db"))
        return any(r.state == "running" and r.rungs and r.parent is not None for r in found)

    wait_for(killable, search)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    assert len(list((run / "checkpoints").glob("*.pt"))) == 1
    command("resume", "run", folder=tmp_path)
    after = load_study(run / "study.db").trials
    (again,) = (t for t in after if "restart_of" in t.user_attrs)
    twin = after[again.user_attrs["restart_of"]]
    assert record(again).state in ("complete", "stopped")
    assert again.user_attrs["parent"] == twin.user_attrs["parent"] is not None
    kept = {name: rung for name, rung in twin.user_attrs.items() if name.startswith("rung/")}
    assert kept
    for name, rung in kept.items():  # to the last digit of its seconds: not worked for twice
        assert again.user_attrs[name] | {"began": rung["began"]} == rung
    assert not (run / "checkpoints").exists()
