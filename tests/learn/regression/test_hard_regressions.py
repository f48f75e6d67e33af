"""Regressions on hard columns: as good as a slow exact solver, or a warning says how far.

A data set is of several kinds at once: heavy tails, constants, copies, rare categories, units from
1e-12 to 1e12, codes for missing values, timestamps; with and without a penalty.
"""

import re
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning

from tests.learn.regression.exact_regression import hard_problem, least, objective
from xent.learn import LogisticRegression, SeparationWarning, SoftmaxRegression
from xent.learn.regression import design, solvers
from xent.learn.regression.design import Design

CLOSE = 1e-8  # nats


def fitted(model, x, y, weight=None):
    """Return the model, and the largest distance from the minimum that its warnings claim."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.fit(x, y, weight)
    said = [float(n) for w in seen for n in re.findall(r"about (\S+) nats above", str(w.message))]
    return model, max(said, default=0.0)


def judge(problem, model, said):
    """Assert that the objective is within `CLOSE` of the least, or the warning claims enough."""
    found = objective(problem, model.coef_, model.intercept_)
    above = float(found - least(problem, model.coef_, model.intercept_))
    assert above <= max(CLOSE, 5 * said), f"{above:.2g} nats above, said {said:.2g}: {problem.name}"


def check(seed, **settings):
    problem = hard_problem(seed)
    model = SoftmaxRegression(problem.C, fit_intercept=problem.intercept, **settings)
    judge(problem, *fitted(model, problem.x, problem.y, problem.weight))


@pytest.mark.parametrize("seed", range(24))
def test_the_least_objective_or_how_far(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24, 174))
def test_the_least_objective_or_how_far_of_more(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "trust-region"])
@pytest.mark.parametrize("seed", range(40))
def test_the_least_objective_or_how_far_by_other_solvers(seed, solver):
    check(seed, solver=solver, max_iter=300)


def test_most_data_sets_need_no_warning():
    """Otherwise a warning for every data set would pass the other tests."""
    said = 0
    for seed in range(24):
        problem = hard_problem(seed)
        model = SoftmaxRegression(problem.C, fit_intercept=problem.intercept)
        said += fitted(model, problem.x, problem.y, problem.weight)[1] > 0
    assert said <= 4


# ---- one kind at a time -----------------------------------------------------------------------


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    f = rng.normal(size=200)
    return f, (rng.random(200) < 1 / (1 + np.exp(-1.2 * f + 0.3))).astype(int)


CONSTANTS = [1.0, 7.0, -0.1, 1 / 3, 1e8, 1e-8, 0.0]
SOLVERS = ["auto", "lbfgs", "newton-cg", "trust-region", "newton"]


def mean_loss(model, x, y):
    return -model.predict_log_proba(x)[np.arange(len(y)), y].mean()


@pytest.mark.sample(25)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("kind", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_a_constant_column_changes_nothing(rows, solver, constant, kind):
    f, y = rows
    alone, _ = fitted(LogisticRegression(np.inf, tol=1e-9), f[:, None], y)
    x = np.column_stack([np.full(200, constant), f])
    model, said = fitted(LogisticRegression(np.inf, solver=solver, tol=1e-9), kind(x), y)
    assert said == 0
    assert mean_loss(model, x, y) == pytest.approx(mean_loss(alone, f[:, None], y), abs=1e-12)
    assert model.coef_[0, 1] == pytest.approx(alone.coef_[0, 0], abs=1e-6)


@pytest.mark.parametrize("penalty", [{}, {"l1_ratio": 1.0}, {"l1_ratio": 0.5}])
def test_a_penalised_constant_column_is_0(rows, penalty):
    f, y = rows
    for constant in CONSTANTS:
        x = np.column_stack([np.full(200, constant), f])
        assert abs(LogisticRegression(**penalty).fit(x, y).coef_[0, 0]) < 1e-12


@pytest.mark.parametrize("without_hessian", [False, True])
@pytest.mark.parametrize("offset", [1e4, 1e6, -1e9])
def test_columns_that_hardly_vary(rows, offset, without_hessian, monkeypatch):
    """A timestamp: the fit is that of the part that varies, with each solver."""
    if without_hessian:
        monkeypatch.setattr(solvers, "WORK", 0)
    f, y = rows
    alone, _ = fitted(LogisticRegression(np.inf), f[:, None], y)
    moved, said = fitted(LogisticRegression(np.inf), f[:, None] + offset, y)
    assert said == 0
    assert moved.coef_[0, 0] == pytest.approx(alone.coef_[0, 0], rel=1e-5)
    l1 = [LogisticRegression(l1_ratio=1.0).fit(f[:, None] + o, y).coef_[0, 0] for o in (0, offset)]
    assert l1[1] == pytest.approx(l1[0], rel=1e-4)


@pytest.mark.parametrize("value", [1e5, 1e8, -99999999.0, 1e15])
@pytest.mark.parametrize("C", [1.0, np.inf])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_row_far_out(value, C, classes):
    """In the limit that row is right, and the other rows have the class frequencies."""
    y = np.random.default_rng(7).integers(classes, size=201)
    x = np.r_[np.zeros(200), value][:, None]
    share = np.bincount(y[:-1]) / 200
    limit = -200 / 201 * (share * np.log(share)).sum()
    model, said = fitted(SoftmaxRegression(C), x, y)
    above = mean_loss(model, x, y) + 0.5 * np.square(model.coef_).sum() / (C * 201) - limit
    assert above < 1e-8 + 1e3 * value**-2
    assert said == 0


def test_copies_share_their_coefficient(rows):
    f, y = rows
    alone, _ = fitted(LogisticRegression(np.inf), f[:, None], y)
    for factors in ([1, 1], [1, -1], [1, 1000, 0.25]):
        model, said = fitted(LogisticRegression(np.inf), f[:, None] * factors, y)
        assert said == 0
        assert model.coef_[0] @ factors == pytest.approx(alone.coef_[0, 0], rel=1e-6)
        assert np.abs(model.coef_[0] * factors).max() < 2


def test_two_units_of_a_timestamp_are_one_column(rows):
    """Seconds and minutes differ by rounding, which is no feature to learn from."""
    f, y = rows
    seconds = 1.7e9 + np.round(1e4 * f)
    model, said = fitted(LogisticRegression(np.inf), np.c_[seconds, seconds / 60], y)
    alone, _ = fitted(LogisticRegression(np.inf), seconds[:, None], y)
    assert mean_loss(model, np.c_[seconds, seconds / 60], y) == pytest.approx(
        mean_loss(alone, seconds[:, None], y), abs=1e-6
    )
    assert said > 0
    assert np.abs(model.coef_ * seconds.std()).max() < 100


@pytest.mark.parametrize("scale", [1e160, 1e300, 1e100, 1e-100])
def test_values_of_any_size(rows, scale):
    f, y = rows
    plain, _ = fitted(LogisticRegression(np.inf), f[:, None], y)
    model, said = fitted(LogisticRegression(np.inf), f[:, None] * scale, y)
    assert said == 0
    assert model.coef_[0, 0] * scale == pytest.approx(plain.coef_[0, 0], rel=1e-6)


@pytest.mark.parametrize("settings", [{"solver": "lbfgs"}, {"l1_ratio": 1.0}])
def test_values_too_large_for_a_solver_are_refused(rows, settings):
    f, y = rows
    with pytest.raises(ValueError, match="scale the features"):
        LogisticRegression(**settings).fit(f[:, None] * 1e160, y)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_single_precision_of_any_size(rows, scale):
    f, y = rows
    model, _ = fitted(LogisticRegression(np.inf), (f[:, None] * scale).astype(np.float32), y)
    plain, _ = fitted(LogisticRegression(np.inf), f[:, None], y)
    assert model.coef_[0, 0] * scale == pytest.approx(plain.coef_[0, 0], rel=1e-5)


# ---- what is said -----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("max_iter", [1, 3])
def test_the_warning_says_how_far(solver, max_iter):
    """The claim comes from Newton's quadratic model, so it holds within a factor of 3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = (x @ rng.normal(size=(4, 3)) + rng.gumbel(size=(300, 3))).argmax(1)
    best = SoftmaxRegression(tol=1e-10).fit(x, y).history_[-1]
    with pytest.warns(ConvergenceWarning, match=r"raise max_iter"):
        SoftmaxRegression(solver=solver, max_iter=max_iter, tol=1e-12).fit(x, y)
    model, said = fitted(SoftmaxRegression(solver=solver, max_iter=max_iter, tol=1e-12), x, y)
    above = model.history_[-1] - best
    assert above / 3 <= said <= 3 * above + 1e-9


