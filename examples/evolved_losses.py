"""Evolved losses on few rows: Baikal and NGL against cross-entropy on scikit-learn's digits.

    python examples/evolved_losses.py [--small] [--seeds 6] [--seed 0] [--picture PATH]

Needs scikit-learn, and matplotlib for the picture. Takes about a minute and a half on two cores.

Six networks per loss, each with its own split, start and batches, the same ones for every loss; all
are trained side by side. Prints the test accuracy with 500 and with 1200 training rows, and checks
that Baikal and NGL beat cross-entropy on average. The picture shows why they may: all evolved
losses are least well before certainty.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, save
from xent.learn.networks.small_networks import SmallNetworks

SIZES, TEST_ROWS = (500, 1200), 597

LOSSES: dict[str, Callable[..., Any]] = {
    "cross-entropy": xent.cross_entropy,
    "label smoothing 0.1": xent.losses.smoothed_cross_entropy,
    "poly-1 (2)": xent.losses.poly1_loss,
    "Baikal": xent.losses.baikal_loss,
    "Baikal CMA": xent.losses.baikal_cma_loss,
    "TaylorGLO (MNIST)": xent.losses.taylorglo_loss,
    "NGL": xent.losses.ngl_loss,
}


def test_accuracy(size: int, seeds: range, steps: int, after_step: Callable[[], object]) -> Tensor:
    """Return percent right of (losses, seeds) networks that learnt from ``size`` rows."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(s)) for s in seeds]
    orders = torch.stack(orders * len(LOSSES))
    networks = SmallNetworks(64, 10, list(seeds) * len(LOSSES), hidden=128)

    def loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
        parts = zip(
            LOSSES.values(), input.chunk(len(LOSSES)), target.chunk(len(LOSSES)), strict=True
        )
        return torch.stack([call(z, t, reduction=reduction) for call, z, t in parts]).sum()

    networks.train(x, y, loss, steps=steps, rows=orders[:, :size], batch=32, after_step=after_step)
    held_out = orders[:, -TEST_ROWS:]
    return 100 * networks.accuracy(x[held_out], y[held_out]).view(len(LOSSES), len(seeds))


def draw(path: Path) -> None:
    """Draw the losses of a row of ten classes against the probability of its target."""
    from matplotlib.figure import Figure

    p = torch.linspace(0.01, 0.999, 400, dtype=torch.float64)
    logits = torch.zeros(len(p), 10, dtype=torch.float64)
    logits[:, 0] = torch.logit(p) + torch.log(torch.tensor(9.0))
    logits.requires_grad_()
    target = torch.zeros(len(p), dtype=torch.int64)
    axes = Figure(figsize=(11, 4.5), layout="constrained").subplots(1, 2)
    for name, call in LOSSES.items():
        value = call(logits, target, reduction="none")
        (slope,) = torch.autograd.grad(value.sum(), logits)
        height = value - value.min()
        at_tenth = slope[(p - 0.1).abs().argmin(), 0].abs()  # so that all pull equally at the start
        axes[0].plot(p, (height / at_tenth).detach(), label=name)
        axes[1].plot(p, slope[:, 0] / at_tenth, label=name)
    axes[0].set(
        ylabel="loss above its least value", ylim=(-0.1, 4),
        title="Evolved losses are least before certainty",
    )  # fmt: skip
    axes[1].set(
        ylabel="gradient in the target's logit", ylim=(-1.2, 0.8),
        title="so they push the target down again (above 0)",
    )  # fmt: skip
    axes[1].axhline(0, color="black", linewidth=0.8)
    for ax in axes:
        ax.set_xlabel("probability of the target, the others sharing the rest")
        ax.grid(alpha=0.3)
    axes[0].legend()
    save(axes[0].figure, path, dpi=120)


def claims(accuracy: dict[int, Tensor], small: bool) -> dict[str, bool]:
    """Return each claim with True if the claim holds.

    The networks of the small form train too briefly to compare losses.
    """
    means = [dict(zip(LOSSES, a.mean(1).tolist(), strict=True)) for a in accuracy.values()]
    learnt = {"every loss is right on 80 % or more": all(min(of.values()) >= 80 for of in means)}
    if small:
        return learnt
    return learnt | {
        f"{name} beats cross-entropy at both sizes": all(
            of[name] > of["cross-entropy"] for of in means
        )
        for name in ("Baikal", "NGL")
    }


def main() -> None:
    """Train, print the table, check it."""
    chosen = options(__file__, __doc__, seeds=(6, 2), steps=(1500, 200))
    sizes, seeds, steps = SIZES[: 1 if chosen.small else None], chosen.seeds, chosen.steps
    with tqdm(total=steps * len(sizes), desc="steps", mininterval=1) as bar:
        accuracy = {size: test_accuracy(size, seeds, steps, bar.update) for size in sizes}
    print(f"Test accuracy in percent, mean of {len(seeds)} (of these better than cross-entropy)\n")
    print(f"{'training rows':22}" + "".join(f"{size:>16}" for size in sizes))
    for i, name in enumerate(LOSSES):
        cells = []
        for of_size in accuracy.values():
            wins = int((of_size[i] > of_size[0]).sum())
            cells.append(
                f"{of_size[i].mean():9.2f}" + (f"  ({wins}/{len(seeds)})" if i else " " * 7)
            )
        print(f"{name:22}" + "".join(cells))
    print()
    hold(claims(accuracy, chosen.small))
    draw(chosen.picture)


if __name__ == "__main__":
    main()
