"""The cross-entropy method: search by drawing points and fitting to the best of them.

::

    search = CrossEntropyMethod(Gaussian(torch.zeros(22), 100.0), population=100, noise=4.0)
    while not search.stop() and search.iteration < 50:
        points = search.ask()  # (100, 22)
        search.tell(points, scores_of(points))  # one score for each point
    search.result().centre

Without noise the distribution collapses too early: Tetris players found without it are 23 to 36
times worse. One in nine searches without noise is lucky all the same, so compare means of several
searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._check import finite_number, is_whole
from ..._files import fits
from ..workers import Map
from .one_by_one import scores_one_by_one
from .search_distributions import SearchDistribution

__all__ = ["CrossEntropyMethod", "Iteration", "SearchResult"]


def elite_count(elite: float, of: int, name: str = "population") -> int:
    """Return the number of points in an elite.

    Args:
        elite: a share, rounded up, or a whole number from 2.
        of: how many points there are.
        name: what the points are called, for the message.

    Raises:
        ValueError: for an elite of fewer than two, or of all.
    """
    if not is_whole(of) or of < 3:
        raise ValueError(f"`{name}` must be a whole number of at least 3, got {of!r}")
    finite_number("elite", elite)
    # Slightly less: in floating point 0.07 * 100 is a little more than 7, and must not become 8.
    count = int(elite) if is_whole(elite) else math.ceil(float(elite) * of - 1e-9)
    if not 2 <= count < of:
        raise ValueError(
            f"an `elite` of {elite} of a `{name}` of {of} is {count}; it must be at least 2, which "
            "have a spread, and fewer than all. A float is a share, an integer a number"
        )
    return count


def read_scores(points: Tensor, scores: Tensor | Sequence[float], maximize: bool = True) -> Tensor:
    """Scores in float64, the larger the better; those of failures are ``-inf``.

    Args:
        points: what was scored, ``(n, d)``.
        scores: one for each.
        maximize: whether large scores are good.

    Raises:
        ValueError: for scores that do not fit the points, NaN, or infinitely good ones.
    """
    given = torch.as_tensor(scores, dtype=torch.float64, device="cpu").detach()
    if given.shape != (len(points),):
        raise ValueError(
            f"`scores` must hold one number for each of the {len(points)} points, shape "
            f"({len(points)},); got {tuple(given.shape)}"
        )
    gains = given if maximize else -given
    wrong = (gains.isnan() | (gains == math.inf)).nonzero().flatten().tolist()
    if wrong:
        some = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
        worst = "-inf" if maximize else "inf"
        raise ValueError(
            f"`scores` must be numbers, {worst} for points that failed; NaN or infinitely good are "
            f"those of points {some}"
        )
    return gains


class Iteration(NamedTuple):
    """Scores of one iteration.

    Attributes:
        best: the best score.
        threshold: the worst score of the elite.
        mean: the mean of all scores.
        spread: the largest standard deviation of a coordinate after the update.
    """

    best: float
    threshold: float
    mean: float
    spread: float


class SearchResult(NamedTuple):
    """Best points and distribution of a search so far.

    Attributes:
        centre: the likeliest point of the distribution, ``(d,)``. Where scores are noisy it is
            better than ``best``, whose score is partly luck.
        best: the point with the best score of all, ``(d,)``; None before the first ``tell``.
        score: the score of ``best``.
        distribution: what the next points would be drawn from.
        evaluations: how many points have been scored.
        history: an :class:`Iteration` for each iteration.
    """

    centre: Tensor
    best: Tensor | None
    score: float
    distribution: SearchDistribution
    evaluations: int
    history: list[Iteration]


class CrossEntropyMethod:
    r"""Search for the points with the best scores.

    Points are drawn from a distribution, which is then fitted to the best of them: it moves to
    the member of its family with the least cross-entropy from the elite.

    .. math:: q_{t+1} = \arg\min_q\ -\sum_{x \in \text{elite}} \log q(x)

    Args:
        distribution: where to start, a :class:`Gaussian`, :class:`Bernoulli` or
            :class:`Categorical`; wide enough to hold the points looked for.
        population: how many points an iteration draws.
        elite: how many of them the distribution is fitted to, as a share of the population, rounded
            up, or as a whole number from 2. Of equal scores those drawn first are taken.
        smoothing: the share of the old parameters in the new ones, from 0 up to 1. Literature
            writes :math:`\alpha` for one minus it.
        noise: variance added to each coordinate after an update, against a spread that vanishes too
            soon: a number, or a function of the number of the iteration, 1 for the first. For
            :class:`Gaussian`.
        seed: of the points.
        maximize: whether large scores are good; else small ones.

    Raises:
        ValueError: for a value that an option cannot take.
        TypeError: for noise where the distribution has no variance of its own.

    Example:
        >>> import torch
        >>> from xent.learn import CrossEntropyMethod, Gaussian
        >>> goal = torch.tensor([3.0, -1.0])
        >>> search = CrossEntropyMethod(Gaussian(torch.zeros(2), 100.0), elite=0.2, maximize=False)
        >>> while not search.stop():
        ...     points = search.ask()
        ...     search.tell(points, (points - goal).square().sum(1))
        >>> [round(x, 4) for x in search.result().centre.tolist()]
        [3.0, -1.0]

    References:
        Rubinstein, *The cross-entropy method for combinatorial and continuous optimization*, 1999.
        de Boer et al., *A tutorial on the cross-entropy method*, 2005.
        Noise: Szita & Lorincz, *Learning Tetris using the noisy cross-entropy method*, Neural
        Computation, 2006; there 4, or ``max(5 - t / 10, 0)``.
    """

    def __init__(
        self,
        distribution: SearchDistribution,
        *,
        population: int = 100,
        elite: float = 0.1,
        smoothing: float = 0.0,
        noise: float | Callable[[int], float] = 0.0,
        seed: int = 0,
        maximize: bool = True,
    ) -> None:
        self.elite = elite_count(elite, population)
        if not 0 <= finite_number("smoothing", smoothing) < 1:
            raise ValueError(f"`smoothing` must be at least 0 and less than 1, got {smoothing}")
        self.distribution = distribution
        self.population = population
        self.smoothing = smoothing
        self.maximize = maximize
        self.evaluations = 0
        self.history: list[Iteration] = []
        self._noise = noise
        self._generator = torch.Generator().manual_seed(seed)
        self._best: Tensor | None = None
        self._score = -math.inf if maximize else math.inf
        if self._variance(1):
            distribution.widen(0.0)  # refuses a family without a variance at once

    @property
    def iteration(self) -> int:
        """Number of iterations that are done."""
        return len(self.history)

    def ask(self) -> Tensor:
        """New points to score, ``(population, d)``."""
        return self.distribution.sample(self.population, self._generator)

    def tell(self, points: Tensor, scores: Tensor | Sequence[float]) -> None:
        """Fit the distribution to the best of the points.

        Args:
            points: what :meth:`ask` gave, ``(population, d)``.
            scores: one for each, ``(population,)``. A point that failed gets the worst score:
                ``-inf``, or ``inf`` where small scores are good. It never enters the elite.

        Raises:
            ValueError: for other points, scores that do not fit the points, NaN, scores that are
                infinitely good, or if fewer than two points did not fail. The search stays as it
                was.
        """
        points = torch.as_tensor(points, device="cpu")
        if len(points) != self.population:
            raise ValueError(
                f"`points` must be the {self.population} that `ask` gave, got {len(points)}"
            )
        gains = read_scores(points, scores, self.maximize)
        order = gains.argsort(descending=True, stable=True)[: self.elite]
        order = order[gains[order] > -math.inf]
        if len(order) < 2:
            raise ValueError(
                f"`scores`: {len(order)} of {len(points)} points did not fail, and a spread is "
                "that of 2 or more; start from a distribution that holds more of them"
            )
        fitted = self.distribution.fit(points[order])
        new = self.distribution.blend(fitted, 1 - self.smoothing) if self.smoothing else fitted
        variance = self._variance(self.iteration + 1)
        new = new.widen(variance) if variance else new
        sign = 1 if self.maximize else -1
        best, threshold = sign * gains[order[0]].item(), sign * gains[order[-1]].item()
        iteration = Iteration(best, threshold, sign * gains.mean().item(), new.spread)
        if self._best is None or sign * best > sign * self._score:
            self._best, self._score = points[order[0]].clone(), best
        self.distribution = new
        self.evaluations += len(points)
        self.history.append(iteration)

    def stop(self, tolerance: float = 1e-8) -> bool:
        """True if the distribution can draw nothing new: its spread is below the tolerance."""
        return self.distribution.spread < tolerance

    def result(self) -> SearchResult:
        """Return the best points and the distribution so far."""
        return SearchResult(
            self.distribution.centre, self._best, self._score, self.distribution,
            self.evaluations, list(self.history),
        )  # fmt: skip

    def run(
        self,
        function: Callable[..., Any],
        iterations: int,
        *,
        map: Map | None = None,
        numbered: bool = False,
        target: float | None = None,
        callback: Callable[[SearchResult], object] | None = None,
        quiet: bool = False,
    ) -> SearchResult:
        """Ask and tell until the distribution collapses, the target is met or iterations end.

        An iteration that fails leaves the search as it was before: a further ``run`` draws the same
        points again, and ends where one without a failure would.

        Args:
            function: maps points ``(population, d)`` to their scores, ``(population,)``. With
                ``map`` it takes one point, ``(d,)``, and returns one number.
            iterations: most iterations of the search, with those already done.
            map: calls the function for each point, like the built-in ``map``: that of
                ``multiprocessing.Pool``, of an executor of ``concurrent.futures``, and others.
                The result is the same for any number of workers. Processes must be able to pickle
                the function.
            numbered: with ``map``, call the function with a point, the number of iterations that
                are done, and the number of the point in its iteration, from 0. A score that is
                drawn at random takes its seed from these two, and so not from the worker;
                ``PolicyScores.of_one`` does.
            target: a mean score of the population that is good enough.
            callback: called with the result so far after each iteration.
            quiet: show no progress.

        Returns:
            The :class:`SearchResult`.

        Raises:
            RuntimeError: if the function raises for a point, or a worker ends, where there is a
                ``map``. The message names the point.
            TypeError: if the function cannot be sent to workers, or ``map`` returns no results.
            ValueError: for scores as :meth:`tell` refuses them, or if ``map`` returns too few.

        Example:
            >>> import torch
            >>> from concurrent.futures import ThreadPoolExecutor
            >>> from xent.learn import CrossEntropyMethod, Gaussian
            >>> def score(point):  # (2,)
            ...     return -point.square().sum()
            >>> search = CrossEntropyMethod(Gaussian(torch.ones(2), 1.0))
            >>> with ThreadPoolExecutor(2) as pool:
            ...     found = search.run(score, 20, map=pool.map, quiet=True)
            >>> bool(found.centre.abs().max() < 1e-3)
            True
        """
        from tqdm import tqdm

        with tqdm(total=iterations, initial=self.iteration, disable=quiet, unit="it") as bar:
            while self.iteration < iterations and not self.stop() and not self._meets(target):
                self._iterate(function, map, numbered)
                bar.set_postfix_str(f"mean {self.history[-1].mean:.4g}, best {self._score:.4g}")
                bar.update()
                if callback is not None:
                    callback(self.result())
        return self.result()

    def state_dict(self) -> dict[str, Any]:
        """All that a search needs to go on, in tensors and numbers; for ``torch.save``."""
        return {
            "distribution": self.distribution.parameters(),
            "generator": self._generator.get_state(),
            "evaluations": self.evaluations,
            "history": [list(iteration) for iteration in self.history],
            "best": self._best,
            "score": self._score,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: the next points are those that the saved search would have drawn.

        Args:
            state: what :meth:`state_dict` of a search with the same options gave.

        Raises:
            ValueError: if the state belongs to another family or another number of dimensions, or
                is something else. The search stays as it was.
        """
        sizes = {name: x.shape for name, x in self.distribution.parameters().items()}
        generator = torch.Generator()
        try:
            given = {name: x.shape for name, x in state["distribution"].items()}
            generator.set_state(state["generator"])
            history = [Iteration(*iteration) for iteration in state["history"]]
            evaluations, best, score = state["evaluations"], state["best"], state["score"]
            plain = {"evaluations": int, "score": float, "best": (torch.Tensor, type(None))}
            if not fits(state, plain) or not fits([list(one) for one in history], [[float]]):
                raise TypeError("it holds something else")
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"`state` is not what `state_dict` gave: {error!r}") from None
        if given != sizes:
            kind = type(self.distribution).__name__
            raise ValueError(
                f"the state has parameters {_listed(given)}, this {kind} has {_listed(sizes)}"
            )
        self.distribution = type(self.distribution)(**state["distribution"])
        self._generator, self.history, self.evaluations = generator, history, evaluations
        self._best, self._score = best, score

    def _iterate(self, function: Callable[..., Any], map: Map | None, numbered: bool) -> None:
        """Ask and tell once, or leave all as it was."""
        before = self._generator.get_state()
        try:
            points = self.ask()
            if map is None:
                scores = function(points)
            else:
                scores = scores_one_by_one(map, function, points, self.iteration, numbered)
            self.tell(points, scores)
        except BaseException:
            self._generator.set_state(before)
            raise

    def _meets(self, target: float | None) -> bool:
        if target is None or not self.history:
            return False
        mean = self.history[-1].mean
        return mean >= target if self.maximize else mean <= target

    def _variance(self, iteration: int) -> float:
        noise = self._noise(iteration) if callable(self._noise) else self._noise
        if finite_number("noise", noise) < 0:
            raise ValueError(f"`noise` must be at least 0, got {noise} in iteration {iteration}")
        return float(noise)


def _listed(sizes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(size)}" for name, size in sizes.items())
