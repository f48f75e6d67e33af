"""Noise matrices: bad matrices are refused; making, sampling and estimating them."""

import math
import warnings

import pytest
import torch

import xent
from tests.helpers import same_bits
from tests.losses.noise_cases import (
    ANY,
    BACKWARD,
    CORRECTED,
    EYE,
    FORWARD,
    MATRICES,
    PAIR,
    SYMMETRIC,
    C,
    Y,
    Z,
)
from xent.learn.label_noise import confident_noise_matrix, estimate_noise_matrix

# ---- bad input ------------------------------------------------------------------------------


@CORRECTED
@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.full((C, C), 1 / C).double(), "singular"),
        (xent.losses.symmetric_noise_matrix(C, 0.8 - 1e-9), "max_condition"),
        (torch.eye(4), "each class"),
        (torch.ones(C), "each class"),
        (2 * EYE, "sum to 1"),
        (torch.eye(C)[:, [0, 0, 1, 2, 3]], "sum to 1"),
        (EYE + 0.5 * (EYE.roll(1, 1) - EYE.roll(2, 1)), "below 0"),
        (EYE * math.nan, "NaN"),
    ],
    ids=["singular", "nearly", "4x4", "vector", "twice", "columns", "negative", "nan"],
)
def test_bad_matrices(loss, matrix, words):
    with pytest.raises(ValueError, match=words):
        loss(Z, Y, matrix=matrix)


@CORRECTED
def test_other_bad_arguments(loss):
    with pytest.raises(TypeError, match="floating"):
        loss(Z, Y, matrix=torch.eye(C).long())
    with pytest.raises(TypeError, match="matrix"):
        loss(Z, Y, matrix="identity")
    with pytest.raises(TypeError, match="matrix"):
        loss(Z, Y)
    with pytest.raises(ValueError, match="out of bounds"):
        loss(Z, Y + 1, matrix=EYE)
    with pytest.raises(ValueError, match="one class per row"):
        loss(Z, torch.softmax(Z, 1), matrix=EYE)
    with pytest.raises(ValueError, match="max_condition"):
        loss(Z, Y, matrix=EYE, max_condition=0.5)
    with pytest.raises(ValueError, match="reduction"):
        loss(Z, Y, matrix=EYE, reduction="average")


def test_the_condition_is_a_choice():
    matrix = xent.losses.symmetric_noise_matrix(C, 0.8 - 1e-9)
    for loss in (FORWARD, BACKWARD):
        for limit in (1e12, None):
            assert loss(Z, Y, matrix=matrix, max_condition=limit).isfinite()
    # Forward correction needs no inverse.
    assert FORWARD(Z, Y, matrix=torch.full((C, C), 0.2), max_condition=None).isfinite()


@pytest.mark.parametrize(
    "loss",
    [
        xent.losses.forward_corrected_symmetric_noise_loss,
        xent.losses.backward_corrected_symmetric_noise_loss,
    ],
)
def test_rates_out_of_range(loss):
    for rate in (-0.1, 0.8, 1.0, math.nan):
        with pytest.raises(ValueError, match="rate"):
            loss(Z, Y, rate=rate)
    loss(Z, Y, rate=0.79)


# ---- matrices and labels --------------------------------------------------------------------


def test_matrices():
    flips = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
    matrix = xent.losses.pair_noise_matrix(10, 0.4, flips)
    for i in range(10):
        row = torch.zeros(10, dtype=torch.float64)
        row[i] = 0.6 if i in flips else 1.0
        if i in flips:
            row[flips[i]] = 0.4
        torch.testing.assert_close(matrix[i], row)
    torch.testing.assert_close(
        xent.losses.pair_noise_matrix(3, 0.2)[2], torch.tensor([0.2, 0, 0.8]).double()
    )
    for bad in (
        lambda: xent.losses.symmetric_noise_matrix(1, 0.2),
        lambda: xent.losses.symmetric_noise_matrix(3, 1.2),
        lambda: xent.losses.pair_noise_matrix(3, -0.2),
        lambda: xent.losses.pair_noise_matrix(3, 0.2, {0: 3}),
    ):
        with pytest.raises(ValueError, match=r"classes|rate|flips"):
            bad()


