"""The cross-entropy method in its two forms: on parameters of a policy, and on its actions.

    python examples/cross_entropy_method.py [--seeds 3] [--picture runs/cross_entropy_method.png]

Needs gymnasium, and matplotlib for the picture. Takes about two minutes on one core.

Parameters: a linear policy without bias, of 8 numbers for CartPole-v1 and 18 for Acrobot-v1, drawn
from a Gaussian that is fitted to the best ten of 100, each judged by one episode. What counts is
the mean of the Gaussian at the end, on 100 fresh episodes. Actions: a network of 4-128-2 learns by
cross-entropy what was done in the best 30 percent of 16 episodes, until the last 100 average 475.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from xent.learn import CrossEntropyMethod, Gaussian, PolicyScores, deep_cem
from xent.learn.policies.policy_learning import PolicyRecord

ITERATIONS, FRESH_SEED = 8, 1_000_000
SIZES = {"CartPole-v1": (4, 2), "Acrobot-v1": (6, 3)}
SOLVED = {"CartPole-v1": 500.0, "Acrobot-v1": -100.0}
TARGET = 475.0  # of the policy that learns actions


class Search(NamedTuple):
    """A search of parameters with one seed."""

    means: list[float]  # of the population in each iteration
    fresh: Tensor  # returns of the mean of the Gaussian, (100,)
    episodes: int


def search_parameters(env: str, seed: int) -> Search:
    """A linear policy by its parameters."""
    policy = torch.nn.Linear(*SIZES[env], bias=False)
    scores = PolicyScores(policy, env, seed=seed)
    start = Gaussian(torch.zeros(scores.dimensions), 1.0)
    search = CrossEntropyMethod(start, seed=seed)
    found = search.run(lambda x: scores(x, search.iteration), ITERATIONS, quiet=True)
    judge = PolicyScores(policy, env, episodes=100, seed=FRESH_SEED + seed)
    fresh = judge.of_each_episode(found.centre[None])[0]
    return Search([iteration.mean for iteration in found.history], fresh, found.evaluations)


def learn_actions(seed: int) -> PolicyRecord:
    """A network that imitates its best episodes."""
    torch.manual_seed(seed)
    policy = torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    return deep_cem(policy, "CartPole-v1", target=TARGET, seed=seed, quiet=True)


def experiment(seeds: int) -> tuple[dict[str, list[Search]], list[PolicyRecord]]:
    """All seeds of everything."""
    searches: dict[str, list[Search]] = {env: [] for env in SIZES}
    records = []
    with tqdm(total=3 * seeds, unit="run") as bar:
        for seed in range(seeds):
            for env, found in searches.items():
                found.append(search_parameters(env, seed))
                bar.update()
            records.append(learn_actions(seed))
            bar.update()
    return searches, records


def show(searches: dict[str, list[Search]], records: list[PolicyRecord]) -> str:
    """The tables."""
    lines = [f"parameters: mean of 100 fresh episodes after {ITERATIONS} iterations"]
    for env, found in searches.items():
        means = (f"{s.fresh.mean():.1f} ± {s.fresh.std() / 10:.1f}" for s in found)
        lines.append(f"  {env:12} {found[0].episodes} episodes   {'   '.join(means)}")
    after = (f"{len(r.returns)}" if r.solved else "never" for r in records)
    lines.append(f"actions: episodes until the last 100 average {TARGET:g}")
    lines.append(f"  {'CartPole-v1':12} {'   '.join(after)}")
    return "\n".join(lines)


def check(searches: dict[str, list[Search]], records: list[PolicyRecord]) -> list[str]:
    """Assert the claims; they come back as sentences."""
    claims = {
        f"{env}: {'every' if env == 'CartPole-v1' else 'the mean'} return of 100 fresh episodes is "
        f"{SOLVED[env]:g} or better with every seed, after {ITERATIONS} iterations": all(
            s.fresh.mean() >= SOLVED[env] for s in found
        )
        for env, found in searches.items()
    }
    claims[f"CartPole-v1 on actions: {TARGET:g} with every seed"] = all(r.solved for r in records)
    wrong = [claim for claim, holds in claims.items() if not holds]
    assert not wrong, f"not borne out: {wrong}"
    return list(claims)


def draw(searches: dict[str, list[Search]], records: list[PolicyRecord], path: Path) -> None:
    """Learning curves of all seeds."""
    import matplotlib.pyplot as plt

    from xent.plot import learning_curves

    figure, panels = plt.subplots(1, 3, figsize=(13, 4))
    for panel, (env, found) in zip(panels, searches.items(), strict=False):
        learning_curves(
            {"mean of the population": [s.means for s in found]}, panel, window=1,
            target=SOLVED[env], unit="iteration",
        )  # fmt: skip
        panel.set_title(f"{env}, parameters", fontsize="medium")
    learning_curves({"policy": [r.returns for r in records]}, panels[2], target=TARGET)
    panels[2].set_title("CartPole-v1, actions", fontsize="medium")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--picture", type=Path, default=Path("runs/cross_entropy_method.png"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    searches, records = experiment(arguments.seeds)
    print(show(searches, records), "\n")
    draw(searches, records, arguments.picture)
    for claim in check(searches, records):
        print(f"holds: {claim}")
    print(f"\n{arguments.picture}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
