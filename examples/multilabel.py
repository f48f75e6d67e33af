"""Several labels at once: what sigmoids can say and a softmax cannot.

    python examples/multilabel.py [--small] [--seeds 3] [--seed 0] [--epochs 60] [--picture PATH]

Needs scikit-learn, and matplotlib for the picture. Takes half a minute.

Each handwritten digit has four attributes: even, at least 5, prime, has a closed loop. A small
network learns all four at once with different losses. A digit counts as right if all four are
right. A softmax shares one unit of probability out among the attributes. With a threshold of 0.5 no
digit then has two attributes, however the network is trained, but seven digits in ten have two or
more. The last way is a mistake: the outputs of a softmax go into binary cross-entropy.
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
from xent.plot.canvas import COLORS

ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "at least 5": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "loop": (0, 6, 8, 9),
}
TRAINING_ROWS, HIDDEN, BATCH, LEARNING_RATE = 900, 64, 64, 3e-3
# Bounds on the share of exact matches: fair ways must be above, ways with the mistake below.
FAIR, MISTAKEN = 0.75, 0.35


class Way(NamedTuple):
    """A way to train: its loss, and which attributes its logits claim."""

    loss: Callable[[Tensor, Tensor], Tensor]
    claims: Callable[[Tensor], Tensor]
    fair: bool = True


def positive(logits: Tensor) -> Tensor:
    """Return the attributes that are more likely than not, by a sigmoid."""
    return logits > 0


def above_half(logits: Tensor) -> Tensor:
    """Return the attributes that are more likely than not, by a softmax."""
    return torch.softmax(logits, 1) > 0.5


def shared_out(logits: Tensor, target: Tensor) -> Tensor:
    """Compute softmax cross-entropy; the attributes of a digit share one unit of probability."""
    share = target / target.sum(1, keepdim=True).clamp(min=1)
    loss = xent.cross_entropy(logits, share)
    assert isinstance(loss, Tensor)
    return loss


def softmax_into_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Make the mistake: probabilities that sum to 1 go into binary cross-entropy."""
    return xent.binary_cross_entropy(torch.softmax(logits, 1), target)


WAYS = {
    "multilabel_cross_entropy": Way(xent.losses.multilabel_cross_entropy, positive),
    "asymmetric_loss": Way(xent.losses.asymmetric_loss, positive),
    "sigmoid_focal_loss": Way(xent.losses.sigmoid_focal_loss, positive),
    "zlpr_loss": Way(xent.losses.zlpr_loss, positive),
    "cross_entropy, labels shared out": Way(shared_out, above_half, False),
    "softmax into binary_cross_entropy": Way(softmax_into_bce, above_half, False),
}


def load() -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1] and the attributes, shuffled once for all networks."""
    images, digits = load_digits(return_X_y=True)
    x, digits = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    columns = [torch.isin(digits, torch.tensor(having)) for having in ATTRIBUTES.values()]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.stack(columns, 1).float()[order]


def learn(way: Way, x: Tensor, target: Tensor, seed: int, epochs: int) -> Tensor:
    """Return logits of the test rows, from a network with one hidden layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(ATTRIBUTES)))
    rows = x[:TRAINING_ROWS], target[:TRAINING_ROWS]
    train_classifier(
        model, rows, way.loss, epochs=epochs, batch_size=BATCH, lr=LEARNING_RATE, seed=seed,
        quiet=True,
    )  # fmt: skip
    return predict_logits(model, x[TRAINING_ROWS:])


def draw(matches: dict[str, list[float]], x: Tensor, target: Tensor,
         logits: dict[str, Tensor], path: Path) -> None:  # fmt: skip
    """Draw exact matches of every seed, and what a sigmoid and a softmax say about some digits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    ax = left.subplots()
    for place, (name, found) in enumerate(matches.items()):
        colour = COLORS[0] if WAYS[name].fair else COLORS[1]
        ax.plot(found, [place] * len(found), "o", color=colour, alpha=0.7)
    ax.set_yticks(range(len(matches)), [name.replace(", ", ",\n") for name in matches])
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 1), xlabel="digits with all four attributes right, one dot per seed",
        title="A softmax cannot say two things at once",
    )  # fmt: skip
    ax.grid(axis="x", alpha=0.3)

    probabilities = {
        "sigmoid": torch.sigmoid(logits["multilabel_cross_entropy"]),
        "softmax": torch.softmax(logits["cross_entropy, labels shared out"], 1),
    }
    chosen = target.sum(1).argsort(descending=True, stable=True)[:: len(x) // 8][:8].tolist()
    grid = right.subplots(2, 8, height_ratios=(1, 2), sharey="row")
    for picture, bars, n in zip(*grid, chosen, strict=True):
        picture.imshow(x[n].view(8, 8), cmap="gray_r")
        picture.set_axis_off()
        for k, (name, p) in enumerate(probabilities.items()):
            at = torch.arange(len(ATTRIBUTES)) + 0.4 * (k - 0.5)
            bars.barh(at, p[n], height=0.38, color=COLORS[k], label=name)
        bars.axvline(0.5, color="black", linewidth=0.8)
        for place in target[n].nonzero()[:, 0].tolist():
            bars.text(1.2, place, "✓", va="center", ha="center")
        bars.set(xlim=(0, 1.4), xticks=(0, 1))
    grid[1, 0].set_yticks(range(len(ATTRIBUTES)), ATTRIBUTES)
    grid[1, 0].invert_yaxis()
    right.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    right.suptitle("Probability of each attribute; ✓: the digit has it; line: one half")
    save(figure, path, dpi=110)


def main() -> None:
    """Train every way with every seed, print the table, and check the claim."""
    chosen = options(__file__, __doc__, seeds=(3, 1), epochs=(60, 25))
    torch.set_num_threads(1)  # the tensors are small
    x, target = load()
    test_x, test_target = x[TRAINING_ROWS:], target[TRAINING_ROWS:]
    logits: dict[str, Tensor] = {}
    matches: dict[str, list[float]] = {}
    each: dict[str, Tensor] = {}
    runs = [(name, seed) for name in WAYS for seed in chosen.seeds]
    progress = tqdm(runs, unit="run")
    for name, seed in progress:
        progress.set_description(name)
        logits[name] = learn(WAYS[name], x, target, seed, chosen.epochs)
        right = WAYS[name].claims(logits[name]) == test_target.bool()
        matches.setdefault(name, []).append(right.all(1).float().mean().item())
        each[name] = each.get(name, torch.zeros(4)) + right.float().mean(0) / len(chosen.seeds)
    print(f"\nexact matches on {len(test_x)} digits, and each attribute alone")
    print(f"{'':34} {'worst':>6} {'mean':>6}   " + "  ".join(f"{a:>10}" for a in ATTRIBUTES))
    for name, found in matches.items():
        alone = "  ".join(f"{v:10.3f}" for v in each[name].tolist())
        print(f"{name:34} {min(found):6.3f} {sum(found) / len(found):6.3f}   {alone}")
    print()
    fair = FAIR - 0.15 if chosen.small else FAIR
    hold({
        f"every sigmoid loss matches more than {fair:.2f} of the digits, seed by seed": all(
            min(found) > fair for name, found in matches.items() if WAYS[name].fair
        ),
        f"every softmax matches less than {MISTAKEN:.2f}": all(
            max(found) < MISTAKEN for name, found in matches.items() if not WAYS[name].fair
        ),
    })  # fmt: skip
    draw(matches, test_x, test_target, logits, chosen.picture)


if __name__ == "__main__":
    main()
