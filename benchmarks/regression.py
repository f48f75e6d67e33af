"""Softmax regression beside scikit-learn: ``python -m benchmarks.regression``.

Six data sets: *easy* (``make_classification``), *correlated* features, independent ones in 10 or
100 classes, handwritten digits, and sparse counts of 20,000 words; and 1000 rows of the easy one.
Two goals: the objective that L-BFGS of scikit-learn reaches with its default ``tol``, and 1e-8,
relative, above the least objective found. Each contestant gets the loosest ``tol`` of a ladder that
reaches the goal, or ``--cap`` iterations. Contestants take turns; seconds are medians; the gap says
how far above the least objective a fit ended. The threads of both sleep while they have no work: a
thread that waits by spinning would take a core from the contestant whose turn it is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.datasets import load_digits, make_classification
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression as Sklearn
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from xent.learn import SoftmaxRegression

from .harness.machine import describe_machine
from .harness.report import aligned, machine_text

GAP, DEFAULT = 1e-8, 1e-4  # scikit-learn's tol
LADDER = (1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6, 1e-6, 1e-7)
LONG = 2.0  # seconds of a fit from which on it is not repeated
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}

Maker = Callable[..., Any]  # of an estimator with a `tol`


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


def fit(make: Callable[[], Any], x: Any, y: np.ndarray) -> Fit:
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


def easy(rows: int, features: int) -> tuple[Any, Any]:
    """Return a standardised problem of scikit-learn in 10 classes."""
    x, y = make_classification(rows, features, n_informative=50, n_classes=10, random_state=0)
    return StandardScaler().fit_transform(x), y


def digits() -> tuple[Any, Any]:
    """Return handwritten digits, standardised: 1797 rows of 64 features."""
    x, y = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def words(rows: int, vocabulary: int = 20_000, length: int = 80) -> tuple[Any, np.ndarray]:
    """Return texts as sparse rows in 10 classes; a tenth of the words belongs to the class."""
    rng = np.random.default_rng(0)
    y, lengths = rng.integers(10, size=rows), rng.poisson(length, rows)
    text = np.repeat(np.arange(rows), lengths)
    chance = 1 / np.arange(1, vocabulary + 1)
    word = rng.choice(vocabulary, size=len(text), p=chance / chance.sum())
    own = word - word % 10 + y[text]
    word = np.where(rng.random(len(text)) < 0.1, own, word)
    counts = csr_array((np.ones(len(text)), (text, word)), shape=(rows, vocabulary))
    return TfidfTransformer().fit_transform(counts), y


def data_sets(rows: int, features: int) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return functions that make the data sets, by name."""
    sets: dict[str, Callable[[], tuple[Any, Any]]] = {
        "easy": lambda: easy(rows, features),
        "easy, 1000 rows": lambda: easy(1000, features),
    }
    return {
        **sets,
        "correlated": lambda: problem(rows, features, 10, together=True),
        "10 classes": lambda: problem(rows, features, 10, together=False),
        "100 classes": lambda: problem(rows, features, 100, together=False),
        "digits": digits,
        "words": lambda: words(rows),
    }


class Contestant:
    """An estimator on a data set, and its fits so far by ``tol``."""

    def __init__(self, make: Maker, x: Any, y: np.ndarray) -> None:
        self.make, self.x, self.y = make, x, y
        self.fits: dict[float, Fit] = {}

    def fit(self, tol: float) -> Fit:
        """Fit with this tol."""
        self.fits[tol] = fit(partial(self.make, tol=tol), self.x, self.y)
        return self.fits[tol]

    def once(self, tol: float) -> Fit:
        """Return the fit with this tol, made at the first question."""
        return self.fits[tol] if tol in self.fits else self.fit(tol)

    def loosest(self, goal: float) -> float:
        """Return the loosest tol of the ladder that reaches an objective, or the tightest."""
        low, high = 0, len(LADDER) - 1
        while low < high and self.once(LADDER[-1]).objective <= goal:
            middle = (low + high) // 2
            if self.once(LADDER[middle]).objective <= goal:
                high = middle
            else:
                low = middle + 1
        return LADDER[high]


def compare(x: Any, y: np.ndarray, cap: int, repeats: int) -> list[tuple[str, ...]]:
    """Lines of the table: goal, who, tol, seconds, ratio, iterations, gap."""
    makers: dict[str, Maker] = {"xent": SoftmaxRegression}
    makers["scikit-learn"] = partial(Sklearn, max_iter=cap)
    those = {who: Contestant(make, x, y) for who, make in makers.items()}
    usual = those["scikit-learn"].once(DEFAULT).objective
    least = min(one.once(LADDER[-1]).objective for one in those.values())
    lines = []
    for name, goal in (("default", usual), ("1e-8", least * (1 + GAP))):
        tols = {who: one.loosest(goal) for who, one in those.items()}
        if name == "default":
            tols["scikit-learn"] = DEFAULT
        long = max(those[who].once(tol).seconds for who, tol in tols.items()) > LONG
        fits: dict[str, list[Fit]] = {who: [] for who in those}
        for _ in range(1 if long else repeats):
            for who, one in those.items():
                fits[who].append(one.fit(tols[who]))
        seconds = {who: statistics.median(f.seconds for f in of) for who, of in fits.items()}
        for who, (one, *_) in fits.items():
            ratio = seconds[who] / seconds["xent"]
            row = f"{tols[who]:g}", f"{seconds[who]:.3f}", f"{ratio:.2f}", str(one.iterations)
            lines.append((name, who, *row, f"{one.objective / least - 1:.1e}"))
    return lines


def main() -> None:
    """Print the table."""
    if not QUIET_THREADS.keys() <= os.environ.keys():  # libraries read them when they are loaded
        os.execve(sys.executable, sys.orig_argv, {**QUIET_THREADS, **os.environ})
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="data sets; all by default")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--cap", type=int, default=150, help="iterations of scikit-learn, at most")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    lines = [("data", "goal", "", "tol", "seconds", "ratio", "iterations", "gap")]
    for name, make in data_sets(args.rows, args.features).items():
        if not args.names or name in args.names:
            lines += [(name, *row) for row in compare(*make(), args.cap, args.repeats)]
    slower = [f"{row[0]} ({row[1]}, {row[5]})" for row in lines[2::2] if float(row[5]) < 1]
    print(f"{args.rows:,} rows, {args.features} features, C=1; ratio: times xent's seconds\n")
    print(aligned(lines))
    print(f"\nscikit-learn is faster on: {', '.join(slower) or 'none'}")
    print(f"\n{machine_text(describe_machine(torch.get_num_threads()))}")


if __name__ == "__main__":
    main()
