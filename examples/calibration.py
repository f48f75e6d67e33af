"""An over-confident network, and the one number that corrects it: temperature scaling.

    python examples/calibration.py [--small] [--seeds 5] [--seed 0] [--picture runs/calibration.png]

Needs scikit-learn, and matplotlib for the picture. Takes a few seconds.

A network learns 300 handwritten digits by heart, a fifth of them with a wrong label. So its
confidence is higher than its accuracy. The temperature is fitted on 300 rows that the network has
not seen, and judged on the remaining 1197. In the picture, equal confidence and accuracy is the
diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import xent
from _experiment import hold, options, save
from xent.learn.calibration import (
    Reliability,
    brier_score,
    calibration_error,
    fit_temperature,
    reliability,
)

TRAINING_ROWS, CALIBRATION_ROWS, WRONG_LABELS = 300, 300, 0.2
STEPS, LEARNING_RATE, HIDDEN, BINS = 300, 5e-3, 128, 10


class Outcome(NamedTuple):
    """Result of one seed: the temperature, and its effect on the test rows."""

    temperature: float
    accuracy: float
    nats: tuple[float, float]  # before and after
    ece: tuple[float, float]
    adaptive: tuple[float, float]
    brier: tuple[float, float]
    tables: tuple[Reliability, Reliability]


def train(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
    """Train a small network on the same rows for far too long."""
    wrong = torch.rand(len(y), generator=generator) < WRONG_LABELS
    y = torch.where(wrong, torch.randint(10, y.shape, generator=generator), y)
    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        optimiser.zero_grad()
        xent.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def run(seed: int) -> Outcome:
    """Train, fit the temperature, and compare on rows that neither of the two has seen."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    rows = torch.randperm(len(digits.target), generator=generator)
    x = torch.tensor(digits.data, dtype=torch.float32)[rows] / 16
    y = torch.tensor(digits.target)[rows]
    parts = [TRAINING_ROWS, CALIBRATION_ROWS, len(y) - TRAINING_ROWS - CALIBRATION_ROWS]
    (x_train, x_held_out, x_test), (y_train, y_held_out, y_test) = x.split(parts), y.split(parts)

    model = train(x_train, y_train, generator)
    with torch.no_grad():
        held_out, logits = model(x_held_out), model(x_test)
    temperature = fit_temperature(held_out, y_held_out)

    def both(score: Callable[[Tensor], Any]) -> Any:
        return score(logits), score(logits / temperature)

    return Outcome(
        temperature,
        (logits.argmax(1) == y_test).double().mean().item(),
        nats=both(lambda z: xent.cross_entropy(z, y_test).item()),
        ece=both(lambda z: calibration_error(z, y_test, BINS)),
        adaptive=both(lambda z: calibration_error(z, y_test, BINS, binning="mass")),
        brier=both(lambda z: brier_score(z, y_test)),
        tables=both(lambda z: reliability(z, y_test, BINS)),
    )


def draw(outcome: Outcome, path: Path) -> None:
    """Draw both reliability diagrams side by side."""
    from matplotlib.figure import Figure

    import xent.plot

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    names = ("as trained", f"at temperature {outcome.temperature:.2f}")
    for ax, table, name in zip(figure.subplots(1, 2), outcome.tables, names, strict=True):
        xent.plot.reliability(table, ax)
        ax.set_title(f"{name}: {ax.get_title()}")
    save(figure, path)


def main() -> None:
    """Print a line per seed, check the claims, and draw the first seed."""
    chosen = options(__file__, __doc__, seeds=(5, 2))
    torch.set_num_threads(1)  # the matrices are too small to share
    columns = ("nats", "ece", "adaptive", "brier")
    outcomes = [run(seed) for seed in tqdm(chosen.seeds, leave=False)]
    print(f"{'seed':>4} {'accuracy':>9} {'T':>6}" + "".join(f" {name:>17}" for name in columns))
    for seed, outcome in zip(chosen.seeds, outcomes, strict=True):
        pairs = [getattr(outcome, name) for name in columns]
        print(
            f"{seed:4d} {outcome.accuracy:9.4f} {outcome.temperature:6.2f}"
            + "".join(f"  {before:.4f} -> {after:.4f}" for before, after in pairs)
        )
    before, after = (sum(o.ece[k] for o in outcomes) / len(outcomes) for k in (0, 1))
    print(f"mean expected calibration error {before:.4f} -> {after:.4f}\n")
    claims = {
        "every network is surer than it is right: the temperature is above 1": all(
            o.temperature > 1 for o in outcomes
        ),
        **{
            f"the temperature lessens {name} with every seed": all(
                after < before for before, after in (getattr(o, name) for o in outcomes)
            )
            for name in columns
        },
        "the mean expected calibration error is less than two thirds of what it was": (
            after < before * 2 / 3
        ),
    }
    hold(claims)
    draw(outcomes[0], chosen.picture)


if __name__ == "__main__":
    main()
