"""An autoencoder of grey pixels: cross-entropy, its floor, and what is left above it.

    python examples/reconstruction.py [--small] [--seeds 3] [--seed 0] [--epochs 150]

Needs scikit-learn, and matplotlib for the picture. Takes less than a minute.

Binary cross-entropy of grey pixels cannot reach 0: its least value is the entropy of the pixels,
0.2134 nats each on these handwritten digits. A loss of 0.26 sounds poor and is within 0.05 of
perfect; ``xent.losses.reconstruction_excess`` says so, with the same gradient. Two other ways to
train the same network stand beside it, and the best single image for a yardstick.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import xent
from _experiment import hold, options, save
from xent.learn import predict_logits, train_classifier

TRAINING_ROWS, CODE, BATCH, LEARNING_RATE = 1200, 16, 32, 3e-3
FLOOR = 0.21340  # entropy of the pixels of all rows, nats per pixel


def squared(logits: Tensor, x: Tensor) -> Tensor:
    """Compute the mean squared error of the pixels."""
    return (torch.sigmoid(logits) - x).square().mean()


def continuous_mean(logits: Tensor) -> Tensor:
    """Return the mean of the continuous Bernoulli distribution, which is not the sigmoid."""
    return torch.distributions.ContinuousBernoulli(logits=logits).mean


class Way(NamedTuple):
    """A way to train: the loss, and the pixels that its logits stand for."""

    loss: Callable[[Tensor, Tensor], Tensor]
    pixels: Callable[[Tensor], Tensor] = torch.sigmoid


WAYS = {
    "binary_cross_entropy_with_logits": Way(xent.binary_cross_entropy_with_logits),
    "continuous_bernoulli_loss": Way(xent.losses.continuous_bernoulli_loss, continuous_mean),
    "squared error": Way(squared),
}


class Outcome(NamedTuple):
    """Results of one network on the test rows, in nats per pixel."""

    cross_entropy: float
    excess: float
    pixels: Tensor


def entropy(x: Tensor) -> float:
    """Return the floor: the mean entropy of grey pixels, each a probability of white."""
    return xent.binary_cross_entropy(x.double(), x.double()).item()


def train(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, seed: int, epochs: int) -> nn.Module:
    """Train an autoencoder with one bottleneck: 64 pixels, 16 numbers, 64 logits."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, CODE), nn.ReLU(), nn.Linear(CODE, 64))
    train_classifier(
        model, (x, x), loss, epochs=epochs, batch_size=BATCH, lr=LEARNING_RATE, seed=seed,
        quiet=True,
    )  # fmt: skip
    return model


def judge(pixels: Tensor, x: Tensor) -> Outcome:
    """Return cross-entropy and excess of a reconstruction."""
    pixels = pixels.double()
    return Outcome(
        xent.binary_cross_entropy(pixels, x).item(),
        xent.losses.reconstruction_excess(pixels.logit(), x).item(),
        pixels,
    )


def draw(x: Tensor, found: dict[str, Tensor], path: Path) -> None:
    """Draw some digits, and their reconstruction by each network."""
    from matplotlib.figure import Figure

    rows = {"pixels": x, **found}
    figure = Figure(figsize=(8, len(rows)))
    for line, (name, images) in zip(figure.subplots(len(rows), 10), rows.items(), strict=True):
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image.view(8, 8), cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
        line[0].set_title(name, loc="left", fontsize=9)
    figure.suptitle("Three losses, the same digits behind a code of 16 numbers", fontsize="medium")
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.88, wspace=0.05, hspace=0.35)
    save(figure, path, dpi=120)


def main() -> None:
    """Train with every loss and seed, print the table, and check the claim."""
    chosen = options(__file__, __doc__, seeds=(3, 1), epochs=(150, 30))
    torch.set_num_threads(1)  # the tensors are small
    x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
    floor = entropy(x)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    training, test = x[:TRAINING_ROWS], x[TRAINING_ROWS:]
    found: dict[str, list[Outcome]] = {}
    runs = [(name, seed) for name in WAYS for seed in chosen.seeds]
    progress = tqdm(runs, unit="run")
    for name, seed in progress:
        progress.set_description(name)
        model = train(WAYS[name].loss, training, seed, chosen.epochs)
        pixels = WAYS[name].pixels(predict_logits(model, test))
        found.setdefault(name, []).append(judge(pixels, test))
    constant = judge(training.mean(0).clamp(1e-6, 1 - 1e-6).expand_as(test), test)
    print(f"\nnats per pixel; floor {floor:.5f}, of the test rows {entropy(test):.5f}")
    print(f"{'trained with':34} {'cross-entropy':>16} {'excess':>16}")
    for name, outcomes in {**found, "the best single image": [constant]}.items():
        told = [
            f"{min(v):.4f} to {max(v):.4f}"
            for v in ([o.cross_entropy for o in outcomes], [o.excess for o in outcomes])
        ]
        print(f"{name:34} {told[0]:>16} {told[1]:>16}")
    print()
    ours = found["binary_cross_entropy_with_logits"]
    hold({
        f"the entropy of the pixels is {FLOOR:.5f}": abs(floor - FLOOR) < 5e-6,
        "the excess is what cross-entropy has above the entropy, to 1e-5": all(
            abs(o.cross_entropy - entropy(test) - o.excess) < 1e-5 for o in ours
        ),
        "cross-entropy ends 0.03 to 0.1 above its floor with every seed": all(
            0.03 < o.excess < 0.1 for o in ours
        ),
        "the best single image is more than twice as far above it": all(
            o.excess < constant.excess / 2 for o in ours
        ),
    })  # fmt: skip
    images = {name: outcomes[0].pixels[:10] for name, outcomes in found.items()}
    draw(test[:10], images, chosen.picture)


if __name__ == "__main__":
    main()
