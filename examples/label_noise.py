"""Wrong labels: which losses they mislead, and what knowing the noise is worth.

    python examples/label_noise.py [--small] [--seeds 5] [--seed 0] [--picture runs/label_noise.png]

Needs scikit-learn, and matplotlib for the picture. Takes two to five minutes on two cores.

Handwritten digits with wrong labels in the training set: a part of the labels is exchanged,
uniformly at random (sym), or for one digit that looks alike (asym: 7 for 1, 2 for 7, 5 and 6 for
each other, 3 for 8). A network of 64-128-10 learns them with each loss, long enough to learn the
wrong labels by heart. The table is the accuracy on test rows with right labels. The corrections get
the noise matrix, T, or estimate it (T-hat) from an early stage of the training. The claims at the
end are those of the literature. The networks of a process train side by side, as one batch of
matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, over_seeds, save
from xent.learn.label_noise import estimate_noise_matrix

EARLY_EPOCHS, BATCH, LEARNING_RATE, HIDDEN = 10, 64, 2e-3, 128
CLASSES, TRAINING_ROWS = 10, 1200
ALIKE = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
KINDS = {"sym": "of any class", "asym": "taken for alike"}
NOISE = {
    "none": torch.eye(CLASSES, dtype=torch.float64),
    **{f"sym .{k}": xent.losses.symmetric_noise_matrix(CLASSES, k / 10) for k in (2, 4, 6)},
    **{f"asym .{k}": xent.losses.pair_noise_matrix(CLASSES, k / 10, ALIKE) for k in (2, 4)},
}

# (logits (M, B, C), labels (M, B), noise matrices (M, C, C)) of M networks -> sum of their losses
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def blind(loss: Callable[..., Any], **options: float) -> Loss:
    """Return a loss that does not know the noise."""

    def total(logits: Tensor, labels: Tensor, matrices: Tensor) -> Tensor:
        rows = logits.flatten(0, 1), labels.flatten()
        return loss(*rows, reduction="sum", **options) / labels.shape[1]

    return total


def told(loss: Callable[..., Any]) -> Loss:
    """Return a loss that knows the noise matrix of each network."""

    def total(logits: Tensor, labels: Tensor, matrices: Tensor) -> Tensor:
        def one(z: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
            return loss(z, y, matrix=matrix)

        return torch.vmap(one)(logits, labels, matrices).sum()

    return total


LOSSES = {
    "CE": blind(xent.cross_entropy),
    "forward(T)": told(xent.losses.forward_corrected_cross_entropy),
    "forward(T-hat)": told(xent.losses.forward_corrected_cross_entropy),
    "backward(T)": told(xent.losses.backward_corrected_cross_entropy),
    "smoothing .1": blind(xent.cross_entropy, label_smoothing=0.1),
    "bootstrap, hard": blind(xent.losses.hard_bootstrap_loss),
    "GCE .7": blind(xent.losses.generalized_cross_entropy),
    "MAE": blind(xent.losses.mae_loss),
    "SCE": blind(xent.losses.symmetric_cross_entropy),
    "NCE+RCE": blind(xent.losses.nce_rce_loss),
    "NCE+MAE": blind(xent.losses.nce_mae_loss),
    "NCE": blind(xent.losses.normalized_cross_entropy),
}
SMALL = ["CE", "forward(T)", "forward(T-hat)", "GCE .7"]  # those of the small form


class Data:
    """One split per seed, with one set of labels per kind of noise: (noise, seed, row)."""

    def __init__(self, seeds: range) -> None:
        digits: Any = load_digits()
        x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        order = torch.stack([torch.randperm(len(y), generator=g) for g in generators])
        train, test = order[:, :TRAINING_ROWS], order[:, TRAINING_ROWS:]
        self.x, self.test_x, self.test_y = x[train], x[test], y[test]  # (S, N, 64), ...
        labels = [
            xent.losses.flip_labels(y[rows], matrix, generator)
            for matrix in NOISE.values()
            for rows, generator in zip(train, generators, strict=True)
        ]
        self.labels = torch.stack(labels).view(len(NOISE), len(seeds), TRAINING_ROWS)


class Networks(torch.nn.Module):
    """Networks of one hidden layer side by side: (M, B, 64) -> (M, B, C)."""

    def __init__(self, like: tuple[int, ...], seeds: range) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def parameter(*shape: int, inputs: int) -> torch.nn.Parameter:
            # Networks of one seed start alike, whatever their loss and noise.
            uniform = 2 * torch.stack([torch.rand(shape, generator=g) for g in generators]) - 1
            start = (uniform[None] * inputs**-0.5).expand(like[0] * like[1], -1, -1, -1)
            return torch.nn.Parameter(start.flatten(0, 1).clone())

        self.hidden = parameter(64, HIDDEN, inputs=64)
        self.hidden_bias = parameter(1, HIDDEN, inputs=64)
        self.out = parameter(HIDDEN, CLASSES, inputs=HIDDEN)
        self.out_bias = parameter(1, CLASSES, inputs=HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = torch.baddbmm(self.hidden_bias, x, self.hidden).relu()
        return torch.baddbmm(self.out_bias, h, self.out)


def train(
    data: Data, losses: dict[str, tuple[Loss, Tensor]], seeds: range, epochs: int, bar: tqdm
) -> Networks:
    """One network for each loss, kind of noise and seed, in this order.

    A loss comes with the noise matrices it is told, (L, S, C, C).
    """
    kinds, _, rows = data.labels.shape
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
    """Return logits (losses, L, S, N, C) of rows (S, N, 64)."""
    many = len(networks.hidden) // len(x)
    return networks(x.repeat(many, 1, 1)).view(-1, kinds, len(x), x.shape[1], CLASSES)


def accuracy_of(names: list[str], seeds: range, epochs: int, place: int) -> Tensor:
    """Return accuracy of these losses in percent on clean test rows, (losses, L, S)."""
    torch.set_num_threads(1)
    data, kinds = Data(seeds), len(NOISE)
    told = torch.stack(list(NOISE.values())).unsqueeze(1).expand(-1, len(seeds), -1, -1)
    with tqdm(total=EARLY_EPOCHS + epochs, unit="epoch", position=place) as bar:
        early = train(data, {"CE": (LOSSES["CE"], told)}, seeds, EARLY_EPOCHS, bar)
        p = xent.softmax(predict(early, data.x, kinds)[0]).flatten(0, 1)
        estimated = torch.stack([estimate_noise_matrix(of_one) for of_one in p]).view(told.shape)
        equipped = {n: (LOSSES[n], estimated if n == "forward(T-hat)" else told) for n in names}
        networks = train(data, equipped, seeds, epochs, bar)
    right = predict(networks, data.test_x, kinds).argmax(-1) == data.test_y
    return 100 * right.double().mean(-1)


def experiment(names: list[str], seeds: range, epochs: int) -> dict[str, Tensor]:
    """Return accuracy with each loss, (L, S); two processes take half of the losses each."""
    halves = [names[0::2], names[1::2]]
    jobs = [(half, seeds, epochs, k) for k, half in enumerate(halves)]
    with get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(accuracy_of, jobs)
    of_loss = dict(zip(halves[0] + halves[1], torch.cat(parts), strict=True))
    return {name: of_loss[name] for name in names}


def show(accuracy: dict[str, Tensor]) -> str:
    """Return the table: mean and standard deviation over the seeds."""
    head = f"{'':16}" + "".join(f"{name:>13}" for name in NOISE)
    lines = [head]
    for name, row in accuracy.items():
        lines.append(f"{name:16}" + "".join(f"{over_seeds(cell):>13}" for cell in row))
    return "\n".join(lines)


def claims(accuracy: dict[str, Tensor], small: bool) -> dict[str, bool]:
    """Return each claim, about means over the seeds, with True if the claim holds."""
    noise = list(NOISE)

    def at(name: str, kind: str) -> float:
        return accuracy[name][noise.index(kind)].mean().item()

    if small:
        return {
            "without noise every loss is right on 90 % or more": all(
                at(name, "none") >= 90 for name in accuracy
            ),
            "forward(T) beats CE at asym .4": at("forward(T)", "asym .4") > at("CE", "asym .4"),
        }
    return {
        "forward(T) beats CE at every kind of noise": all(
            at("forward(T)", k) > at("CE", k) for k in noise[1:]
        ),
        "and by 5 points or more at asym .4": at("forward(T)", "asym .4")
        >= at("CE", "asym .4") + 5,
        "NCE+RCE beats CE by 2 points or more at every symmetric noise": all(
            at("NCE+RCE", k) >= at("CE", k) + 2 for k in noise if k.startswith("sym")
        ),
        "MAE, which withstands symmetric noise, is worse than NCE+RCE at asym .4": (
            at("MAE", "asym .4") < at("NCE+RCE", "asym .4")
        ),
        "backward(T) does not beat CE at sym .2": at("backward(T)", "sym .2") <= at("CE", "sym .2"),
    }


def draw(accuracy: dict[str, Tensor], path: Path) -> None:
    """Draw one panel per kind of noise: mean and standard deviation of every loss."""
    import matplotlib.pyplot as plt

    kinds = list(NOISE)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(13, 4.6), sharex=True, sharey=True, layout="constrained"
    )
    place = torch.arange(len(accuracy)).flip(0)
    columns = torch.stack(list(accuracy.values())).unbind(1)
    for panel, kind, column in zip(panels, kinds, columns, strict=True):
        mean, spread = column.mean(-1), column.std(-1)
        panel.axvline(mean[0], color="0.8", zorder=0)
        corrected = ["(T" in name for name in accuracy]
        for known, colour in ((False, "C0"), (True, "C1")):
            rows = torch.tensor(corrected) == known
            panel.errorbar(
                mean[rows], place[rows], xerr=spread[rows], fmt="o", color=colour, capsize=3
            )
        way, _, share = kind.partition(" ")
        panel.set_title(
            f"{100 * float(share):.0f} % wrong,\n{KINDS[way]}" if share else "none wrong"
        )
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(place, accuracy)
    figure.supxlabel(
        "right on clean test rows, % (grey line: CE; orange: knows or estimates the noise)"
    )
    figure.suptitle("The more labels are wrong, the more it pays to use a loss that forgives them")
    save(figure, path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(5, 2), epochs=(120, 20))
    accuracy = experiment(SMALL if chosen.small else list(LOSSES), chosen.seeds, chosen.epochs)
    print(f"Clean test accuracy, %; mean and standard deviation of {len(chosen.seeds)} seeds\n")
    print(show(accuracy), "\n")
    hold(claims(accuracy, chosen.small))
    draw(accuracy, chosen.picture)


if __name__ == "__main__":
    main()
