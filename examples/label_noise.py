"""Wrong labels: which losses they mislead, and what knowing the noise is worth.

    python examples/label_noise.py [--seeds 5] [--picture runs/label_noise.png]

Needs scikit-learn, and matplotlib for the picture. Takes two to five minutes on two cores.

Handwritten digits, of whose training labels a part is exchanged: uniformly at random (sym), or for
one digit that looks alike (asym: 7 for 1, 2 for 7, 5 and 6 for each other, 3 for 8). A network of
64-128-10 learns them with each loss, long enough to learn the wrong ones by heart. The table is the
accuracy on test rows with right labels. The corrections are told the noise matrix, T, or estimate
it (T-hat) from an early stage of the training. At the end stand the claims of the literature that
the figures must bear out. The networks of a process train side by side, as one batch of matrices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import xent
from xent.learn.label_noise import estimate_noise_matrix

EPOCHS, EARLY_EPOCHS, BATCH, LEARNING_RATE, HIDDEN = 120, 10, 64, 2e-3, 128
CLASSES, TRAINING_ROWS = 10, 1200
ALIKE = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
NOISE = {
    "none": torch.eye(CLASSES, dtype=torch.float64),
    **{f"sym .{k}": xent.symmetric_noise_matrix(CLASSES, k / 10) for k in (2, 4, 6)},
    **{f"asym .{k}": xent.pair_noise_matrix(CLASSES, k / 10, ALIKE) for k in (2, 4)},
}

# (logits (M, B, C), labels (M, B), noise matrices (M, C, C)) of M networks -> sum of their losses
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def blind(loss: Callable[..., Any], **options: float) -> Loss:
    """A loss that knows nothing of the noise."""

    def total(logits: Tensor, labels: Tensor, matrices: Tensor) -> Tensor:
        rows = logits.flatten(0, 1), labels.flatten()
        return loss(*rows, reduction="sum", **options) / labels.shape[1]

    return total


def told(loss: Callable[..., Any]) -> Loss:
    """A loss that is told the noise matrix, another one for each network."""

    def total(logits: Tensor, labels: Tensor, matrices: Tensor) -> Tensor:
        def one(z: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
            return loss(z, y, matrix=matrix)

        return torch.vmap(one)(logits, labels, matrices).sum()

    return total


LOSSES = {
    "CE": blind(xent.cross_entropy),
    "forward(T)": told(xent.forward_corrected_cross_entropy),
    "forward(T-hat)": told(xent.forward_corrected_cross_entropy),
    "backward(T)": told(xent.backward_corrected_cross_entropy),
    "smoothing .1": blind(xent.cross_entropy, label_smoothing=0.1),
    "bootstrap, hard": blind(xent.hard_bootstrap_loss),
    "GCE .7": blind(xent.generalized_cross_entropy),
    "MAE": blind(xent.mae_loss),
    "SCE": blind(xent.symmetric_cross_entropy),
    "NCE+RCE": blind(xent.nce_rce_loss),
    "NCE+MAE": blind(xent.nce_mae_loss),
    "NCE": blind(xent.normalized_cross_entropy),
}


class Data:
    """One split per seed, with one set of labels per kind of noise: (noise, seed, row)."""

    def __init__(self, seeds: int) -> None:
        digits: Any = load_digits()
        x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        order = torch.stack([torch.randperm(len(y), generator=g) for g in generators])
        train, test = order[:, :TRAINING_ROWS], order[:, TRAINING_ROWS:]
        self.x, self.test_x, self.test_y = x[train], x[test], y[test]  # (S, N, 64), ...
        labels = [
            xent.flip_labels(y[rows], matrix, generator)
            for matrix in NOISE.values()
            for rows, generator in zip(train, generators, strict=True)
        ]
        self.labels = torch.stack(labels).view(len(NOISE), seeds, TRAINING_ROWS)


class Networks(torch.nn.Module):
    """Networks of one hidden layer side by side: (M, B, 64) -> (M, B, C)."""

    def __init__(self, like: tuple[int, ...], seeds: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int, inputs: int) -> torch.nn.Parameter:
            # Networks of one seed start alike, whatever their loss and noise.
            uniform = 2 * torch.rand(1, seeds, *shape, generator=generator) - 1
            start = (uniform * inputs**-0.5).expand(like[0] * like[1], -1, -1, -1)
            return torch.nn.Parameter(start.flatten(0, 1).clone())

        self.hidden = parameter(64, HIDDEN, inputs=64)
        self.hidden_bias = parameter(1, HIDDEN, inputs=64)
        self.out = parameter(HIDDEN, CLASSES, inputs=HIDDEN)
        self.out_bias = parameter(1, CLASSES, inputs=HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        h = torch.baddbmm(self.hidden_bias, x, self.hidden).relu()
        return torch.baddbmm(self.out_bias, h, self.out)


def train(data: Data, losses: dict[str, tuple[Loss, Tensor]], epochs: int, bar: tqdm) -> Networks:
    """One network for each loss, kind of noise and seed, in this order.

    A loss comes with the noise matrices it is told, (L, S, C, C).
    """
    kinds, seeds, rows = data.labels.shape
    networks = Networks((len(losses), kinds), seeds)
    optimizer = torch.optim.Adam(networks.parameters(), LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        for batch in order[: rows - rows % BATCH].view(-1, BATCH):
            x = data.x[:, batch].repeat(len(losses) * kinds, 1, 1)
            labels = data.labels[:, :, batch].flatten(0, 1)
            logits = networks(x).view(len(losses), -1, BATCH, CLASSES)
            each = [
                loss(z, labels, matrices.flatten(0, 1))
                for z, (loss, matrices) in zip(logits, losses.values(), strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(each).sum().backward()
            optimizer.step()
        bar.update()
    return networks


@torch.no_grad()
def predict(networks: Networks, x: Tensor, kinds: int) -> Tensor:
    """Logits (losses, L, S, N, C) of rows (S, N, 64)."""
    many = len(networks.hidden) // len(x)
    return networks(x.repeat(many, 1, 1)).view(-1, kinds, len(x), x.shape[1], CLASSES)


def accuracy_of(names: list[str], seeds: int, place: int) -> Tensor:
    """Accuracy of these losses in percent on clean test rows, (losses, L, S)."""
    torch.set_num_threads(1)
    data, kinds = Data(seeds), len(NOISE)
    told = torch.stack(list(NOISE.values())).unsqueeze(1).expand(-1, seeds, -1, -1)
    with tqdm(total=EARLY_EPOCHS + EPOCHS, unit="epoch", position=place) as bar:
        early = train(data, {"CE": (LOSSES["CE"], told)}, EARLY_EPOCHS, bar)
        p = xent.softmax(predict(early, data.x, kinds)[0]).flatten(0, 1)
        estimated = torch.stack([estimate_noise_matrix(of_one) for of_one in p]).view(told.shape)
        equipped = {n: (LOSSES[n], estimated if n == "forward(T-hat)" else told) for n in names}
        networks = train(data, equipped, EPOCHS, bar)
    right = predict(networks, data.test_x, kinds).argmax(-1) == data.test_y
    return 100 * right.double().mean(-1)


def experiment(seeds: int) -> Tensor:
    """Accuracy of all losses, by one process for each half of them."""
    names = list(LOSSES)
    halves = [names[0::2], names[1::2]]
    with get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(accuracy_of, [(half, seeds, k) for k, half in enumerate(halves)])
    of_loss = dict(zip(halves[0] + halves[1], torch.cat(parts), strict=True))
    return torch.stack([of_loss[name] for name in names])


def show(accuracy: Tensor) -> str:
    """The table: mean and standard deviation over the seeds."""
    head = f"{'':16}" + "".join(f"{name:>13}" for name in NOISE)
    lines = [head]
    for name, row in zip(LOSSES, accuracy, strict=True):
        cells = (f"{c.mean():5.1f} ± {c.std():3.1f}" for c in row)
        lines.append(f"{name:16}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def check(accuracy: Tensor) -> list[str]:
    """Assert the claims; they come back as sentences."""
    mean = accuracy.mean(-1)
    loss, noise = list(LOSSES), list(NOISE)

    def at(name: str, kind: str) -> float:
        return mean[loss.index(name), noise.index(kind)].item()

    def ranking(kind: str) -> list[str]:
        return sorted(loss, key=lambda name: -at(name, kind))

    claims = {
        "forward(T) beats CE at every kind of noise": all(
            at("forward(T)", k) > at("CE", k) for k in noise[1:]
        ),
        "NCE+RCE beats CE by 5 points or more at every symmetric noise": all(
            at("NCE+RCE", k) >= at("CE", k) + 5 for k in noise if k.startswith("sym")
        ),
        "forward(T) is the best of all at asym .4": ranking("asym .4")[0] == "forward(T)",
        "MAE is the worst of all at asym .4": ranking("asym .4")[-1] == "MAE",
        "backward(T) does not beat CE at sym .2": at("backward(T)", "sym .2") <= at("CE", "sym .2"),
    }
    wrong = [claim for claim, holds in claims.items() if not holds]
    assert not wrong, f"not borne out: {wrong}"
    return list(claims)


def draw(accuracy: Tensor, path: Path) -> None:
    """One panel per kind of noise: mean and standard deviation of every loss."""
    import matplotlib.pyplot as plt

    kinds = list(NOISE)
    figure, panels = plt.subplots(1, len(kinds), figsize=(13, 4), sharey=True)
    place = torch.arange(len(LOSSES)).flip(0)
    for panel, kind, column in zip(panels, kinds, accuracy.unbind(1), strict=True):
        mean, spread = column.mean(-1), column.std(-1)
        panel.axvline(mean[0], color="0.8", zorder=0)
        corrected = ["(T" in name for name in LOSSES]
        for known, colour in ((False, "tab:blue"), (True, "tab:orange")):
            rows = torch.tensor(corrected) == known
            panel.errorbar(
                mean[rows], place[rows], xerr=spread[rows], fmt="o", color=colour, capsize=3
            )
        panel.set(title=kind)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(place, LOSSES)
    figure.supxlabel(
        "accuracy on clean test rows, % (line: CE; orange: knows or estimates the noise)"
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="splits and starts, at least 2")
    parser.add_argument("--picture", type=Path, default=Path("runs/label_noise.png"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    accuracy = experiment(arguments.seeds)
    print(f"Clean test accuracy, %; mean and standard deviation of {arguments.seeds} seeds\n")
    print(show(accuracy), "\n")
    for claim in check(accuracy):
        print(f"holds: {claim}")
    draw(accuracy, arguments.picture)
    print(f"\n{arguments.picture}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
