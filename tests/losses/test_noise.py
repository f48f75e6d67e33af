"""Corrections for label noise: formulas, identities, digits, minimisers, derivatives."""

import math

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
from tests.helpers import nats_below_top, value_and_grad, worst
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

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


# ---- the textbook formulas ------------------------------------------------------------------


@MATRICES
def test_formulas(matrix):
    z = Z.clone().requires_grad_()
    log_p = torch.log_softmax(z, 1)
    seen = (log_p.exp() @ matrix).gather(1, Y[:, None])[:, 0]
    for loss, truth in (
        (FORWARD, -seen.log()),
        (BACKWARD, -(torch.linalg.inv(matrix)[Y] * log_p).sum(1)),
    ):
        value, grad = value_and_grad(loss, Z, Y, matrix=matrix, reduction="none")
        (slope,) = torch.autograd.grad(truth.sum(), z, retain_graph=True)
        torch.testing.assert_close(value, truth.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-13)


@CORRECTED
def test_no_noise_is_cross_entropy_for_the_surest_row(loss):
    z = torch.tensor([[40.0, 0.0, -1.0], [90.0, 0.0, -1.0], [-60.0, 0.0, -1.0]])
    y = torch.zeros(3).long()
    eye = torch.eye(3)
    a, da = value_and_grad(loss, z, y, matrix=eye, reduction="none")
    b, db = value_and_grad(xent.cross_entropy, z, y, reduction="none")
    assert worst(a, b.double()) <= 2
    assert worst(da, db.double(), nats_below_top(z)) <= 2


@pytest.mark.parametrize("rate", [0.0, 1e-12, 0.2, 0.6])
def test_symmetric_shortcuts(rate):
    matrix = xent.losses.symmetric_noise_matrix(C, rate)
    for shortcut, general in (
        (xent.losses.forward_corrected_symmetric_noise_loss, FORWARD),
        (xent.losses.backward_corrected_symmetric_noise_loss, BACKWARD),
    ):
        a, da = value_and_grad(shortcut, Z, Y, rate=rate, reduction="none")
        b, db = value_and_grad(general, Z, Y, matrix=matrix, reduction="none")
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(da, db, rtol=1e-13, atol=1e-13)
    smoothing = -rate * C / (C - 1 - rate * C)
    torch.testing.assert_close(
        xent.losses.backward_corrected_symmetric_noise_loss(Z, Y, rate=rate),
        xent.losses.smoothed_cross_entropy(Z, Y, smoothing=smoothing),
        rtol=1e-13, atol=1e-13,
    )  # fmt: skip


def exact_forward(z, matrix, y):
    """Return value and gradient in 100 digits, rounded to float64."""
    values, grads = [], []
    with mpmath.workdps(100):
        column = [mpf(v) for v in matrix[:, y].tolist()]
        for row in z.double().tolist():
            e = [mpmath.exp(mpf(v) - mpf(max(row))) for v in row]
            total = mpmath.fsum(e)
            seen = mpmath.fsum(t * v for t, v in zip(column, e, strict=True))
            values.append(float(-mpmath.log(seen / total)))
            grads.append([float(v / total - t * v / seen) for t, v in zip(column, e, strict=True)])
    return (torch.tensor(v, dtype=torch.float64) for v in (values, grads))


NEARLY = xent.losses.symmetric_noise_matrix(C, 2.0**-40)


