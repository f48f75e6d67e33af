"""Episodes that the workers of a ``map`` play, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from ..workers import Map, Round, results_of
from .episodes import Episodes, Stage, sampled, seeds_of


def played_alone(
    map: Map, policy: Module, env: str | Callable[[], Any], seed: int, update: int, count: int
) -> Episodes:
    """Episodes whose actions are drawn by a policy, each with seeds of its own.

    Args:
        map: calls a function for each item of a list, like the built-in ``map``.
        policy: maps observations ``(k, ...)`` to logits ``(k, actions)``.
        env: the id of a gymnasium environment, or a function that makes one.
        seed: of the training.
        update: how many updates are done.
        count: how many episodes to play.

    Raises:
        RuntimeError: if an episode fails, or a worker ends.
        TypeError: if something cannot be sent to workers, or ``map`` returns no results.
        ValueError: if ``map`` returns too few results.
    """
    round = Round(
        f"update {update + 1}", "episode", {"policy": policy, "env": env},
        "The policy is as it was before this update, and resume=True goes on from `checkpoint`",
    )  # fmt: skip
    seeds = seeds_of(seed, update, 2 * count)  # first those that episodes have without `map`
    items = zip(seeds[:count], seeds[count:], strict=True)
    return Episodes.joined(results_of(map, _OneEpisode(policy, env), items, round))


@dataclass(frozen=True)
class _OneEpisode:
    """Plays an episode with a copy of a policy, on an environment of its own."""

    policy: Module
    env: str | Callable[[], Any]

    def __call__(self, seed: int, of_actions: int) -> Episodes:
        generator = torch.Generator().manual_seed(of_actions)
        with Stage(self.env) as stage:
            act = sampled(deepcopy(self.policy), stage.action_space, generator)
            return stage.play(act, [seed])
