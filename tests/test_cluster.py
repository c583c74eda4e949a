"""A search on a Ray cluster of two nodes on this machine, one of which is killed on the way, as the guide has it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import command, start, wait_for
from ray.autoscaler._private.util import prepare_config, validate_config

from budgetopt import result
from budgetopt.search.folder import RunFolder
from budgetopt.search.study import load, records

pytestmark = pytest.mark.long

PAGE = (Path(__file__).parents[1] / "examples" / "guide" / "cluster.md").read_text(encoding="utf-8")
ENDED = ("complete", "stopped", "infeasible", "failed")
# a process of its own, since a Ray that is connected here would be used by every other test
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
    print("removed", flush=True)
cluster.shutdown()
"""


@pytest.fixture
def cluster(monkeypatch):
    """The process that owns it; a line written to it kills the second node."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # of other tests in this process
        monkeypatch.delenv(name, raising=False)
    with subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        process.address = process.stdout.readline().strip()
        yield process
        process.stdin.close()
        process.wait(300)


def test_a_search_outlives_one_of_its_machines(cluster, tmp_path):
    (tmp_path / "quick.toml").write_text('network = "convnet"\nwidth = 8\nsteps = 150\n')
    (line,) = re.findall(r"^budgetopt search (.*--address.*)$", PAGE, re.M)
    here = {"HEAD:6379": cluster.address, "30kb": "2kb", "200": "8", "runs/cluster": "run"}
    arguments = ["search", *(here.pop(word, word) for word in shlex.split(line))]
    assert here == {}
    search = start(
        *arguments, "--protocol", "quick.toml", "--candidates", "2", "--time-limit", "10min", folder=tmp_path
    )
    run = tmp_path / "run"
    wait_for(lambda: list((run / "trials").glob("*.bopt")), search)
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline().strip() == "removed"
    printed = "".join(search.communicate(timeout=600))
    assert search.returncode == 0, printed
    assert "workers: 2 (CPU)" in printed  # as many as the cluster had cores
    ended = [r for r in records(load(RunFolder(run).study)) if r.state in ENDED]
    assert len(ended) == len({r.allocation for r in ended}) == 8
    assert sum(r.state == "failed" for r in ended) <= 1  # of the node that died, should its trial not start again
    for one in ended:
        if one.state == "complete":
            assert (run / one.file).stat().st_size == one.bytes
    assert result.read(run).best.bytes <= 2000


@pytest.mark.parametrize("address", ["127.0.0.1:1", "somewhere", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers_ends_in_one_line(address, tmp_path):
    done = command("search", "--budget", "2kb", "--address", address, "--out", "run", folder=tmp_path, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert repr(address) in line
    assert "ray start --head" in line
    assert not (tmp_path / "run").exists()


def test_cores_of_a_cluster_are_those_of_all_its_nodes(cluster):
    code = f"from budgetopt.search.engine import cluster_resources as of; print(*of({cluster.address!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["2", "0"], done.stderr


def test_the_cluster_file_of_the_guide_is_one():
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    validate_config(prepare_config(yaml.safe_load(written)))
    assert "budgetopt resume runs/cluster --address HEAD:6379" in PAGE
