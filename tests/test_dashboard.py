"""Optuna Dashboard as it is served: real sockets, read-only, and live while a search writes."""

import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from budgetopt.errors import InputError
from budgetopt.report.dashboard import HOST, server
from budgetopt.search.folder import RunFolder

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A search that goes on in another process, and a dashboard on it."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "quick.toml").write_text('network = "convnet"\nwidth = 8\nsteps = 20\n')
    script = Path(sys.executable).with_name("budgetopt")
    search = subprocess.Popen(
        [script, "search", "--budget", "1kb", "--protocol", "quick.toml", "--out", "run", "--time-limit", "9min"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    run = RunFolder(folder / "run")
    end = time.monotonic() + 600
    while not list(run.trials.glob("*.bopt")) and time.monotonic() < end:
        time.sleep(0.2)
    serving = server(run, port=0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving.server_port, search, run
    serving.shutdown()
    search.send_signal(2)
    search.wait(300)


def ask(port, method, path, host=None):
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request(method, path, headers={"Host": host or f"{HOST}:{port}"})
    response = connection.getresponse()
    return response.status, response.read()


def test_the_study_is_visible_while_the_search_runs(live):
    port, search, _ = live
    status, body = ask(port, "GET", "/api/studies")
    assert status == 200
    assert [s["study_name"] for s in json.loads(body)["study_summaries"]] == ["budgetopt"]
    study_id = json.loads(body)["study_summaries"][0]["study_id"]
    end = time.monotonic() + 60
    done = []
    while not done and time.monotonic() < end:
        trials = json.loads(ask(port, "GET", f"/api/studies/{study_id}")[1])["trials"]
        done = [t for t in trials if t["state"] == "Complete"]
    assert search.poll() is None  # still running
    attributes = {a["key"]: a["value"] for a in done[0]["user_attrs"]}
    assert {"allocation", "bytes", "accuracy"} <= attributes.keys()
    artifact = done[0]["artifacts"][0]["artifact_id"]
    status, picture = ask(port, "GET", f"/artifacts/{study_id}/{done[0]['trial_id']}/{artifact}")
    assert status == 200
    assert picture.startswith(b"\x89PNG")


def test_page_loads(live):
    status, body = ask(live[0], "GET", "/dashboard/")
    assert status == 200
    assert b"<html" in body.lower()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_writes_are_refused(live, method):
    assert ask(live[0], method, "/api/studies/1")[0] == 405
    assert ask(live[0], "GET", "/api/studies")[0] == 200


def test_foreign_host_names_are_refused(live):
    assert ask(live[0], "GET", "/api/studies", host="evil.example")[0] == 403
    assert ask(live[0], "GET", "/api/studies", host=f"localhost:{live[0]}")[0] == 200


def test_it_listens_on_this_machine_only(live):
    import psutil

    listening = [c.laddr.ip for c in psutil.net_connections() if c.laddr and c.laddr.port == live[0] and not c.raddr]
    assert set(listening) == {HOST}


def test_a_taken_port_is_one_clear_line(live):
    with pytest.raises(InputError, match=str(live[0])):
        server(live[2], live[0])
