"""The public names, in a fresh process: what is imported when, and what they are afterwards."""

import subprocess
import sys

import budgetopt


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there():
    for name in budgetopt.__all__:
        assert callable(getattr(budgetopt, name))
    assert set(budgetopt.__all__) <= set(dir(budgetopt))


def test_search_is_a_function_also_after_its_package_was_imported():
    """`budgetopt.search` is a package too, and importing any part of it sets that attribute."""
    printed = python(
        "import budgetopt\n"
        "for number in range(2):\n"
        "    try:\n"
        "        budgetopt.search('nonsense')\n"
        "    except budgetopt.InputError as error:\n"
        "        print(error)\n"
        "    import budgetopt.search.sampler\n"
        "print(budgetopt.search.sampler.RateDistortionSampler.__name__)\n"
    )
    first, second, name = printed.splitlines()
    assert "'nonsense'" in first
    assert first == second
    assert name == "RateDistortionSampler"
