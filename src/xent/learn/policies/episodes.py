"""Whole episodes of gymnasium environments, played side by side.

Each episode has its own seed and, until its end, its own copy of the environment. So an episode
does not depend on those beside it, and long episodes are not cut. A vector environment of gymnasium
would begin the next episode by itself, with a step in between that must not be learnt from.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Module

from ..._check import is_whole

__all__ = ["Episodes", "Stage"]

# (observations (k, ...), numbers of their episodes (k,)) -> actions
Act = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes one after the other, all steps of the first, then those of the second, ...

    Attributes:
        observations: the observation before each step, ``(steps, ...)``.
        actions: the action of each step, ``(steps, ...)``.
        rewards: the reward of each step, ``(steps,)``, float64.
        lengths: steps of each episode, ``(episodes,)``.
        truncated: True for an episode that was cut by a time limit, ``(episodes,)``. Its return has
            the rewards until then.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    truncated: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as arrays: between processes PyTorch would share memory for each tensor."""
        return _of_arrays, tuple(getattr(self, field.name).numpy() for field in fields(self))

    @classmethod
    def joined(cls, parts: Sequence[Episodes]) -> Episodes:
        """The episodes of all parts, one after the other."""
        return cls(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls))
        )

    @property
    def returns(self) -> Tensor:
        """The sum of the rewards of each episode, ``(episodes,)``."""
        return self.rewards.new_zeros(len(self.lengths)).index_add(0, self.index, self.rewards)

    @property
    def index(self) -> Tensor:
        """The number of the episode of each step, ``(steps,)``."""
        return torch.arange(len(self.lengths), device="cpu").repeat_interleave(self.lengths)

    def discounted(self, gamma: float) -> Tensor:
        r"""The return from each step on, ``(steps,)``: :math:`G_t = r_t + \gamma G_{t+1}`.

        Args:
            gamma: what a reward is worth one step later, from 0 to 1.
        """
        returns = []
        for rewards in self.rewards.split(self.lengths.tolist()):
            total, backward = 0.0, []
            for reward in reversed(rewards.tolist()):
                total = reward + gamma * total
                backward.append(total)
            returns += reversed(backward)
        return torch.tensor(returns, dtype=self.rewards.dtype, device="cpu")


class Stage:
    """Copies of an environment for episodes, made when they are needed.

    Args:
        env: the id of a gymnasium environment, or a function that makes one. Episodes must come to
            an end: ``gymnasium.wrappers.TimeLimit`` cuts those that do not.
        copies: how many episodes are played side by side at most.

    Raises:
        TypeError: if ``env`` is an environment, which cannot be copied, or anything else.
        ValueError: for observations that make no array; later for rewards that are not finite.

    Example:
        >>> import torch
        >>> from xent.learn.policies.episodes import Stage
        >>> with Stage("CartPole-v1") as stage:
        ...     played = stage.play(lambda seen, _: (seen[:, 2] > 0).long(), seeds=[0, 1, 2])
        >>> torch.equal(played.returns, played.lengths.double())  # a reward of 1 for each step
        True
    """

    def __init__(self, env: str | Callable[[], Any], copies: int = 64) -> None:
        import gymnasium

        if isinstance(env, str):
            self._make: Callable[[], Any] = lambda: gymnasium.make(env)
        elif callable(env):
            self._make = env
        else:
            raise TypeError(
                "`env` must be the id of a gymnasium environment, or a function that makes one, "
                f"since copies of it are played on; got {type(env).__name__}"
            )
        self.env, self.copies = env, copies
        self._envs = [self._make()]
        if not isinstance(self._envs[0], gymnasium.Env):
            raise TypeError(f"`env` must make a gymnasium.Env, made {type(self._envs[0]).__name__}")
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        spec = self._envs[0].spec
        self.name: str | None = spec and spec.id  # None for an environment that is not registered
        if self.observation_space.shape is None:
            raise ValueError(
                f"observations of {self.observation_space} make no array; wrap the environment in "
                "gymnasium.wrappers.FlattenObservation"
            )

    def play(self, act: Act, seeds: Sequence[int]) -> Episodes:
        """Play one episode for each seed.

        Args:
            act: chooses actions, ``(k, ...)``, from the observations of ``k`` episodes, ``(k,
                ...)``, and the numbers of these episodes, ``(k,)``.
            seeds: of the environment in each episode.

        Returns:
            The :class:`Episodes`, in the order of the seeds.
        """
        if not seeds:
            raise ValueError("`seeds` must hold at least one, for an episode")
        while len(self._envs) < min(self.copies, len(seeds)):
            self._envs.append(self._make())
        free, waiting = list(self._envs), deque(enumerate(seeds))
        playing: list[_Episode] = []
        played: list[_Episode] = []
        while waiting or playing:
            while free and waiting:
                playing.append(_Episode(free.pop(), *waiting.popleft()))
            seen = _tensor(np.stack([episode.seen for episode in playing]))
            actions = act(
                seen,
                torch.tensor(
                    [episode.number for episode in playing], dtype=torch.int64, device="cpu"
                ),
            ).numpy()
            if len(actions) != len(playing):
                raise ValueError(
                    f"`policy` must answer each of the {len(playing)} observations it gets at a "
                    f"time, gave {len(actions)} answers"
                )
            for episode, action in zip(playing, actions, strict=True):
                episode.step(action)
            over = [episode for episode in playing if episode.over]
            free += [episode.env for episode in over]
            played += over
            playing = [episode for episode in playing if not episode.over]
        return _joined(sorted(played, key=lambda episode: episode.number))

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Episode:
    """One episode on one copy of the environment."""

    def __init__(self, env: Any, number: int, seed: int) -> None:
        self.env, self.number = env, number
        self.seen = np.array(env.reset(seed=int(seed))[0])  # some environments reuse the array
        self.steps: list[tuple[Any, Any, float]] = []  # observation before, action, reward
        self.over = self.truncated = False

    def step(self, action: Any) -> None:
        seen, reward, terminated, cut, _ = self.env.step(action)
        if not math.isfinite(reward):
            raise ValueError(f"`env` must give finite rewards, gave {reward} for {action}")
        self.steps.append((self.seen, action, float(reward)))
        self.seen = np.array(seen)
        self.over, self.truncated = bool(terminated or cut), bool(cut and not terminated)


