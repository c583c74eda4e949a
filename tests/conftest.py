import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from servers import answers, free_port

from budgetopt.data import Dataset, open_source

torch.set_num_threads(1)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of programs that tests start, two of which share the cores
# the same examples in every run and on every machine: a red test is a change, never luck
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items):
    """Modules with long tests first: no worker is left alone with one at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def fashion_mnist_root():
    """Folder that holds `FashionMNIST/raw`: BUDGETOPT_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("BUDGETOPT_DATA") or beside)
    if not (root / "FashionMNIST" / "raw").is_dir():
        pytest.skip("Fashion-MNIST is not here: name the folder that holds FashionMNIST/raw in BUDGETOPT_DATA")
    return root


@pytest.fixture(scope="session")
def digits():
    return Dataset.prepare(open_source("digits"), 0)


@pytest.fixture
def small_npz(tmp_path):
    """Path of a dataset of 90 + 30 feature vectors in 3 well separated classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6)) * 4
    y_train, y_test = np.arange(90) % 3, np.arange(30) % 3
    path = tmp_path / "small.npz"
    np.savez(
        path,
        x_train=(centres[y_train] + rng.normal(size=(90, 6))).astype(np.float32),
        y_train=y_train,
        x_test=(centres[y_test] + rng.normal(size=(30, 6))).astype(np.float32),
        y_test=y_test,
    )
    return path


@pytest.fixture(scope="session")
def postgresql():
    """URL of a PostgreSQL server of its own on loopback, from Debian's package."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    found = str(programs[-1]) if programs else shutil.which("pg_ctl")
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    password = folder / "password"
    password.write_text("s3cret")
    if user:
        shutil.chown(folder, user)
        shutil.chown(password, user)
    port = free_port()

    def run(program, *arguments):
        command = [str(Path(found).with_name(program)), "-D", folder / "data", *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, user=user, cwd=folder, **quiet)

    run("initdb", "-U", "runner", "-A", "scram-sha-256", "--pwfile", password)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "-w", "-o", options, "-l", folder / "log", "start")
    yield f"postgresql://runner:s3cret@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mysql():
    """URL of a MariaDB server of its own on loopback, from Debian's package."""
    server, install = (shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("mariadbd", "mariadb-install-db"))
    if server is None or install is None:
        pytest.skip("MariaDB is not installed (Debian: mariadb-server)")
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    user = "mysql" if os.getuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(folder, user)
    port = free_port()
    setup = folder / "setup.sql"
    setup.write_text(
        "CREATE DATABASE runs;\nCREATE USER runner@'127.0.0.1' IDENTIFIED BY 's3cret';\n"
        "GRANT ALL ON runs.* TO runner@'127.0.0.1';\n"
    )
    where = ["--no-defaults", f"--datadir={folder}/data"]  # in this order
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": folder}
    subprocess.run([install, *where, "--auth-root-authentication-method=normal"], check=True, **quiet)
    options = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket", "--skip-name-resolve"]
    running = subprocess.Popen([server, *where, *options, f"--init-file={setup}"], **quiet)
    for _ in range(600):
        if answers(port):
            break
        assert running.poll() is None, "the server does not start"
        time.sleep(0.1)
    yield f"mysql://runner:s3cret@127.0.0.1:{port}/runs"
    running.kill()
    running.wait()
    shutil.rmtree(folder, ignore_errors=True)
