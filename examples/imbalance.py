"""Rare classes: what weights, priors and margins do for them.

    python examples/imbalance.py [--small] [--seeds 8] [--seed 0] [--picture runs/imbalance.png]

Handwritten digits with a long tail: 120 rows of the most common class, 2 of the rarest, a balanced
test set. One small network per loss and seed, all seeds side by side. Prints balanced accuracy, of
all classes and of the three rarest, draws both, and checks what the literature says: correcting for
the prior, in training or afterwards, helps the rare classes most.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, save

STEPS, LEARNING_RATE, HIDDEN = 300, 2e-3, 128
SMALL = ("cross-entropy", "balanced softmax", "adjusted afterwards")  # those of the small form
CLASSES, MOST, FEWEST, TEST_ROWS = 10, 120, 2, 50  # rows of a class: trained on, and tested
COUNTS = MOST * (FEWEST / MOST) ** (torch.arange(CLASSES) / (CLASSES - 1))
COUNTS = COUNTS.round()  # rows of each class, from the most common to the rarest

# (logits (S, N, C), targets (S, N)) of S networks -> the sum of their losses
Loss = Callable[[Tensor, Tensor], Tensor]


def long_tail(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training rows with a long tail and balanced test rows: (x, y, test x, test y).

    Which digit is how rare depends on the seed; classes are numbered by how common they are.
    """
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    digit = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for c, n in zip(torch.randperm(CLASSES, generator=generator), COUNTS.int(), strict=True):
        rows = torch.nonzero(digit == c)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        test.append(rows[:TEST_ROWS])
        train.append(rows[TEST_ROWS : TEST_ROWS + n])
    y = torch.arange(CLASSES)
    return (
        x[torch.cat(train)], y.repeat_interleave(COUNTS.int()),
        x[torch.cat(test)], y.repeat_interleave(TEST_ROWS),
    )  # fmt: skip


class Networks(torch.nn.Module):
    """One network of two layers per seed, trained side by side: (S, N, 64) -> (S, N, C)."""

    def __init__(self, seeds: int, cosine: bool) -> None:
        super().__init__()
        layers = [(64, HIDDEN), (HIDDEN, CLASSES)]
        self.weights = torch.nn.ParameterList()
        self.biases = torch.nn.ParameterList()
        for rows, columns in layers:
            self.weights.append((torch.rand(seeds, rows, columns) * 2 - 1) / rows**0.5)
            self.biases.append(torch.zeros(seeds, 1, columns))
        self.cosine = cosine  # what losses with margins expect

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, or cosines."""
        hidden = torch.relu(torch.baddbmm(self.biases[0], x, self.weights[0]))
        if not self.cosine:
            return torch.baddbmm(self.biases[1], hidden, self.weights[1])
        normalize = torch.nn.functional.normalize
        return normalize(hidden, dim=2) @ normalize(self.weights[1], dim=1)


def train(loss_at: Callable[[int], Loss], x: Tensor, y: Tensor, cosine: bool) -> Networks:
    """Train networks on full batches; ``loss_at(step)`` is the loss of a step."""
    torch.manual_seed(0)
    networks = Networks(len(x), cosine)
    optimizer = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_at(step)(networks(x), y).backward()
        optimizer.step()
    return networks


def rows(loss: Callable[..., Tensor], *args: Tensor, **options: object) -> Loss:
    """Return a loss of rows that takes the rows of all networks together."""
    return lambda z, y: len(z) * loss(z.flatten(0, 1), y.flatten(), *args, **options)


def batches(loss: Callable[..., Tensor], *args: object) -> Loss:
    """Return a loss of a whole batch, called for one network after the other."""
    return lambda z, y: sum(loss(a, b, *args) for a, b in zip(z, y, strict=True))


def contestants() -> dict[str, tuple[Callable[[int], Loss], bool, Tensor | None]]:
    """Return, by name: the loss of each step, if it takes cosines, what corrects predictions."""

    def always(loss: Loss) -> Callable[[int], Loss]:
        return lambda step: loss

    inverse = len(COUNTS) / COUNTS / (1 / COUNTS).sum()
    effective = xent.losses.effective_number_weights(COUNTS, beta=0.99)
    ce = always(rows(xent.cross_entropy))

    def ldam(step: int) -> Loss:
        weight = xent.losses.deferred_weights(COUNTS, step, start=STEPS * 4 // 5, beta=0.99)
        return rows(xent.losses.ldam_loss, weight, counts=COUNTS)

    return {
        "cross-entropy": (ce, False, None),
        "weights 1/n": (always(rows(xent.cross_entropy, inverse)), False, None),
        "effective number": (always(rows(xent.cross_entropy, effective)), False, None),
        "focal": (always(rows(xent.losses.focal_loss)), False, None),
        "recall": (always(batches(xent.losses.recall_loss)), False, None),
        "hardest half": (always(batches(xent.losses.hardest_loss, 0.5)), False, None),
        "LDAM, deferred": (ldam, True, None),
        "VS": (always(rows(xent.losses.vs_loss, counts=COUNTS)), False, None),
        "balanced softmax": (
            always(rows(xent.losses.balanced_softmax_loss, prior=COUNTS)), False, None,
        ),
        "adjusted afterwards": (ce, False, COUNTS),
    }  # fmt: skip


def recalls(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of each class that is found, (S, C)."""
    right = (logits.argmax(2) == y).double()
    return torch.stack([right[:, y[0] == c].mean(1) for c in range(CLASSES)], 1)


