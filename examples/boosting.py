"""Losses of the family in LightGBM and XGBoost, against the objectives that are built in.

    python examples/boosting.py [--small] [--seeds 3] [--seed 0]

Needs lightgbm, xgboost and scikit-learn. Takes a quarter of a minute.

The first table compares the raw scores of the built-in objective with those of the same loss as a
custom objective: written by hand as in tutorials, with the gradient and the diagonal of the Hessian
alone, and through ``xent.integrations.boosting``. For the second table other losses of the family
train trees on labels of which a fifth is wrong.
"""

from __future__ import annotations

import lightgbm
import numpy as np
import sklearn.datasets
import torch
import xgboost
from sklearn.model_selection import train_test_split

import xent
from _experiment import hold, options
from xent.integrations.boosting import Objective

SETS = ("breast_cancer", "iris", "wine", "digits")
ROUNDS = 20
WRONG, ENOUGH = 0.2, 0.75  # share of wrong labels, and of test rows that must be right all the same
TOLERANCE = {"lightgbm": 1e-12, "xgboost": 5e-6}  # of raw scores: XGBoost's are float32


@xent.row_loss
def capped_loss(s, cap=2.0):
    """Compute a loss of a user's own: cross-entropy that levels off for hopeless labels."""
    return cap * torch.tanh(-s.log_prob / cap)


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return one of scikit-learn's data sets."""
    return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)


def by_hand(scores, dataset):
    """Return the usual derivatives of cross-entropy: ``p - y`` and ``p (1 - p)``."""
    label = dataset.get_label().astype(int)
    if scores.ndim == 1:
        p = 1 / (1 + np.exp(-scores))
        return p - label, p * (1 - p)
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p - np.eye(p.shape[1])[label], p * (1 - p)


def lightgbm_scores(x, y, objective, start=None, test=None):
    """Return raw scores after some rounds of LightGBM, the start included."""
    params = {"objective": objective, "verbosity": -1, "num_threads": 1, "seed": 0}
    if y.max() > 1:
        params["num_class"] = int(y.max()) + 1
    init = start and start.init_score(y)
    model = lightgbm.train(params, lightgbm.Dataset(x, y, init_score=init), ROUNDS)
    scores = np.asarray(model.predict(x if test is None else test, raw_score=True))
    return scores + (start.start(y) if start else 0)


def xgboost_scores(x, y, objective, start=None, test=None):
    """Return raw scores after some rounds of XGBoost, the start included."""
    params = {"nthread": 1, "seed": 0, "verbosity": 0}
    params |= {"num_class": int(y.max()) + 1} if y.max() > 1 else {}
    custom = None if isinstance(objective, str) else objective
    params |= {} if custom else {"objective": objective}
    rows = xgboost.DMatrix(x, y, base_margin=start and start.init_score(y))
    model = xgboost.train(params, rows, ROUNDS, obj=custom)
    if test is not None:
        margin = start and start.init_score(y, rows=len(test))
        rows = xgboost.DMatrix(test, base_margin=margin)
    return model.predict(rows, output_margin=True)


def parity(sets: tuple[str, ...]) -> dict[str, bool]:
    """Print the first table; return the claims."""
    print(f"largest difference to the built-in raw scores after {ROUNDS} rounds\n")
    print(f"{'':16}{'LightGBM':^24}{'XGBoost':^24}")
    print(f"{'':16}{'by hand':>12}{'xent':>12}{'by hand':>12}{'xent':>12}")
    far: dict[str, list[float]] = {"by hand": [], "lightgbm": [], "xgboost": []}
    for name in sets:
        x, y = load(name)
        cells = []
        for library, scores_of, built_in in (
            ("lightgbm", lightgbm_scores, ("binary", "multiclass")),
            ("xgboost", xgboost_scores, ("binary:logistic", "multi:softprob")),
        ):
            truth = scores_of(x, y, built_in[int(y.max() > 1)])
            ours = Objective(xent.cross_entropy, library)
            hand = np.abs(scores_of(x, y, by_hand) - truth).max()
            exact = np.abs(scores_of(x, y, ours, start=ours) - truth).max()
            far["by hand"].append(hand)
            far[library].append(exact)
            cells += [hand, exact]
        print(f"{name:16}" + "".join(f"{cell:12.1e}" for cell in cells))
    return {
        **{
            f"{library}: the raw scores of the built-in objective, to {tolerance:.0e}": (
                max(far[library]) <= tolerance
            )
            for library, tolerance in TOLERANCE.items()
        },
        "by hand they are off by more than 0.1 on every set": min(far["by hand"]) > 0.1,
    }


def wrong_labels(seeds: range) -> dict[str, bool]:
    """Print the second table; return the claims."""
    losses = {
        "cross_entropy": (xent.cross_entropy, {}),
        "focal_loss": (xent.losses.focal_loss, {"gamma": 2.0}),
        "label_smoothing": (xent.cross_entropy, {"label_smoothing": 0.2}),
        "generalized CE": (xent.losses.generalized_cross_entropy, {"q": 0.5}),
        "capped, one's own": (capped_loss, {"cap": 2.0}),
    }
    print(
        f"\ntest accuracy on digits, {WRONG:.0%} of the training labels wrong, {len(seeds)} seeds\n"
    )
    print(f"{'':20}{'LightGBM':>12}{'XGBoost':>12}")
    x, y = load("digits")
    table = {name: np.zeros((2, len(seeds))) for name in losses}
    for column, seed in enumerate(seeds):
        train, test, label, truth = train_test_split(x, y, train_size=0.4, random_state=seed)
        rng = np.random.default_rng(seed)
        wrong = rng.random(len(label)) < WRONG
        label = np.where(wrong, (label + rng.integers(1, 10, len(label))) % 10, label)
        for name, (loss, hyperparameters) in losses.items():
            for k, (library, scores_of) in enumerate(
                (("lightgbm", lightgbm_scores), ("xgboost", xgboost_scores))
            ):
                objective = Objective(loss, library, **hyperparameters)
                scores = scores_of(train, label, objective, start=objective, test=test)
                table[name][k, column] = (scores.argmax(1) == truth).mean()
    for name, cells in table.items():
        print(f"{name:20}" + "".join(f"{cell:12.1%}" for cell in cells.mean(1)))
    return {
        f"with every loss, library and seed more than {ENOUGH:.0%} are right": all(
            (cells > ENOUGH).all() for cells in table.values()
        )
    }


def main() -> None:
    """Print both tables and check them."""
    chosen = options(__file__, __doc__, picture=False, seeds=(3, 1))
    claims = parity(SETS[1:3] if chosen.small else SETS) | wrong_labels(chosen.seeds)
    print()
    hold(claims)


if __name__ == "__main__":
    main()
