"""Evolved losses on few rows: Baikal and NGL against cross-entropy on scikit-learn's digits.

    python examples/evolved_losses.py [--picture runs/evolved_losses.png]

Needs scikit-learn, and matplotlib for the picture. Takes about a minute and a half on two cores.

Six networks per loss, each with its own split, start and batches, the same ones for every loss; all
are trained side by side. Prints the test accuracy with 500 and with 1200 training rows, and checks
that Baikal and NGL beat cross-entropy on average. The picture shows why they may: all evolved
losses are least well before certainty.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import xent
from xent.learn.networks.small_networks import SmallNetworks

STEPS, SEEDS, SIZES, TEST_ROWS = 1500, range(6), (500, 1200), 597


LOSSES: dict[str, Callable[..., Any]] = {
    "cross-entropy": xent.cross_entropy,
    "label smoothing 0.1": xent.smoothed_cross_entropy,
    "poly-1 (2)": xent.poly1_loss,
    "Baikal": xent.baikal_loss,
    "Baikal CMA": xent.baikal_cma_loss,
    "TaylorGLO (MNIST)": xent.taylorglo_loss,
    "NGL": xent.ngl_loss,
}


def test_accuracy(size: int, after_step: Callable[[], object]) -> Tensor:
    """Percent right of (losses, seeds) networks that learnt from ``size`` rows."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(s)) for s in SEEDS]
    orders = torch.stack(orders * len(LOSSES))
    networks = SmallNetworks(64, 10, list(SEEDS) * len(LOSSES), hidden=128)

    def loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
        parts = zip(
            LOSSES.values(), input.chunk(len(LOSSES)), target.chunk(len(LOSSES)), strict=True
        )
        return torch.stack([call(z, t, reduction=reduction) for call, z, t in parts]).sum()

    networks.train(x, y, loss, steps=STEPS, rows=orders[:, :size], batch=32, after_step=after_step)
    held_out = orders[:, -TEST_ROWS:]
    return 100 * networks.accuracy(x[held_out], y[held_out]).view(len(LOSSES), len(SEEDS))


def draw(path: Path) -> None:
    """The losses of one row of ten classes against the probability of its target."""
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
    axes[0].set(ylabel="loss above its least value", ylim=(-0.1, 4))
    axes[1].set(ylabel="gradient in the target's logit", ylim=(-1.2, 0.8))
    axes[1].axhline(0, color="black", linewidth=0.8)
    for ax in axes:
        ax.set_xlabel("probability of the target, the others sharing the rest")
        ax.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(path, dpi=120)


def main() -> None:
    """Train, print the table, check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("runs/evolved_losses.png"))
    args = parser.parse_args()
    draw(args.picture)
    with tqdm(total=STEPS * len(SIZES), desc="steps", mininterval=1) as bar:
        accuracy = {size: test_accuracy(size, bar.update) for size in SIZES}
    print(f"Test accuracy in percent, mean of {len(SEEDS)} (of these better than cross-entropy)\n")
    print(f"{'training rows':22}" + "".join(f"{size:>16}" for size in SIZES))
    for i, name in enumerate(LOSSES):
        cells = []
        for of_size in accuracy.values():
            wins = int((of_size[i] > of_size[0]).sum())
            cells.append(f"{of_size[i].mean():9.2f}" + (f"  ({wins}/6)" if i else " " * 7))
        print(f"{name:22}" + "".join(cells))
    for size, of_size in accuracy.items():
        means = dict(zip(LOSSES, of_size.mean(1).tolist(), strict=True))
        for name in ("Baikal", "NGL"):
            assert means[name] > means["cross-entropy"], (name, size, means)
    print(f"\nBaikal and NGL beat cross-entropy at both sizes. Picture: {args.picture}")


if __name__ == "__main__":
    main()
