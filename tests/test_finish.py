"""The reference of the whole training set: exact, or not given."""

import numpy as np
import pytest
import torch

from budgetopt.allocation import Allocation
from budgetopt.data import Dataset
from budgetopt.data.npz import NpzFile
from budgetopt.packing import pack
from budgetopt.search.config import resolve
from budgetopt.search.engine import gpu_share
from budgetopt.search.finish import lossless_bytes
from budgetopt.trial import TrialContext, initial_representation


@pytest.fixture
def config():
    return resolve("30kb")[0]


def test_lossless_reference_is_an_allocation_of_the_space(config, digits):
    """All samples at 17 levels, identity and minmax: the search may choose what the reference line shows."""
    size = lossless_bytes(digits, config)
    context = TrialContext(digits.train, digits.val, digits.spec, config.protocol, config.objectives)
    everything = Allocation(ipc=max(digits.spec.class_counts), levels=17)
    representation = initial_representation(context, everything, torch.device("cpu"))
    packed = representation.packed()
    # the same samples in another order inside a class: coders that learn on the way differ by a little
    assert len(pack(packed)) == pytest.approx(size, rel=0.005)
    order = np.lexsort(packed.decode().reshape(len(digits.train), -1).T)
    original = np.lexsort(digits.train.x.reshape(len(digits.train), -1).T)
    assert np.array_equal(packed.decode()[order], digits.train.x[original].astype(np.float32))


@pytest.mark.parametrize("shift", [0, -7, 3 * 2**24])
@pytest.mark.parametrize("kind", ["whole", "fractions", "many values"])
def test_lossless_reference_where_there_is_none(config, tmp_path, shift, kind):
    x = np.random.default_rng(0).integers(0, 300 if kind == "many values" else 200, (90, 6)).astype(np.float64)
    x = (x / 3 if kind == "fractions" else x) + shift
    y = np.arange(90) % 3
    np.savez(tmp_path / "a.npz", x_train=x.astype(np.float32), y_train=y, x_test=x.astype(np.float32), y_test=y)
    size = lossless_bytes(Dataset.prepare(NpzFile(tmp_path / "a.npz"), 0), config)
    assert (size is not None) == (kind == "whole" and abs(shift) < 2**24)


SHARES = [(2, 0, 0.0), (4, 1, 0.25), (3, 2, 0.5), (2, 3, 1.0), (8, 2, 0.25)]


@pytest.mark.parametrize(("workers", "gpus", "share"), SHARES)
def test_every_worker_finds_a_place_on_a_gpu(workers, gpus, share):
    found = gpu_share(workers, gpus)
    assert found == share
    assert gpus == 0 or sum(int(1 / found) for _ in range(gpus)) >= workers
