"""REINFORCE is weighted cross-entropy, and what its mean divides by decides.

    python examples/reinforce.py [--small] [--seeds 5] [--seed 0] [--picture runs/reinforce.png]

Needs gymnasium, and matplotlib for the picture. Takes about three minutes on one core.

A network of 4-128-2 learns CartPole-v1, which counts as solved when the last 100 episodes average
475. The same network also learns with a mistake: the loss is divided by the sum of the weights, as
``torch.nn.functional.cross_entropy`` divides by its class weights. Advantages are signed and sum to
0, up to rounding. So a mean that divides by their sum has an arbitrary scale and sign.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, save
from xent.learn import evaluate_policy, reinforce
from xent.learn.policies.policy_learning import PolicyRecord

ENVIRONMENT = "CartPole-v1"


def network(seed: int) -> torch.nn.Module:
    """Return a policy: a network from observations to logits."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))


def divided_by_weights(log_prob: Tensor, advantage: Tensor, **_: object) -> Tensor:
    """Make the mistake: divide the sum of weighted cross-entropies by the sum of weights."""
    return -(advantage * log_prob).sum() / advantage.sum()


def train(
    policy: torch.nn.Module, seed: int, target: float, episodes: int, bar: tqdm
) -> PolicyRecord:
    """Train once with the correct loss."""
    return reinforce(
        policy, ENVIRONMENT, target=target, episodes=episodes, seed=seed, quiet=True,
        callback=lambda record: bar.update(record.batch),
    )  # fmt: skip


def train_mistaken(
    policy: torch.nn.Module, seed: int, target: float, episodes: int, bar: tqdm
) -> PolicyRecord:
    """Train once with the mistake, up to the NaN that a sum of exactly 0 makes."""
    seen: list[PolicyRecord] = []

    def keep(record: PolicyRecord) -> None:
        seen[:] = [record]
        bar.update(record.batch)

    # No option makes the mistake, so the loss itself is replaced.
    with (
        patch("xent.learn.policies.policy_learning.reinforce_loss", divided_by_weights),
        suppress(ValueError),
    ):
        reinforce(
            policy, ENVIRONMENT, target=target, episodes=episodes, seed=seed, quiet=True,
            callback=keep,
        )  # fmt: skip
    return seen[0]


def identity() -> float:
    """Compare the gradient with A (p - onehot) / N; return the largest difference."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator, dtype=torch.float64).requires_grad_()
    actions = torch.randint(4, (50,), generator=generator)
    advantage = torch.randn(50, generator=generator, dtype=torch.float64)
    loss = xent.cross_entropy(logits, actions, row_weight=advantage, normalizer="count")
    (gradient,) = torch.autograd.grad(loss, logits)
    onehot = torch.nn.functional.one_hot(actions, 4)
    expected = advantage[:, None] * (logits.detach().softmax(1) - onehot) / 50
    return (gradient - expected).abs().max().item()


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(5, 1), episodes=(800, 300), mistaken=(300, 100))
    target = 80.0 if chosen.small else 475.0
    torch.set_num_threads(1)
    right: list[PolicyRecord] = []
    wrong: list[PolicyRecord] = []
    greedy = []
    total = len(chosen.seeds) * (chosen.episodes + chosen.mistaken)
    with tqdm(total=total, unit="ep", mininterval=5) as bar:
        for seed in chosen.seeds:
            policy = network(seed)
            right.append(train(policy, seed, target, chosen.episodes, bar))
            greedy.append(evaluate_policy(policy, ENVIRONMENT))
            wrong.append(train_mistaken(network(seed), seed, target, chosen.mistaken, bar))
    print(f"{ENVIRONMENT}, mean return; solved: the last 100 episodes average {target:g}\n")
    print("seed  solved after  likeliest actions, 100 fresh episodes  divided by the weights")
    for seed, record, fresh, mistake in zip(chosen.seeds, right, greedy, wrong, strict=True):
        after = f"{len(record.returns)} episodes" if record.solved else "never"
        error = fresh.std().item() / len(fresh) ** 0.5
        print(
            f"{seed:4}  {after:>12}  {fresh.mean():29.1f} ± {error:<4.1f}  "
            f"{mistake.average():8.1f} after {len(mistake.returns)}"
            f"{', then NaN' if len(mistake.returns) < chosen.mistaken else ''}"
        )
    difference = identity()
    print()
    hold({
        f"solved within {chosen.episodes} episodes with every seed": all(r.solved for r in right),
        "divided by the sum of the weights it never is": not any(r.solved for r in wrong),
        "the gradient is A (p - onehot) / N, to 1e-16": difference < 1e-16,
    })  # fmt: skip
    draw(right, wrong, target, chosen.picture)


def draw(right: list[PolicyRecord], wrong: list[PolicyRecord], target: float, path: Path) -> None:
    """Draw learning curves of all seeds, and of the mistake."""
    from xent.plot import learning_curves

    runs = {
        "divided by the number of steps": [r.returns for r in right],
        "divided by the sum of weights": [r.returns for r in wrong],
    }
    ax = learning_curves(runs, target=target)
    ax.legend(title="weighted cross-entropy", loc="upper left", bbox_to_anchor=(0, 0.93))
    ax.set_title(f"What the loss is divided by decides: {ENVIRONMENT}, {len(right)} seeds")
    save(ax.figure, path, dpi=130)


if __name__ == "__main__":
    main()
