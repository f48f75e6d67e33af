"""Products that threads share, Newton steps by conjugate gradients, and maps by Cholesky or QR."""

import multiprocessing

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.datasets import load_iris
from threadpoolctl import threadpool_info, threadpool_limits

from xent.learn import SoftmaxRegression
from xent.learn.regression import design as designs
from xent.learn.regression import newton
from xent.learn.regression.design import Design
from xent.learn.regression.shares import in_threads, one_blas_thread, shares_of
from xent.learn.regression.solvers import newton_step


@pytest.fixture
def three_threads():
    """Let PyTorch, and so the shares, have three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sparse", [False, True])
def test_shared_products_are_those_of_all_rows(
    sparse, dtype, intercept, monkeypatch, three_threads
):
    monkeypatch.setattr(designs, "WORTH", 0)
    monkeypatch.setattr(designs, "CACHE", 20)  # blocks of 5 rows
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 4)) * (rng.random((50, 4)) < 0.5)).astype(dtype)
    weight = torch.full((50,), 1 / 50, dtype=torch.float64)
    design = Design(csr_array(x) if sparse else x.copy(), weight, intercept=intercept)
    ones = np.hstack([x, np.ones((50, 1))]) if intercept else x.astype(float)
    w, slopes = rng.normal(size=(3, design.columns)), rng.normal(size=(50, 3))
    near = {"rtol": 1e-12, "atol": 1e-13} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-6}
    assert len(design._shares(3)) == 3
    np.testing.assert_allclose(design.scores(torch.from_numpy(w)).numpy(), ones @ w.T, **near)
    assert not design.scores(torch.zeros(3, design.columns, dtype=torch.float64)).any()
    pulled = design.pull_back(torch.from_numpy(slopes)).numpy()
    np.testing.assert_allclose(pulled, slopes.T @ ones, **near)
    squares = design.pull_back_squares(torch.from_numpy(slopes**2)).numpy()
    np.testing.assert_allclose(squares, (slopes**2).T @ ones**2, **near)
    single = design.single.x
    assert np.array_equal(single.toarray() if sparse else single.numpy(), x.astype(np.float32))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 100])
def test_shares_hold_each_row_once(rows, three_threads):
    shares = shares_of(rows)
    assert len(shares) <= 3
    assert [row for some in shares for row in range(rows)[some]] == list(range(rows))


def _product_after_fork() -> None:
    assert in_threads(lambda k: k + 1, [1, 2]) == [2, 3]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_fork_has_threads_of_its_own():
    assert in_threads(lambda k: k + 1, [1, 2]) == [2, 3]  # the threads of this process
    child = multiprocessing.get_context("fork").Process(target=_product_after_fork, daemon=True)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def _blas_threads() -> list[int]:
    pools = threadpool_info()
    return [p["num_threads"] for p in pools if p["prefix"] == "libscipy_openblas"]


def test_fits_that_overlap_in_time_restore_the_threads_of_blas():
    if not _blas_threads():
        pytest.skip("NumPy has another library of linear algebra")
    with threadpool_limits(2):
        before = _blas_threads()
        assert 2 in before
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(_blas_threads()) == {1}  # the second still needs one
        second.__exit__(None, None, None)
        assert _blas_threads() == before


@pytest.mark.parametrize("little", [0.0, np.inf])
def test_a_newton_step_gains_what_it_says(little):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(30, 8))
    hessian, gradient = root.T @ root / 30, rng.normal(size=8)
    step, gained = newton_step(lambda v: hessian @ v, gradient, np.eye(8), little)
    assert gained == pytest.approx(-(gradient @ step + 0.5 * step @ hessian @ step), rel=1e-9)
    most, left = 0.5 * gradient @ np.linalg.solve(hessian, gradient), gradient + hessian @ step
    if little == 0:
        assert np.linalg.norm(left) <= 0.1 * np.linalg.norm(gradient)
        assert gained == pytest.approx(most, rel=0.05)
    assert left @ left <= 0.25 * gradient @ gradient


def test_nothing_is_gained_without_a_gradient():
    step, gained = newton_step(lambda v: v, np.zeros(3), np.eye(3), 0.0)
    assert not step.any()
    assert gained == 0


@pytest.mark.parametrize("C", [0.1, 10.0])
def test_sums_of_products_lead_where_rows_do(C, monkeypatch):
    x, y = load_iris(return_X_y=True)
    taken = []

    def maps(model, unit, given, by_rows=newton.Model._maps_by_qr):
        taken.append(model)
        return by_rows(model, unit, given)

    monkeypatch.setattr(newton.Model, "_maps_by_qr", maps)
    by_sums = SoftmaxRegression(C, solver="newton").fit(x, y)
    assert not taken
    monkeypatch.setattr(newton, "WELL", np.inf)
    by_rows = SoftmaxRegression(C, solver="newton").fit(x, y)
    assert taken
    np.testing.assert_allclose(by_sums.coef_, by_rows.coef_, rtol=1e-7, atol=1e-9)
    assert by_sums.n_iter_ == by_rows.n_iter_


def test_columns_that_agree_in_many_digits_are_not_summed(monkeypatch):
    x, y = load_iris(return_X_y=True)
    x = np.hstack([x, x[:, :1] + 1e-7 * x[:, 1:2]])
    monkeypatch.setattr(newton.Model, "_maps_by_qr", None)  # cannot be called
    with pytest.raises(TypeError, match="not callable"):
        SoftmaxRegression(1e12, solver="newton").fit(x, y)
