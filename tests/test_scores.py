"""Accuracy, macro-F1 and recalls against scikit-learn, and what old runs kept of them."""

import json

import numpy as np
import pytest
from sklearn import metrics

from budgetopt.scores import Evaluation, Score


def confusion(truth, predicted, classes):
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("absent", [(), (0,), (2, 5)])
def test_against_scikit_learn(seed, absent):
    """Unbalanced, some classes never predicted, some without test samples but predicted all the same."""
    rng = np.random.default_rng(seed)
    present = [label for label in range(6) if label not in absent]
    truth = rng.choice(present, 60, p=rng.dirichlet(np.ones(len(present))))
    predicted = np.where(rng.random(60) < 0.5, truth, rng.integers(0, 5 if seed % 2 else 6, 60))
    tested = sorted(set(truth))
    found = Score.of(confusion(truth, predicted, 6))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found.macro_f1 == pytest.approx(
        metrics.f1_score(truth, predicted, labels=tested, average="macro", zero_division=0)
    )
    recalls = metrics.recall_score(truth, predicted, labels=tested, average=None, zero_division=0)
    assert [found.recalls[label] for label in tested] == pytest.approx(list(recalls))
    assert all(found.recalls[label] is None for label in range(6) if label not in tested)


def test_by_hand():
    # class 0: 3 of 4 found, 1 of class 1 taken for it: F1 = 6 / (4 + 4); class 1: 1 of 2: 2 / (2 + 2); class 2: absent
    found = Score.of(np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert found == Score(4 / 6, (0.75 + 0.5) / 2, (0.75, 0.5, None))


def test_a_class_never_found_counts_as_zero():
    assert Score.of(np.array([[5, 0], [5, 0]])).macro_f1 == pytest.approx((10 / 15 + 0) / 2)


def test_what_is_stored_comes_back():
    for score in (Score(0.5, 0.4, (0.5, None, 1.0)), Score(0.5)):
        assert Score.read(json.loads(json.dumps(score.to_dict()))) == score
    assert Score.read(0.75) == Score(0.75, None, ())  # as earlier versions stored it


def test_figures_are_means_over_trainings():
    evaluation = Evaluation((Score(0.5, 0.25, (0.0, None, 1.0)), Score(0.7, 0.35, (1.0, None, 0.5))), 100)
    assert evaluation.accuracies == (0.5, 0.7)
    assert evaluation.accuracy == pytest.approx(0.6)
    assert evaluation.macro_f1 == pytest.approx(0.3)
    assert evaluation.recalls == (0.5, None, 0.75)


def test_one_training_of_an_earlier_version_leaves_the_rest_unknown():
    evaluation = Evaluation((Score(0.5, 0.25, (0.0, 1.0)), Score(0.7)), 100)
    assert evaluation.accuracy == pytest.approx(0.6)
    assert evaluation.macro_f1 is None
    assert evaluation.recalls == ()
