"""``xent cem``: learn to act in an environment by the cross-entropy method."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from ..learn.policies.policy_search import PolicyScores
from ..learn.search.cross_entropy_method import CrossEntropyMethod, SearchResult
from ..learn.search.gaussians import Gaussian
from .arguments import finite
from .console import UserError, as_options, note
from .environments import (
    FRESH_EPISODES,
    Environment,
    add_shared_arguments,
    begin,
    make_policy,
    open_environment,
    report,
    settings_of,
)
from .run_folder import RECORD, RunFolder, load_checkpoint
from .workers import add_workers_argument, workers

FRESH_SEED = 1_000_000  # so that the fresh episodes are new to the search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent cem``."""
    add_shared_arguments(parser, "runs/cem", hidden=0)
    whole = {"type": int, "metavar": "N"}
    number = {"type": finite, "metavar": "X"}
    parser.add_argument("--iterations", default=20, help="at most (%(default)s)", **whole)
    parser.add_argument("--population", default=50, help="policies in each (%(default)s)", **whole)
    parser.add_argument("--elite", default=0.2, help="share to fit to (%(default)s)", **number)
    parser.add_argument("--variance", default=1.0, help="at the start (%(default)s)", **number)
    parser.add_argument(
        "--noise", default=0.0, help="variance added after each update (%(default)s)", **number
    )
    parser.add_argument(
        "--episodes", default=1, help="to judge each policy by (%(default)s)", **whole
    )
    add_workers_argument(parser, "play a policy at a time")
    parser.add_argument("--bias", action="store_true", help="give the policy biases")


def run(args: argparse.Namespace) -> int:
    """Search, and judge the centre of the search on fresh episodes."""
    environment = open_environment(args)
    policy = make_policy(environment, args.hidden, args.seed, args.bias)
    try:
        scores = PolicyScores(policy, environment.make, episodes=args.episodes, seed=args.seed)
        search = CrossEntropyMethod(
            Gaussian(torch.zeros(scores.dimensions), args.variance),
            population=args.population, elite=args.elite, noise=args.noise, seed=args.seed,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(as_options(str(error), vars(args))) from None
    with RunFolder(args.out) as folder:
        begin(args, folder)
        if args.resume:
            _continue(args, search, folder)
        _search(args, environment, scores, search, folder)
        judge = PolicyScores(
            policy, environment.make, episodes=FRESH_EPISODES, seed=FRESH_SEED + args.seed
        )
        fresh = judge.of_each_episode(search.result().centre[None])[0]
        curve = [iteration.mean for iteration in search.history]
        record = _record(args, search)
        report(args, folder, record, fresh, curve, environment.target, window=1, unit="iteration")
    return 0


def _search(
    args: argparse.Namespace,
    environment: Environment,
    scores: PolicyScores,
    search: CrossEntropyMethod,
    folder: RunFolder,
) -> None:
    told: set[str] = set()

    def keep(_: SearchResult) -> None:
        state = {"settings": settings_of(args), "search": search.state_dict()}
        failure = folder.save_checkpoint(state)
        if failure and failure not in told:
            told.add(failure)
            note(f"{failure}; the search goes on")
        folder.save_json(RECORD, _record(args, search))

    def all_at_once(points: Tensor) -> Tensor:
        return scores(points, search.iteration)

    try:
        with workers(args.workers) as map:
            search.run(
                scores.of_one if map else all_at_once, args.iterations,
                map=map, numbered=True, target=environment.target, callback=keep,
                quiet=args.quiet,
            )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise UserError(as_options(str(error), vars(args))) from None


def _continue(args: argparse.Namespace, search: CrossEntropyMethod, folder: RunFolder) -> None:
    """Continue the run in the folder."""
    state = load_checkpoint(folder.path)
    then = state.get("settings")
    if not isinstance(then, dict) or "search" not in state:
        raise UserError(f"--resume: {folder.path} holds no search of `xent cem`")
    free = ("iterations", "target")  # these may change
    now = {k: v for k, v in settings_of(args).items() if k not in free}
    if other := {k: then.get(k) for k, v in now.items() if then.get(k) != v}:
        raise UserError(
            f"--resume: {folder.path} was begun with {other}; continue it with the same"
        )
    try:
        search.load_state_dict(state["search"])
    except ValueError as error:
        raise UserError(f"--resume: {folder.path}: {error}") from None


def _record(args: argparse.Namespace, search: CrossEntropyMethod) -> dict[str, Any]:
    return {
        "settings": settings_of(args),
        "history": [iteration._asdict() for iteration in search.history],
        "evaluations": search.evaluations,
        "centre": search.distribution.centre.tolist(),
    }
