"""The README as a newcomer follows it: every command and code block, in a fresh copy with its own environment."""

import http.client
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
INSTALL = next(text.strip() for kind, text in BLOCKS if "budgetopt search --budget 30kb" in text)
TEST = next(text.strip() for kind, text in BLOCKS if ".venv/bin/pytest" in text)
DASHBOARD = next(text.strip() for kind, text in BLOCKS if "dashboard" in text)
REST = [(kind, text) for kind, text in BLOCKS if text.strip() not in (INSTALL, TEST, DASHBOARD)]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """A copy of the sources in an empty folder, after the README's first command with a time limit of 60 seconds."""
    folder = tmp_path_factory.mktemp("newcomer") / "budgetopt"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    done = run(INSTALL + " --time-limit 60", folder, seconds=900)
    assert "Pareto front of digits within 30,000 bytes" in done.stdout
    return folder


def run(command, folder, seconds=900):
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


def test_each_of_the_two_commands_is_one_line():
    assert "\n" not in INSTALL
    assert "\n" not in TEST


def test_ci_calls_exactly_the_test_command():
    """`.ci/run` takes the line from this file; here we see that it would find this one and only this one."""
    found = [line for line in README.splitlines() if re.match(r"python3 -m venv .*pytest", line)]
    assert found == [TEST]
    assert 'bash -c "$test_command"' in (ROOT / ".ci" / "run").read_text()


def test_first_command_leaves_a_finished_run(newcomer):
    (folder,) = (newcomer / "runs").iterdir()
    assert {"front.json", "front.csv", "front.png", "best.bopt", "best.png"} <= {p.name for p in folder.iterdir()}


def test_every_other_block_in_order(newcomer):
    for kind, text in REST:
        if kind == "sh":
            done = run("set -e\n" + text, newcomer)
        else:
            (newcomer / "block.py").write_text(text)
            done = run(".venv/bin/python block.py", newcomer)
        assert done.stderr == "", text
    for name in ("small.bopt", "small.npz", "small.png", "front.png"):
        assert (newcomer / name).stat().st_size > 0
    assert (newcomer / "small.bopt").stat().st_size <= 10_000


def test_dashboard_command_serves(newcomer):
    serving = subprocess.Popen(["bash", "-c", "exec " + DASHBOARD], cwd=newcomer, stdout=subprocess.PIPE, text=True)
    try:
        url = re.match(r"http://([\d.]+):(\d+)/", serving.stdout.readline())
        connection = http.client.HTTPConnection(url[1], int(url[2]), timeout=20)
        connection.request("GET", "/api/studies")
        assert b"budgetopt" in connection.getresponse().read()
    finally:
        serving.send_signal(2)
        time.sleep(0.5)
        serving.kill()


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()
