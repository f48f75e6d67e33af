"""Losses as objectives of LightGBM and XGBoost: exact derivatives, parity with built-in ones."""

import math
import pickle

import mpmath
import pytest
import torch
from torch import Tensor

import xent
from xent.integrations.boosting import Objective

np = pytest.importorskip("numpy")

BINARY_CE = xent.binary_cross_entropy_with_logits
TORCH_BINARY_CE = torch.nn.functional.binary_cross_entropy_with_logits
ROUNDS = 10


@xent.row_loss(needs="entropy")
def home_made(s, beta=0.3):
    """A loss of a user's own, not convex."""
    return -s.log_prob * (1 + beta * s.entropy)


def home_made_formula(z: Tensor, y: int) -> Tensor:
    log_p = torch.log_softmax(z, -1)
    return -log_p[y] * (1 - 0.3 * (log_p.exp() * log_p).sum())


def focal_formula(z: Tensor, y: int) -> Tensor:
    log_p = torch.log_softmax(z, -1)[y]
    return -((1 - log_p.exp()) ** 2) * log_p


FORMULAS = {
    "cross_entropy": (xent.cross_entropy, lambda z, y: -torch.log_softmax(z, -1)[y]),
    "focal": (xent.losses.focal_loss, focal_formula),
    "home-made": (home_made, home_made_formula),
}


