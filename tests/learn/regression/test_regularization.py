"""Regularisation paths, the solvers for l1, and statsmodels' results without a penalty."""

from itertools import product

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

import sklearn
from scipy.sparse import csr_array
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression as ScikitLearn
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from xent.learn import LogisticRegression, SoftmaxRegression, regularization_path, smallest_C

# Before 1.8 scikit-learn reads `l1_ratio` only with `penalty`; since 1.8 it refuses `penalty`.
OLD = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8)
LOADERS = {
    "breast_cancer": load_breast_cancer,
    "iris": load_iris,
    "wine": load_wine,
    "digits": load_digits,
}


def data(name, rows=None):
    """Return standardised features and classes, or every k-th row of them."""
    x, y = LOADERS[name](return_X_y=True)
    step = 1 if rows is None else len(x) // rows
    return StandardScaler().fit_transform(x[::step]), y[::step]


def strongest(x, onehot, weight=None):
    """Return the l1 strength that leaves no coefficient, from the formula for cross-entropy."""
    weight = np.ones(len(x)) if weight is None else weight
    weight = weight / weight.sum()
    return np.abs(x.T @ (weight[:, None] * (onehot - weight @ onehot))).max()


def violation(model, x, y, lam, ridge=0.0):
    """Return how far coefficients are from the conditions of a minimum with l1."""
    p = model.predict_proba(x)
    gradient = (p - (y[:, None] == model.classes_)).T @ x / len(x)
    gradient = gradient[-len(model.coef_) :] + ridge * model.coef_
    at_zero = np.maximum(np.abs(gradient) - lam, 0)
    elsewhere = np.abs(gradient + lam * np.sign(model.coef_))
    return np.where(model.coef_ == 0, at_zero, elsewhere).max()


