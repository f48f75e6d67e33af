"""Digits by name: labels encoded, a network trained, its answers decoded.

    python examples/digits.py [--small] [--seeds 3] [--seed 0] [--picture runs/digits.png]

Needs scikit-learn, and matplotlib for the picture. Takes a quarter of a minute.

The labels are words. scikit-learn's ``LabelEncoder`` makes class indices of them, in alphabetical
order, and its ``LabelBinarizer`` one-hot rows. ``xent.cross_entropy`` and ``train_classifier`` take
either. Loss and gradient are the same, up to the rounding of float32, which a training magnifies.
The largest logit decodes a prediction, as an index or as a one-hot row; of equal logits the first
counts. Training stops when the loss on rows set aside falls no more, and returns to the weights of
the least loss. The picture shows the course, and which digits are taken for which.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import LabelBinarizer, LabelEncoder
from torch import Tensor, nn

import xent
from _experiment import hold, options, save
from xent.learn import TrainingRecord, predict_logits, train_classifier
from xent.plot import curves

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAINING_ROWS, VALIDATION_ROWS = 900, 300
PATIENCE, LEARNING_RATE = 5, 5e-3
ENOUGH = 0.95  # share of the test rows that must be right with every seed


class Outcome(NamedTuple):
    """A trained network, and its answers on the test rows."""

    record: TrainingRecord
    validation_loss: float  # of the weights that the training left
    logits: Tensor
    classes: Tensor  # indices of the truth
    names: numpy.ndarray
    truth: numpy.ndarray


def load(seed: int) -> tuple[list[Tensor], list[numpy.ndarray]]:
    """Return images and their names: to learn from, to stop by, to test on."""
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order.split(
        [TRAINING_ROWS, VALIDATION_ROWS, len(images) - TRAINING_ROWS - VALIDATION_ROWS]
    )
    x, names = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, numpy.array(WORDS)
    return [x[rows] for rows in parts], [names[digits[rows]] for rows in parts]


def network(seed: int) -> nn.Module:
    """Return two layers of convolutions and a linear layer, 5,900 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip


def learn(seed: int, epochs: int, encoder: LabelEncoder | LabelBinarizer) -> Outcome:
    """Encode, train, decode."""
    x, names = load(seed)
    encoder.fit(names[0])
    # One-hot rows are probabilities, so they are floating point; class indices are not.
    dtype = torch.int64 if isinstance(encoder, LabelEncoder) else torch.float32
    y = [torch.as_tensor(encoder.transform(part)).to(dtype) for part in names]
    model = network(seed)
    record = train_classifier(
        model, (x[0], y[0]), xent.cross_entropy, validation=(x[1], y[1]), epochs=epochs,
        patience=PATIENCE, lr=LEARNING_RATE, seed=seed, metrics={"right": right},
    )  # fmt: skip
    left = xent.cross_entropy(predict_logits(model, x[1]), y[1]).item()
    logits = predict_logits(model, x[2])
    classes = torch.as_tensor(LabelEncoder().fit(WORDS).transform(names[2]))
    return Outcome(record, left, logits, classes, decode(logits, encoder), names[2])


def right(logits: Tensor, target: Tensor) -> Tensor:
    """Return which rows are right, for either kind of target."""
    return logits.argmax(1) == (target.argmax(1) if target.is_floating_point() else target)


def decode(logits: Tensor, encoder: LabelEncoder | LabelBinarizer) -> numpy.ndarray:
    """Return the names of the largest logits, by way of indices or of one-hot rows."""
    index = logits.argmax(1)  # of equal logits the first
    if isinstance(encoder, LabelEncoder):
        return encoder.inverse_transform(index.numpy())
    return encoder.inverse_transform(nn.functional.one_hot(index, logits.shape[1]).numpy())


