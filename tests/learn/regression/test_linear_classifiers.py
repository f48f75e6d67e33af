"""Softmax and logistic regression: against scikit-learn, laws, and refused input."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import sklearn
import torch
from scipy.sparse import csr_array
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Sklearn
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import xent
from xent.learn import LogisticRegression, SeparationWarning, SoftmaxRegression
from xent.learn.regression import linear_objective, solvers
from xent.learn.regression.criteria import softmax_criterion
from xent.learn.regression.curvature import ALL, AutogradCurvature, SoftmaxCurvature
from xent.learn.regression.design import Design
from xent.learn.regression.linear_objective import Objective
from xent.learn.regression.solvers import FIRST_ORDER, SMOOTH

SKLEARN = tuple(map(int, sklearn.__version__.split(".")[:2]))

BOTH = (SoftmaxRegression, LogisticRegression)
LOADERS = (load_iris, load_wine, load_digits, load_breast_cancer)


# The same as `parametrize_with_checks`, for which pytest 9 warns up to scikit-learn 1.7.
CHECKS = [each for model in BOTH for each in estimator_checks_generator(model())]


@pytest.mark.parametrize(
    ("estimator", "check"), CHECKS, ids=lambda x: getattr(x, "func", type(x)).__name__
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def standardised(load):
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def objective(x, y, coef, intercept, *, C=1.0, l1_ratio=0.0, weight=None):
    """Return the objective of the class docstring in plain NumPy, float64."""
    weight = np.ones(len(y)) if weight is None else weight
    scores = x @ coef.T + intercept
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    index = np.unique(y, return_inverse=True)[1]
    losses = np.logaddexp.reduce(scores, 1) - scores[np.arange(len(y)), index]
    squares, absolutes = np.square(coef).sum(), np.abs(coef).sum()
    penalty = (1 - l1_ratio) / 2 * squares + l1_ratio * absolutes
    return (weight @ losses + penalty / C) / weight.sum()


def value_of(model, x, y, **options):
    return objective(x, y, model.coef_, model.intercept_, **options)


# ---- the same as scikit-learn -------------------------------------------------------------------


@pytest.mark.sample(4)
@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("solver", ["auto", "lbfgs", "trust-region"])
def test_reaches_the_objective_of_scikit_learn(load, solver):
    x, y = standardised(load)
    theirs = Sklearn(solver="newton-cholesky", tol=1e-12, max_iter=100).fit(x, y)
    ours = SoftmaxRegression(solver=solver).fit(x, y)
    least = value_of(theirs, x, y)
    assert value_of(ours, x, y) <= least * (1 + 1e-8)
    assert value_of(ours, x, y) >= least * (1 - 1e-12)
    assert ours.history_[-1] == pytest.approx(value_of(ours, x, y), rel=1e-9)


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
def test_coefficients_and_predictions_are_those_of_scikit_learn(load):
    x, y = load(return_X_y=True)  # not standardised: features from 0.01 to 4000
    theirs = Sklearn(solver="newton-cholesky", tol=1e-12, max_iter=100).fit(x, y)
    for kind in BOTH:
        ours = kind().fit(x, y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-7)
        np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_first_order_solvers_converge(solver):
    x, y = standardised(load_iris)
    best = SoftmaxRegression(C=0.05).fit(x, y)
    ours = SoftmaxRegression(C=0.05, solver=solver, max_iter=3000, tol=1e-5).fit(x, y)
    assert value_of(ours, x, y, C=0.05) <= value_of(best, x, y, C=0.05) * (1 + 1e-8)
    if solver == "gradient-descent":
        assert (np.diff(ours.history_) <= 1e-15).all()


@pytest.mark.parametrize("l1_ratio", [1.0, 0.4])
@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
def test_l1_and_elastic_net(load, l1_ratio):
    x, y = standardised(load)
    settings = {"C": 0.1, "l1_ratio": l1_ratio}
    ours = SoftmaxRegression(**settings).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Before 1.8 scikit-learn reads `l1_ratio` only with `penalty`, which 1.8 refuses.
        mixed = {"penalty": "elasticnet"} if SKLEARN < (1, 8) else {}
        theirs = Sklearn(**settings, **mixed, solver="saga", tol=1e-8, max_iter=3000).fit(x, y)
    assert value_of(ours, x, y, **settings) <= value_of(theirs, x, y, **settings) * (1 + 1e-8)
    assert (ours.coef_ == 0).sum() > 0


def test_correlated_features_take_few_sweeps():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 60)) @ np.diag(np.logspace(0, -3, 60))
    x = x @ np.linalg.qr(rng.standard_normal((60, 60)))[0]
    y = (x @ rng.standard_normal((60, 3)) + rng.gumbel(size=(2000, 3))).argmax(1)
    exact = Sklearn(C=1e4, solver="newton-cholesky", tol=1e-12).fit(x, y)
    ours = SoftmaxRegression(C=1e4, solver="lbfgs").fit(x, y)
    assert value_of(ours, x, y, C=1e4) <= value_of(exact, x, y, C=1e4) * (1 + 1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = Sklearn(C=1e4, tol=1e-9, max_iter=3 * ours.n_iter_).fit(x, y)
    assert value_of(theirs, x, y, C=1e4) > value_of(exact, x, y, C=1e4) * (1 + 1e-8)


# ---- laws ---------------------------------------------------------------------------------------


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((90, 4))
    y = (x @ rng.standard_normal((4, 3)) + rng.gumbel(size=(90, 3))).argmax(1)
    return x, y


@pytest.mark.parametrize("kind", BOTH)
def test_weights_are_repetitions(kind, rows):
    x, y = rows
    y = y if kind is SoftmaxRegression else (y == 2)
    weight = np.random.default_rng(2).integers(0, 4, len(y))
    weighted = kind().fit(x, y, sample_weight=weight)
    repeated = kind().fit(x.repeat(weight, 0), y.repeat(weight))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-8)


def test_class_weights_are_row_weights(rows):
    x, y = rows
    of_class = {0: 2.0, 1: 0.5, 2: 1.0}
    by_class = SoftmaxRegression(class_weight=of_class).fit(x, y)
    by_row = SoftmaxRegression().fit(x, y, sample_weight=[of_class[label] for label in y])
    np.testing.assert_allclose(by_class.coef_, by_row.coef_, atol=1e-9)
    balanced = SoftmaxRegression(class_weight="balanced").fit(x, y)
    theirs = Sklearn(class_weight="balanced", tol=1e-10).fit(x, y)
    np.testing.assert_allclose(balanced.coef_, theirs.coef_, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"solver": "lbfgs"}, {"l1_ratio": 1.0}])
def test_sparse_rows_are_dense_rows(rows, settings):
    x, y = rows
    x = np.where(np.abs(x) > 0.5, x, 0)
    dense, sparse = (SoftmaxRegression(**settings).fit(rows, y) for rows in (x, csr_array(x)))
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=2e-5)
    np.testing.assert_allclose(
        sparse.predict_proba(csr_array(x)), dense.predict_proba(x), atol=1e-5
    )


def test_single_precision(rows):
    x, y = rows
    single = SoftmaxRegression().fit(x.astype(np.float32), y)
    np.testing.assert_allclose(single.coef_, SoftmaxRegression().fit(x, y).coef_, atol=1e-4)


def test_classes_may_change_places_and_names(rows):
    x, y = rows
    names = np.array(["b", "c", "a"])
    plain, named = SoftmaxRegression().fit(x, y), SoftmaxRegression().fit(x, names[y])
    assert named.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(named.coef_[[1, 2, 0]], plain.coef_, atol=1e-7)
    np.testing.assert_array_equal(named.predict(x), names[plain.predict(x)])


def test_features_may_be_shifted_if_there_is_an_intercept(rows):
    x, y = rows
    plain, shifted = SoftmaxRegression().fit(x, y), SoftmaxRegression().fit(x + 10, y)
    np.testing.assert_allclose(shifted.coef_, plain.coef_, atol=1e-6)
    without = SoftmaxRegression(fit_intercept=False).fit(x, y)
    assert without.intercept_.tolist() == [0, 0, 0]


def test_labels_that_do_not_exclude_each_other_are_fits_side_by_side(rows):
    x, y = rows
    labels = np.stack([y == 0, y != 1, x[:, 0] + x[:, 1] > 0.3], 1).astype(int)
    together = LogisticRegression().fit(x, labels)
    for k, column in enumerate(labels.T):
        alone = LogisticRegression().fit(x, column)
        np.testing.assert_allclose(together.coef_[k], alone.coef_[0], atol=1e-6)
        np.testing.assert_allclose(together.predict_proba(x)[:, k], alone.predict_proba(x)[:, 1])
    assert together.predict(x).shape == labels.shape


def test_probabilities_have_all_their_digits():
    model = LogisticRegression().fit([[-1.0], [1.0]], [0, 1])
    model.coef_, model.intercept_ = np.array([[1.0]]), np.zeros(1)
    log_p = model.predict_log_proba([[800.0], [40.0]])
    assert log_p[0].tolist() == [-800.0, 0.0]
    assert log_p[1, 1] == pytest.approx(-np.exp(-40.0), rel=1e-12)


# ---- any loss -----------------------------------------------------------------------------------


def objective_of(kind, x, y, **settings):
    """Return the objective of an estimator as a function of coefficients."""
    model = kind(**settings)
    x, y = model._read(x, y, reset=True)
    model.classes_ = model._classes(y)
    problem = model._problem(x, y, None)
    penalty = model._strength(problem.zeros()) / (model.C * problem.total)
    return problem.objective(penalty, problem.zeros())


@pytest.mark.parametrize(
    ("kind", "loss", "classes"),
    [
        (SoftmaxRegression, "cross_entropy", 3),
        (SoftmaxRegression, partial(xent.losses.focal_loss, gamma=1.0), 3),
        (SoftmaxRegression, "generalized_cross_entropy", 2),
        (LogisticRegression, "binary_cross_entropy_with_logits", 2),
        (LogisticRegression, "sigmoid_focal_loss", 2),
    ],
)
def test_gradient_and_hessian_are_differences(rows, kind, loss, classes):
    x, y = rows
    f = objective_of(kind, x, y % classes, loss=loss)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(f.penalty.shape, generator=generator, dtype=torch.float64)
    u = torch.randn(f.penalty.shape, generator=generator, dtype=torch.float64)
    h = 1e-5
    (above, slope_above), (below, slope_below) = (f.value_and_gradient(w + s * u) for s in (h, -h))
    _, gradient = f.value_and_gradient(w)
    assert (gradient * u).sum().item() == pytest.approx((above - below) / (2 * h), rel=1e-8)
    difference = (slope_above - slope_below) / (2 * h)
    torch.testing.assert_close(f.hessian_product(w, u), difference, rtol=1e-6, atol=1e-9)


def test_the_diagonal_of_the_hessian():
    x = np.random.default_rng(0).standard_normal((4000, 3))
    f = objective_of(SoftmaxRegression, x, np.arange(4000) % 4)
    w = torch.randn(f.penalty.shape, generator=torch.Generator().manual_seed(1)).double()
    exact = []
    for place in range(w.numel()):
        unit = torch.zeros(w.numel(), dtype=torch.float64)
        unit[place] = 1
        exact.append(
            (f.hessian_product(w, unit.view_as(w)) - f.penalty * unit.view_as(w)).flatten()[place]
        )
    estimate = f.hessian_diagonal(w)
    torch.testing.assert_close(estimate, torch.stack(exact).view_as(w), rtol=0.15, atol=2e-3)


@pytest.mark.parametrize("loss", ["brier_loss", partial(xent.losses.poly1_loss, epsilon=0.5)])
def test_other_losses_end_where_their_gradient_is_zero(rows, loss):
    x, y = rows
    model = SoftmaxRegression(loss=loss).fit(x, y)
    function = xent.losses.brier_loss if loss == "brier_loss" else loss
    w = torch.tensor(np.hstack([model.coef_, model.intercept_[:, None]]), requires_grad=True)
    scores = torch.tensor(x) @ w[:, :4].T + w[:, 4]
    total = function(scores, torch.tensor(y)) + w[:, :4].square().sum() / (2 * len(y))
    (gradient,) = torch.autograd.grad(total, w)
    assert gradient.abs().max() < 1e-7


def test_a_loss_of_your_own(rows):
    x, y = rows

    @xent.row_loss
    def half(s):
        return -0.5 * s.log_prob

    ours = SoftmaxRegression(C=2.0, loss=half).fit(x, y)
    np.testing.assert_allclose(ours.coef_, SoftmaxRegression(C=1.0).fit(x, y).coef_, atol=1e-7)


# ---- learning on --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_the_first_part_is_a_fit(kind, rows):
    x, y = rows
    parts = kind().partial_fit(x, y, classes=[0, 1, 2])
    np.testing.assert_allclose(parts.coef_, kind().fit(x, y).coef_, atol=1e-8)


def test_parts_come_near_the_whole():
    x, y = standardised(load_digits)
    order = np.random.default_rng(0).permutation(len(y))
    (x, u), (y, v) = np.split(x[order], [1400]), np.split(y[order], [1400])
    whole = SoftmaxRegression(C=0.1).fit(x, y)
    parts = SoftmaxRegression(C=0.1)
    after = []
    for some in np.array_split(np.arange(len(y)), 7):
        parts.partial_fit(x[some], y[some], classes=range(10))
        after.append(-parts.predict_log_proba(u)[np.arange(len(v)), v].mean())
    goal = -whole.predict_log_proba(u)[np.arange(len(v)), v].mean()
    assert after[-1] < 1.5 * goal
    assert after[-1] < after[0]


def test_warm_start(rows):
    x, y = rows
    model = SoftmaxRegression(warm_start=True, solver="lbfgs").fit(x, y)
    cold = model.n_iter_
    assert model.fit(x, y).n_iter_ < cold
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(x[:, :3], y)


# ---- separable classes --------------------------------------------------------------------------


def test_separable_classes_without_penalty_are_reported():
    x, y = load_iris(return_X_y=True)
    with pytest.warns(SeparationWarning, match="completely"):
        SoftmaxRegression(C=np.inf).fit(x[:100], y[:100])
    with pytest.warns(SeparationWarning, match="in part"):  # only setosa is separable
        SoftmaxRegression(C=np.inf).fit(x, y)
    SoftmaxRegression(C=np.inf).fit(x[50:], y[50:])  # the two others are not separable
    SoftmaxRegression(C=1e3).fit(x, y)


def test_a_feature_that_separates_a_few_rows_is_reported(rows):
    x, y = rows
    x, y = np.column_stack([x, np.arange(90) < 7]), (y == 0).astype(int)
    y[:7] = 1
    with pytest.warns(SeparationWarning, match="in part"):
        LogisticRegression(C=np.inf).fit(x, y)
    labels = np.stack([y, np.arange(90) % 2], 1)
    with pytest.warns(SeparationWarning, match="label 0"):
        LogisticRegression(C=np.inf).fit(x, labels)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": 0}, "`C`"),
        ({"C": "1"}, "`C`"),
        ({"C": np.nan}, "`C`"),
        ({"l1_ratio": 1.5}, "`l1_ratio`"),
        ({"tol": -1}, "`tol`"),
        ({"max_iter": 0}, "`max_iter`"),
        ({"solver": "sgd"}, "`solver`"),
        ({"loss": "hinge"}, "there are cross_entropy"),
        ({"loss": "sigmoid_focal_loss"}, "one class per row"),
        ({"loss": torch.nn.functional.cross_entropy}, "row_weight="),
        ({"class_weight": "even"}, "class_weight"),
        *(
            ({"solver": solver, "l1_ratio": 0.5}, "takes no l1_ratio")
            for solver in ("newton", *SMOOTH)
        ),
    ],
)
def test_parameters_out_of_range(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**settings).fit(*rows)


def test_data_that_does_not_fit(rows):
    x, y = rows
    for kind in BOTH:
        with pytest.raises(ValueError, match="one class only"):
            kind().fit(x, np.zeros(90))
        with pytest.raises(ValueError, match="NaN"):
            kind().fit(np.where(x > 2, np.nan, x), y)
        words = r"non-zero|add up to 0"  # scikit-learn's or ours
        with pytest.raises(ValueError, match=words):
            kind().fit(x, y, sample_weight=np.zeros(90))
        with pytest.raises(ValueError, match="must name all `classes`"):
            kind().partial_fit(x, y)
        with pytest.raises(ValueError, match=r"\[2\]"):
            kind().partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="use SoftmaxRegression"):
        LogisticRegression(loss="sigmoid_focal_loss").fit(x, y)
    with pytest.raises(ValueError, match="0 and 1"):
        LogisticRegression().fit(x, np.stack([y, y], 1))
    with pytest.raises(ValueError, match="class_weight"):
        LogisticRegression(class_weight="balanced").fit(x, np.stack([y == 0, y == 1], 1))
    with pytest.raises(ValueError, match="of the kind it was"):
        LogisticRegression().fit(x, y).partial_fit(x, np.stack([y == 0, y == 1], 1))
    assert not hasattr(SoftmaxRegression(l1_ratio=1.0), "partial_fit")


def test_too_few_iterations_are_reported(rows):
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        SoftmaxRegression(max_iter=2, solver="lbfgs").fit(*rows)


def test_progress_is_shown(rows, capsys):
    SoftmaxRegression(verbose=1).fit(*rows)
    assert "objective" in capsys.readouterr().err


def test_the_column_of_ones_is_not_stored_but_there():
    x = np.arange(6.0).reshape(3, 2)
    weight = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    for rows in (x, csr_array(x)):
        design = Design(rows, weight, intercept=True)
        ones = np.asarray(design.with_ones().todense() if design.sparse else design.with_ones())
        w = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        assert design.scores(w).flatten().tolist() == (ones @ [1, 2, 3]).tolist()
        for means in (torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.0]).double()):
            squares = weight.numpy() @ (ones - means.numpy()) ** 2
            assert design.mean_squares(means).tolist() == squares.tolist()
        slopes = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)
        assert design.pull_back(slopes).flatten().tolist() == (ones.T @ [1, -1, 2]).tolist()
    assert isinstance(objective_of(SoftmaxRegression, x, [0, 1, 1]), Objective)


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "trust-region"])
@pytest.mark.parametrize("unit", [1e8, 1e-8])
def test_units_do_not_matter_without_a_penalty(solver, unit):
    x, y = load_iris(return_X_y=True)
    plain = SoftmaxRegression(np.inf, solver=solver, tol=1e-8).fit(x, y > 1)
    other = SoftmaxRegression(np.inf, solver=solver, tol=1e-8).fit(x * unit, y > 1)
    np.testing.assert_allclose(other.coef_ * unit, plain.coef_, rtol=1e-3)


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "trust-region"])
def test_features_far_from_0_have_the_same_slopes(solver):
    """An intercept takes any offset, and is not penalised."""
    x, y = load_iris(return_X_y=True)
    plain = SoftmaxRegression(solver=solver).fit(x, y)
    moved = SoftmaxRegression(solver=solver).fit(x + 1e5, y)
    np.testing.assert_allclose(moved.coef_, plain.coef_, atol=1e-4)


def test_single_precision_converges():
    x, y = load_iris(return_X_y=True)
    single = SoftmaxRegression().fit(x.astype(np.float32), y)  # a warning would be an error
    np.testing.assert_allclose(single.coef_, SoftmaxRegression().fit(x, y).coef_, atol=1e-4)


def test_rows_of_weight_0_do_not_hide_that_classes_are_separable():
    x, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 1, 0])
    with pytest.warns(SeparationWarning, match="completely"):
        SoftmaxRegression(np.inf).fit(x, y, sample_weight=[1, 1, 0, 0])


def test_partial_fit_refuses_other_classes_than_before():
    x, y = load_iris(return_X_y=True)
    model = SoftmaxRegression().fit(x, y).partial_fit(x, y, classes=[2, 1, 0])
    with pytest.raises(ValueError, match="`classes` must be those before"):
        model.partial_fit(x, y, classes=[0, 1, 2, 3])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("estimator", BOTH)
def test_the_curvature_of_rows_is_taken_in_blocks(estimator, sparse, monkeypatch):
    from xent.learn.regression import design

    monkeypatch.setattr(design, "BLOCK", 7)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 3)), generator.integers(2, size=40)
    model = estimator().fit(x, y)
    problem = model._problem(csr_array(x) if sparse else x, y, np.arange(40.0))
    w = torch.tensor([[0.3, -1.0, 2.0, 0.5]], dtype=torch.float64)
    found = problem.objective(torch.zeros_like(w), w).score_curvature(w)
    p = torch.sigmoid(torch.from_numpy(x) @ w[0, :3] + 0.5)
    assert torch.allclose(found[:, 0], p * (1 - p) * torch.arange(40.0) / 780, rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_curvature_of_cross_entropy_is_that_of_autograd(classes):
    y, weight = torch.randint(classes, (20,)), torch.rand(20, dtype=torch.float64)
    criterion = softmax_criterion(xent.cross_entropy, y, weight, classes)
    scores = 4 * torch.randn(20, criterion.columns, dtype=torch.float64)
    whole = torch.autograd.functional.hessian(criterion.mean_loss, scores)
    rows = torch.arange(20)
    truth = whole.movedim(2, 1)[rows, rows].movedim(1, 0)  # (K, N, K)
    torch.testing.assert_close(
        criterion.curvature.matrices(scores, ALL), truth, rtol=1e-12, atol=1e-15
    )
    sure = torch.tensor([[40.0] + [0.0] * (criterion.columns - 1)], dtype=torch.float64)
    own = criterion.curvature.matrices(sure, slice(1)) / weight[0]
    others = max(criterion.columns - 1, 1)
    assert own[0, 0, 0].item() == pytest.approx(others * math.exp(-40), rel=1e-14)
    direction = torch.randn(20, criterion.columns, dtype=torch.float64)
    turned = torch.einsum("knj,nj->nk", truth, direction)
    for curvature in (criterion.curvature, AutogradCurvature(criterion.mean_loss)):
        torch.testing.assert_close(
            curvature.turning(scores)(direction), turned, rtol=1e-11, atol=1e-15
        )
        torch.testing.assert_close(curvature.matrices(scores, ALL), truth, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(
        criterion.curvature.own(scores, ALL), truth.diagonal(0, 0, 2), rtol=1e-11, atol=1e-15
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_curvature_of_a_sure_row_has_all_its_digits(classes):
    curvature = SoftmaxCurvature(torch.ones(1, dtype=torch.float64))
    scores = torch.zeros(1, max(classes, 2), dtype=torch.float64)
    scores[0, 0] = 40
    scores = scores[:, : 1 if classes == 2 else classes]
    others = classes - 1
    exact = others * math.exp(-40) / (1 + others * math.exp(-40)) ** 2
    unit = torch.zeros_like(scores)
    unit[0, 0] = 1
    assert curvature.own(scores, ALL)[0, 0].item() == pytest.approx(exact, rel=1e-14)
    assert curvature.turning(scores)(unit)[0, 0].item() == pytest.approx(exact, rel=1e-14)
    assert curvature.turning(scores)(unit + 3)[0, 0].item() == pytest.approx(
        exact if classes > 2 else 4 * exact, rel=1e-12
    )


# ---- rows in single precision -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "used"),
    [("plain", True), ("sparse", True), ("offsets", True), ("no penalty", False),
     ("hardly any", False), ("huge", False)],
)  # fmt: skip
def test_single_precision_only_leads_to_the_minimum_of_double(kind, used, rows, monkeypatch):
    x, y = rows
    x, C = {
        "plain": (x, 1.0),
        "sparse": (csr_array(np.where(np.abs(x) > 0.5, x, 0)), 1.0),
        "offsets": (x + np.array([5, 0, -50, 0]), 1.0),
        "no penalty": (x, np.inf),
        "hardly any": (x, 1e14),
        "huge": (x * 1e100, 1e-200),
    }[kind]
    settings = {"C": C, "solver": "lbfgs"}
    monkeypatch.setattr(solvers, "WORK", 0)  # no full Hessian afterwards
    singles = []

    def count(design, single=Design.single.func):
        singles.append(design)
        return single(design)

    monkeypatch.setattr(Design, "single", property(count))
    fits = []
    for least in (0, 10**9):  # entries from which on rows are taken in single precision
        monkeypatch.setattr(linear_objective, "MANY", least)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits.append(SoftmaxRegression(**settings).fit(x, y))
        assert bool(singles) == used
    if used:
        least = fits[1].history_[-1]
        assert fits[0].history_[-1] == pytest.approx(least, rel=1e-9)
        np.testing.assert_allclose(
            fits[0].decision_function(x), fits[1].decision_function(x), atol=2e-3
        )