def test_flipped_labels_follow_the_matrix():
    labels = torch.arange(C).repeat(20000).view(100, -1)
    generator = torch.Generator().manual_seed(5)
    observed = xent.losses.flip_labels(labels, ANY, generator)
    assert observed.shape == labels.shape
    counts = torch.zeros(C, C).double()
    counts.index_put_((labels.flatten(), observed.flatten()), torch.ones(1).double(), True)
    # 20,000 draws per class; the limit is five standard deviations.
    assert ((counts / 20000 - ANY).abs() <= 5 * (ANY * (1 - ANY) / 20000).sqrt()).all()
    again = xent.losses.flip_labels(labels, ANY, torch.Generator().manual_seed(5))
    assert same_bits(again, observed)
    assert same_bits(xent.losses.flip_labels(labels, EYE), labels)
    assert xent.losses.flip_labels(labels[:0], EYE).shape == labels[:0].shape
    for bad in (labels - 1, labels + 1):
        with pytest.raises(ValueError, match="labels"):
            xent.losses.flip_labels(bad, EYE)
    with pytest.raises(TypeError, match="labels"):
        xent.losses.flip_labels(labels.double(), EYE)


# ---- estimates ------------------------------------------------------------------------------


def population(rows=20000, sharpness=12.0):
    """Return clean posteriors of overlapping classes, most of them nearly certain."""
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(rows, C, generator=generator, dtype=torch.float64) * sharpness
    return torch.softmax(z, 1)


@MATRICES
def test_anchors_give_the_matrix_back(matrix):
    noisy = population() @ matrix
    for percentile, tolerance in ((100, 1e-9), (97, 1e-4)):
        estimate = estimate_noise_matrix(noisy, percentile)
        torch.testing.assert_close(estimate, matrix, rtol=0, atol=tolerance)
        torch.testing.assert_close(estimate.sum(1), torch.ones(C).double())


def test_a_percentile_passes_over_outliers():
    noisy = population() @ SYMMETRIC
    noisy[:C] = EYE
    assert (estimate_noise_matrix(noisy, 100) - SYMMETRIC).abs().max() > 0.2
    assert (estimate_noise_matrix(noisy) - SYMMETRIC).abs().max() < 1e-3


@pytest.mark.parametrize("matrix", [EYE, SYMMETRIC, PAIR], ids=["identity", "symmetric", "pair"])
def test_confident_counts_give_the_matrix_back(matrix):
    clean = population(40000)
    generator = torch.Generator().manual_seed(8)
    classes = torch.multinomial(clean, 1, generator=generator)[:, 0]
    labels = xent.losses.flip_labels(classes, matrix, generator)
    estimate = confident_noise_matrix(clean @ matrix, labels)
    torch.testing.assert_close(estimate.sum(1), torch.ones(C).double())
    torch.testing.assert_close(estimate, matrix, rtol=0, atol=0.04)


def test_bad_predictions():
    p = torch.softmax(Z, 1)
    for bad in (Z, p[0], p[:0], p * math.nan, 2 * p):
        with pytest.raises(ValueError, match="probabilities"):
            estimate_noise_matrix(bad)
        with pytest.raises(ValueError, match="probabilities"):
            confident_noise_matrix(bad, Y)
    with pytest.raises(TypeError, match="probabilities"):
        estimate_noise_matrix(Y)
    with pytest.raises(ValueError, match="percentile"):
        estimate_noise_matrix(p, 101)
    for bad in (Y[:3], Y + 1):
        with pytest.raises(ValueError, match="labels"):
            confident_noise_matrix(p, bad)
    with pytest.raises(TypeError, match="labels"):
        confident_noise_matrix(p, Y.float())


def test_rows_of_any_shape_behind_a_head():
    h, w = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(C, 6, dtype=torch.float64)
    y = torch.tensor([[0, 1, 2], [3, 4, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning that all logits are needed
        found = FORWARD(xent.LinearLogits(h, w), y, matrix=ANY, reduction="none")
    z = (h @ w.T).flatten(0, 1)
    expected = FORWARD(z, y.flatten(), matrix=ANY, reduction="none")
    torch.testing.assert_close(found, expected.view(2, 3))