def difference(outcome: Outcome) -> float:
    """Return the largest relative difference of loss and gradient between the two targets."""
    found = []
    for target in (outcome.classes, nn.functional.one_hot(outcome.classes, len(WORDS)).float()):
        logits = outcome.logits.clone().requires_grad_()
        loss = xent.cross_entropy(logits, target, reduction="none")
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        found.append(torch.cat([loss.detach()[:, None], slope], 1))
    return ((found[0] - found[1]).abs() / found[0].abs().clamp(min=1e-30)).max().item()


def claims(by_index: list[Outcome], by_row: list[Outcome]) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    encoders = LabelEncoder().fit(WORDS), LabelBinarizer().fit(WORDS)
    tie = torch.zeros(1, len(WORDS))  # all ten logits are equal; "eight" is the first name
    least = [min(e["validation_loss"] for e in o.record.epochs) for o in by_index]
    return {
        f"more than {ENOUGH:.0%} of the test rows are right with either target, every seed": all(
            (o.names == o.truth).mean() > ENOUGH for o in by_index + by_row
        ),
        "indices and one-hot rows have the same loss and gradient in every row, to 1e-5": all(
            difference(o) < 1e-5 for o in by_index
        ),
        "of equal logits the first is decoded": all(
            decode(tie, encoder).tolist() == ["eight"] for encoder in encoders
        ),
        "each training went back to its least validation loss": all(
            abs(o.validation_loss - loss) < 1e-6 for o, loss in zip(by_index, least, strict=True)
        ),
    }


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Draw the course of the trainings and the confusion matrix over all seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, middle = figure.subplots(1, 2, width_ratios=(1.2, 1))
    curves([o.record.to_dict() for o in outcomes], left)
    left.plot([], [], "*", color="0.4", markersize=12, label="the weights that are kept")
    lines = {line.get_label(): line for line in left.lines if line.get_label()[0] != "_"}
    left.legend(lines.values(), lines)
    left.set(
        yscale="log", ylabel="cross-entropy, nats",
        title="Training stops when rows set aside gain no more (a colour per seed)",
    )  # fmt: skip
    truth = numpy.concatenate([o.truth for o in outcomes])
    table = confusion_matrix(truth, numpy.concatenate([o.names for o in outcomes]), labels=WORDS)
    shade = numpy.where(numpy.eye(len(WORDS)), 0, table)  # only mistakes get a colour
    hardest = WORDS[shade.sum(1).argmax()].capitalize()
    middle.imshow(shade, cmap="Oranges", vmax=max(2 * shade.max(), 1))
    for (row, column), n in numpy.ndenumerate(table):
        if n:
            colour = "0.6" if row == column else "black"
            middle.text(column, row, n, ha="center", va="center", color=colour, fontsize=9)
    middle.set_xticks(range(10), WORDS, rotation=45)
    middle.set_yticks(range(10), WORDS)
    middle.set(xlabel="taken for", ylabel="is", title=f"{hardest} is the hardest (mistakes shaded)")
    save(figure, path, dpi=120)


def main() -> None:
    """Train with every seed, both ways; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(3, 1), epochs=(60, 15))
    torch.set_num_threads(1)  # the tensors are small
    by_index = [learn(seed, chosen.epochs, LabelEncoder()) for seed in chosen.seeds]
    by_row = [learn(seed, chosen.epochs, LabelBinarizer()) for seed in chosen.seeds]
    print("seed  epochs  best  validation loss  right there  right of the test rows  named so")
    for seed, o in zip(chosen.seeds, by_index, strict=True):
        best = o.record.epochs[o.record.best_epoch - 1]
        print(
            f"{seed:4}  {len(o.record.epochs):6}  {o.record.best_epoch:4}  "
            f"{best['validation_loss']:15.4f}  {best['validation_right']:11.1%}  "
            f"{(o.names == o.truth).mean():22.1%}  {', '.join(o.names[:4])}, ..."
        )
    print()
    hold(claims(by_index, by_row))
    draw(by_index, chosen.picture)


if __name__ == "__main__":
    main()
