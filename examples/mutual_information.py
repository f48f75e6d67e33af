"""Mutual information of features and classes by cross-entropy, where the truth is known.

    python examples/mutual_information.py [--small] [--seed 0] [--picture PATH]

Needs scikit-learn and SciPy, and matplotlib for the picture. Takes about two minutes on two cores.

The synthetic sets of Qin et al.: five Gaussians N(mu 1, I) in 1, 2, 5 and 10 dimensions, equally
many rows of each or 1 to 5 parts. The truth is found by quadrature. The estimate is H(Y) less the
cross-entropy of networks on rows they were not trained on; beside it stands log C - CE, which takes
the classes for equally common and so exceeds even H(Y). A network trained as PC-softmax, by
`logit_adjusted_loss`, tells the same information. Last comes InfoNCE on correlated Gaussians with
the best critic there is: it cannot tell more than log M, however much there is to tell.
"""

from __future__ import annotations

import math
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm

import xent
import xent.plot
from _experiment import hold, options, save
from xent.learn import (
    GaussianClasses,
    MutualInformation,
    NetworkClassifier,
    info_nce_bound,
    mutual_information_from_logits,
)
from xent.learn.evidence.gaussian_classes import BALANCED, IMBALANCED

SETS = {
    f"{kind}, d={dims}": GaussianClasses(dims, counts)
    for kind, counts in (("balanced", BALANCED), ("imbalanced", IMBALANCED))
    for dims in (1, 2, 5, 10)
}
SMALL = ("balanced, d=1", "imbalanced, d=2")  # the sets of the small form
PAIR_DIMS, INFORMATION, KEYS = 20, (2, 4, 6, 10), (128, 1024)


def estimate(name: str, rows: int, seed: int) -> Any:
    """Return H(Y) - CE by cross-fitting; on a fifth also PC-softmax and the true posterior."""
    torch.set_num_threads(1)
    x, y = SETS[name].sample(seed=seed)
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:rows]
    x, y = x[some], y[some]
    crossed = MutualInformation().estimate(x.numpy(), y.numpy(), quiet=True)
    train, test, of_train, of_test = train_test_split(
        x.numpy(), y.numpy(), test_size=0.2, stratify=y.numpy(), random_state=seed
    )
    prior = torch.tensor(SETS[name].counts, dtype=torch.float64)
    loss = partial(xent.losses.logit_adjusted_loss, prior=prior)
    corrected = NetworkClassifier(loss=loss).fit(train, of_train)
    logits, known = corrected.logits(test), SETS[name].log_posterior(torch.from_numpy(test))
    of_test = torch.from_numpy(of_test)
    found = mutual_information_from_logits(logits, of_test, prior=prior)
    return crossed, found, mutual_information_from_logits(known, of_test)


