"""Transfer: what a network that knows 0 to 4 has ready for 5 to 9.

    python examples/transfer.py [--small] [--seeds 5] [--seed 0] [--picture runs/transfer.png]

Needs scikit-learn, and matplotlib for the picture. Takes about a minute.

Handwritten digits, each somewhere on a larger canvas. A network learns the digits 0 to 4 from many
images, and so learns lines, curves, and that the place does not matter. Then it gets a new head for
5 to 9 and a few rows of each. Either the features are frozen and only the head learns, or both
learn. A third network starts from scratch on the same rows. ``train_classifier`` trains all of
them; it does not change weights and statistics of frozen parts.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from _experiment import hold, options, over_seeds, save
from xent.learn import predict_logits, train_classifier
from xent.plot.canvas import COLORS

CANVAS, FEATURES, CLASSES = 12, 64, 5
ROWS = (1, 2, 5, 20)  # of each new digit; its other rows are for the test
STEPS = 120  # of the head; enough for every training loss to vanish
COPIES, PRETRAINING_RATE = 2, 5e-3
RATES = {"frozen features, new head": 1e-2, "features tuned along": 2e-3, "from scratch": 2e-3}
WAYS = list(RATES)


def place(images: Tensor, generator: torch.Generator) -> Tensor:
    """Place each image somewhere on an empty canvas, (N, 1, CANVAS, CANVAS)."""
    canvas = torch.zeros(len(images), 1, CANVAS, CANVAS)
    corners = torch.randint(CANVAS - 7, (len(images), 2), generator=generator)
    for here, image, (row, column) in zip(canvas, images, corners.tolist(), strict=True):
        here[0, row : row + 8, column : column + 8] = image
    return canvas


def make_features() -> nn.Sequential:
    """Return convolutions; of each filter the strongest answer anywhere on the image counts."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, FEATURES, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    )  # fmt: skip


def with_head(features: nn.Module, trainable: bool = True) -> nn.Sequential:
    """Return a copy of the features with a new head."""
    features = copy.deepcopy(features).requires_grad_(trainable)
    return nn.Sequential(features, nn.Linear(FEATURES, CLASSES))


def one_seed(seed: int, epochs: int, bar: tqdm) -> Tensor:
    """Return percent right on test rows of 5 to 9, (ways, numbers of rows)."""
    images, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8)[order] / 16
    digits = torch.tensor(digits)[order]
    torch.manual_seed(seed)  # for the weights to start from

    known = digits < CLASSES
    old = place(images[known].repeat(COPIES, 1, 1), generator), digits[known].repeat(COPIES)
    pretrained = with_head(make_features())
    train_classifier(pretrained, old, epochs=epochs, lr=PRETRAINING_RATE, seed=seed, quiet=True)
    bar.update()

    x, y = place(images[~known], generator), digits[~known] - CLASSES
    of_class = [torch.nonzero(y == c)[:, 0] for c in range(CLASSES)]
    test = torch.cat([rows[max(ROWS) :] for rows in of_class])
    percent = torch.zeros(len(WAYS), len(ROWS))
    for column, n in enumerate(ROWS):
        few = torch.cat([rows[:n] for rows in of_class])
        models = (
            with_head(pretrained[0], trainable=False), with_head(pretrained[0]),
            with_head(make_features()),
        )  # fmt: skip
        for line, (model, lr) in enumerate(zip(models, RATES.values(), strict=True)):
            epochs = -(-STEPS // -(-len(few) // 32))
            train_classifier(model, (x[few], y[few]), epochs=epochs, lr=lr, seed=seed, quiet=True)
            right = predict_logits(model, x[test]).argmax(1) == y[test]
            percent[line, column] = 100 * right.double().mean()
            bar.update()
    return percent


def show(percent: Tensor) -> str:
    """Return the table: mean and standard deviation over the seeds."""
    lines = [f"{'rows of each digit':28}" + "".join(f"{n:>13}" for n in ROWS)]
    for name, row in zip(WAYS, percent.unbind(1), strict=True):
        lines.append(f"{name:28}" + "".join(f"{over_seeds(cell):>13}" for cell in row.T))
    return "\n".join(lines)


def claims(percent: Tensor, small: bool) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    frozen, tuned, scratch = percent.unbind(1)  # (seeds, numbers of rows)
    gain = tuned - scratch  # the same rows and the same test, so seeds compare in pairs
    if small:
        return {
            "with 20 rows of each digit every way is right on 50 % or more": bool(
                (percent[..., -1] >= 50).all()
            ),
            "and features that may learn beat frozen ones": bool((tuned > frozen)[:, -1].all()),
        }
    return {
        "transfer beats from scratch at 1, 2 and 5 rows of each digit by 5 points or more": bool(
            (gain.mean(0)[:3] >= 5).all()
        ),
        "with 20 rows there is less to gain than with 1": bool(
            gain[:, 0].mean() > gain[:, -1].mean()
        ),
        "with 20 rows features that may learn beat frozen ones with every seed": bool(
            (tuned > frozen)[:, -1].all()
        ),
    }


def draw(percent: Tensor, path: Path) -> None:
    """Draw accuracy against the number of rows."""
    from matplotlib.figure import Figure

    ax = Figure(figsize=(7, 4.5), layout="constrained").subplots()
    for name, colour, line in zip(WAYS, COLORS, percent.unbind(1), strict=False):
        ax.errorbar(ROWS, line.mean(0), line.std(0), fmt="o-", color=colour, capsize=3, label=name)
    ax.set_xscale("log")
    ax.set_xticks(ROWS, [str(n) for n in ROWS])
    ax.minorticks_off()
    ax.axhline(100 / CLASSES, color="0.6", linewidth=0.8)
    ax.annotate("chance", (ROWS[-1], 100 / CLASSES), color="0.4", ha="right", va="bottom")
    ax.set(
        xlabel="rows of each of the digits 5 to 9", ylabel="right on test rows, %", ylim=(15, 100),
        title=f"A network that knows 0 to 4 learns 5 to 9 from fewer rows ({len(percent)} seeds)",
    )  # fmt: skip
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    save(ax.figure, path, dpi=120)


def main() -> None:
    """Train with every seed; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(5, 2), epochs=(8, 3))
    torch.set_num_threads(1)  # the tensors are small
    with tqdm(total=len(chosen.seeds) * (1 + len(WAYS) * len(ROWS)), unit="network") as bar:
        percent = torch.stack([one_seed(seed, chosen.epochs, bar) for seed in chosen.seeds])
    print(f"Right on test rows of 5 to 9, %; mean and standard deviation of {len(percent)} seeds\n")
    print(show(percent), "\n")
    hold(claims(percent, chosen.small))
    draw(percent, chosen.picture)


if __name__ == "__main__":
    main()