@pytest.mark.parametrize(
    "matrix", [EYE, NEARLY, SYMMETRIC, PAIR, ANY], ids=["eye", "nearly", "sym", "pair", "any"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_at_every_margin(matrix, dtype):
    others = torch.tensor([0.0, -0.75, -4.5, 1.25], dtype=dtype)
    margins = (-80.0, -40.0, -17.5, -3.0, 0.25, 5.0, 16.0, 33.0, 80.0)
    z = torch.stack([torch.cat([torch.tensor([m], dtype=dtype), others]) for m in margins])
    for y in (0, 1, 4):
        labels = torch.full((len(z),), y)
        value, grad = value_and_grad(FORWARD, z, labels, matrix=matrix, reduction="none")
        true_value, true_grad = exact_forward(z, matrix, y)
        # The gradient p_j (1 - T_jy / sum_k T_ky p_k) cancels where T_jy equals the sum. There the
        # error is within an ulp of 1 in float64.
        cancels = (grad - true_grad).abs() <= 3e-16
        grad = torch.where(cancels, true_grad.to(dtype), grad)
        if dtype is torch.float32:
            assert worst(value, true_value) <= 1
            assert worst(grad, true_grad) <= 1
        else:
            torch.testing.assert_close(value, true_value, rtol=1e-13, atol=0)
            torch.testing.assert_close(grad, true_grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("rate", [2.0**-40, 0.2])
def test_symmetric_forward_at_every_margin(rate):
    z = torch.tensor([[m, 0.0, -0.75, -4.5] for m in (-80.0, -17.5, 0.25, 16.0, 33.0, 80.0)])
    y = torch.zeros(len(z)).long()
    matrix = xent.losses.symmetric_noise_matrix(4, rate)
    true_value, true_grad = exact_forward(z, matrix, 0)
    value, grad = value_and_grad(
        xent.losses.forward_corrected_symmetric_noise_loss, z, y, rate=rate, reduction="none"
    )
    assert worst(value, true_value) <= 4
    assert worst(grad, true_grad, nats_below_top(z)) <= 4
    value, grad = value_and_grad(
        xent.losses.forward_corrected_symmetric_noise_loss,
        z.double(),
        y,
        rate=rate,
        reduction="none",
    )
    torch.testing.assert_close(value, true_value, rtol=1e-13, atol=0)
    torch.testing.assert_close(grad, true_grad, rtol=1e-13, atol=0)


# ---- corrections find the clean minimum ------------------------------------------------------


@MATRICES
def test_backward_is_unbiased(matrix):
    clean = torch.stack([xent.cross_entropy(Z, torch.full((40,), c), reduction="none")
                         for c in range(C)], 1)  # fmt: skip
    noisy = torch.stack([BACKWARD(Z, torch.full((40,), c), matrix=matrix, reduction="none")
                         for c in range(C)], 1)  # fmt: skip
    torch.testing.assert_close(noisy @ matrix.T, clean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("matrix", [SYMMETRIC, PAIR, ANY], ids=["symmetric", "pair", "any"])
def test_the_minimiser_over_a_noisy_population_is_the_clean_posterior(matrix):
    posterior = torch.softmax(torch.randn(3, C, dtype=torch.float64), 1)
    noisy = posterior @ matrix  # the distribution of noisy labels

    def minimiser(loss, **options):
        z = torch.zeros(3, C, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [z], max_iter=200, tolerance_grad=1e-11, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def mean():
            optimizer.zero_grad()
            rows = z.repeat_interleave(C, 0)
            values = loss(rows, torch.arange(C).repeat(3), reduction="none", **options)
            total = (values.view(3, C) * noisy).sum()
            total.backward()
            return total

        optimizer.step(mean)
        return torch.softmax(z.detach(), 1)

    far = (minimiser(xent.cross_entropy) - posterior).abs().max()
    assert far > 0.03
    assert (minimiser(FORWARD, matrix=matrix) - posterior).abs().max() < 1e-7
    assert (minimiser(BACKWARD, matrix=matrix) - posterior).abs().max() < 1e-7


def test_the_matrix_can_be_learnt():
    # Given the clean posterior, the matrix that made the labels minimises the loss.
    z = torch.log_softmax(torch.randn(400, C, dtype=torch.float64) * 3, 1)
    rows, labels = z.repeat(C, 1), torch.arange(C).repeat_interleave(400)
    often = (z.exp() @ ANY).T.flatten()
    free = (2 * EYE).requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=60, line_search_fn="strong_wolfe")

    def mean():
        optimizer.zero_grad()
        total = FORWARD(rows, labels, matrix=xent.softmax(free), row_weight=often)
        total.backward()
        return total

    optimizer.step(mean)
    torch.testing.assert_close(xent.softmax(free.detach()), ANY, rtol=0, atol=1e-3)


# ---- derivatives, rows, reductions ----------------------------------------------------------


@CORRECTED
def test_derivatives_of_every_kind(loss):
    z, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    matrix = xent.losses.pair_noise_matrix(3, 0.3)

    def rows(x, t=matrix):
        return loss(x, y, matrix=t, reduction="none")

    assert torch.autograd.gradcheck(rows, z.requires_grad_())
    assert torch.autograd.gradgradcheck(rows, z)
    free = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rows(x, torch.softmax(w, 1)), (z, free))
    z = z.detach()
    tangent = torch.randn_like(z)
    jacobian = torch.autograd.functional.jacobian(rows, z)
    _, slope = torch.func.jvp(rows, (z,), (tangent,))
    torch.testing.assert_close(slope, (jacobian * tangent).sum((1, 2)))
    each = torch.func.vmap(lambda x, t: loss(x, t, matrix=matrix))(z[:, None], y[:, None])
    torch.testing.assert_close(each, rows(z))


def test_zeros_of_a_learnt_matrix_have_their_slope():
    matrix = PAIR.clone().requires_grad_()
    value = FORWARD(Z, Y, matrix=matrix, reduction="sum")
    (slope,) = torch.autograd.grad(value, matrix)
    p = torch.softmax(Z, 1)
    seen = (p @ PAIR).gather(1, Y[:, None])
    truth = -(p / seen).T @ torch.nn.functional.one_hot(Y, C).double()
    torch.testing.assert_close(slope, truth)


@CORRECTED
def test_extra_axes_ignored_rows_and_reductions(loss):
    call = {"matrix": ANY}
    rows = loss(Z, Y, reduction="none", **call)
    stacked = Z.view(8, 5, C).movedim(2, 1)  # (N, C, d)
    torch.testing.assert_close(loss(stacked, Y.view(8, 5), reduction="none", **call).view(-1), rows)
    torch.testing.assert_close(loss(Z[0], Y[0], reduction="none", **call), rows[0])
    gone = Y.clone()
    gone[::3] = -100
    spoiled = Z.clone()
    spoiled[::3] = math.nan
    value, grad = value_and_grad(loss, spoiled, gone, **call)
    kept = gone >= 0
    torch.testing.assert_close(value, rows[kept].mean())
    assert not grad[~kept].any()
    assert grad.isfinite().all()
    row_weight = torch.rand(40, dtype=torch.float64)
    torch.testing.assert_close(
        loss(Z, Y, row_weight=row_weight, **call), (rows * row_weight).sum() / row_weight.sum()
    )
    torch.testing.assert_close(loss(Z, Y, normalizer=7, **call), rows.sum() / 7)
    nothing = torch.full_like(Y, -100)
    assert loss(Z, nothing, **call).isnan()
    value, grad = value_and_grad(loss, Z, nothing, empty="zero", **call)
    assert value == 0
    assert not grad.any()


def test_class_weights():
    weight = torch.linspace(0.5, 2, C, dtype=torch.float64)
    rows = FORWARD(Z, Y, matrix=ANY, reduction="none")
    torch.testing.assert_close(
        FORWARD(Z, Y, weight, matrix=ANY), (weight[Y] * rows).sum() / weight[Y].sum()
    )
    # Backward correction estimates the weighted loss of the clean class.
    clean = torch.stack([xent.cross_entropy(Z, torch.full((40,), c), weight, reduction="none")
                         for c in range(C)], 1)  # fmt: skip
    noisy = torch.stack([BACKWARD(Z, torch.full((40,), c), weight, matrix=ANY, reduction="none")
                         for c in range(C)], 1)  # fmt: skip
    torch.testing.assert_close(noisy @ ANY.T, clean)


def test_dtypes():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        value, grad = value_and_grad(FORWARD, Z.to(dtype), Y, matrix=ANY, reduction="none")
        assert value.dtype == grad.dtype == dtype
        truth, slope = value_and_grad(
            FORWARD, Z.to(dtype).double(), Y, matrix=ANY, reduction="none"
        )
        assert worst(value, truth) <= 1
        assert worst(grad, slope) <= 1
        BACKWARD(Z.to(dtype), Y, matrix=ANY.float())


def test_forward_with_masked_classes():
    z = Z.clone()
    z[:, 2] = -torch.inf
    value, grad = value_and_grad(FORWARD, z, Y, matrix=ANY, reduction="none")
    p = torch.softmax(z, 1)
    torch.testing.assert_close(value, -(p @ ANY).gather(1, Y[:, None])[:, 0].log())
    assert not grad[:, 2].any()
    # No unmasked class leads to the label: the loss is infinite, and the gradient has no NaN.
    value, grad = value_and_grad(FORWARD, z, torch.full_like(Y, 2), matrix=EYE, reduction="none")
    assert value.isposinf().all()
    assert grad.isfinite().all()
    # Only the class of the label is unmasked, so the loss is 0.
    alone = torch.full((1, C), -torch.inf)
    alone[0, 3] = 1.0
    value, grad = value_and_grad(FORWARD, alone, torch.tensor([3]), matrix=torch.eye(C))
    assert value == 0
    assert not grad.any()


def test_far_out_and_broken_logits():
    for height in (1e2, 1e4):
        z = torch.tensor([[height, -height, 0.0], [-height, height, 0.0], [0.0, -height, 0.0]])
        for matrix in (torch.eye(3).double(), xent.losses.pair_noise_matrix(3, 0.3)):
            for loss in (FORWARD, BACKWARD):
                value, grad = value_and_grad(
                    loss, z, torch.zeros(3).long(), matrix=matrix, reduction="none"
                )
                assert value.isfinite().all()
                assert grad.isfinite().all()
    z = torch.zeros(3, C)
    z[0, 1], z[1, 1] = math.inf, math.nan
    value = FORWARD(z, Y[:3], matrix=ANY, reduction="none")
    assert value.isnan().tolist() == [True, True, False]


def test_an_entry_rounded_to_above_one():
    matrix = torch.eye(3) * (1 + torch.finfo(torch.float32).eps)
    value, grad = value_and_grad(FORWARD, torch.tensor([[90.0, 0.0, 1.0]]), Y[:1], matrix=matrix)
    assert value.isfinite()
    assert grad.isfinite().all()


def test_backward_has_no_lower_bound():
    z = torch.tensor([[0.0, -60.0, 0.0]])
    assert BACKWARD(z, torch.tensor([0]), matrix=xent.losses.symmetric_noise_matrix(3, 0.4)) < -20
