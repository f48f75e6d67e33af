"""Where gradient descent goes when nothing is left to learn: the direction of the widest margin.

    python examples/max_margin.py [--small] [--steps 100000] [--picture runs/max_margin.png]

Needs scikit-learn, and matplotlib for the picture. Takes half a minute.

Two kinds of iris are separable, so cross-entropy has no minimum: the weights of logistic regression
grow for ever, and their direction turns, as slowly as 1 / log t, to that of the support vector
machine. Class weights change the path, not the limit. With normalised steps some hundred steps are
enough, as long as there is a gradient. Here loss and gradient of a confident row come from its
log-odds. From ``1 - p`` both would be 0 as soon as p rounds to 1, and the descent would stop.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_iris
from sklearn.svm import SVC
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, save

F64 = torch.float64
# Weights of the rows of each of the two kinds.
WEIGHTS = {
    "alike": (1.0, 1.0),
    "versicolor 100 times": (0.01, 1.0),
    "setosa 100 times": (1.0, 0.01),
}
NORMALISED_STEPS = 600
FORMS = {
    f"{name}, {str(dtype)[6:]}": (loss, dtype)
    for dtype in (torch.float32, F64)
    for name, loss in (("1 - p", torch.nn.functional.cross_entropy), ("xent", xent.cross_entropy))
}


def flowers() -> tuple[Tensor, Tensor]:
    """Two kinds of iris, ``(100, 4)``, centred, the second kind negated; and the kind of each row.

    A row is on its side if its product with the weights is positive.
    """
    x, y = load_iris(return_X_y=True)
    x, y = torch.tensor(x[:100], dtype=F64), torch.tensor(y[:100])
    return (x - x.mean(0)) * (1 - 2 * y)[:, None], y


def widest_margin(rows: Tensor) -> Tensor:
    """Return the direction of the support vector machine without intercept, ``(4,)``."""
    both = torch.cat([rows, -rows])  # symmetric, so that the intercept is 0
    machine = SVC(kernel="linear", C=1e10, tol=1e-10)
    machine.fit(both.numpy(), [1] * len(rows) + [-1] * len(rows))
    weights = torch.tensor(machine.coef_[0])
    return weights / weights.norm()


def margin(weights: Tensor, rows: Tensor) -> Tensor:
    """Return the distance of the row nearest to the border, negative on the wrong side."""
    return (rows @ weights).amin() / weights.norm()


def slow_way(rows: Tensor, kind: Tensor, goal: Tensor, marks: list[int]) -> tuple[Tensor, Tensor]:
    """Run gradient descent with each weighting; return steps looked at, and angles to the goal.

    The step is the largest that is sure not to overshoot; angles in radians, ``(looks, settings)``.
    """
    weight = torch.tensor(list(WEIGHTS.values()), dtype=F64)[:, kind]  # (settings, rows)
    step = 4 / torch.linalg.matrix_norm(rows, 2) ** 2
    w = torch.zeros(len(weight), rows.shape[1], dtype=F64, requires_grad=True)
    right = torch.ones_like(weight)
    steps = marks[-1]
    looks = sorted({*marks, *torch.logspace(0, math.log10(steps), 120).long().tolist()})
    angles = []
    for t in tqdm(range(1, steps + 1), unit="step", leave=False, mininterval=1):
        loss = xent.binary_cross_entropy_with_logits(
            w @ rows.T, right, weight=weight, reduction="sum"
        )
        (slope,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            w -= step * slope
        if t in looks:
            angles.append(angle(w.detach(), goal))
    return torch.tensor([t for t in looks if t <= steps]), torch.stack(angles)


def angle(w: Tensor, goal: Tensor) -> Tensor:
    """Return angles of directions to the goal, by the sine: a cosine near 1 has no digits left."""
    direction = w / w.norm(dim=-1, keepdim=True)
    along = direction @ goal
    return torch.atan2((direction - along[:, None] * goal).norm(dim=-1), along)


def short_way(loss: Any, dtype: torch.dtype, rows: Tensor) -> Tensor:
    """Take steps of length 1 along the gradient until it is 0; return the margin after each."""
    w = torch.zeros(rows.shape[1], dtype=dtype, requires_grad=True)
    target, x, margins = torch.zeros(len(rows), dtype=torch.long), rows.to(dtype), []
    for _ in range(NORMALISED_STEPS):
        z = x @ w
        value = loss(torch.stack([z, torch.zeros_like(z)], 1), target, reduction="sum")
        (slope,) = torch.autograd.grad(value, w)
        length = slope.double().norm()  # the squares of a small float32 are 0
        if length == 0:
            break
        with torch.no_grad():
            w -= (slope.double() / length).to(dtype)
        margins.append(margin(w.detach().double(), rows))
    return torch.stack(margins)


def claims(looks: Tensor, angles: Tensor, ratios: dict[str, Tensor]) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    names, late = list(WEIGHTS), looks >= 100
    pace = (angles[:, names.index("alike")] * looks.log())[late]
    steps = {name: len(ratio) for name, ratio in ratios.items()}
    last = dict(zip(names, angles[-1].tolist(), strict=True))
    turned = abs(last["alike"] - last["versicolor 100 times"])
    end = int(looks[-1])
    near = 0.01 if end >= 100_000 else 0.1
    return {
        "from step 100 on the angle falls at every look, with every weighting": bool(
            (angles[late].diff(dim=0) < 0).all()
        ),
        f"with rows weighted alike, angle * log t is from then on in [1.8, 2.4]: {pace.min():.2f} "
        f"to {pace.max():.2f}": bool(((pace > 1.8) & (pace < 2.4)).all()),
        f"at step {end:,} a weight of 100 on versicolor changes the angle by "
        f"{turned:.4f} < {near}": turned < near,
        "in float64, xent's normalised steps reach .999 of the widest margin": (
            ratios["xent, float64"][-1].item() >= 0.999
        ),
        "the gradient from 1 - p is 0 in fewer steps than xent's, in float32 and float64": all(
            steps[f"1 - p, {d}"] < steps[f"xent, {d}"] for d in ("float32", "float64")
        ),
    }


def draw(looks: Tensor, angles: Tensor, ratios: dict[str, Tensor], path: Path) -> None:
    """Draw the slow way and the short way."""
    from xent.plot.canvas import COLORS, new_axes

    slow, short = new_axes(11, 4.4, columns=2)
    for name, column, colour in zip(WEIGHTS, angles.T, COLORS, strict=False):
        slow.plot(looks, column, color=colour, label=name)
    slow.plot(looks[looks > 9], 2 / looks[looks > 9].log(), ":", color="0.5", label="2 / log t")
    slow.set(xscale="log", xlabel="step t", ylabel="angle to the widest margin (rad)", ylim=(0, 1))
    slow.set_title("Gradient descent turns to the margin, as slowly as 1 / log t")
    slow.legend(title="weight of the classes")
    for (name, ratio), style, colour in zip(
        ratios.items(), ("--", "--", "-", "-"), (*COLORS[1::-1], *COLORS[1::-1]), strict=True
    ):
        steps = torch.arange(1, len(ratio) + 1)
        short.plot(steps, 1 - ratio, style, color=colour, label=name)
        if len(ratio) < NORMALISED_STEPS:
            short.plot(steps[-1:], 1 - ratio[-1:], "x", color=colour, markersize=9, mew=2)
    short.set(
        xscale="log", yscale="log", xlabel="step", ylabel="margin missing, share of the widest"
    )
    short.set_title("Normalised steps go on while there is a gradient (x: it became 0)")
    short.legend()
    for ax in (slow, short):
        ax.grid(alpha=0.3)
    save(short.figure, path, dpi=120)


def main() -> None:
    """Run both ways; print, check and draw."""
    chosen = options(__file__, __doc__, steps=(100_000, 2000))
    torch.set_num_threads(1)
    marks = [t for t in (100, 1000, 10_000) if t < chosen.steps] + [chosen.steps]
    rows, kind = flowers()
    goal = widest_margin(rows)
    widest = margin(goal, rows)
    looks, angles = slow_way(rows, kind, goal, marks)
    ratios = {name: short_way(*form, rows) / widest for name, form in FORMS.items()}

    print(f"iris, setosa and versicolor: the widest margin is {widest:.5f}\n")
    print(f"{'angle to it at step':24}" + "".join(f"{t:>10,}" for t in marks))
    for k, name in enumerate(WEIGHTS):
        cells = [angles[looks == t][0, k].item() for t in marks]
        print(f"{name:24}" + "".join(f"{cell:10.4f}" for cell in cells))
    print("\nnormalised steps until the gradient is 0, and the share of the widest margin")
    for name, ratio in ratios.items():
        print(f"{name:24}{len(ratio):10d}{ratio[-1]:10.5f}")
    print()
    hold(claims(looks, angles, ratios))
    draw(looks, angles, ratios, chosen.picture)


if __name__ == "__main__":
    main()
