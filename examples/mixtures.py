"""What an ensemble is worth, and what weights that fit are worth beyond equal ones.

    python examples/mixtures.py [--small] [--seeds 5] [--seed 0] [--picture runs/mixtures.png]

Needs scikit-learn, and matplotlib for the picture. Takes ten seconds.

Eight classifiers of handwritten digits, good and bad: small networks that have seen 40, 100 or 300
rows, a forest, a single tree, naive Bayes. They are mixed by probability or by logit, with equal
weights or with the weights of least cross-entropy on 300 rows that no classifier has seen. The
other rows are for the test. A tree gives a probability of 0 or 1, so its own cross-entropy is
infinite, but it helps a mixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, over_seeds, save
from xent.learn import fit_logit_weights, fit_mixture_weights, mixture_log_prob
from xent.learn.networks.small_networks import SmallNetworks

TRAINING_ROWS, FITTING_ROWS = 300, 300
SEEN = (40, 40, 100, 100, 300)  # rows each network learns from
MEMBERS = [
    *(f"network {k}, {n} rows" for k, n in enumerate(SEEN, 1)), "forest", "tree", "naive Bayes",
]  # fmt: skip
WAYS = (
    "best single",
    "probabilities, equal",
    "probabilities, fitted",
    "logits, equal",
    "logits, fitted",
)
FLOOR = -30.0  # nats: logits have a mean only where they are finite


def members(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (K, N, C) of the rows not trained on, and their classes."""
    networks = SmallNetworks(64, 10, [100 * seed + k for k in range(len(SEEN))], hidden=32)
    rows = torch.stack([torch.arange(TRAINING_ROWS) % n for n in SEEN])
    networks.train(x[:TRAINING_ROWS], y[:TRAINING_ROWS], xent.cross_entropy, steps=300, rows=rows)
    with torch.no_grad():
        logits = networks.logits(x[TRAINING_ROWS:]).double()
    others = [
        RandomForestClassifier(50, random_state=seed),
        DecisionTreeClassifier(random_state=seed),
        GaussianNB(var_smoothing=1e-2),
    ]
    p = []
    for model in others:
        model.fit(x[:TRAINING_ROWS].numpy(), y[:TRAINING_ROWS].numpy())
        p.append(torch.tensor(model.predict_proba(x[TRAINING_ROWS:].numpy())))
    return torch.cat([xent.log_softmax(logits, -1), torch.stack(p).double().log()]), y[
        TRAINING_ROWS:
    ]


def run(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses of ways (5,), weights (2, K), losses of members (K,), gaps to the best (2,)."""
    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    log_p, y = members(x, torch.tensor(digits.target)[order], seed)
    fitting, test = log_p[:, :FITTING_ROWS], log_p[:, FITTING_ROWS:]
    y_fitting, y_test = y[:FITTING_ROWS], y[FITTING_ROWS:]
    equal = torch.full((len(log_p),), 1 / len(log_p), dtype=torch.float64)

    def single(log_p: Tensor, y: Tensor) -> Tensor:
        return torch.stack([xent.cross_entropy(z, y) for z in log_p])

    def mixed(weights: Tensor) -> Tensor:
        return -mixture_log_prob(test[:, torch.arange(len(y_test)), y_test], weights, 0).mean()

    def averaged(weights: Tensor) -> Tensor:
        return xent.cross_entropy(torch.tensordot(weights, test.clamp(min=FLOOR), 1), y_test)

    by_probability = fit_mixture_weights(fitting, y_fitting)
    by_logit = fit_logit_weights(fitting.clamp(min=FLOOR), y_fitting)
    alone = single(test, y_test)
    ways = torch.stack([
        alone[single(fitting, y_fitting).argmin()],
        mixed(equal), mixed(by_probability.weights), averaged(equal), averaged(by_logit.weights),
    ])  # fmt: skip
    gaps = torch.tensor([by_probability.gap, by_logit.gap], dtype=torch.float64)
    return ways, torch.stack([by_probability.weights, by_logit.weights]), alone, gaps


def claims(ways: Tensor, gaps: Tensor) -> dict[str, bool]:
    """Return each claim with True if the claim holds with every seed."""
    of = dict(zip(WAYS, ways.T, strict=True))  # (seeds,) each
    beaten = {
        f"fitted {what} beat equal with every seed": bool(
            (of[f"{what}, fitted"] < of[f"{what}, equal"]).all()
        )
        for what in ("probabilities", "logits")
    } | {
        "fitted logits beat the best single with every seed": bool(
            (of["logits, fitted"] < of["best single"]).all()
        ),
        "fitted probabilities lose less than 0.01 nats to it where they lose": bool(
            (of["probabilities, fitted"] < of["best single"] + 0.01).all()
        ),
    }
    best = "no weights could gain 1e-8 nats more on the rows they are fitted on"
    return beaten | {best: bool((gaps < 1e-8).all())}


def draw(ways: Tensor, weights: Tensor, path: Path) -> None:
    """Draw the cross-entropy of each way and seed, and the fitted weights."""
    from xent.plot.canvas import COLORS, new_axes

    left, right = new_axes(12, 4.4, columns=2)
    places = torch.arange(len(WAYS)).flip(0)
    for k, seed in enumerate(ways):
        left.plot(
            seed, places - 0.22, "o", color="0.65", markersize=3.5,
            label=None if k else "each seed",
        )  # fmt: skip
    left.errorbar(
        ways.mean(0), places, xerr=ways.std(0), fmt="o", color=COLORS[0], capsize=3,
        label="mean and standard deviation",
    )  # fmt: skip
    left.set_yticks(places.tolist(), WAYS)
    left.set(xlabel="test cross-entropy (nats)", title="Fitted weights beat equal ones")
    left.legend(loc="upper right")
    left.grid(axis="x", alpha=0.3)
    places = torch.arange(len(MEMBERS)).flip(0)
    for k, name in enumerate(("probabilities", "logits")):
        right.barh(
            places + 0.2 - 0.4 * k, weights[:, k].mean(0), 0.4, xerr=weights[:, k].std(0),
            color=COLORS[k], label=name, capsize=2,
        )  # fmt: skip
    right.axvline(1 / len(MEMBERS), color="0.5", linestyle=":", label="equal")
    right.set_yticks(places.tolist(), MEMBERS)
    right.set(
        xlabel="weight", title="The fit takes few members (whiskers: deviation)", xlim=(0, None)
    )
    right.legend()
    save(left.figure, path, dpi=120)


def main() -> None:
    """Mix for every seed; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(5, 2))
    torch.set_num_threads(1)
    runs = [run(seed) for seed in tqdm(chosen.seeds, unit="seed", leave=False)]
    ways, weights, alone, gaps = (torch.stack(part) for part in zip(*runs, strict=True))

    print(f"Nats per row on unseen rows; mean and deviation of {len(chosen.seeds)} seeds\n")
    for name, column in zip(WAYS, ways.T, strict=True):
        print(f"{name:24}{over_seeds(column, 4):>17}")
    print(f"\n{'member':24}{'nats':>8}{'weight by probability':>24}{'by logit':>12}")
    for k, name in enumerate(MEMBERS):
        of_one = f"{alone[:, k].mean():8.4f}{weights[:, 0, k].mean():24.3f}"
        print(f"{name:24}{of_one}{weights[:, 1, k].mean():12.3f}")
    print()
    hold(claims(ways, gaps))
    draw(ways, weights, chosen.picture)


if __name__ == "__main__":
    main()
