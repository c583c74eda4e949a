"""Text of the command line: times, and commands that can be typed."""

import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetopt import __version__
from budgetopt.option_text import resume_command


def test_a_plain_name_stands_in_quotation_marks():
    assert resume_command("runs/digits-1kb") == "'budgetopt resume runs/digits-1kb'"
    assert resume_command("s3://bucket/run", " --join") == "'budgetopt resume s3://bucket/run --join'"


@pytest.mark.parametrize("name", ["runs/my run", "it's", 'a "b"', "$HOME", "été 1"])
def test_other_names_can_be_pasted(name):
    assert shlex.split(resume_command(name, " --join")) == ["budgetopt", "resume", name, "--join"]


@given(st.text(min_size=1).filter(str.isprintable))
def test_any_name_is_one_word_of_the_command(name):
    command = resume_command(name)
    if command == f"'budgetopt resume {name}'":  # nothing in it that a shell would read
        command = command[1:-1]
    assert shlex.split(command) == ["budgetopt", "resume", name]


def test_the_module_is_the_command_and_knows_its_version():
    done = subprocess.run([sys.executable, "-m", "budgetopt", "--version"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