def best_critic(information: float, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features whose products are ``log p(y | x)``, less a term of x alone.

    Of pairs of Gaussian vectors, whose coordinates are correlated one by one.
    """
    rho = math.sqrt(1 - math.exp(-2 * information / PAIR_DIMS))
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, pairs, PAIR_DIMS, dtype=torch.float64, generator=generator)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    ones = torch.ones(pairs, 1, dtype=torch.float64)
    query = torch.cat([x * rho / (1 - rho**2), ones], 1)
    key = torch.cat([y, -y.square().sum(1, keepdim=True) * rho**2 / (2 * (1 - rho**2))], 1)
    return query, key


def info_nce(information: float, keys: int, pairs: int, seed: int) -> Tensor:
    """Return the bound from each batch of so many pairs."""
    query, key = best_critic(information, pairs, seed)
    batches = zip(query.split(keys), key.split(keys), strict=True)
    return torch.tensor([info_nce_bound(q, k).nats for q, k in batches])


def show(found: dict[str, Any], bounds: dict[tuple[int, int], Tensor]) -> str:
    """Return both tables."""
    lines = [
        f"{'':20}{'truth':>8}{'H(Y)-CE':>9}{'95% interval':>18}{'off by':>9}"
        f"{'PC-softmax':>12}{'off by *':>10}{'log C-CE':>10}{'H(Y)':>8}"
    ]
    for name, (crossed, corrected, known) in found.items():
        truth, (low, high) = SETS[name].mutual_information(), crossed.interval
        lines.append(
            f"{name:20}{truth:8.4f}{crossed.nats:9.4f}{f'{low:.4f} to {high:.4f}':>18}"
            f"{crossed.nats - truth:+9.4f}{corrected.nats:12.4f}"
            f"{corrected.nats - known.nats:+10.4f}{wrong(crossed):10.4f}{crossed.bound:8.4f}"
        )
    lines += ["* from what the true posterior tells on the same rows, a fifth of them"]
    lines += ["", f"{'InfoNCE, best critic':22}" + "".join(f"truth {i:<10}" for i in INFORMATION)]
    for keys in KEYS:
        cells = "".join(f"{mean_and_error(bounds[i, keys]):16}" for i in INFORMATION)
        lines.append(f"{keys:5} keys, cap {math.log(keys):.3f}  {cells}")
    return "\n".join(lines)


def wrong(estimate: Any) -> float:
    """Return log C - CE, the estimate that takes all classes for equally common."""
    return math.log(len(estimate.classes)) - estimate.cross_entropy


def mean_and_error(x: Tensor) -> str:
    return f"{x.mean():.3f} ± {x.std() / len(x) ** 0.5:.3f}"


def claims(
    found: dict[str, Any], bounds: dict[tuple[int, int], Tensor], small: bool
) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    tolerance, too_much = (0.1, 0.02) if small else (0.02, 0.1)  # nats
    truth = {name: SETS[name].mutual_information() for name in found}
    crossed = {name: of_set[0] for name, of_set in found.items()}
    uneven = {name: one for name, one in crossed.items() if name.startswith("imbalanced")}
    published = {1: 1.0314, 2: 1.3003, 5: 1.5544, 10: 1.6058}
    return {
        f"H(Y) - CE is within {tolerance} nats of the truth on all {len(found)} sets": all(
            abs(one.nats - truth[name]) < tolerance for name, one in crossed.items()
        ),
        "so near is PC-softmax to what the true posterior tells on the same rows": all(
            abs(corrected.nats - known.nats) < tolerance for _, corrected, known in found.values()
        ),
        "held out, no classifier tells more than there is, to the width of an interval": all(
            one.nats - truth[name] <= one.interval[1] - one.interval[0]
            for name, one in crossed.items()
        ),
        f"log C - CE is too large by more than {too_much} nats on all imbalanced sets": all(
            wrong(one) > truth[name] + too_much for name, one in uneven.items()
        ),
        **(
            {}
            if small
            else {
                "and with 5 and 10 dimensions above H(Y)": all(
                    wrong(uneven[f"imbalanced, d={d}"]) > uneven[f"imbalanced, d={d}"].bound
                    for d in (5, 10)
                )
            }
        ),
        "the truth of balanced classes is what is known of it": all(
            abs(SETS[f"balanced, d={d}"].mutual_information() - nats) < 5e-5
            for d, nats in published.items()
        ),
        "InfoNCE stays below the truth": all(bounds[i, keys].mean() < i for i, keys in bounds),
        "of 10 nats, InfoNCE with 128 keys tells 4.778 ± 0.05": abs(
            bounds[10, 128].mean().item() - 4.778
        )
        < 0.05,
    }


def draw(found: dict[str, Any], bounds: dict[tuple[int, int], Tensor], path: Path) -> None:
    """Draw the estimates beside the truth, and InfoNCE under its cap."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    truth = {name: SETS[name].mutual_information() for name in found}
    crossed = {name: of_set[0] for name, of_set in found.items()}
    xent.plot.information_bars(crossed, truth, left)
    left.plot(
        [wrong(one) for one in crossed.values()], list(crossed), "x", color="black",
        label="log C - CE",
    )  # fmt: skip
    left.set_xlim(0, 1.75)
    left.set_title("H(Y) - CE tells the truth; log C - CE tells too much", pad=26)
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=4, frameon=False)
    right.plot([0, 10.5], [0, 10.5], "--", color="black", linewidth=1, label="truth")
    for keys, colour in zip(KEYS, ("C0", "C1"), strict=True):
        each = [bounds[i, keys] for i in INFORMATION]
        error = [2 * x.std().item() / len(x) ** 0.5 for x in each]
        right.errorbar(
            INFORMATION, [x.mean().item() for x in each], error, fmt="o-", color=colour,
            capsize=3, label=f"InfoNCE, {keys} keys",
        )  # fmt: skip
        right.axhline(math.log(keys), color=colour, linestyle=":", label=f"log {keys}")
    right.set(xlabel="mutual information (nats)", ylabel="bound (nats)")
    right.set_title("InfoNCE cannot tell more than log M, for M keys", pad=26)
    right.legend()
    right.grid(alpha=0.3)
    save(figure, path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, rows=(1_000_000, 3000), pairs=(65_536, 8192), seed=(0, 0))
    names = SMALL if chosen.small else tuple(SETS)
    one = partial(estimate, rows=chosen.rows, seed=chosen.seed)
    with get_context("spawn").Pool(2) as pool:
        done = tqdm(pool.imap(one, names), total=len(names), unit="set")
        found = dict(zip(names, done, strict=True))
    bounds = {
        (i, keys): info_nce(i, keys, chosen.pairs, chosen.seed)
        for i in INFORMATION
        for keys in KEYS
    }
    print(show(found, bounds), "\n")
    hold(claims(found, bounds, chosen.small))
    draw(found, bounds, chosen.picture)


if __name__ == "__main__":
    main()
