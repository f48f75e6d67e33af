"""Find a loss: CMA-ES over functions of the row statistics, on scikit-learn's digits.

    python examples/loss_search.py [--small] [--generations 12] [--seed 0] [--picture PATH]

Needs cma, scikit-learn, and matplotlib for the picture. Takes about a minute on two cores.

Candidates are judged by networks that learn 300 rows, on 600 others. What the search finds is then
compared with cross-entropy on the 897 rows that are left, with networks and batches that the
search has not seen either.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import xent
from _experiment import hold, options, save
from xent.learn.loss_search import Found, HeldOutAccuracy, search_loss
from xent.learn.networks.small_networks import SmallNetworks

TRAINING_ROWS, JUDGING_ROWS, BATCH, HIDDEN = 300, 600, 32, 128
FRESH_SEED = 10_000


def digits(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return features and classes of the rows to learn from, to judge by and to test on."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]
    parts = [TRAINING_ROWS, JUDGING_ROWS, len(y) - TRAINING_ROWS - JUDGING_ROWS]
    return list(x.split(parts)), list(y.split(parts))


def test_accuracy(
    loss: Callable[..., Any], x: list[Tensor], y: list[Tensor], seeds: range, steps: int
) -> Tensor:
    """Return percent right on the test rows, one number for each fresh seed."""
    networks = SmallNetworks(64, 10, seeds, hidden=HIDDEN)
    networks.train(x[0], y[0], loss, steps=steps, batch=BATCH)
    return 100 * networks.accuracy(x[2], y[2])


def compared(found: Found) -> dict[str, Callable[..., Any]]:
    """Return the losses to compare."""
    return {"cross-entropy": xent.cross_entropy, "found": found.formula.loss}


def draw(found: Found, path: Path) -> None:
    """Draw the course of the search, and the loss it found beside cross-entropy."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(14, 4.5), layout="constrained").subplots(1, 3)
    best, mean = zip(*found.history, strict=True)
    axes[0].plot([100 * v for v in best], "o-", label="best of the generation")
    axes[0].plot([100 * v for v in mean], "o-", label="mean of the generation")
    axes[0].set(
        xlabel="generation", ylabel="right on the judging rows, %",
        title="The search drops bad losses quickly",
    )  # fmt: skip

    p = torch.linspace(0.005, 0.995, 400, dtype=torch.float64)
    logits = torch.zeros(len(p), 10, dtype=torch.float64)
    logits[:, 0] = torch.logit(p) + torch.log(torch.tensor(9.0))
    logits.requires_grad_()
    target = torch.zeros(len(p), dtype=torch.int64)
    for name, loss in compared(found).items():
        value = loss(logits, target, reduction="none")
        (slope,) = torch.autograd.grad(value.sum(), logits)
        unit = slope[(p - 0.1).abs().argmin(), 0].abs()  # both have the same slope at chance
        axes[1].plot(p, ((value - value.min()) / unit).detach(), label=name)
        axes[2].plot(p, slope[:, 0] / unit, label=name)
    axes[1].set(
        ylabel="loss above its least value", title="The loss found is least before certainty"
    )
    axes[2].set(ylabel="gradient in the target's logit", title="and pushes down beyond that point")
    axes[2].axhline(0, color="black", linewidth=0.8)
    for ax in axes[1:]:
        ax.set_xlabel("probability of the target, nine others sharing the rest")
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend()
    save(axes[0].figure, path, dpi=120)


def main() -> None:
    """Search, print the result, and compare it on rows that the search has not seen."""
    chosen = options(
        __file__, __doc__, generations=(12, 2), steps=(600, 150), fresh=(16, 4), seed=(0, 0)
    )
    x, y = digits(chosen.seed)
    judge = HeldOutAccuracy(
        x[0], y[0], x[1], y[1], networks=3, hidden=HIDDEN, steps=chosen.steps, batch=BATCH
    )
    found = search_loss(judge, generations=chosen.generations, seed=chosen.seed)
    print(f"judged again, in percent: {100 * found.score:.2f}; cross-entropy ", end="")
    print(f"{100 * found.cross_entropy:.2f}\n\n{found.formula.source()}")

    seeds = range(FRESH_SEED, FRESH_SEED + chosen.fresh)
    accuracy = {
        name: test_accuracy(loss, x, y, seeds, chosen.steps)
        for name, loss in compared(found).items()
    }
    print(f"accuracy on {len(y[2])} unseen rows, {len(seeds)} fresh networks, in percent")
    for name, of_seed in accuracy.items():
        print(f"  {name:14} {of_seed.mean():.2f} +- {of_seed.std() / len(of_seed) ** 0.5:.2f}")
    gain = accuracy["found"] - accuracy["cross-entropy"]
    print(
        f"  better with {int((gain > 0).sum())} of {len(gain)}, by {gain.mean():.2f} on average\n"
    )
    least = -2 if chosen.small else 0  # two generations are too few to find a better loss
    hold({
        f"on unseen rows the loss found gains {least} points or more over cross-entropy": (
            gain.mean().item() >= least
        ),
        "and names 80 % or more with every network": bool((accuracy["found"] >= 80).all()),
    })  # fmt: skip
    draw(found, chosen.picture)


if __name__ == "__main__":
    main()
