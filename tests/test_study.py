import math
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import optuna
import pytest
from optuna.trial import TrialState

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.search import storage
from budgetopt.search import study as studies

pytestmark = pytest.mark.filterwarnings("ignore:.*set_metric_names is experimental")
ALLOCATION = Allocation(ipc=3, levels=4)
RUNG = {"step": 50, "bytes": 300, "accuracy": 0.7, "error": 0.02, "file": None}
LAST = {"step": 100, "bytes": 310, "accuracy": 0.8, "error": 0.01, "file": "trials/a.bopt"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.db"


@pytest.fixture
def study(path):
    return studies.create(path)


def ask(study, rungs=(), **attributes):
    trial = study.ask()
    trial.suggest_int("ipc", 1, 9)
    trial.set_user_attr("allocation", ALLOCATION.to_dict())
    for number, rung in enumerate(rungs):
        trial.set_user_attr(f"rung/{number}", rung)
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    return trial


# ----------------------------------------------------------------------------------------------------------------------
# storage
# ----------------------------------------------------------------------------------------------------------------------
def test_create_and_load(path, study):
    trial = ask(study, [RUNG, LAST])
    study.tell(trial, studies.values(310, 0.8))
    again = studies.load(path)
    assert again.directions == studies.DIRECTIONS
    assert again.metric_names == ["log2(bytes)", "validation accuracy"]
    assert again.trials[0].values == [math.log2(310), 0.8]
    assert studies.records(again) == studies.records(study)


def test_wal_is_on_and_commits_do_not_wait_for_the_disk(path, study):
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with storage.opened(path).engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_second_process_reads_while_one_writes(path, study):
    study.tell(ask(study, [LAST]), studies.values(310, 0.8))
    reader = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from budgetopt.search import study
        print([r.state for r in study.records(study.load(Path(sys.argv[1])))])
        """
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # a write that is not finished
        writer.execute("UPDATE trial_values SET value = 0")
        found = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", reader, str(path)], capture_output=True, text=True, timeout=600
        )
        assert found.stdout == "['complete']\n", found.stderr
        writer.execute("ROLLBACK")
    assert studies.load(path).trials[0].values[1] == 0.8


def test_who_looks_while_a_study_is_made_does_not_disturb(tmp_path):
    """As `budgetopt front` or a dashboard may, at the very start of a search."""
    looking = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from budgetopt.errors import InputError
        from budgetopt.search import study
        seen = 0
        print("ready", flush=True)
        while seen < 6:
            try:
                assert study.load(Path(sys.argv[1]) / str(seen) / "study.db").metric_names
                seen += 1
            except InputError as error:
                assert "study.db is missing" in str(error), error
        """
    )
    for number in range(6):
        (tmp_path / str(number)).mkdir()
    command = [sys.executable, "-W", "ignore", "-c", looking, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as looker:
        assert looker.stdout.readline() == "ready\n"
        for number in range(6):
            made = studies.create(tmp_path / str(number) / "study.db")
            made.set_user_attr("config", {})
        _, problem = looker.communicate(timeout=600)
    assert looker.returncode == 0, problem
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"study.db", "study.db-wal", "study.db-shm"}


def test_a_study_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"without a study \(study.db is missing\)"):
        studies.load(tmp_path / "study.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"not a database" * 999, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_study_that_is_no_database(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="without a readable study") as raised:
        studies.load(path)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == content


def test_a_database_with_another_study(path):
    optuna.create_study(storage=f"sqlite:///{path}", study_name="other")
    with pytest.raises(InputError, match="without a readable study"):
        studies.load(path)


def test_a_database_that_is_cut(path, study):
    for _ in range(20):
        study.tell(ask(study, [LAST]), studies.values(310, 0.8))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cut = path.with_name("cut.db")
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InputError, match="without a readable study"):
        studies.records(studies.load(cut))


