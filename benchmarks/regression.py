"""Softmax regression beside scikit-learn: ``python -m benchmarks.regression``.

The data are 20,000 rows of 784 features, independent or varying together, in 10 or 100 classes. A
fit is measured until its objective is within 1e-8, relative, of the least one. L-BFGS of
scikit-learn gets the loosest ``tol`` of a ladder that reaches this, or ``--cap`` iterations. The
gap says how far above the least objective a fit ended. Contestants take turns; seconds are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression as Sklearn
from sklearn.metrics import log_loss

from xent.learn import SoftmaxRegression

from .harness.machine import describe_machine
from .harness.report import aligned, machine_text

GAP, LADDER = 1e-8, (1e-4, 1e-5, 1e-6, 1e-7)


class Fit(NamedTuple):
    """The outcome of a fit: seconds, iterations, objective."""

    seconds: float
    iterations: int
    objective: float


def problem(
    rows: int, features: int, classes: int, together: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Normal features of unit variance, and classes drawn from a softmax of linear scores."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features))
    if together:  # the spectrum of natural images: variances fall with the square of the rank
        x = (x / np.arange(1, features + 1)) @ np.linalg.qr(rng.standard_normal((features,) * 2))[0]
        x /= x.std(0)
    scores = x @ rng.standard_normal((features, classes))
    scores *= 3 / scores.std()
    return x, (scores + rng.gumbel(size=scores.shape)).argmax(1)


def fit(make: Callable[[], Any], x: np.ndarray, y: np.ndarray) -> Fit:
    """Fit once, and measure."""
    model = make()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table shows whether the cap was reached
        model.fit(x, y)
    seconds = time.perf_counter() - start
    penalty = np.square(model.coef_).sum() / (2 * model.C * len(y))
    objective = log_loss(y, model.predict_proba(x)) + penalty
    return Fit(seconds, int(np.max(model.n_iter_)), objective)


def compare(x: np.ndarray, y: np.ndarray, cap: int, repeats: int) -> list[tuple[str, ...]]:
    """Lines of the table: who, seconds, ratio, iterations, gap."""
    ours, theirs = [fit(SoftmaxRegression, x, y)], []
    for tol in LADDER:
        theirs = [fit(lambda tol=tol: Sklearn(tol=tol, max_iter=cap), x, y)]
        least = min(ours[0].objective, theirs[0].objective)
        if theirs[0].objective <= least * (1 + GAP) or theirs[0].iterations >= cap:
            break
    for _ in range(repeats - 1):
        theirs.append(fit(lambda tol=tol: Sklearn(tol=tol, max_iter=cap), x, y))
        ours.append(fit(SoftmaxRegression, x, y))
    base = statistics.median(f.seconds for f in ours)
    lines = []
    for name, fits in (("xent", ours), (f"scikit-learn, tol={tol:g}", theirs)):
        seconds = statistics.median(f.seconds for f in fits)
        gap = fits[0].objective / least - 1
        row = f"{seconds:.2f}", f"{seconds / base:.2f}", str(fits[0].iterations), f"{gap:.1e}"
        lines.append((name, *row))
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--cap", type=int, default=150, help="iterations of scikit-learn, at most")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    lines = [("features", "classes", "", "seconds", "ratio", "iterations", "gap")]
    for together in (False, True):
        for classes in (10, 100):
            x, y = problem(args.rows, args.features, classes, together)
            kind = "vary together" if together else "independent"
            lines += [(kind, str(classes), *row) for row in compare(x, y, args.cap, args.repeats)]
    print(f"{args.rows:,} rows, {args.features} features, C=1; medians of {args.repeats} runs\n")
    print(aligned(lines))
    print(f"\n{machine_text(describe_machine(torch.get_num_threads()))}")


if __name__ == "__main__":
    main()
