"""``xent reinforce``: learn to act in an environment by weighted cross-entropy."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..learn.policies.policy_learning import PolicyRecord, reinforce
from ..learn.policies.policy_search import evaluate_policy
from .arguments import finite
from .console import UserError, as_options
from .environments import (
    FRESH_EPISODES,
    add_shared_arguments,
    begin,
    make_policy,
    open_environment,
    report,
    settings_of,
)
from .run_folder import CHECKPOINT, RECORD, RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent reinforce``."""
    add_shared_arguments(parser, "runs/reinforce", hidden=128)
    whole = {"type": int, "metavar": "N"}
    number = {"type": finite, "metavar": "X"}
    parser.add_argument("--episodes", default=1000, help="at most (%(default)s)", **whole)
    parser.add_argument("--batch", default=10, help="episodes per update (%(default)s)", **whole)
    parser.add_argument("--lr", default=1e-2, help="step size of Adam (%(default)s)", **number)
    parser.add_argument("--gamma", default=0.99, help="discount per step (%(default)s)", **number)
    parser.add_argument("--entropy", default=0.0, help="weight of entropy (%(default)s)", **number)


def run(args: argparse.Namespace) -> int:
    """Learn, and judge on fresh episodes."""
    environment = open_environment(args)
    policy = make_policy(environment, args.hidden, args.seed)
    settings = settings_of(args)
    with RunFolder(args.out) as folder:
        begin(args, folder)

        def keep(record: PolicyRecord) -> None:
            folder.save_json(RECORD, {"settings": settings, **asdict(record)})

        try:
            record = reinforce(
                policy, environment.make, gamma=args.gamma, batch=args.batch, lr=args.lr,
                entropy_weight=args.entropy, episodes=args.episodes, target=environment.target,
                seed=args.seed, callback=keep, checkpoint=folder.path / CHECKPOINT,
                resume=args.resume, quiet=args.quiet,
            )  # fmt: skip
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            message = str(error).replace("entropy_weight", "entropy")
            raise UserError(as_options(message, settings)) from None
        folder.wrote(CHECKPOINT)
        fresh = evaluate_policy(policy, environment.make, FRESH_EPISODES)
        whole = {"settings": settings, **asdict(record)}
        report(args, folder, whole, fresh, record.returns, environment.target)
    return 0
