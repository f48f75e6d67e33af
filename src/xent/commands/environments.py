"""Environments, policies and records that ``xent reinforce`` and ``xent cem`` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential

from .._package import not_installed
from ..plot.canvas import rendered, shown
from .arguments import finite
from .console import UserError, note, say_json
from .run_folder import CHECKPOINT, CURVES, RECORD, RunFolder

FRESH_EPISODES = 100


class Environment(NamedTuple):
    """An environment to learn.

    Attributes:
        make: makes the environment; its observations are vectors.
        inputs: length of an observation.
        outputs: number of actions, or of numbers in an action.
        target: the return that counts as solved; None if it is not known.
    """

    make: Callable[[], Any]
    inputs: int
    outputs: int
    target: float | None


class _Floats(Module):
    """Observations of integers as floating-point numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.get_default_dtype())


def add_shared_arguments(parser: argparse.ArgumentParser, out: str, hidden: int) -> None:
    """Declare the options that both commands have."""
    parser.add_argument(
        "--env", default="CartPole-v1", metavar="ID", help="gymnasium environment (%(default)s)"
    )
    parser.add_argument(
        "--out", default=out, help="folder for checkpoint, record and picture (%(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--hidden", type=int, default=hidden, metavar="N",
        help="hidden units of the policy, 0 for a linear one (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--target",
        type=finite,
        metavar="RETURN",
        help="stop at this return; default: what the environment calls so",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def open_environment(args: argparse.Namespace) -> Environment:
    """The environment that ``--env`` names.

    Raises:
        UserError: if the environment cannot be made.
    """
    try:
        import gymnasium
    except ImportError:
        raise UserError(not_installed("gymnasium", "learn")) from None

    make = partial(_flat, args.env)
    try:
        env = make()
    except (gymnasium.error.Error, ImportError, ValueError, NotImplementedError) as error:
        raise UserError(f"--env {args.env}: {error}") from None
    space = env.action_space
    # Spaces without a shape are refused later, by the functions that choose actions.
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    outputs = int(space.n) if discrete else prod(space.shape or ())
    target = env.spec.reward_threshold if args.target is None else args.target
    env.close()
    return Environment(make, prod(env.observation_space.shape), outputs, target)


def _flat(env: str) -> Any:
    """An environment whose observations are vectors."""
    import gymnasium
    from gymnasium.wrappers import FlattenObservation

    return FlattenObservation(gymnasium.make(env))


def make_policy(environment: Environment, hidden: int, seed: int, bias: bool = True) -> Module:
    """A network of one hidden layer, or a linear one.

    Args:
        environment: gives the number of inputs and outputs.
        hidden: hidden units; 0 for none.
        seed: of the first weights.
        bias: whether the layers have biases.

    Raises:
        UserError: for a negative number of hidden units.
    """
    if hidden < 0:
        raise UserError(f"--hidden must be at least 0, got {hidden}")
    torch.manual_seed(seed)
    if hidden == 0:
        return Sequential(_Floats(), Linear(environment.inputs, environment.outputs, bias))
    layers = (
        Linear(environment.inputs, hidden, bias),
        ReLU(),
        Linear(hidden, environment.outputs, bias),
    )
    return Sequential(_Floats(), *layers)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide the result, for the record."""
    beside = ("command", "run", "out", "resume", "workers", "quiet", "json")
    return {name: value for name, value in vars(args).items() if name not in beside}


def begin(args: argparse.Namespace, folder: RunFolder) -> None:
    """Prepare the folder for a new run.

    Raises:
        UserError: if the folder holds a run, which may have taken hours.
    """
    if args.resume:
        return
    if (folder.path / CHECKPOINT).exists():
        raise UserError(f"--out {folder.path} holds a run; --resume continues it")
    folder.begin(RECORD, CURVES)


def report(
    args: argparse.Namespace,
    folder: RunFolder,
    record: dict[str, Any],
    fresh: Tensor,
    curve: list[float],
    target: float | None,
    **drawn: Any,
) -> None:
    """Write the record and the picture, and print the mean return of fresh episodes.

    Args:
        args: the options.
        folder: where to write.
        record: what to write, completed here by ``fresh``.
        fresh: returns of fresh episodes, ``(episodes,)``.
        curve: what to draw.
        target: the return to reach.
        **drawn: options of :func:`xent.plot.learning_curves`.
    """
    error = fresh.std().item() / len(fresh) ** 0.5
    record["fresh"] = {"mean": fresh.mean().item(), "error": error, "episodes": len(fresh)}
    folder.save_json(RECORD, record)
    try:
        from ..plot import learning_curves

        ax = learning_curves({args.command: curve}, target=target, **drawn)
        ax.set_title(shown(args.env), fontsize="medium")
        folder.save(CURVES, rendered(ax.figure))
    except ImportError as problem:
        note(f"no picture: {problem}")
    if args.json:
        say_json(record)
        return
    folder.say(f"{args.env}: {fresh.mean():.1f} ± {error:.1f} over {len(fresh)} fresh episodes")
