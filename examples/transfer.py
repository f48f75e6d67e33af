"""Transfer: what a network that knows 0 to 4 has ready for 5 to 9.

    python examples/transfer.py [--seeds 5] [--picture runs/transfer.png]

Needs scikit-learn, and matplotlib for the picture. Takes about a minute.

Handwritten digits, each somewhere on a larger canvas. A network learns the digits 0 to 4 from many
images, and with them what lines and curves are, and that their place does not matter. Then it gets
a new head for 5 to 9 and a few rows of each: with the features frozen, so that only the head
learns, or tuned along. A third network starts from scratch on the same rows. ``train_classifier``
does it all; of frozen parts it leaves weights and statistics alone.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from xent.learn import predict_logits, train_classifier
from xent.plot.canvas import COLORS

CANVAS, FEATURES, CLASSES = 12, 64, 5
ROWS = (1, 2, 5, 20)  # of each new digit; the others of it are for the test
STEPS = 120  # of the head; enough for every training loss to vanish
COPIES, PRETRAINING_EPOCHS, PRETRAINING_RATE = 2, 8, 5e-3
RATES = {"frozen features, new head": 1e-2, "features tuned along": 2e-3, "from scratch": 2e-3}
WAYS = list(RATES)


def place(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image somewhere on an empty canvas, (N, 1, CANVAS, CANVAS)."""
    canvas = torch.zeros(len(images), 1, CANVAS, CANVAS)
    corners = torch.randint(CANVAS - 7, (len(images), 2), generator=generator)
    for here, image, (row, column) in zip(canvas, images, corners.tolist(), strict=True):
        here[0, row : row + 8, column : column + 8] = image
    return canvas


def make_features() -> nn.Sequential:
    """Convolutions, of each of which the strongest answer anywhere counts."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, FEATURES, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    )  # fmt: skip


def with_head(features: nn.Module, trainable: bool = True) -> nn.Sequential:
    """A copy of the features with a new head."""
    features = copy.deepcopy(features).requires_grad_(trainable)
    return nn.Sequential(features, nn.Linear(FEATURES, CLASSES))


def one_seed(seed: int, bar: tqdm) -> Tensor:
    """Percent right on test rows of 5 to 9, (ways, numbers of rows)."""
    images, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8)[order] / 16
    digits = torch.tensor(digits)[order]
    torch.manual_seed(seed)  # for the weights to start from

    known = digits < CLASSES
    old = place(images[known].repeat(COPIES, 1, 1), generator), digits[known].repeat(COPIES)
    pretrained = with_head(make_features())
    train_classifier(
        pretrained, old, epochs=PRETRAINING_EPOCHS, lr=PRETRAINING_RATE, seed=seed, quiet=True
    )
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
    """The table: mean and standard deviation over the seeds."""
    lines = [f"{'rows of each digit':28}" + "".join(f"{n:>13}" for n in ROWS)]
    for name, row in zip(WAYS, percent.unbind(1), strict=True):
        cells = (f"{c.mean():5.1f} ± {c.std():4.1f}" for c in row.T)
        lines.append(f"{name:28}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def check(percent: Tensor) -> list[str]:
    """Assert the claims; they come back as sentences."""
    frozen, tuned, scratch = percent.unbind(1)  # (seeds, numbers of rows)
    gain = tuned - scratch  # the same rows and the same test, so seeds compare in pairs
    error = gain.std(0) / len(gain) ** 0.5
    claims = {
        "transfer beats from scratch by 10 points or more at 1 and 2 rows of each digit": bool(
            (gain.mean(0)[:2] >= 10).all()
        ),
        "and by more than two standard errors at up to 5 rows": bool(
            (gain.mean(0) > 2 * error)[:3].all()
        ),
        "the more rows, the less there is to gain": bool(gain[:, 0].mean() > gain[:, -1].mean()),
        "with 20 rows features that may learn beat frozen ones with every seed": bool(
            (tuned > frozen)[:, -1].all()
        ),
    }
    wrong = [claim for claim, holds in claims.items() if not holds]
    assert not wrong, f"not borne out: {wrong}"
    return list(claims)


def draw(percent: Tensor, path: Path) -> None:
    """Accuracy against the number of rows."""
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
        title=f"a network that knows 0 to 4 learns 5 to 9; {len(percent)} seeds",
    )  # fmt: skip
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    path.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(path, dpi=120)


def main() -> None:
    """Train with every seed; print, check and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="splits and starts, at least 2")
    parser.add_argument("--picture", type=Path, default=Path("runs/transfer.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    start = time.perf_counter()
    with tqdm(total=arguments.seeds * (1 + len(WAYS) * len(ROWS)), unit="network") as bar:
        percent = torch.stack([one_seed(seed, bar) for seed in range(arguments.seeds)])
    print(f"Right on test rows of 5 to 9, %; mean and standard deviation of {len(percent)} seeds\n")
    print(show(percent), "\n")
    for claim in check(percent):
        print(f"holds: {claim}")
    draw(percent, arguments.picture)
    print(f"\n{arguments.picture}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