def batch(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return z, torch.randint(classes, (rows,), generator=g)


# ---- derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_gradient_and_diagonal_are_those_of_the_formula(name):
    loss, formula = FORMULAS[name]
    z, y = batch(12, 4)
    exact = Objective(loss, "lightgbm", hessian_scale=1.0, min_hessian=-math.inf)
    gradient, hessian = exact.derivatives(z, y.double())
    for row, label, g, h in zip(z, y.tolist(), gradient, hessian, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v, k=label: formula(v, k), row)
        second = torch.autograd.functional.hessian(lambda v, k=label: formula(v, k), row)
        torch.testing.assert_close(g, jacobian, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(h, second.diagonal(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FORMULAS)
def test_one_score_is_the_log_odds_of_class_1(name):
    loss, formula = FORMULAS[name]
    scores = torch.linspace(-6, 6, 9, dtype=torch.float64)
    label = torch.tensor([0.0, 1.0]).repeat(5)[:9].double()
    exact = Objective(loss, "xgboost", min_hessian=-math.inf)
    gradient, hessian = exact.derivatives(scores, label)
    for score, y, g, h in zip(scores, label.int().tolist(), gradient, hessian, strict=True):

        def of(v: Tensor, k: int = y) -> Tensor:
            return formula(torch.stack([torch.zeros_like(v), v]), k)

        jacobian = torch.autograd.functional.jacobian(of, score)
        second = torch.autograd.functional.hessian(of, score)
        torch.testing.assert_close(g, jacobian, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(h, second, rtol=1e-12, atol=1e-13)


def test_the_hessian_of_sure_rows_keeps_its_digits():
    margins = [30.0, 60.0, 100.0]
    z = torch.tensor([[m, 0.0, -1.0] for m in margins], dtype=torch.float64)
    objective = Objective(xent.cross_entropy, "xgboost", hessian_scale=1.0, min_hessian=0.0)
    _, wide = objective.derivatives(z, torch.zeros(3))
    _, one = objective.derivatives(torch.tensor(margins).double(), torch.ones(3))
    for m, row, single in zip(margins, wide, one, strict=True):
        weights = [mpmath.exp(v) for v in (m, 0, -1)]
        total = mpmath.fsum(weights)
        for j, h in enumerate(row.tolist()):
            others = mpmath.fsum(w for k, w in enumerate(weights) if k != j)
            assert h == pytest.approx(float(weights[j] * others / total**2), rel=1e-14, abs=0)
        truth = mpmath.exp(-m) / (1 + mpmath.exp(-m)) ** 2
        assert single.item() == pytest.approx(float(truth), rel=1e-14, abs=0)


@pytest.mark.parametrize(("library", "factor"), [("lightgbm", 5 / 4), ("xgboost", 2.0)])
def test_the_factor_of_the_library(library, factor):
    z, y = batch(6, 5)
    p = z.softmax(1)
    _, hessian = Objective(xent.cross_entropy, library).derivatives(z, y.double())
    torch.testing.assert_close(hessian, factor * p * (1 - p), rtol=1e-13, atol=0)
    _, one = Objective(xent.cross_entropy, library).derivatives(z[:, 0], (y > 2).double())
    q = z[:, 0].sigmoid()
    torch.testing.assert_close(one, q * (1 - q), rtol=1e-13, atol=0)


def test_hessians_are_positive_where_the_loss_is_not_convex():
    z, y = batch(200, 3)
    unbounded = Objective(xent.losses.focal_loss, "lightgbm", min_hessian=-math.inf)
    _, free = unbounded.derivatives(z, y.double())
    assert (free < 0).any()
    for scores in (z, z[:, 0]):
        _, hessian = Objective(xent.losses.focal_loss, "lightgbm").derivatives(
            scores, (y > 0).double()
        )
        assert (hessian > 0).all()
        assert hessian.isfinite().all()


def test_derivatives_stay_finite_far_out():
    z = torch.tensor([[100.0, 0.0, -100.0]]).double().repeat(3, 1)
    for loss in (xent.cross_entropy, xent.losses.focal_loss, home_made):
        objective = Objective(loss, "xgboost")
        for scores in (z, z[:, 0], -z[:, 0]):
            gradient, hessian = objective.derivatives(scores, torch.tensor([0.0, 1.0, 1.0]))
            assert gradient.isfinite().all()
            assert hessian.isfinite().all()


def test_sample_weights_scale_both():
    z, y = batch(7, 3)
    weight = np.linspace(0.0, 2.0, 7)
    objective = Objective(xent.losses.focal_loss, "lightgbm", gamma=1.0)
    gradient, hessian = objective(y.numpy(), z.numpy())
    weighted = objective(y.numpy(), z.numpy(), weight)
    np.testing.assert_array_equal(weighted[0], gradient * weight[:, None])
    np.testing.assert_array_equal(weighted[1], hessian * weight[:, None])


@pytest.mark.parametrize("loss", [BINARY_CE, TORCH_BINARY_CE])
def test_a_loss_of_one_logit_asks_each_class_against_the_rest(loss):
    z, y = batch(6, 3)
    objective = Objective(loss, "lightgbm", targets="binary")
    gradient, hessian = objective.derivatives(z, y.double())
    p = z.sigmoid()
    torch.testing.assert_close(gradient, p - torch.nn.functional.one_hot(y, 3).double())
    torch.testing.assert_close(hessian, p * (1 - p))
    soft, _ = objective.derivatives(z[:, 0], torch.full((6,), 0.3).double())
    torch.testing.assert_close(soft, p[:, 0] - torch.full((6,), 0.3).double())


def test_the_sigmoid_family_sees_one_score_as_the_softmax_family_does():
    z, y = torch.linspace(-5, 5, 11).double(), torch.tensor([0.0, 1.0] * 6)[:11].double()
    one = Objective(xent.losses.sigmoid_focal_loss, "xgboost", alpha=None, gamma=2.0)
    two = Objective(xent.losses.focal_loss, "xgboost", gamma=2.0)
    for a, b in zip(one.derivatives(z, y), two.derivatives(z, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


# ---- the score to start from ----------------------------------------------------------------


def test_the_start_is_the_best_constant():
    label, weight = [0, 1, 1, 2, 2, 2], np.float32([1, 2, 1, 0.5, 0.5, 3])
    for library in ("lightgbm", "xgboost"):
        objective = Objective(xent.cross_entropy, library)
        scores = torch.from_numpy(objective.init_score(label, weight))
        gradient, _ = objective.derivatives(
            scores, torch.tensor(label).double(), torch.from_numpy(weight)
        )
        assert gradient.sum(0).abs().max() < 1e-14
    assert objective.start(label, weight).sum() == pytest.approx(0, abs=1e-15)  # XGBoost centres
    assert Objective(xent.cross_entropy, "lightgbm").start([0, 1, 1, 1]) == pytest.approx(
        math.log(3), rel=1e-15
    )
    assert objective.init_score([0, 1], rows=5).shape == (5,)
    assert objective.init_score(label, rows=5).shape == (5, 3)


def test_the_start_of_soft_labels_with_weights():
    objective = Objective(BINARY_CE, "xgboost")
    label, weight = [0.3, 0.7, 1.0], np.float32([1, 2, 0.5])
    share = (0.3 + 1.4 + 0.5) / 3.5
    assert objective.start(label, weight) == pytest.approx(math.log(share / (1 - share)))
    gradient, _ = objective.derivatives(
        torch.from_numpy(objective.init_score(label, weight)),
        torch.tensor(label, dtype=torch.float64),
        torch.from_numpy(weight).double(),
    )
    assert abs(gradient.sum()) < 1e-15
    of_classes = Objective(xent.cross_entropy, "xgboost")
    assert of_classes.start([0, 1, 1], weight) == objective.start([0, 1, 1], weight)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([-1, 1, 1], r"got -1; of -1 and 1 make \(label \+ 1\) / 2"),
        ([1, 2, 3], r"`label` has no rows of class \[0\]"),
        ([1, 1], r"`label` has no rows of class \[0\]"),
        ([0.5, 1.5], r"`label` must hold whole numbers.*got 0.5"),
        ([0, math.nan], r"`label` must hold whole numbers"),
        (["a", "b"], r"`label` must hold numbers.*return_inverse"),
        ([], "`label` has no rows"),
    ],
)
@pytest.mark.parametrize("loss", [xent.cross_entropy, BINARY_CE])
def test_labels_to_start_from_that_are_no_classes(label, message, loss):
    for library in ("xgboost", "lightgbm"):
        with pytest.raises(ValueError, match=message):
            Objective(loss, library).start(label)


def test_probabilities():
    objective = Objective(xent.cross_entropy, "lightgbm")
    np.testing.assert_allclose(objective.probabilities([0.0, 2.0]), [0.5, 1 / (1 + math.exp(-2))])
    np.testing.assert_allclose(objective.probabilities([[1.0, 1.0, 1.0]]), np.full((1, 3), 1 / 3))
    against_rest = Objective(BINARY_CE, "lightgbm")
    np.testing.assert_allclose(against_rest.probabilities([[0.0, 0.0]]), [[0.5, 0.5]])


# ---- parity with what is built in -----------------------------------------------------------


def data(name: str):
    sets = pytest.importorskip("sklearn.datasets")
    x, y = getattr(sets, f"load_{name}")(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:500]
    return x[rows], y[rows]


def settings(y) -> dict:
    classes = int(y.max()) + 1
    return {"num_class": classes} if classes > 2 else {}


def weights_of(weighted: bool, y):
    return np.random.default_rng(1).uniform(0.2, 3.0, len(y)) if weighted else None


SETS = ["breast_cancer", "iris", "wine", "digits"]
LIGHTGBM = {"verbosity": -1, "num_threads": 1, "deterministic": True, "seed": 0}
XGBOOST = {"nthread": 1, "seed": 0, "verbosity": 0}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_lightgbm_gives_the_built_in_scores(name, weighted):
    lightgbm = pytest.importorskip("lightgbm")
    x, y = data(name)
    many, weight = settings(y), weights_of(weighted, y)
    built_in = {**LIGHTGBM, **many, "objective": "multiclass" if many else "binary"}
    truth = lightgbm.train(built_in, lightgbm.Dataset(x, y, weight=weight), ROUNDS)
    objective = Objective(xent.cross_entropy, "lightgbm")
    rows = lightgbm.Dataset(x, y, weight=weight, init_score=objective.init_score(y, weight))
    ours = lightgbm.train({**LIGHTGBM, **many, "objective": objective}, rows, ROUNDS)
    scores = ours.predict(x, raw_score=True) + objective.start(y, weight)
    assert np.abs(scores - truth.predict(x, raw_score=True)).max() <= 1e-12
    probability = objective.probabilities(scores)
    np.testing.assert_allclose(probability, truth.predict(x), rtol=1e-12)


def test_lightgbm_one_against_the_rest():
    lightgbm = pytest.importorskip("lightgbm")
    x, y = data("wine")
    truth = lightgbm.train(
        {**LIGHTGBM, "objective": "multiclassova", "num_class": 3}, lightgbm.Dataset(x, y), ROUNDS
    )
    objective = Objective(BINARY_CE, "lightgbm")
    rows = lightgbm.Dataset(x, y, init_score=objective.init_score(y))
    ours = lightgbm.train({**LIGHTGBM, "objective": objective, "num_class": 3}, rows, ROUNDS)
    scores = ours.predict(x, raw_score=True) + objective.start(y)
    assert np.abs(scores - truth.predict(x, raw_score=True)).max() <= 1e-12


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_xgboost_gives_the_built_in_scores(name, weighted):
    xgboost = pytest.importorskip("xgboost")
    x, y = data(name)
    many, weight = settings(y), weights_of(weighted, y)
    built_in = {**XGBOOST, **many, "objective": "multi:softprob" if many else "binary:logistic"}
    objective = Objective(xent.cross_entropy, "xgboost")
    start = objective.init_score(y, weight)
    rows = xgboost.DMatrix(x, y, weight=weight)
    own_start = xgboost.train(built_in, rows, ROUNDS).predict(rows, output_margin=True)
    rows.set_base_margin(start)
    truth = xgboost.train(built_in, rows, ROUNDS).predict(rows, output_margin=True)
    ours = xgboost.train({**XGBOOST, **many}, rows, ROUNDS, obj=objective)
    scores = ours.predict(rows, output_margin=True)
    assert np.abs(scores - truth).max() <= 1e-6
    # XGBoost's own start adds up the labels in float32: at worst one ulp for each row.
    assert np.abs(scores - own_start).max() <= 1e-6 + len(y) * 2**-24 * np.abs(start).max()


@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_estimators_of_lightgbm(name):
    lightgbm = pytest.importorskip("lightgbm")
    x, y = data(name)
    weight = weights_of(True, y)
    common = {"n_estimators": 5, "verbosity": -1, "n_jobs": 1}
    truth = lightgbm.LGBMClassifier(**common).fit(x, y, sample_weight=weight)
    objective = Objective(xent.cross_entropy, "lightgbm")
    start = objective.init_score(y, weight)
    ours = lightgbm.LGBMClassifier(objective=objective, **common).fit(
        x, y, sample_weight=weight, init_score=start, eval_X=x, eval_y=y,
        eval_init_score=[start], eval_sample_weight=[weight], eval_metric=objective.metric,
    )  # fmt: skip
    scores = ours.predict(x, raw_score=True) + objective.start(y, weight)
    assert np.abs(scores - truth.predict(x, raw_score=True)).max() <= 1e-12
    history = next(iter(ours.evals_result_.values()))
    name = "multi_logloss" if scores.ndim == 2 else "binary_logloss"
    p = truth.predict_proba(x)[np.arange(len(y)), y]
    assert history["cross_entropy"][-1] == pytest.approx(np.average(-np.log(p), weights=weight))
    assert name in history
    assert pickle.loads(pickle.dumps(ours)).objective.library == "lightgbm"


@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_estimators_of_xgboost(name):
    xgboost = pytest.importorskip("xgboost")
    x, y = data(name)
    weight = weights_of(True, y)
    common = {"n_estimators": 5, "n_jobs": 1}
    truth = xgboost.XGBClassifier(**common).fit(x, y, sample_weight=weight)
    objective = Objective(xent.cross_entropy, "xgboost")
    start = objective.init_score(y, weight)
    ours = xgboost.XGBClassifier(objective=objective, eval_metric=objective.metric, **common).fit(
        x, y, sample_weight=weight, base_margin=start, eval_set=[(x, y)],
        base_margin_eval_set=[start], sample_weight_eval_set=[weight], verbose=False,
    )  # fmt: skip
    scores = ours.predict(x, output_margin=True, base_margin=start)
    assert np.abs(scores - truth.predict(x, output_margin=True)).max() <= 1e-6
    p = truth.predict_proba(x)[np.arange(len(y)), y]
    history = ours.evals_result()["validation_0"]["cross_entropy"]
    assert history[-1] == pytest.approx(np.average(-np.log(p), weights=weight), rel=1e-5)
    assert pickle.loads(pickle.dumps(ours)).objective.library == "xgboost"


# ---- other losses train ---------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("loss", [xent.losses.focal_loss, home_made])
@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_other_losses_train(loss, name):
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    x, y = data(name)
    many, half, history = settings(y), len(y) // 2, {}
    objective = Objective(loss, "lightgbm")
    train = lightgbm.Dataset(x[:half], y[:half], init_score=objective.init_score(y[:half]))
    ours = lightgbm.train(
        {**LIGHTGBM, **many, "objective": objective, "metric": "None", "min_data_in_leaf": 5},
        train, 30, valid_sets=[train], feval=objective.metric,
        callbacks=[lightgbm.record_evaluation(history)],
    )  # fmt: skip
    (losses,) = history["training"].values()
    assert losses[-1] < 0.2 * losses[0]
    scores = ours.predict(x[half:], raw_score=True) + objective.start(y[:half])
    right = (scores.argmax(1) if many else scores > 0) == y[half:]
    assert right.mean() > 0.92

    objective, history = Objective(loss, "xgboost"), {}
    train = xgboost.DMatrix(x[:half], y[:half], base_margin=objective.init_score(y[:half]))
    ours = xgboost.train(
        {**XGBOOST, **many, "disable_default_eval_metric": 1}, train, 30, obj=objective,
        custom_metric=objective.metric, evals=[(train, "train")], evals_result=history,
        verbose_eval=False,
    )  # fmt: skip
    (losses,) = history["train"].values()
    assert losses[-1] < 0.2 * losses[0]
    start = objective.init_score(y[:half], rows=len(y) - half)
    scores = ours.predict(xgboost.DMatrix(x[half:], base_margin=start), output_margin=True)
    right = (scores.argmax(1) if many else scores > 0) == y[half:]
    assert right.mean() > 0.92


# ---- bad input ------------------------------------------------------------------------------


def test_unknown_library_and_unknown_loss():
    with pytest.raises(ValueError, match="library"):
        Objective(xent.cross_entropy, "catboost")  # pyright: ignore
    with pytest.raises(ValueError, match="targets"):
        Objective(TORCH_BINARY_CE, "xgboost")
    with pytest.raises(ValueError, match="targets"):
        Objective(TORCH_BINARY_CE, "xgboost", targets="soft")  # pyright: ignore


def test_shapes_that_do_not_fit():
    objective = Objective(xent.cross_entropy, "lightgbm")
    with pytest.raises(ValueError, match=r"scores must have shape \(2,\) or \(2, K\)"):
        objective([0, 1], np.zeros(6))  # LightGBM 3 passed three classes in this way
    with pytest.raises(ValueError, match="sample_weight"):
        objective([0, 1], [0.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="label"):
        objective([[0], [1]], [0.0, 0.0])
    with pytest.raises(ValueError, match="out of bounds"):
        objective([0, 3], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="whole"):
        objective([0, 0.5], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"no rows of class \[1\]"):
        objective.start([0, 2, 2])
    whole = Objective(lambda z, y, reduction: z.sum(), "lightgbm", targets="binary")
    with pytest.raises(ValueError, match="one value per row"):
        whole([0, 1], [0.0, 0.0])


def test_options_reach_the_loss():
    z, y = batch(5, 3)
    objective = Objective(xent.losses.focal_loss, "xgboost", gamma=0.0)
    plain = Objective(xent.cross_entropy, "xgboost")
    torch.testing.assert_close(
        objective.derivatives(z, y.double())[0], plain.derivatives(z, y.double())[0]
    )
    weight = torch.tensor([1.0, 2.0, 3.0]).double()
    heavy = Objective(xent.cross_entropy, "xgboost", weight=weight)
    expected = plain.derivatives(z, y.double(), weight[y])
    for got, wanted in zip(heavy.derivatives(z, y.double()), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_factors_bound_the_curvature():
    p = batch(50, 4)[0].softmax(1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    twice = torch.diag_embed(2 * p * (1 - p)) - hessian
    assert torch.linalg.eigvalsh(twice).min() > -1e-15
    even = torch.full((4,), 0.25, dtype=torch.float64)
    rest = torch.diag(4 / 3 * even * (1 - even)) - (torch.diag(even) - torch.outer(even, even))
    assert torch.linalg.eigvalsh(rest).min().abs() < 1e-15
