r"""A search for losses: CMA-ES over scalar functions of the row statistics.

A candidate is a weighted sum of a few terms of the statistics of a row,

.. math:: \ell = c_1 (-\log p) + c_2 (\mathrm{lse} - \bar z) + c_3 H + c_4 (1 - p)^a + c_5 p^b,

Among these sums are cross-entropy, label smoothing, the confidence penalty, Poly-1, generalised
cross-entropy, and losses between them. A candidate is judged by the held-out accuracy of the
networks that it trains. The statistics of all candidates' rows are computed at once, so a
generation costs little more than one training. The loss that is found prints as a body for
``@xent.row_loss``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import statistics
from .._files import write_whole
from .._package import pip_install
from .loss_formula import CROSS_ENTROPY, TERMS, Formula, weighted_sum
from .networks.small_networks import SmallNetworks
from .workers import Map, Round, results_of

__all__ = ["Formula", "Found", "HeldOutAccuracy", "search_loss"]

RECORD = "search.json"


@dataclass(frozen=True, eq=False)
class HeldOutAccuracy:
    """Judges formulas by the accuracy of small networks that learn with them, all at once.

    Called with formulas and a round, it returns for each formula the mean accuracy on the held-out
    rows. All formulas of a round get the same starts and the same batches; each round has new ones.

    Args:
        x: features to learn from, ``(rows, features)``.
        y: classes of ``x``, ``(rows,)``.
        held_out_x: features to judge by.
        held_out_y: classes of ``held_out_x``.
        networks: how many networks each formula trains.
        hidden: hidden units of a network.
        steps: how many batches a network sees.
        batch: rows per batch.
        lr: step size of Adam.
    """

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    networks: int = 3
    hidden: int = 32
    steps: int = 300
    batch: int = 32
    lr: float = 3e-3

    def __call__(self, formulas: Sequence[Formula], round: int) -> list[float]:
        """Return the score of each formula.

        Args:
            formulas: the candidates.
            round: number that decides the starts and the batches, for all candidates alike.
        """
        return self.of_each_network(formulas, round).mean(1).tolist()

    def of_each_network(self, formulas: Sequence[Formula], round: int) -> Tensor:
        """The accuracy of each network, ``(formulas, networks)``.

        Args:
            formulas: the candidates.
            round: number that decides the starts and the batches, for all candidates alike.
        """
        lucks = [round * self.networks + k for k in range(self.networks)]
        classes = int(torch.cat([self.y, self.held_out_y]).max()) + 1
        together = SmallNetworks(
            self.x.shape[1], classes, lucks * len(formulas), hidden=self.hidden
        )
        share = self.networks * self.batch  # rows of a formula
        numbers = torch.tensor(
            [[*f.coefficients, *f.exponents] for f in formulas], dtype=torch.float64, device="cpu"
        )
        columns = numbers.repeat_interleave(share, 0).unbind(1)

        def loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
            s = statistics(input, target, entropy=True, mean=True)
            return weighted_sum(s, columns[: len(TERMS)], columns[len(TERMS) :]).sum()

        together.train(self.x, self.y, loss, steps=self.steps, batch=self.batch, lr=self.lr)
        right = together.accuracy(self.held_out_x, self.held_out_y)
        return right.view(len(formulas), self.networks)


class Found(NamedTuple):
    """Result of a search for losses.

    Attributes:
        formula: the loss that did best when the finalists were judged again.
        score: the score of ``formula`` then.
        cross_entropy: the score of cross-entropy, which is always among the finalists.
        finalists: all finalists with their scores, best first.
        history: the best and the mean score of each generation.
    """

    formula: Formula
    score: float
    cross_entropy: float
    finalists: list[tuple[Formula, float]]
    history: list[tuple[float, float]]


Judge = Callable[[Sequence[Formula], int], Sequence[float]]


def search_loss(
    judge: Judge,
    *,
    generations: int = 15,
    population: int = 12,
    sigma: float = 0.5,
    seed: int = 0,
    finalists: int = 4,
    rounds: int = 4,
    map: Map | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Found:
    """Search for a loss by CMA-ES, starting from cross-entropy.

    Scores are noisy, and the best score of many is in part luck. So in the end the best candidates,
    the centre of the search and cross-entropy are judged again, ``rounds`` times with new random
    numbers, and the best of these is returned. There its score is never below that of
    cross-entropy. Claims about the result need data that the judge has not seen.

    Args:
        judge: gives each of a list of formulas a score, higher is better; its second argument
            counts the calls and should seed the random numbers. :class:`HeldOutAccuracy` is one.
        generations: how many populations are tried; those of a resumed search count.
        population: formulas per generation.
        sigma: how far from cross-entropy the first formulas are scattered.
        seed: of the search.
        finalists: how many of the candidates tried are judged again.
        rounds: how many times the finalists are judged.
        map: calls the judge for each formula alone, with a list of this formula and the round, like
            the built-in ``map``: that of ``multiprocessing.Pool``, of an executor of
            ``concurrent.futures``, and others. The result is the same for any number of workers.
            Processes must be able to pickle the judge.
        folder: where to keep ``search.json``, the record, written after each generation; None
            keeps nothing.
        resume: continue the search in ``folder``, if there is one. The settings must be the same,
            but for ``generations``; that the judge is the same is up to you.
        quiet: show no progress.

    Returns:
        :class:`Found`.

    Raises:
        ImportError: if the packages cma or tqdm are not installed.
        ValueError: for numbers out of range, if the folder holds a search and ``resume`` is False,
            or if that search has other settings.
        RuntimeError: if the judge raises for a formula, or a worker ends, where there is a ``map``.
            The message names the formula; the record in ``folder`` holds all generations before.
        TypeError: if the judge cannot be sent to workers, or ``map`` returns no results.

    Example:
        >>> from xent.learn.loss_search import search_loss
        >>> def judge(formulas, round):  # likes label smoothing
        ...     return [-abs(f.coefficients[1] - 0.3) for f in formulas]
        >>> found = search_loss(judge, generations=8, quiet=True)
        >>> found.score > found.cross_entropy
        True
    """
    for name, value, least in (
        ("generations", generations, 1), ("population", population, 4), ("finalists", finalists, 0),
        ("rounds", rounds, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}")
    try:
        strategy = _strategy(population, sigma, seed)
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            f"the loss search needs the package {error.name}: {pip_install('search')}"
        ) from None
    judged = partial(_scores, judge) if map is None else partial(_scores_one_by_one, map, judge)
    record = _Record(folder, resume, {"population": population, "sigma": sigma, "seed": seed})
    tried = record.generations
    for generation in tried:
        _replay(strategy, generation)
    bar = tqdm(total=generations, desc="generations", disable=quiet, initial=len(tried))
    for number in range(len(tried), generations):
        points = strategy.ask()
        scores = judged([Formula.at(point) for point in points], number)
        strategy.tell(points, [-score for score in scores])
        tried.append({"points": [[float(x) for x in p] for p in points], "scores": scores})
        record.save(tried)
        bar.set_postfix_str(f"best {max(scores):.4f}, mean {sum(scores) / population:.4f}")
        bar.update()
    bar.close()
    final = _finalists(tried, strategy.mean, finalists)
    each = [judged(final, len(tried) + k) for k in range(rounds)]
    means = [sum(of_round) / rounds for of_round in zip(*each, strict=True)]
    # The sort is stable, so cross-entropy comes first among equal scores.
    ranked = sorted(zip(final, means, strict=True), key=lambda pair: -pair[1])
    record.save(tried, ranked)
    history = [(max(t["scores"]), sum(t["scores"]) / population) for t in tried]
    return Found(*ranked[0], means[0], ranked, history)


def _finalists(tried: list[dict[str, Any]], centre: Any, count: int) -> list[Formula]:
    """Cross-entropy, the centre of the search, and the best that were tried."""
    pairs = [pair for t in tried for pair in zip(t["scores"], t["points"], strict=True)]
    best = [Formula.at(point) for _, point in sorted(pairs, key=lambda pair: -pair[0])[:count]]
    return list(dict.fromkeys([Formula.at(CROSS_ENTROPY), Formula.at(centre), *best]))


def _scores(judge: Judge, formulas: Sequence[Formula], round: int) -> list[float]:
    """Return the scores of the judge; one that is not finite, of a failed training, is -1e9."""
    scores = list(judge(formulas, round))
    if len(scores) != len(formulas):
        raise ValueError(f"`judge` returned {len(scores)} scores for {len(formulas)} formulas")
    return [float(score) if math.isfinite(score) else -1e9 for score in scores]


def _scores_one_by_one(
    map: Map, judge: Judge, formulas: Sequence[Formula], number: int
) -> list[float]:
    """Return the scores of the judge, which gets one formula at a time."""
    round = Round(
        f"round {number}", "formula", {"judge": judge},
        "The generations before are in `folder`, and resume=True goes on from there",
    )  # fmt: skip
    items = [([formula], number) for formula in formulas]
    return [score for (score,) in results_of(map, partial(_scores, judge), items, round)]


def _strategy(population: int, sigma: float, seed: int) -> Any:
    """Return CMA-ES with random numbers of its own; by default it reseeds those of NumPy."""
    import numpy
    from cma import CMAEvolutionStrategy

    stream = numpy.random.default_rng(seed)
    options = {
        "popsize": population, "seed": numpy.nan, "randn": lambda *n: stream.standard_normal(n),
        "tolflatfitness": 1000, "verbose": -10, "verb_log": 0, "verb_disp": 0,
    }  # fmt: skip
    return CMAEvolutionStrategy(list(CROSS_ENTROPY), sigma, options)


def _replay(strategy: Any, tried: dict[str, Any]) -> None:
    """Bring the strategy to its state after a generation, by the same scores as then."""
    points = strategy.ask()
    then = torch.tensor(tried["points"], dtype=torch.float64, device="cpu")
    now = torch.tensor(
        [list(map(float, point)) for point in points], dtype=torch.float64, device="cpu"
    )
    if then.shape != now.shape or not torch.allclose(then, now, rtol=1e-6, atol=1e-9):
        raise ValueError(
            "the search cannot be continued here: this version of cma draws other candidates from "
            "the same history. Start anew in another folder"
        )
    strategy.tell(points, [-score for score in tried["scores"]])


class _Record:
    """The record of a search: scores and points as JSON, so that it can be read and replayed."""

    def __init__(self, folder: str | Path | None, resume: bool, settings: dict[str, Any]) -> None:
        self.path = None if folder is None else Path(folder) / RECORD
        self.settings = settings
        self.generations: list[dict[str, Any]] = []
        if self.path is None:
            if resume:
                raise ValueError("resume=True continues the search in `folder`; say which one")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        if not resume:
            raise ValueError(f"{self.path} holds a search; resume=True continues it")
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            self.generations = [
                {k: t[k] for k in ("points", "scores")} for t in kept["generations"]
            ]
            before = kept["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not the record of a search: {error}") from None
        if before != settings:
            other = {k: v for k, v in before.items() if settings.get(k) != v}
            raise ValueError(f"{self.path} was begun with {other}; continue it with the same")

    def save(
        self, tried: list[dict[str, Any]], ranked: Sequence[tuple[Formula, float]] = ()
    ) -> None:
        """Write the record; if the process is killed meanwhile, the old record stays."""
        if self.path is None:
            return
        whole: dict[str, Any] = {"settings": self.settings}
        if ranked:
            whole["source"] = ranked[0][0].source()
            whole["finalists"] = [{"formula": str(f), "score": score} for f, score in ranked]
        whole["generations"] = tried
        write_whole(self.path, json.dumps(whole, indent=1).encode())
