"""Training of policies with cross-entropy: REINFORCE, and the cross-entropy method on actions.

Both minimise the cross-entropy of the actions taken, ``-log p(action | observation)``. REINFORCE
weights each action by the rewards after it; the cross-entropy method takes the actions of the best
episodes as targets, all with weight 1.

The weights of REINFORCE have both signs, so the loss must not be divided by their sum. With that
division, CartPole ends at a return of 10 to 44 instead of 500.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ... import cross_entropy, statistics
from ..._check import is_whole
from ..._files import checkpoint_bytes, fits, read_checkpoint, write_whole
from ...hyperparameters import Range
from ...policy import group_advantages, reinforce_loss
from ..search.cross_entropy_method import elite_count
from ..workers import Map
from .episodes import Episodes, Stage, check_discrete, logits_of, sampled, seeds_of
from .played_alone import played_alone

__all__ = ["PolicyRecord", "deep_cem", "reinforce"]

# (episodes, logits of all steps, classes of the actions) -> loss
BatchLoss = Callable[[Episodes, Tensor, Tensor], Tensor]
WINDOW = 100  # episodes that must average the target
# The form that the record of a checkpoint must have.
RECORD = {"batch": int, "returns": [float], "loss": [float], "entropy": [float], "solved": bool}


@dataclass
class PolicyRecord:
    """Record of how a policy learnt.

    Attributes:
        batch: episodes per update.
        returns: of each episode, in the order they were played.
        loss: of each batch.
        entropy: mean entropy of the policy in each batch, in nats.
        solved: whether the last 100 episodes average the target.
    """

    batch: int
    returns: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    solved: bool = False

    def average(self, last: int = WINDOW) -> float:
        """Mean return of the last episodes, by default 100."""
        recent = self.returns[-last:]
        return sum(recent) / len(recent)


def reinforce(
    policy: Module,
    env: str | Callable[[], Any],
    *,
    gamma: float = 0.99,
    batch: int = 10,
    lr: float = 1e-2,
    entropy_weight: float = 0.0,
    episodes: int = 1000,
    target: float | None = None,
    seed: int = 0,
    callback: Callable[[PolicyRecord], object] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> PolicyRecord:
    r"""Train a policy by REINFORCE: on :func:`xent.policy.reinforce_loss` of the actions taken.

    .. math:: L = \frac{1}{N} \sum_t A_t \bigl(-\log p(a_t \mid s_t)\bigr), \qquad
        A_t = \frac{G_t - \mathrm{mean}(G)}{\mathrm{std}(G)}, \qquad G_t = r_t + \gamma G_{t+1}

    over the N steps of a batch of episodes. Advantages are signed and sum to 0, so a mean must
    divide by the number of steps; a weighted mean, which divides by the sum of its weights, would
    divide by 0 up to rounding.

    Args:
        policy: a module from observations ``(k, ...)`` to logits ``(k, actions)``; trained in
            place, on the device it is on.
        env: the id of a gymnasium environment with discrete actions, or a function that makes one.
        gamma: what a reward is worth one step later, from 0 to 1.
        batch: episodes per update.
        lr: step size of Adam.
        entropy_weight: how much of the policy's entropy is subtracted from the loss.
        episodes: how many to play at most.
        target: stop when the mean return of the last 100 episodes reaches this number.
        seed: of episodes and actions; the caller sets the first weights of the policy.
        callback: called with the record after each update.
        checkpoint: a file to save the state in after each update.
        resume: go on from ``checkpoint``, to the same bits as without the interruption.
        quiet: show no progress.

    Returns:
        The :class:`PolicyRecord`.

    Raises:
        ValueError: for values that options cannot take, logits that do not fit the actions, or a
            checkpoint of another training.
        TypeError: for actions that are not discrete.

    Example:
        >>> import torch
        >>> from xent.learn import reinforce
        >>> policy = torch.nn.Linear(4, 2)
        >>> record = reinforce(policy, "CartPole-v1", episodes=30, quiet=True)
        >>> len(record.returns), len(record.loss)
        (30, 3)

    References:
        Williams, *Simple statistical gradient-following algorithms for connectionist reinforcement
        learning*, Machine Learning, 1992.
    """
    Range(0, 1).check("gamma", gamma, None)
    Range(0).check("entropy_weight", entropy_weight, None)
    settings = {"method": "reinforce", "gamma": gamma, "entropy_weight": entropy_weight}
    loss = partial(_policy_gradient, gamma=gamma, entropy_weight=entropy_weight)
    training = _Training(policy, loss, batch, lr, seed, settings)
    return training.run(env, episodes, target, callback, checkpoint, resume, quiet)


def deep_cem(
    policy: Module,
    env: str | Callable[[], Any],
    *,
    elite: float = 0.3,
    batch: int = 16,
    lr: float = 1e-2,
    episodes: int = 1600,
    target: float | None = None,
    seed: int = 0,
    map: Map | None = None,
    callback: Callable[[PolicyRecord], object] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> PolicyRecord:
    r"""The cross-entropy method on actions: learn the actions of the best episodes.

    .. math:: L = \frac{1}{N} \sum_{t \in \text{elite}} -\log p(a_t \mid s_t)

    over the N steps of the best episodes of a batch. A step of the optimiser moves the policy, as a
    distribution of episodes, towards the least cross-entropy from the elite.

    Args:
        policy: a module from observations ``(k, ...)`` to logits ``(k, actions)``; trained in
            place, on the device it is on.
        env: the id of a gymnasium environment with discrete actions, or a function that makes one.
        elite: the best episodes of a batch, as for :class:`CrossEntropyMethod`: a share, rounded
            up, or a number of them.
        batch: episodes per update.
        lr: step size of Adam.
        episodes: how many to play at most.
        target: stop when the mean return of the last 100 episodes reaches this number.
        seed: of episodes and actions; the caller sets the first weights of the policy.
        map: plays each episode by a call of its own, like the built-in ``map``: that of
            ``multiprocessing.Pool``, of an executor of ``concurrent.futures``, and others. The
            result is the same for any number of workers, but another than without ``map``, since
            each episode draws its actions with a seed of its own. A policy that draws random
            numbers itself, as dropout does, is not the same. Processes must be able to pickle
            ``policy`` and ``env``.
        callback: called with the record after each update.
        checkpoint: a file to save the state in after each update.
        resume: go on from ``checkpoint``, to the same bits as without the interruption.
        quiet: show no progress.

    Returns:
        The :class:`PolicyRecord`.

    Raises:
        ValueError: for values that options cannot take, logits that do not fit the actions, or a
            checkpoint of another training.
        TypeError: for actions that are not discrete, or if ``policy`` or ``env`` cannot be sent to
            workers.
        RuntimeError: if an episode fails, or a worker ends, where there is a ``map``; the message
            names the episode. The policy and ``checkpoint`` are as the last update left them.

    Example:
        >>> import torch
        >>> from xent.learn import deep_cem
        >>> policy = torch.nn.Linear(4, 2)
        >>> record = deep_cem(policy, "CartPole-v1", episodes=32, quiet=True)
        >>> len(record.returns), len(record.loss)
        (32, 2)

    References:
        Mannor, Rubinstein & Gat, *The cross entropy method for fast policy search*, ICML 2003.
        Lapan, *Deep reinforcement learning hands-on*, 2018.
    """
    settings: dict[str, Any] = {"method": "deep_cem", "elite": elite}
    if map is not None:
        settings["map"] = True  # the actions are others
    loss = partial(_elite_cross_entropy, count=elite_count(elite, batch, "batch"))
    training = _Training(policy, loss, batch, lr, seed, settings, map)
    return training.run(env, episodes, target, callback, checkpoint, resume, quiet)


def _policy_gradient(
    played: Episodes, logits: Tensor, classes: Tensor, gamma: float, entropy_weight: float
) -> Tensor:
    returns = played.discounted(gamma)
    advantage = group_advantages(returns, len(returns)).to(logits.device)
    s = statistics(logits, classes, entropy=True)
    return reinforce_loss(s.log_prob, advantage, entropy=s.entropy, entropy_weight=entropy_weight)


def _elite_cross_entropy(played: Episodes, logits: Tensor, classes: Tensor, count: int) -> Tensor:
    best = played.returns.argsort(descending=True, stable=True)
    kept = torch.isin(played.index, best[:count]).to(logits.device)
    loss: Any = cross_entropy(logits[kept], classes[kept])
    return loss


class _Training:
    """The loop that both methods share: episodes, loss, step."""

    def __init__(
        self,
        policy: Module,
        loss: BatchLoss,
        batch: int,
        lr: float,
        seed: int,
        settings: dict[str, Any],
        map: Map | None = None,
    ) -> None:
        if not is_whole(batch) or batch < 2:
            raise ValueError(f"`batch` must be a whole number of at least 2, got {batch!r}")
        batch, lr = int(batch), Range(0, open=True).check("lr", lr, None)
        self.policy, self.loss, self.seed, self.map = policy, loss, seed, map
        self.optimizer = torch.optim.Adam(policy.parameters(), lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.record = PolicyRecord(batch)
        self.settings = {**settings, "batch": batch, "lr": lr, "seed": seed}

    def run(
        self,
        env: str | Callable[[], Any],
        episodes: int,
        target: float | None,
        callback: Callable[[PolicyRecord], object] | None,
        checkpoint: str | Path | None,
        resume: bool,
        quiet: bool,
    ) -> PolicyRecord:
        """Train until the target or the last whole batch of episodes."""
        from tqdm import tqdm

        batch = self.record.batch
        if episodes < batch:
            raise ValueError(f"`episodes` must be at least `batch`, {batch}, got {episodes}")
        path = None if checkpoint is None else Path(checkpoint)
        with Stage(env) as stage:
            check_discrete(stage.action_space)
            self.settings["env"] = stage.name
            if resume:
                self._load(path)
            elif path and path.exists():
                raise ValueError(f"{path} holds a training; resume=True continues it")
            record = self.record
            with tqdm(total=episodes, initial=len(record.returns), disable=quiet, unit="ep") as bar:
                while not self._solved(target) and len(record.returns) + batch <= episodes:
                    self._update(stage)
                    self._save(path)
                    bar.set_postfix_str(f"last {WINDOW}: {record.average():.4g}", refresh=False)
                    bar.update(batch)
                    if callback is not None:
                        callback(record)
        return record

    def _update(self, stage: Stage) -> None:
        """Play a batch of episodes, and take one step on it."""
        record, space = self.record, check_discrete(stage.action_space)
        if self.map is None:
            seeds = seeds_of(self.seed, len(record.loss), record.batch)
            played = stage.play(sampled(self.policy, space, self.generator), seeds)
        else:
            update = len(record.loss)
            played = played_alone(self.map, self.policy, stage.env, self.seed, update, record.batch)
        logits = logits_of(self.policy, played.observations, space)
        classes = (played.actions - int(space.start)).to(logits.device)
        loss = self.loss(played, logits, classes)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        record.returns += played.returns.tolist()
        record.loss.append(loss.item())
        spread = statistics(logits.detach(), classes, entropy=True).entropy
        record.entropy.append(spread.mean().item())

    def _solved(self, target: float | None) -> bool:
        record = self.record
        if target is not None and len(record.returns) >= WINDOW:
            record.solved = record.average() >= target
        return record.solved

    def _save(self, path: Path | None) -> None:
        if path is None:
            return
        state = {
            "settings": self.settings,
            "record": asdict(self.record),
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, checkpoint_bytes(state))

    def _load(self, path: Path | None) -> None:
        if path is None:
            raise ValueError("resume=True continues the training in `checkpoint`; say which one")
        try:
            state = read_checkpoint(path)
        except FileNotFoundError:
            raise ValueError(f"resume=True: there is no {path}") from None
        before, now = state.get("settings"), self.settings
        if not isinstance(before, dict) or "method" not in before:
            raise ValueError(f"{path} is not a checkpoint of a policy's training")
        if other := {k: before.get(k) for k in {**before, **now} if before.get(k) != now.get(k)}:
            raise ValueError(f"{path} was begun with {other}; continue it with the same")
        try:
            if not fits(state["record"], RECORD):
                raise TypeError("the record holds something else")
            record = PolicyRecord(**state["record"])
            self.generator.set_state(state["generator"])
            self.policy.load_state_dict(state["policy"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} does not fit this policy: {reason}") from None
        self.record = record
