"""Softmax regression: how fast solvers converge, statistics' textbook cases, l1, wrong labels.

    python examples/softmax_regression.py [--small] [--seeds 5] [--seed 0] [--picture PATH]

Needs scikit-learn and statsmodels, and matplotlib for the picture. Takes about a minute.

1. Solvers: how far the objective is above its minimum, over sweeps through the rows. A sweep is a
   gradient or a product of the Hessian with a direction, two products of matrices either; finding
   L or coordinates costs some, too. The step 1/L keeps below the bound that is proven for it.
2. No penalty: the fits of statsmodels to two of its data sets.
3. l1: how many coefficients are left at which share of the strength that leaves none.
4. Classes that can be separated, and no penalty: there is no best fit, and a warning says so.
5. Wrong labels: a loss that forgives them, in the place of cross-entropy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import statsmodels.api as sm
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, over_seeds, save
from xent.learn import (
    RegularizationPath,
    SeparationWarning,
    SoftmaxRegression,
    regularization_path,
    smallest_C,
)
from xent.learn.regression.criteria import LinearProblem, softmax_criterion
from xent.learn.regression.design import Design
from xent.learn.regression.linear_objective import Objective
from xent.learn.regression.proximal import Shrunken
from xent.learn.regression.solvers import solve
from xent.learn.regression.task import SolverTask

LAMBDA = 1e-2  # of the mean loss + lambda / 2 |W|^2
MINIMA = {"iris": 0.2436772266, "wine": 0.0918197305, "digits": 0.26832493}
LOADERS = {"iris": load_iris, "wine": load_wine, "digits": load_digits}
SOLVERS = {"gradient-descent": 3000, "accelerated": 1500, "lbfgs": 300, "newton-cg": 50}
SOLVERS["trust-region"] = 50  # and the others: most iterations
SHARES = {1.001: (0, None), 0.999: (1, None), 0.5: (3, 0.38349), 0.1: (5, 0.15874)}
SHARES[0.01] = (13, 0.06615)  # of lambda_max: coefficients that are not 0, and cross-entropy
NOISE = (0.0, 0.2, 0.4, 0.6)
LOSSES = ("cross_entropy", "generalized_cross_entropy")

Course = list[tuple[float, float]]  # (sweeps, objective)


class CountedDesign(Design):
    """A design that counts how often its rows are swept over; its copies share the count."""

    sweeps = 0  # of the class: solvers work on copies

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Compute the same as the base class, and count a sweep."""
        CountedDesign.sweeps += 1
        return super().pull_back(slopes)

    def products(self, weight: Tensor, means: Tensor) -> Tensor:
        """Compute the same as the base class, and count a sweep; the work is about the same."""
        CountedDesign.sweeps += 1
        return super().products(weight, means)


