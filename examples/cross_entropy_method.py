"""The cross-entropy method in its two forms: on parameters of a policy, and on its actions.

    python examples/cross_entropy_method.py [--small] [--seeds 3] [--seed 0] [--picture PATH]

Needs gymnasium, and matplotlib for the picture. Takes about two minutes on one core.

Parameters: a linear policy without bias, of 8 numbers for CartPole-v1 and 18 for Acrobot-v1, is
drawn from a Gaussian, which is fitted to the best ten of 100, each judged by one episode. The
result is the mean of the Gaussian at the end, judged on 100 new episodes. Actions: a network of
4-128-2 learns by cross-entropy the actions of the best 30 percent of 16 episodes, until the last
100 average 475.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from _experiment import hold, options, save
from xent.learn import CrossEntropyMethod, Gaussian, PolicyScores, deep_cem
from xent.learn.policies.policy_learning import PolicyRecord

FRESH_SEED = 1_000_000
SIZES = {"CartPole-v1": (4, 2), "Acrobot-v1": (6, 3)}
GOOD = {"CartPole-v1": 475.0, "Acrobot-v1": -120.0}  # returns that every seed must reach
TARGET = 475.0  # return that the policy that learns actions must reach


class Search(NamedTuple):
    """A search over parameters with one seed."""

    means: list[float]  # of the population in each iteration
    fresh: Tensor  # returns of the mean of the Gaussian, (100,)
    episodes: int


def search_parameters(env: str, seed: int, iterations: int) -> Search:
    """Search the parameters of a linear policy."""
    policy = torch.nn.Linear(*SIZES[env], bias=False)
    scores = PolicyScores(policy, env, seed=seed)
    start = Gaussian(torch.zeros(scores.dimensions), 1.0)
    search = CrossEntropyMethod(start, seed=seed)
    found = search.run(lambda x: scores(x, search.iteration), iterations, quiet=True)
    judge = PolicyScores(policy, env, episodes=100, seed=FRESH_SEED + seed)
    fresh = judge.of_each_episode(found.centre[None])[0]
    return Search([iteration.mean for iteration in found.history], fresh, found.evaluations)


def learn_actions(seed: int, target: float) -> PolicyRecord:
    """Train a network to imitate its best episodes."""
    torch.manual_seed(seed)
    policy = torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    return deep_cem(policy, "CartPole-v1", target=target, seed=seed, quiet=True)


Results = tuple[dict[str, list[Search]], list[PolicyRecord]]


def experiment(seeds: range, iterations: int, target: float) -> Results:
    """Run both forms with all seeds."""
    searches: dict[str, list[Search]] = {env: [] for env in SIZES}
    records = []
    with tqdm(total=3 * len(seeds), unit="run") as bar:
        for seed in seeds:
            for env, found in searches.items():
                found.append(search_parameters(env, seed, iterations))
                bar.update()
            records.append(learn_actions(seed, target))
            bar.update()
    return searches, records


def show(searches: dict[str, list[Search]], records: list[PolicyRecord], target: float) -> str:
    """Return the tables."""
    iterations = len(next(iter(searches.values()))[0].means)
    lines = [f"parameters: mean of 100 fresh episodes after {iterations} iterations"]
    for env, found in searches.items():
        means = (f"{s.fresh.mean():.1f} ± {s.fresh.std() / 10:.1f}" for s in found)
        lines.append(f"  {env:12} {found[0].episodes} episodes   {'   '.join(means)}")
    after = (f"{len(r.returns)}" if r.solved else "never" for r in records)
    lines.append(f"actions: episodes until the last 100 average {target:g}")
    lines.append(f"  {'CartPole-v1':12} {'   '.join(after)}")
    return "\n".join(lines)


def claims(
    searches: dict[str, list[Search]], records: list[PolicyRecord], target: float, small: bool
) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    goal = {"CartPole-v1": 50.0, "Acrobot-v1": -400.0} if small else GOOD
    return {
        **{
            f"{env}: 100 fresh episodes return {goal[env]:g} or better on average, every seed": all(
                s.fresh.mean() >= goal[env] for s in found
            )
            for env, found in searches.items()
        },
        f"CartPole-v1 on actions: {target:g} with every seed": all(r.solved for r in records),
    }


def draw(searches: dict[str, list[Search]], records: list[PolicyRecord], path: Path) -> None:
    """Draw learning curves of all seeds."""
    import matplotlib.pyplot as plt

    from xent.plot import learning_curves

    figure, panels = plt.subplots(1, 3, figsize=(13, 4))
    for panel, (env, found) in zip(panels, searches.items(), strict=False):
        learning_curves(
            {"mean of the 100 policies drawn": [s.means for s in found]}, panel, window=1,
            target=GOOD[env], unit="iteration",
        )  # fmt: skip
        panel.set_title(f"{env}: search for parameters, {len(found)} seeds")
    learning_curves({"the network": [r.returns for r in records]}, panels[2], target=TARGET)
    panels[2].set_title(f"CartPole-v1: actions of the best, {len(records)} seeds")
    figure.tight_layout()
    save(figure, path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(3, 1), iterations=(8, 3))
    target = 60.0 if chosen.small else TARGET
    torch.set_num_threads(1)
    searches, records = experiment(chosen.seeds, chosen.iterations, target)
    print(show(searches, records, target), "\n")
    hold(claims(searches, records, target, chosen.small))
    draw(searches, records, chosen.picture)


if __name__ == "__main__":
    main()