def experiment(seeds: range, names: list[str]) -> dict[str, Tensor]:
    """Return balanced accuracy of each contestant, (S, 2): all classes, and the 3 rarest."""
    data = [long_tail(seed) for seed in seeds]
    x, y, test_x, test_y = (torch.stack(part) for part in zip(*data, strict=True))
    found = {}
    for name in tqdm(names, desc="losses"):
        loss_at, cosine, prior = contestants()[name]
        logits = train(loss_at, x, y, cosine)(test_x).detach()
        if prior is not None:
            logits = xent.losses.adjust_logits(logits.mT, prior).mT
        recall = recalls(logits, test_y)
        found[name] = 100 * torch.stack([recall.mean(1), recall[:, -3:].mean(1)], 1)
    return found


def show(results: dict[str, Tensor]) -> None:
    """Print the table."""
    print(f"{'':22}{'balanced accuracy':>20}{'three rarest':>20}")
    for name, values in results.items():
        mean, spread = values.mean(0), values.std(0)
        print(f"{name:22}{mean[0]:13.1f} +- {spread[0]:<4.1f}{mean[1]:13.1f} +- {spread[1]:<4.1f}")


def draw(results: dict[str, Tensor], file: Path) -> None:
    """Draw means with the spread over seeds, the best for rare classes at the top."""
    from matplotlib.figure import Figure

    ax = Figure(figsize=(8, 4.8), layout="constrained").subplots()
    names = sorted(results, key=lambda name: results[name][:, 1].mean().item())
    for k, (label, shade, mark) in enumerate(
        (("the three rarest classes", "C1", "s"), ("all ten classes", "C0", "o"))
    ):
        values = [results[name][:, 1 - k] for name in names]
        ax.errorbar(
            [v.mean().item() for v in values], [i + 0.24 * (k - 0.5) for i in range(len(names))],
            xerr=[v.std().item() for v in values], fmt=mark, color=shade, label=label, capsize=3,
        )  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xlabel="right on test rows, %: mean over classes; whiskers: standard deviation over seeds",
        title="Correcting for class frequencies helps rare classes most", xlim=(None, 100),
    )  # fmt: skip
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="upper left")
    save(ax.figure, file, dpi=120)


def main() -> None:
    """Run, print, draw, check."""
    chosen = options(__file__, __doc__, seeds=(8, 4))
    torch.set_num_threads(1)  # the matrices are small: threads would wait more than they work
    results = experiment(chosen.seeds, list(SMALL if chosen.small else contestants()))
    show(results)
    plain, balanced = results["cross-entropy"][:, 0], results["balanced softmax"][:, 0]
    gain = balanced - plain
    print(
        f"balanced softmax gains {gain.min():.1f} to {gain.max():.1f} points over cross-entropy, "
        f"4 or more in {int((gain >= 4).sum())} of {len(gain)} seeds\n"
    )
    claims = {
        "balanced softmax gains in every seed": bool((gain > 0).all()),
        "it, and the correction afterwards, gain 3 points on average": all(
            results[name][:, 0].mean() >= plain.mean() + 3
            for name in ("balanced softmax", "adjusted afterwards")
        ),
    }
    if not chosen.small:
        claims["of weights 1/n, effective number, recall, LDAM each lies between the two"] = all(
            plain.mean() < results[name][:, 0].mean() < balanced.mean()
            for name in ("weights 1/n", "effective number", "recall", "LDAM, deferred")
        )
    hold(claims)
    draw(results, chosen.picture)


if __name__ == "__main__":
    main()