def standardised(loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return features of mean 0 and variance 1, and classes."""
    x, y = loader(return_X_y=True)
    return StandardScaler().fit_transform(x), y


# ---- 1. solvers ------------------------------------------------------------------------------


class Race(NamedTuple):
    """The course of each solver on digits, the minimum, and what is proven for the step 1/L."""

    courses: dict[str, Course]
    minimum: float
    bound: float  # of the gap, times the number of steps


def minima() -> dict[str, float]:
    """Return the least objective on each data set."""
    fits = {}
    for name, loader in LOADERS.items():
        x, y = standardised(loader)
        model = SoftmaxRegression(C=1 / (len(x) * LAMBDA), tol=1e-9).fit(x, y)
        fits[name] = model.history_[-1]
    return fits


def digits_task(max_iter: int, course: Course) -> tuple[SolverTask, Tensor]:
    """Return the task on digits, which records its values in ``course``, and a start."""
    x, y = standardised(load_digits)
    share = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    CountedDesign.sweeps = 0
    design = CountedDesign(x, share, intercept=True)
    criterion = softmax_criterion(xent.cross_entropy, torch.from_numpy(y), share, 10)
    problem = LinearProblem(design, criterion, total=1.0)
    start = problem.zeros()
    penalty = torch.full_like(start, LAMBDA)
    penalty[:, -1] = 0
    objective = problem.objective(penalty, start)

    def report(value: float) -> None:
        course.append((CountedDesign.sweeps, value))

    return SolverTask(objective, None, 1e-7, max_iter, report), start


def race() -> Race:
    """Run all solvers."""
    courses: dict[str, Course] = {}
    for solver, max_iter in SOLVERS.items():
        task, start = digits_task(max_iter, courses.setdefault(solver, []))
        solution = solve(task, start, solver)
        assert CountedDesign.sweeps >= solution.iterations > 0, "sweeps are not counted"
    f, best = Shrunken(task), solution.w
    distance = f.standard.from_coefficients(best).square().sum().item()
    courses["scikit-learn's lbfgs"] = list(scikit_learn(task.objective))
    minimum = min(value for course in courses.values() for _, value in course)
    return Race(courses, minimum, f.bound() * distance / 2)


def scikit_learn(objective: Objective) -> Iterator[tuple[float, float]]:
    """Yield scikit-learn's objective by iterations, each counted as one sweep (too little)."""
    x, y = standardised(load_digits)
    for k in range(9):
        model: Any = LogisticRegression(C=1 / (len(x) * LAMBDA), tol=1e-12, max_iter=2**k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        w = torch.from_numpy(np.hstack([model.coef_, model.intercept_[:, None]]))
        yield float(model.n_iter_[0]), objective.value_and_gradient(w)[0]


def sweeps_to(course: Course, goal: float) -> float:
    """Return the number of sweeps to come below an objective; infinite if it stays above."""
    return next((sweeps for sweeps, value in course if value <= goal), np.inf)


# ---- 2. statsmodels --------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Coefficients, intercept last, and log-likelihood; ours and theirs."""

    ours: np.ndarray
    theirs: np.ndarray
    log_likelihood: float
    their_log_likelihood: float
    rows: int


def compare(dataset: Any, model: Any) -> Comparison:
    """Fit a data set of statsmodels without a penalty, with statsmodels and with xent."""
    x, y = np.asarray(dataset.exog, float), np.asarray(dataset.endog).astype(int)
    theirs = model(y, sm.add_constant(x, prepend=False)).fit(
        method="newton", tol=1e-12, maxiter=100, disp=0
    )
    ours = SoftmaxRegression(C=np.inf, tol=1e-9).fit(x, y)
    w = np.hstack([ours.coef_, ours.intercept_[:, None]])
    w = w if len(w) == 1 else w[1:] - w[0]  # statsmodels has zeros for the first class
    log_p = ours.predict_log_proba(x)[np.arange(len(y)), np.searchsorted(ours.classes_, y)].sum()
    return Comparison(w, theirs.params.T.reshape(w.shape), float(log_p), theirs.llf, len(y))


# ---- 3. and 4. l1, separation ----------------------------------------------------------------


class Sparse(NamedTuple):
    """l1 on breast_cancer: the strength that leaves nothing, shares of it, the whole path."""

    strongest: float
    shares: RegularizationPath
    path: RegularizationPath
    names: list[str]


def sparse() -> Sparse:
    """Fit the shares of the strength, and the whole path."""
    x, y = standardised(load_breast_cancer)
    model = SoftmaxRegression(l1_ratio=1, tol=1e-9)
    least = smallest_C(model, x, y)
    shares = regularization_path(model, x, y, [least / share for share in SHARES])
    bunch: Any = load_breast_cancer()
    path = regularization_path(model, x, y, 60)
    return Sparse(1 / (len(x) * least), shares, path, list(bunch.feature_names))


def separated() -> tuple[str, dict[int, tuple[float, float]]]:
    """Return a warning, and loss and length of the coefficients after some iterations."""
    x, y = standardised(load_wine)
    course, text = {}, ""
    for k in (1, 2, 4, 8, 16, 32, 64):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = SoftmaxRegression(C=np.inf, solver="gradient-descent", max_iter=16 * k)
            model.fit(x, y)
        text = next((str(w.message) for w in caught if w.category is SeparationWarning), "")
        course[16 * k] = model.history_[-1], float(np.linalg.norm(model.coef_))
    return text, course


# ---- 5. wrong labels -------------------------------------------------------------------------


def noisy(seeds: range) -> np.ndarray:
    """Return accuracy on rows with right labels, (losses, noise, seeds)."""
    x, y = standardised(load_digits)
    accuracy = np.zeros((len(LOSSES), len(NOISE), len(seeds)))
    for place in tqdm(list(np.ndindex(len(NOISE), len(seeds))), unit="fit", desc="wrong labels"):
        rate, seed = NOISE[place[0]], seeds[place[1]]
        train, test, label, truth = train_test_split(x, y, test_size=500, random_state=seed)
        rng = np.random.default_rng(seed)
        wrong = rng.random(len(label)) < rate
        label = np.where(wrong, (label + rng.integers(1, 10, len(label))) % 10, label)
        for i, loss in enumerate(LOSSES):
            model = SoftmaxRegression(
                C=1 / (len(train) * 1e-3), loss=loss, solver="lbfgs", tol=1e-4
            )
            accuracy[i][place] = 100 * model.fit(train, label).score(test, truth)
    return accuracy


# ---- what comes out --------------------------------------------------------------------------


class Results(NamedTuple):
    """Results of all five parts."""

    minima: dict[str, float]
    race: Race
    spector: Comparison
    anes96: Comparison
    sparse: Sparse
    warning: str
    separated: dict[int, tuple[float, float]]
    accuracy: np.ndarray


def experiment(seeds: range) -> Results:
    """Run all five parts."""
    spector = compare(sm.datasets.spector.load_pandas(), sm.Logit)
    anes96 = compare(sm.datasets.anes96.load_pandas(), sm.MNLogit)
    return Results(minima(), race(), spector, anes96, sparse(), *separated(), noisy(seeds))


def show(results: Results) -> str:
    """Return the tables."""
    gaps = (1e-2, 1e-4, 1e-8)
    lines = ["Digits: sweeps over the rows until the objective is so far above its minimum", ""]
    lines.append(f"{'':22}" + "".join(f"{gap:>10.0e}" for gap in gaps))
    for name, course in results.race.courses.items():
        counts = (sweeps_to(course, results.race.minimum + gap) for gap in gaps)
        lines.append(f"{name:22}" + "".join(f"{count:>10.0f}" for count in counts))
    lines += ["", "Minima, lambda = 0.01", ""]
    lines += [f"{name:8} {value:.10f}" for name, value in results.minima.items()]
    lines += ["", "Without a penalty, ours and statsmodels'", ""]
    for name, c in (("spector", results.spector), ("anes96", results.anes96)):
        lines.append(
            f"{name:8} {c.rows:4} rows  log-likelihood {c.log_likelihood:.6f}"
            f" {c.their_log_likelihood:.6f}, coefficients differ by at most"
            f" {np.abs(c.ours - c.theirs).max():.0e}"
        )
    lines.append(f"spector: {', '.join(f'{w:.4f}' for w in results.spector.ours[0])}")
    lines += ["", f"l1 on breast_cancer, lambda_max {results.sparse.strongest:.8f}", ""]
    lines += [str(results.sparse.shares), "", "Wine without a penalty", "", results.warning, ""]
    lines += [f"{'iterations':>10} {'loss':>9} {'|W|':>7}"]
    lines += [f"{k:10} {loss:9.5f} {size:7.2f}" for k, (loss, size) in results.separated.items()]
    lines += ["", "Digits with wrong labels: accuracy on right ones, %", ""]
    lines.append(f"{'':28}" + "".join(f"{rate:>13.0%}" for rate in NOISE))
    for loss, of_loss in zip(LOSSES, results.accuracy, strict=True):
        lines.append(f"{loss:28}" + "".join(f"{over_seeds(cell):>13}" for cell in of_loss))
    return "\n".join(lines)


def claims(results: Results) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    courses, minimum, bound = results.race
    steps = [value - minimum for _, value in courses["gradient-descent"]]
    to = {name: sweeps_to(course, minimum + 1e-8) for name, course in courses.items()}
    spector, anes96, shares = results.spector, results.anes96, results.sparse.shares
    published = (2.8261, 0.0952, 2.3787, -13.0213)
    sizes, losses = zip(*((size, loss) for loss, size in results.separated.values()), strict=True)
    expected = [SHARES[share] for share in sorted(SHARES, reverse=True)]
    gain = results.accuracy[1] - results.accuracy[0]
    return {
        "the minima on iris, wine and digits are the known ones, to 1e-8": all(
            abs(results.minima[name] - known) <= 1e-8 for name, known in MINIMA.items()
        ),
        "t steps of 1/L leave a gap of at most L |W|^2 / (2 t)": all(
            gap <= bound / t for t, gap in enumerate(steps, 1)
        ),
        "L-BFGS and Newton take at most a fifth of the sweeps of momentum, to 1e-8": all(
            to[name] <= to["accelerated"] / 5 for name in ("lbfgs", "newton-cg", "trust-region")
        ),
        "scikit-learn comes to the same minimum": to["scikit-learn's lbfgs"] < np.inf,
        "momentum takes at most a fifth of the sweeps without, to 1e-4": sweeps_to(
            courses["accelerated"], minimum + 1e-4
        )
        <= sweeps_to(courses["gradient-descent"], minimum + 1e-4) / 5,
        "spector: the published coefficients and log-likelihood": bool(
            np.abs(spector.ours[0] - published).max() < 5e-5
            and abs(spector.log_likelihood + 12.890) < 5e-4
        ),
        "anes96: the published log-likelihood of 944 rows": anes96.rows == 944
        and abs(anes96.log_likelihood + 1461.92) < 5e-3,
        "coefficients are those of statsmodels to 1e-6": all(
            np.abs(c.ours - c.theirs).max() < 1e-6 for c in (spector, anes96)
        ),
        "l1 leaves 0, 1, 3, 5 and 13 coefficients, at the known cross-entropy": all(
            count == n and (known is None or abs(loss - known) < 5e-6)
            for (n, known), count, loss in zip(expected, shares.nonzero, shares.loss, strict=True)
        ),
        "separable classes without a penalty: a warning, and coefficients that only grow": bool(
            results.warning and (np.diff(sizes) > 0).all() and (np.diff(losses) < 0).all()
        ),
        "with 40 % wrong labels generalised cross-entropy is better in every seed": bool(
            (gain[NOISE.index(0.4)] > 0).all()
        ),
    }


def draw(results: Results, path: Path) -> None:
    """Draw one panel for each part with a course."""
    import matplotlib.pyplot as plt

    from xent.plot import coefficient_paths

    figure, panels = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    draw_race(results.race, panels[0, 0])
    names = results.sparse.names
    coefficient_paths(results.sparse.path, panels[0, 1], names=names)
    panels[0, 1].set_title("A weaker l1 penalty lets more features in (breast_cancer)", pad=10)
    draw_separated(results.separated, panels[1, 0])
    for loss, of_loss, marker in zip(LOSSES, results.accuracy, "os", strict=True):
        panels[1, 1].errorbar(
            [100 * rate for rate in NOISE], of_loss.mean(1), yerr=of_loss.std(1, ddof=1),
            marker=marker, capsize=4, label=loss,
        )  # fmt: skip
    panels[1, 1].set(
        title="A loss that forgives wrong labels (digits)", xlabel="wrong training labels, %",
        ylabel="accuracy on right labels, %",
    )  # fmt: skip
    panels[1, 1].legend()
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    save(figure, path, dpi=110)


def draw_race(race: Race, panel: Any) -> None:
    """Draw the gap of each solver over sweeps, and the proven bound for step 1/L."""
    for name, course in race.courses.items():
        sweeps, values = np.array(course).T
        line = ":o" if name.startswith("scikit") else "-"
        panel.loglog(sweeps, values - race.minimum, line, markersize=4, label=name)
    sweeps = [count for count, _ in race.courses["gradient-descent"]]
    proven = race.bound / np.arange(1, len(sweeps) + 1)
    panel.loglog(sweeps, proven, "k--", linewidth=1, label=r"$L\,|W^*|^2/\,2t$, for step 1/L")
    panel.set(
        title="How fast solvers converge (digits, λ = 0.01)", xlabel="sweeps over the rows",
        ylabel="objective above its minimum", ylim=(1e-13, None),
    )  # fmt: skip
    panel.legend(fontsize="small")


def draw_separated(course: dict[int, tuple[float, float]], panel: Any) -> None:
    """Draw how the loss falls and the coefficients grow."""
    loss, size = np.array(list(course.values())).T
    panel.loglog(list(course), loss, "o-", label="loss (nats)")
    panel.loglog(list(course), size, "s-", label="length of the coefficients")
    panel.set(title="No penalty: coefficients never settle (wine)", xlabel="iterations")
    panel.legend()


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(5, 2))  # of the wrong labels
    threadpool_limits(1)  # the matrices are small
    results = experiment(chosen.seeds)
    print(show(results), "\n")
    hold(claims(results))
    draw(results, chosen.picture)


if __name__ == "__main__":
    main()