def test_separation_says_how_far_when_it_was_cut_short():
    x, y = np.arange(20.0)[:, None], np.arange(20) > 9
    with pytest.warns(SeparationWarning, match=r"about \S+ nats above its limit"):
        LogisticRegression(np.inf, max_iter=3).fit(x, y)
    model, said = fitted(LogisticRegression(np.inf), x, y)
    assert said == 0
    assert mean_loss(model, x, y * 1) < 1e-10


def test_rows_that_stay_sparse_and_single(rows, monkeypatch):
    """The way for rows that are too large to be made dense and double."""
    monkeypatch.setattr(design, "SMALL", 0)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(150, 5)) * (rng.random((150, 5)) < 0.4) + [0, 0, 0, 5, 0]
    y = (x @ rng.normal(size=(5, 3)) + rng.gumbel(size=(150, 3))).argmax(1)
    exact = SoftmaxRegression(tol=1e-9).fit(x, y)
    for other in (csr_array(x), x.astype(np.float32), csr_array(x.astype(np.float32))):
        model, said = fitted(SoftmaxRegression(), other, y)
        assert said == 0
        np.testing.assert_allclose(model.coef_, exact.coef_, atol=1e-4)
        with pytest.raises(ValueError, match="solver='auto'"):
            SoftmaxRegression(solver="newton").fit(other, y)