def test_a_foreign_database_is_left_alone(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    with pytest.raises(InputError):
        studies.load(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]


@pytest.mark.parametrize("name", ["plain", "with space", "a%20b", "ünï", "a#b", "a?b"])
def test_folders_with_unusual_names(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    study = studies.create(folder / "study.db")
    study.tell(ask(study, [LAST]), studies.values(310, 0.8))
    assert len(studies.load(folder / "study.db").trials) == 1
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (1,)
    assert {p.name for p in tmp_path.iterdir()} == {name}


# ----------------------------------------------------------------------------------------------------------------------
# records
# ----------------------------------------------------------------------------------------------------------------------
def test_a_running_trial(study):
    ask(study, [RUNG])
    (found,) = studies.records(study)
    assert (found.number, found.state, found.allocation) == (0, "running", ALLOCATION)
    assert (found.bytes, found.accuracy, found.error, found.file) == (300, 0.7, 0.02, None)


def test_a_complete_trial_shows_its_last_rung(study):
    study.tell(ask(study, [RUNG, LAST]), studies.values(310, 0.8))
    (found,) = studies.records(study)
    assert found.state == "complete"
    assert (found.bytes, found.accuracy, found.error, found.file) == (310, 0.8, 0.01, "trials/a.bopt")
    assert found.rungs == {0: RUNG, 1: LAST}
    assert found.message is None


def test_the_last_rung_is_the_highest_number_not_the_last_word(study):
    trial = ask(study)
    for number in (10, 9, 2):
        trial.set_user_attr(f"rung/{number}", {**RUNG, "bytes": number})
    assert studies.records(study)[0].bytes == 10


@pytest.mark.parametrize(
    ("state", "attributes", "expected", "message"),
    [
        (TrialState.PRUNED, {"reason": studies.STOPPED}, "stopped", "stopped"),
        (TrialState.PRUNED, {"reason": studies.OVER_AFTER, "message": "31 bytes"}, "infeasible", "31 bytes"),
        (TrialState.PRUNED, {"reason": studies.OVER_BEFORE}, "skipped", "over_budget_before"),
        (TrialState.PRUNED, {"reason": studies.DUPLICATE}, "skipped", "duplicate"),
        (TrialState.FAIL, {"reason": "failure", "message": "diverged"}, "failed", "diverged"),
        (TrialState.FAIL, {}, "failed", None),
        (TrialState.FAIL, {"reason": studies.INTERRUPTED}, "interrupted", "interrupted"),
    ],
)
def test_states_of_what_did_not_finish(study, state, attributes, expected, message):
    study.tell(ask(study, [RUNG], **attributes), state=state)
    (found,) = studies.records(study)
    assert (found.state, found.message) == (expected, message)
    assert found.bytes == 300


def test_a_trial_without_anything(study):
    study.ask()
    study.enqueue_trial({"ipc": 3})
    running, waiting = studies.records(study)
    assert (running.state, running.allocation, running.bytes, running.rungs) == ("running", None, None, {})
    assert (waiting.state, waiting.allocation) == ("waiting", None)


# ----------------------------------------------------------------------------------------------------------------------
# what a dead driver left
# ----------------------------------------------------------------------------------------------------------------------
def restart(study):
    """As `resume` does it; → numbers of the trials that are started again."""
    again = studies.release_stale(study)
    for one in again:
        study.enqueue_trial(one["params"], user_attrs={"restart_of": one["number"]}, skip_if_exists=False)
    return [one["number"] for one in again]


def test_running_trials_are_released_with_a_reason(path, study):
    trial = ask(study, [RUNG])
    found = studies.load(path)  # another process
    assert studies.release_stale(found) == [{"number": 0, "params": trial.params}]
    assert found.trials[0].state == TrialState.FAIL
    (record,) = studies.records(found)
    assert record.state == "interrupted"
    assert record.rungs == {0: RUNG}


def test_what_has_ended_is_left_alone(study):
    study.tell(ask(study, [LAST]), studies.values(310, 0.8))
    study.tell(ask(study, reason=studies.STOPPED), state=TrialState.PRUNED)
    study.tell(ask(study, reason="failure"), state=TrialState.FAIL)
    before = study.get_trials()
    assert studies.release_stale(study) == []
    assert study.get_trials() == before


def test_trials_interrupted_in_order_are_started_again_too(study):
    study.tell(ask(study, reason=studies.INTERRUPTED), state=TrialState.FAIL)
    assert restart(study) == [0]


def test_every_interrupted_trial_starts_again_once(path, study):
    ask(study)
    ask(study)
    assert restart(study) == [0, 1]
    assert restart(studies.load(path)) == []
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 2 + [TrialState.WAITING] * 2


def test_a_restarted_trial_keeps_its_parameters(study):
    trial = ask(study)
    restart(study)
    again = study.ask()
    assert again.suggest_int("ipc", 1, 9) == trial.params["ipc"]
    assert again.user_attrs == {"restart_of": 0}


def test_a_restart_that_dies_as_well_is_started_again(study):
    ask(study)
    restart(study)
    ask(study)
    assert restart(study) == [1]
    assert restart(study) == []


def test_a_trial_that_never_became_an_allocation_is_only_released(study):
    study.ask()
    assert studies.release_stale(study) == []
    assert study.trials[0].state == TrialState.PRUNED
    (record,) = studies.records(study)
    assert (record.state, record.message) == ("skipped", "unproposed")


def test_what_dies_as_it_leaves_the_queue_goes_back(study):
    """An allocation of the design, and a trial that was to start again: neither was one yet."""
    study.enqueue_trial({"ipc": 5})
    study.ask()
    assert restart(study) == [0]
    assert [r.state for r in studies.records(study)] == ["interrupted", "waiting"]
    study.ask()  # the restart, of which the driver dies at once
    assert restart(study) == [0]
    assert [r.state for r in studies.records(study)] == ["interrupted", "skipped", "waiting"]
    assert study.ask().suggest_int("ipc", 1, 9) == 5
    assert restart(study) == [0]
