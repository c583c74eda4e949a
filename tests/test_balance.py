import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetopt import space
from budgetopt.allocation import Allocation
from budgetopt.balance import BALANCES, shared_out
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.errors import InputError
from budgetopt.methods.selection import Selector
from budgetopt.representation import InitialSet

COUNTS = (18, 40, 1190, 300, 5)


def naive(counts, ipc, power):
    """One sample after the other goes to the class that is farthest below its share."""
    total = sum(min(n, ipc) for n in counts)
    found = [1] * len(counts)
    while sum(found) < total:
        open_to = [c for c, n in enumerate(counts) if found[c] < n]
        found[min(open_to, key=lambda c: (found[c] + 1) / counts[c] ** power)] += 1
    return found


@pytest.mark.parametrize("ipc", [1, 2, 10, 47, 300, 5000])
@pytest.mark.parametrize("balance", ["sqrt", "proportional"])
def test_shares_are_those_of_a_naive_loop_within_one(ipc, balance):
    found = shared_out(COUNTS, ipc, balance)
    assert sum(found) == sum(min(n, ipc) for n in COUNTS)
    assert np.abs(np.array(found) - naive(COUNTS, ipc, BALANCES[balance])).max() <= 1


def test_known_shares():
    assert shared_out((10, 40, 90), 6) == (6, 6, 6)
    assert shared_out((10, 40, 90), 6, "sqrt") == (3, 6, 9)
    assert shared_out((10, 40, 90), 14, "proportional") == (3, 11, 24)
    assert shared_out((100, 100), 7, "proportional") == (7, 7)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=30), st.integers(1, 3000), st.sampled_from(sorted(BALANCES)))
def test_shares_add_up_and_every_class_has_some(counts, ipc, balance):
    found = np.array(shared_out(counts, ipc, balance))
    assert found.sum() == np.minimum(counts, ipc).sum()
    assert (found >= 1).all()
    assert (found <= counts).all()
    order = np.argsort(counts, kind="stable")
    assert (np.diff(found[order]) >= -1).all()  # larger classes have no less, but for rounding


def test_a_node_may_lack_a_class():
    assert shared_out((0, 50, 200), 9, "sqrt") == (0, 6, 12)


def test_selection_takes_the_first_of_each_order():
    y = np.repeat(np.arange(3), (10, 40, 90))
    x = np.arange(140, dtype=np.float32).reshape(-1, 1)
    one = np.ones(1, np.float32)
    selector = Selector(Split(x, y), DataSpec("toy", (1,), (10, 40, 90), one, one, "x", "tabular-2"))
    for how in ("random", "herding", "k-centre"):
        equal = selector.select(how, 6, 3, Allocation(ipc=6, selection=how))
        rooted = selector.select(how, 6, 3, Allocation(ipc=6, selection=how, balance="sqrt"))
        assert (equal.counts, rooted.counts) == ((6, 6, 6), (3, 6, 9))
        assert np.array_equal(rooted.x[:3], equal.x[:3])
        assert np.array_equal(rooted.x[3:9], equal.x[6:12])
        assert np.array_equal(rooted.x[9:15], equal.x[12:])


@pytest.mark.parametrize("how", ["random", "herding", "k-centre"])
@pytest.mark.parametrize("balance", sorted(BALANCES))
def test_classes_smaller_than_the_ipc_use_what_they_have(how, balance):
    """Once each: no sample is repeated to fill them up."""
    y = np.repeat(np.arange(3), (3, 40, 90))
    one = np.ones(1, np.float32)
    x = np.arange(133, dtype=np.float32).reshape(-1, 1)
    selector = Selector(Split(x, y), DataSpec("toy", (1,), (3, 40, 90), one, one, "x", "tabular-2"))
    taken = selector.select(how, 50, 3, Allocation(ipc=50, selection=how, balance=balance))
    assert sum(taken.counts) == 3 + 40 + 50
    assert taken.counts[0] <= 3
    assert len(np.unique(taken.x)) == len(taken.x) == sum(taken.counts)
    if balance == "equal":
        assert taken.counts == (3, 40, 50)


def test_taking_from_a_given_set():
    given_set = InitialSet(np.arange(9, dtype=np.float32).reshape(-1, 1), (2, 3, 4))
    taken = given_set.taking((1, 0, 3))
    assert (taken.x.ravel().tolist(), taken.counts) == ([0, 5, 6, 7], (1, 0, 3))
    assert given_set.first(2).x.ravel().tolist() == [0, 1, 2, 3, 5, 6]


def test_allocations_keep_their_keys():
    """What earlier runs called an allocation is still its name."""
    plain = Allocation(ipc=5, label_bits=3)
    assert "balance" not in plain.to_dict()
    assert "label_temperature" not in plain.to_dict()
    assert plain.key == "ba8da6c5bb31"
    other = Allocation(ipc=5, label_bits=3, balance="sqrt", label_temperature=2.0)
    assert Allocation.from_dict(other.to_dict()) == other
    assert other.key != plain.key
    assert "5/class (sqrt)" in str(other)
    assert "3-bit labels at temperature 2" in str(other)


def test_hard_labels_have_no_temperature():
    assert Allocation(label_temperature=2.0) == Allocation()
    with pytest.raises(InputError, match=r"label_temperature must be positive, got 0\.0"):
        Allocation(label_temperature=0.0)
    with pytest.raises(InputError, match="did you mean 'sqrt'"):
        Allocation(balance="sqr")


SPACE = """
selection = ["random"]
transform = ["identity"]
label_bits = [0, 3]
label_temperature = [4.0, 1.5]
balance = ["sqrt", "equal"]
[[quantizer]]
family = "uniform"
levels = [2]
"""


def test_space_offers_both_and_takes_them_back(tmp_path):
    (tmp_path / "mine.toml").write_text(SPACE)
    offered = space.resolve(str(tmp_path / "mine.toml"))
    study, found = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), set()
    for _ in range(60):
        allocation = offered.suggest(study.ask(), ["coreset"], 4)
        parameters = offered.parameters(allocation, 4)
        assert offered.suggest(optuna.trial.FixedTrial(parameters), ["coreset"], 4) == allocation
        found.add((allocation.balance, allocation.label_bits, allocation.label_temperature))
    assert found == {(b, *t) for b in ("sqrt", "equal") for t in ((0, 4.0), (3, 4.0), (3, 1.5))}
    (smallest,) = offered.smallest("coreset", (5,))
    assert (smallest.balance, smallest.label_bits) == ("sqrt", 0)


def test_space_refuses_an_unknown_balance(tmp_path):
    (tmp_path / "mine.toml").write_text(SPACE.replace('"sqrt", "equal"', '"root"'))
    with pytest.raises(InputError, match=r"balance.*unknown 'root', known are equal, sqrt, proportional"):
        space.resolve(str(tmp_path / "mine.toml"))
