"""A newcomer's first hour: lists in, the question of 0.178, and messages that lead the way.

Nothing but the public interface is used, and each refusal is followed to its end: what the message
says is done, and then it works.
"""

import math
import re

import numpy as np
import pytest

import xent
from xent import information

PREDICTIONS = [[0.25, 0.25, 0.25, 0.25], [0.01, 0.01, 0.01, 0.96]]
TARGETS = [[0, 0, 0, 1], [0, 0, 0, 1]]
LABELS = [3, 3]
BY_DEFINITION = -(math.log(0.25) + math.log(0.96)) / 2


def test_the_first_attempt_is_refused_with_the_ways_on_and_they_lead_to_both_answers():
    with pytest.raises(ValueError, match=r"0\.99") as refused:
        information.cross_entropy_of(TARGETS, PREDICTIONS)
    ways = re.findall(r'sums="([a-z ]+)"', str(refused.value))
    assert sorted(ways) == ["as given", "normalize"]
    with pytest.warns(UserWarning, match=r"row 1 with a sum of 0\.99"):
        as_given = information.cross_entropy_of(TARGETS, PREDICTIONS, sums="as given").mean()
    normalized = information.cross_entropy_of(TARGETS, PREDICTIONS, sums="normalize").mean()
    assert f"{as_given:.4f}" == "0.7136"
    assert f"{as_given:.11f}" == "0.71355817782"
    assert as_given.item() == pytest.approx(BY_DEFINITION, rel=1e-15)
    expected = -(math.log(0.25) + math.log(0.96 / 0.99)) / 2
    assert normalized.item() == pytest.approx(expected, rel=1e-15)
    assert f"{normalized:.4f}" == "0.7085"


def test_the_mean_over_rows_and_classes_is_the_0_178():
    mean_of_all = -np.mean(np.array(TARGETS) * np.log(PREDICTIONS))
    assert f"{mean_of_all:.3f}" == "0.178"
    with pytest.warns(UserWarning, match="do not sum to 1"):
        each = information.cross_entropy_of(TARGETS, PREDICTIONS, sums="as given")
    assert each.shape == (2,)  # a mean over these numbers can only be a mean over the rows
    assert each.sum().item() / 8 == pytest.approx(mean_of_all, rel=1e-15)


@pytest.mark.parametrize("target", [TARGETS, LABELS], ids=["one-hot", "labels"])
def test_diagnose_names_the_probabilities_and_the_row(target):
    found = {finding.name: finding for finding in xent.diagnose(PREDICTIONS, target)}
    assert found.keys() == {"softmax-as-logits", "unnormalised-rows"}
    assert "first row 1 with a sum of 0.99" in found["unnormalised-rows"].problem
    assert "input.log()" in found["softmax-as-logits"].fix
    logits = np.log(PREDICTIONS)
    by_hand = math.log(0.96 / 0.99)
    assert xent.cross_entropy(logits, LABELS).item() == pytest.approx(
        -(math.log(0.25) + by_hand) / 2, rel=1e-15
    )


def test_one_hot_rows_of_integers_in_numpy():
    with pytest.raises(TypeError, match="make floats of one-hot rows"):
        information.cross_entropy_of(np.array(TARGETS), PREDICTIONS)
    with pytest.warns(UserWarning, match="do not sum to 1"):
        each = information.cross_entropy_of(
            np.array(TARGETS).astype(float), np.array(PREDICTIONS), sums="as given"
        )
    assert each.mean().item() == pytest.approx(BY_DEFINITION, rel=1e-15)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda **axis: xent.softmax(PREDICTIONS, **axis), "dim"),
        (lambda **axis: information.entropy([[0.5, 0.5], [1.0, 0.0]], **axis), "dim"),
        (lambda **axis: xent.cross_entropy(PREDICTIONS, LABELS, **axis), "class_dim"),
        (lambda **axis: xent.losses.focal_loss(PREDICTIONS, LABELS, **axis), "class_dim"),
    ],
    ids=["softmax", "entropy", "cross_entropy", "focal_loss"],
)
def test_whoever_thinks_in_numpy_is_told_the_word_for_axis(call, word):
    with pytest.raises(TypeError) as refused:
        call(axis=1)
    (said,) = re.findall(r"pass (\w+)=1 ", str(refused.value))
    assert said == word
    assert call(**{said: 1}).equal(call())