def objective(model, x, y, lam, l1_ratio):
    p = model.predict_proba(x)[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    w = model.coef_
    size = l1_ratio * np.abs(w).sum() + (1 - l1_ratio) / 2 * np.square(w).sum()
    return -np.log(p).mean() + lam * size


# ---- where the path begins ------------------------------------------------------------------


@pytest.mark.parametrize("l1_ratio", [1.0, 0.3])
@pytest.mark.parametrize("name", LOADERS)
def test_smallest_c_of_cross_entropy(name, l1_ratio):
    x, y = data(name)
    known = l1_ratio / (len(x) * strongest(x, y[:, None] == np.unique(y)))
    found = smallest_C(SoftmaxRegression(l1_ratio=l1_ratio), x, y)
    assert found == pytest.approx(known, rel=1e-12)


def test_smallest_c_with_weights_of_rows_and_classes():
    x, y = data("iris")
    weight = np.random.default_rng(0).integers(0, 4, len(x))
    of_class = {0: 1.0, 1: 2.0, 2: 0.5}
    total = weight * np.array([of_class[label] for label in y])
    known = 1 / (total.sum() * strongest(x, y[:, None] == np.arange(3), total))
    model = SoftmaxRegression(l1_ratio=1, class_weight=of_class)
    assert smallest_C(model, x, y, weight) == pytest.approx(known, rel=1e-12)
    repeated = smallest_C(model, np.repeat(x, weight, 0), np.repeat(y, weight))
    assert smallest_C(model, x, y, weight) == pytest.approx(repeated, rel=1e-12)


def test_smallest_c_of_several_labels():
    x, y = data("breast_cancer")
    labels = np.stack([y, x[:, 0] > 1, x[:, 3] + x[:, 7] > 0], 1).astype(int)
    known = 1 / (len(x) * strongest(x, labels))
    model = LogisticRegression(l1_ratio=1)
    assert smallest_C(model, x, labels) == pytest.approx(known, rel=1e-12)


def test_smallest_c_without_intercept():
    x, y = data("iris")
    known = 1 / (len(x) * np.abs(x.T @ ((y[:, None] == np.arange(3)) - 1 / 3) / len(x)).max())
    model = SoftmaxRegression(l1_ratio=1, fit_intercept=False)
    assert smallest_C(model, x, y) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal_loss"])
def test_the_first_coefficient_comes_at_smallest_c(loss):
    x, y = data("wine")
    model = SoftmaxRegression(l1_ratio=1, loss=loss, tol=1e-9)
    least = smallest_C(model, x, y)
    below = model.set_params(C=0.999 * least).fit(x, y).coef_
    assert np.count_nonzero(below) == 0
    above = model.set_params(C=1.001 * least).fit(x, y).coef_
    assert np.count_nonzero(above) > 0


def test_features_without_information():
    x, y = np.ones((6, 2)), [0, 1, 0, 1, 0, 1]
    model = SoftmaxRegression(l1_ratio=1)
    assert smallest_C(model, x, y) > 1e12
    with pytest.raises(ValueError, match="no feature tells anything"):
        regularization_path(model, 0 * x, y)


# ---- the path -------------------------------------------------------------------------------


def test_breast_cancer():
    x, y = data("breast_cancer")
    model = SoftmaxRegression(l1_ratio=1)
    least = smallest_C(model, x, y)
    assert 1 / (len(x) * least) == pytest.approx(0.38368324, abs=5e-9)
    shares = [1.001, 0.999, 0.5, 0.1, 0.01]
    path = regularization_path(model, x, y, [least / share for share in shares])
    assert path.nonzero.tolist() == [0, 1, 3, 5, 13]
    assert path.loss[2:] == pytest.approx([0.38349, 0.15874, 0.06615], abs=5e-6)
    assert path.lambdas == pytest.approx(0.38368324 * np.array(shares), rel=1e-7)
    printed = str(path).splitlines()[-1].split()[2:4]
    assert printed[0] == "13"
    assert float(printed[1]) == pytest.approx(path.loss[-1], abs=6e-7)  # six decimals


def test_the_path_is_that_of_single_fits():
    x, y = data("iris")
    model = SoftmaxRegression(l1_ratio=0.5, tol=1e-10)
    path = regularization_path(model, x, y, 5)
    assert not hasattr(model, "coef_")
    assert path.Cs[0] == smallest_C(model, x, y)
    assert path.Cs[-1] == pytest.approx(1000 * path.Cs[0])
    assert path.nonzero[0] == 0
    assert np.exp(path.intercepts[0]) / np.exp(path.intercepts[0]).sum() == pytest.approx(1 / 3)
    for i, C in enumerate(path.Cs):
        single = SoftmaxRegression(C=C, l1_ratio=0.5, tol=1e-10).fit(x, y)
        lam = 1 / (C * len(x))
        assert path.objective[i] == pytest.approx(objective(single, x, y, lam, 0.5), abs=1e-9)
        assert path.coef[i] == pytest.approx(single.coef_, abs=1e-5)
        assert path.nonzero[i] == np.count_nonzero(path.coef[i])


def test_ridge_takes_values_in_any_order():
    x, y = data("iris")
    path = regularization_path(SoftmaxRegression(tol=1e-9), x, y, [1.0, 0.1])
    assert path.Cs.tolist() == [0.1, 1.0]
    single = SoftmaxRegression(C=1.0, tol=1e-9).fit(x, y)
    assert path.coef[1] == pytest.approx(single.coef_, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "Cs", "error", "message"),
    [
        (RidgeClassifier(), 5, TypeError, "must be a SoftmaxRegression"),
        (SoftmaxRegression(), 5, ValueError, "give the values of `Cs`, or set l1_ratio"),
        (SoftmaxRegression(l1_ratio=1), 0, ValueError, "at least 1"),
        (SoftmaxRegression(l1_ratio=1), [], ValueError, "`Cs` must be positive"),
        (SoftmaxRegression(l1_ratio=1), [1.0, -1.0], ValueError, "`Cs` must be positive"),
        (SoftmaxRegression(l1_ratio=1), [1.0, np.inf], ValueError, "`Cs` must be positive"),
        (SoftmaxRegression(l1_ratio=2), 5, ValueError, "`l1_ratio` must be"),
    ],
)
def test_bad_input(estimator, Cs, error, message):
    with pytest.raises(error, match=message):
        regularization_path(estimator, *data("iris"), Cs)


# ---- the solvers for l1 ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "solver"),
    [*product(LOADERS, ["proximal-newton", "accelerated"]), ("iris", "gradient-descent")],
)
def test_converged_means_the_conditions_of_a_minimum(name, solver):
    x, y = data(name, 200 if name == "digits" else None)
    lam = 0.5 * strongest(x, y[:, None] == np.unique(y))
    model = SoftmaxRegression(
        C=1 / (len(x) * lam), l1_ratio=1, solver=solver, tol=1e-5, max_iter=20_000
    )
    model.fit(x, y)
    assert violation(model, x, y, lam) <= 1.001e-5
    assert 0 < np.count_nonzero(model.coef_) < model.coef_.size


