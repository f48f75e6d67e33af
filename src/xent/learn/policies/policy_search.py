"""Scores for vectors of policy parameters: the mean return of the policy with each vector.

    scores = PolicyScores(torch.nn.Linear(4, 2), "CartPole-v1")
    search = CrossEntropyMethod(Gaussian(torch.zeros(scores.dimensions), 1.0), population=50)
    found = search.run(lambda points: scores(points, search.iteration), iterations=10)

No gradient is taken, so a policy may be anything that chooses actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import Module

from ..._check import is_whole
from ..networks.training import evaluation_mode
from .episodes import Stage, as_for, greedy, seeds_of

__all__ = ["PolicyScores", "evaluate_policy"]


class PolicyScores:
    """Score of a vector of parameters: the mean return of the policy with these parameters.

    The policy takes the action of its largest logit, or, where actions are numbers, its output
    within their bounds, in evaluation mode. All vectors play at once; the policy is vectorised over
    the vectors.

    Args:
        policy: a module from observations ``(k, ...)`` to logits ``(k, actions)`` or actions ``(k,
            ...)``; not changed. A vector is what ``torch.nn.utils.parameters_to_vector`` makes of
            its parameters.
        env: the id of a gymnasium environment, or a function that makes one.
        episodes: how many each vector plays.
        seed: of the episodes.

    Raises:
        ValueError: if the policy has no parameters.
        TypeError: if ``env`` is neither an id nor a function.

    Example:
        >>> import torch
        >>> from xent.learn import CrossEntropyMethod, Gaussian, PolicyScores
        >>> scores = PolicyScores(torch.nn.Linear(4, 2), "CartPole-v1")
        >>> start = Gaussian(torch.zeros(scores.dimensions), 1.0)
        >>> search = CrossEntropyMethod(start, population=20, elite=0.2)
        >>> found = search.run(lambda x: scores(x, search.iteration), iterations=3, quiet=True)
        >>> found.score > 50
        True
    """

    def __init__(
        self, policy: Module, env: str | Callable[[], Any], *, episodes: int = 1, seed: int = 0
    ) -> None:
        if not is_whole(episodes) or episodes < 1:
            raise ValueError(f"`episodes` must be a whole number of at least 1, got {episodes!r}")
        self.policy, self.episodes, self.seed = policy, episodes, seed
        self._shapes = {name: p.shape for name, p in policy.named_parameters()}
        if not self._shapes:
            raise ValueError("`policy` has no parameters to score")
        self._env = env
        self._stage: Stage | None = Stage(env)

    def __getstate__(self) -> dict[str, Any]:
        """Return all that a copy is made of, but for environments, which a copy makes itself."""
        return {**vars(self), "_stage": None}

    @property
    def dimensions(self) -> int:
        """The number of parameters."""
        return sum(map(prod, self._shapes.values()))

    def __call__(self, points: Tensor, round: int = 0) -> Tensor:
        """Mean return of each vector of parameters, ``(n,)``.

        Args:
            points: ``(n, dimensions)``.
            round: number of the round; each round has new episodes.
        """
        return self.of_each_episode(points, round).mean(1)

    def of_one(self, point: Tensor, round: int = 0, number: int = 0) -> float:
        """Mean return of one vector, in the episodes of the vector with this number in a round.

        For ``CrossEntropyMethod.run(scores.of_one, map=pool.map, numbered=True)``. It plays on a
        copy of the policy and on environments of its own, so threads may call it, too.

        Args:
            point: ``(dimensions,)``.
            round: number of the round.
            number: which vector of the round it is, from 0.
        """
        own, last = deepcopy(self), self.episodes * (number + 1)
        own._stage = Stage(self._env)
        with own._stage:
            seeds = seeds_of(self.seed, round, last)[-self.episodes :]
            return own._returns(point.unsqueeze(0), seeds).mean().item()

    def of_each_episode(self, points: Tensor, round: int = 0) -> Tensor:
        """Return of each episode of each vector of parameters, ``(n, episodes)``.

        Args:
            points: ``(n, dimensions)``.
            round: number of the round.
        """
        return self._returns(points, seeds_of(self.seed, round, len(points) * self.episodes))

    @torch.no_grad()
    def _returns(self, points: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return of each episode of each vector, ``(n, episodes)``, with a seed for each."""
        if points.ndim != 2 or points.shape[1] != self.dimensions:
            raise ValueError(
                f"`points` must have shape (n, {self.dimensions}), got {tuple(points.shape)}"
            )
        first = next(self.policy.parameters())
        parts = points.to(first).split([prod(shape) for shape in self._shapes.values()], 1)
        parameters = {
            name: part.view(-1, *shape)  # (n, *shape)
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }

        def output(parameters: dict[str, Tensor], seen: Tensor) -> Tensor:
            return functional_call(self.policy, parameters, (seen.unsqueeze(0),)).squeeze(0)

        def act(seen: Tensor, which: Tensor) -> Tensor:
            whose = {name: p[which // self.episodes] for name, p in parameters.items()}
            return greedy(vmap(output)(whose, as_for(self.policy, seen)).cpu(), space)

        stage = self._stage = self._stage or Stage(self._env)
        space = stage.action_space
        with evaluation_mode(self.policy):
            played = stage.play(act, seeds)
        return played.returns.view(len(points), self.episodes)


@torch.no_grad()
def evaluate_policy(
    policy: Module, env: str | Callable[[], Any], episodes: int = 100, *, seed: int = 1_000_000
) -> Tensor:
    """Return the returns of episodes in which a policy takes its preferred actions.

    Args:
        policy: as for :class:`PolicyScores`.
        env: the id of a gymnasium environment, or a function that makes one.
        episodes: how many to play.
        seed: of the episodes; by default one that no training is likely to have had.

    Returns:
        ``(episodes,)``, float64.

    Raises:
        TypeError: if ``env`` is neither an id nor a function.

    Example:
        >>> import torch
        >>> from xent.learn import evaluate_policy
        >>> policy = torch.nn.Linear(4, 2)
        >>> with torch.no_grad():  # push to where the pole leans and turns
        ...     _ = policy.weight.copy_(torch.tensor([[0, 0, -1, -1], [0, 0, 1, 1]]))
        >>> evaluate_policy(policy, "CartPole-v1", 3).min().item() > 100
        True
    """
    with Stage(env) as stage, evaluation_mode(policy):
        return stage.play(
            lambda seen, _: greedy(policy(as_for(policy, seen)).cpu(), stage.action_space),
            seeds_of(seed, 0, episodes),
        ).returns