def _of_arrays(*arrays: np.ndarray) -> Episodes:
    return Episodes(*map(torch.from_numpy, arrays))


def _joined(played: list[_Episode]) -> Episodes:
    every = [step for episode in played for step in episode.steps]
    observations, actions, rewards = zip(*every, strict=True)
    return Episodes(
        _tensor(np.stack(observations)),
        torch.from_numpy(np.stack(actions)),
        torch.tensor(rewards, dtype=torch.float64, device="cpu"),
        torch.tensor([len(episode.steps) for episode in played], dtype=torch.int64, device="cpu"),
        torch.tensor([episode.truncated for episode in played], dtype=torch.bool, device="cpu"),
    )


def sampled(policy: Module, space: Any, generator: Generator) -> Act:
    """Return a function that draws actions with the probabilities of a policy's logits.

    Args:
        policy: maps observations ``(k, ...)`` to logits ``(k, actions)``.
        space: the action space, which must be discrete.
        generator: of random numbers, on the CPU.

    Raises:
        TypeError: for another action space.
    """
    check_discrete(space)

    @torch.no_grad()
    def act(seen: Tensor, _: Tensor) -> Tensor:
        p = logits_of(policy, seen, space).softmax(-1).cpu()
        return torch.multinomial(p, 1, generator=generator).squeeze(1) + int(space.start)

    return act


def greedy(output: Tensor, space: Any) -> Tensor:
    """Actions that a policy prefers: the largest logits, or for numbers the output within bounds.

    Args:
        output: of the policy, ``(k, actions)``, or ``(k, ...)`` for actions that are numbers.
        space: the action space, ``Discrete`` or ``Box``.

    Raises:
        TypeError: for another action space.
        ValueError: if ``output`` does not fit the space.
    """
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        return _checked(output, int(space.n)).argmax(-1) + int(space.start)
    if isinstance(space, Box):
        low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        numbers = _checked(output, low.numel()).to(low.dtype)
        return numbers.view(-1, *low.shape).clamp(low, high)
    raise TypeError(f"a policy acts in Discrete or Box action spaces, not in {space}")


def check_discrete(space: Any) -> Any:
    """Return the action space, or raise unless it is ``Discrete``."""
    from gymnasium.spaces import Discrete

    if not isinstance(space, Discrete):
        raise TypeError(
            f"logits choose among actions of a Discrete space, and this environment has {space}; "
            "CrossEntropyMethod with PolicyScores takes Box, too"
        )
    return space


def logits_of(policy: Module, seen: Tensor, space: Any) -> Tensor:
    """Compute and check the logits of a policy, on the device of the policy.

    Args:
        policy: maps observations ``(k, ...)`` to logits ``(k, actions)``.
        seen: the observations.
        space: the action space, ``Discrete``.

    Raises:
        TypeError: if the policy returns no tensor.
        ValueError: for another shape, or logits that give no probabilities.
    """
    return _checked(policy(as_for(policy, seen)), int(space.n))


def as_for(policy: Module, seen: Tensor) -> Tensor:
    """Return observations on the device of a policy, real numbers also in its precision."""
    first = next(policy.parameters(), seen)
    real = first.is_floating_point() and seen.is_floating_point()
    return seen.to(first) if real else seen.to(first.device)


def _checked(output: Any, width: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"`policy` must return a tensor, returned {type(output).__name__}")
    if output.ndim < 2 or output[0].numel() != width:
        raise ValueError(
            f"`policy` must return ({width},) numbers for each observation in this environment; "
            f"returned shape {tuple(output.shape)}"
        )
    output = output.flatten(1)
    if not bool(output.amax(1).isfinite().all()):  # -inf rules out single actions
        raise ValueError(
            "`policy` returned NaN or infinity; are the observations finite, and its parameters? "
            "Else `lr` was too large"
        )
    return output


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def seeds_of(seed: int, round: int, count: int) -> list[int]:
    """Seeds for the episodes of one round; each ``round`` and each ``seed`` has its own."""
    if not is_whole(seed) or seed < 0:
        raise ValueError(f"`seed` must be a whole number of at least 0, got {seed!r}")
    return np.random.SeedSequence((int(seed), round)).generate_state(count).tolist()