@pytest.mark.parametrize("share", [0.5, 0.01, 0.001])
@pytest.mark.parametrize("name", ["breast_cancer", "iris", "wine"])
def test_proximal_newton_takes_few_steps(name, share):
    x, y = data(name)
    lam = share * strongest(x, y[:, None] == np.unique(y))
    model = SoftmaxRegression(C=1 / (len(x) * lam), l1_ratio=1, tol=1e-8).fit(x, y)
    assert violation(model, x, y, lam) <= 1.001e-8
    assert model.n_iter_ <= 20
    assert (np.diff(model.history_) <= 1e-12).all()


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
@pytest.mark.parametrize("name", ["iris", "wine"])
def test_objective_is_that_of_scikit_learn(name, l1_ratio):
    x, y = data(name)
    lam = 0.1
    C = 1 / (len(x) * lam)
    ours = SoftmaxRegression(C=C, l1_ratio=l1_ratio, tol=1e-9).fit(x, y)
    theirs = ScikitLearn(
        C=C,
        l1_ratio=l1_ratio,
        solver="saga",
        tol=1e-7,
        max_iter=20_000,
        random_state=0,
        **({"penalty": "elasticnet"} if OLD else {}),
    ).fit(x, y)
    values = [objective(model, x, y, lam, l1_ratio) for model in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], abs=1e-8)
    assert values[0] <= values[1] + 1e-12
    assert ours.coef_ == pytest.approx(theirs.coef_, abs=1e-4)


def test_without_intercept_it_is_liblinear():
    x, y = data("breast_cancer")
    ours = SoftmaxRegression(C=0.05, l1_ratio=1, fit_intercept=False, tol=1e-9).fit(x, y)
    theirs = ScikitLearn(
        C=0.05,
        solver="liblinear",
        fit_intercept=False,
        tol=1e-10,
        max_iter=10_000,
        **({"penalty": "l1"} if OLD else {"l1_ratio": 1}),
    ).fit(x, y)
    assert ours.coef_ == pytest.approx(theirs.coef_, abs=1e-5)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_sparse_rows(name):
    x, y = data(name)
    x = np.where(np.abs(x) > 0.7, x, 0)
    model = SoftmaxRegression(C=0.1, l1_ratio=0.8, tol=1e-10, solver="proximal-newton")
    dense = model.fit(x, y).coef_
    assert model.fit(csr_array(x), y).coef_ == pytest.approx(dense, abs=1e-7)


def test_several_labels_are_as_many_fits():
    x, y = data("breast_cancer")
    labels = np.stack([y, x[:, 3] + x[:, 7] > 0], 1).astype(int)
    model = LogisticRegression(C=0.1, l1_ratio=1, tol=1e-10)
    together = model.fit(x, labels).coef_.copy()
    for k in range(2):
        assert model.fit(x, labels[:, k]).coef_[0] == pytest.approx(together[k], abs=1e-6)


def test_a_loss_that_is_not_convex():
    x, y = data("iris")
    C, loss = 1.0, "generalized_cross_entropy"
    fits = [
        SoftmaxRegression(C=C, l1_ratio=1, loss=loss, tol=1e-7, solver=solver, max_iter=20_000)
        for solver in ("proximal-newton", "accelerated")
    ]
    newton, accelerated = (fit.fit(x, y) for fit in fits)
    assert newton.history_[-1] == pytest.approx(accelerated.history_[-1], abs=1e-9)
    assert newton.n_iter_ < accelerated.n_iter_


# ---- no penalty -----------------------------------------------------------------------------


def statsmodels_fit(dataset, kind):
    """Return features, classes, and the fit of statsmodels, the constant last."""
    sm = pytest.importorskip("statsmodels.api")
    frame = getattr(sm.datasets, dataset).load_pandas()
    x, y = np.asarray(frame.exog, float), np.asarray(frame.endog).astype(int)
    model = getattr(sm, kind)(y, sm.add_constant(x, prepend=False))
    return x, y, model.fit(method="newton", tol=1e-12, maxiter=100, disp=0)


def log_likelihood(model, x, y):
    log_p = model.predict_log_proba(x)
    return log_p[np.arange(len(y)), np.searchsorted(model.classes_, y)].sum()


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs", "trust-region"])
def test_spector(solver):
    x, y, theirs = statsmodels_fit("spector", "Logit")
    ours = LogisticRegression(C=np.inf, solver=solver, tol=1e-7).fit(x, y)
    w = np.append(ours.coef_[0], ours.intercept_)
    assert w == pytest.approx([2.8261, 0.0952, 2.3787, -13.0213], abs=5e-5)
    assert w == pytest.approx(theirs.params, abs=1e-6)
    assert log_likelihood(ours, x, y) == pytest.approx(-12.890, abs=5e-4)


def test_anes96():
    x, y, theirs = statsmodels_fit("anes96", "MNLogit")
    ours = SoftmaxRegression(C=np.inf, tol=1e-9).fit(x, y)
    w = np.hstack([ours.coef_, ours.intercept_[:, None]])
    assert len(x) == 944
    w = (w[1:] - w[0]).T
    assert w == pytest.approx(theirs.params, abs=1e-6)
    assert log_likelihood(ours, x, y) == pytest.approx(-1461.92, abs=5e-3)