def test_spread_about_the_mean_of_sparse_rows_is_that_of_dense_ones():
    x = np.array([[0.0, 1e8], [3.0, 1e8 + 1], [0.0, 1e8 + 3], [1.0, 1e8]])
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    exact = [weight.numpy() @ (x[:, j] - weight.numpy() @ x[:, j]) ** 2 for j in range(2)]
    for rows in (x, csr_array(x)):
        design = Design(rows, weight, intercept=True)
        assert design.mean_squares(design.means()).tolist()[:2] == pytest.approx(exact, rel=1e-6)


@pytest.fixture
def years():
    """Return powers of years, which nearly are multiples of each other."""
    x = np.random.default_rng(0).normal(size=(300, 4))
    chance = 1 / (1 + np.exp(-x @ [1, -0.5, 0.3, 0]))
    y = (np.random.default_rng(1).random(300) < chance).astype(int)
    powers = [np.linspace(1950, 2020, 300) ** k for k in (1, 2, 3)]
    return np.column_stack([x, *powers]), y


@pytest.mark.parametrize(
    ("solver", "penalty"),
    [("auto", {"C": 1e6, "l1_ratio": 0.9}), ("accelerated", {"C": np.inf}),
     ("gradient-descent", {"C": np.inf}), ("accelerated", {"C": 1.0, "l1_ratio": 1.0})],
)  # fmt: skip
def test_much_left_along_a_direction_of_little_curvature(years, solver, penalty):
    """Each entry of the gradient is small there."""
    x, y = years
    model = SoftmaxRegression(solver=solver, max_iter=200, **penalty)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(x, y)
    ratio, n = penalty.get("l1_ratio", 0.0), len(x)

    def objective_of(one):
        size = np.abs(one.coef_).sum() * ratio + 0.5 * np.square(one.coef_).sum() * (1 - ratio)
        return mean_loss(one, x, y) + (0 if penalty["C"] == np.inf else size / (penalty["C"] * n))

    free = SoftmaxRegression(C=np.inf).fit(x, y)  # for weak penalties nearly the best fit
    above = objective_of(model) - objective_of(free)
    assert above < 1e-8 or any("nats above" in str(one.message) for one in said)


@pytest.mark.parametrize("scale", [1e-160, 1e-290, 1e-305])
def test_a_tiny_column_does_not_stop_the_others(rows, scale):
    x, y = rows[0][:, None], rows[1]
    small = scale * np.random.default_rng(2).normal(size=len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SoftmaxRegression(C=np.inf).fit(np.c_[x, small], y)
        alone = SoftmaxRegression(C=np.inf).fit(x, y)
    assert mean_loss(model, np.c_[x, small], y) <= mean_loss(alone, x, y) + 1e-8


@pytest.mark.slow
def test_one_value_far_out_in_many_rows_of_float32():
    random = np.random.default_rng(1)
    x = random.normal(size=(60_000, 70)).astype(np.float32)
    y = (random.random(60_000) < 1 / (1 + np.exp(x[:, 6] - x[:, 5]))).astype(int)
    x[0, 3] = 1e8
    model = SoftmaxRegression(C=np.inf).fit(x, y)
    without = np.delete(x, 0, 0), np.delete(y, 0)
    best = SoftmaxRegression(C=np.inf).fit(without[0].astype(np.float64), without[1])
    # The row far out costs 0 or log 2, and the other rows cost at least as much as alone.
    assert 60_000 * mean_loss(model, x, y) <= 59_999 * mean_loss(best, *without) + np.log(2) + 1e-4
