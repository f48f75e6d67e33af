"""A variational autoencoder: reconstruction cross-entropy plus KL divergence, in bits per pixel.

    python examples/vae.py [--small] [--seeds 3] [--seed 0] [--picture runs/vae.png]

Needs scikit-learn, and matplotlib for the picture. Takes about a minute.

The loss of an image is minus the evidence lower bound, -ELBO = reconstruction + KL, at least
-log p(x): the bits it would take to send it. The reconstruction is a cross-entropy of pixels:

- Bernoulli, ``xent.binary_cross_entropy_with_logits``. Of grey pixels it cannot fall below their
  entropy, so what counts is the excess over this floor.
- Continuous Bernoulli, ``xent.losses.continuous_bernoulli_loss``: a density of grey pixels, whose
  bits may be negative.

Averaging K samples of the code inside the logarithm, with importance weights, gives a tighter
bound, which for large K comes to -log p(x). The KL divergence is that of PyTorch's distributions,
in closed form; a Monte Carlo estimate says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from tqdm import tqdm

import xent
from _experiment import hold, options, over_seeds, save
from xent.learn import train_classifier

PIXELS, HIDDEN, CODE = 64, 128, 8
TRAINING_ROWS, BATCH, LEARNING_RATE = 1300, 50, 3e-3
SAMPLES = (1, 10, 100, 1000)  # of the code, per image
BITS = 1 / (PIXELS * math.log(2))  # of a nat per image, in bits per pixel
PRIOR = Normal(0.0, 1.0)

# (logits, pixels, reduction="none") -> nats of every pixel
PixelLoss = Callable[..., Tensor]


class Code(NamedTuple):
    """Output of the network for a batch: logits of the pixels, and distribution of the code."""

    logits: Tensor  # (N, PIXELS)
    posterior: Normal  # q(z | x) of the code, (N, CODE)


class Autoencoder(nn.Module):
    """A network from pixels to a normal distribution of the code, and from a sample to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * CODE)
        )
        self.decode = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))

    def posterior(self, x: Tensor) -> Normal:
        """Return q(z | x), (N, CODE)."""
        mean, log_variance = self.encode(x).chunk(2, -1)
        return Normal(mean, torch.exp(log_variance / 2), validate_args=False)

    def forward(self, x: Tensor) -> Code:
        """Return logits from one sample of the code."""
        posterior = self.posterior(x)
        return Code(self.decode(posterior.rsample()), posterior)


class NegativeELBO:
    """A loss in nats per image: cross-entropy of the pixels, plus KL divergence of the code."""

    def __init__(self, pixel_loss: PixelLoss) -> None:
        self.pixel_loss = pixel_loss

    def __call__(self, code: Code, x: Tensor) -> Tensor:
        """Return the mean over the images."""
        reconstruction = self.pixel_loss(code.logits, x, reduction="sum") / len(x)
        return reconstruction + divergence(code, x).mean()


def divergence(code: Code, x: Tensor) -> Tensor:
    """Return the KL divergence of the code from the prior, nats per image."""
    return kl_divergence(code.posterior, PRIOR).sum(-1)


WAYS: dict[str, tuple[PixelLoss, Callable[[Tensor], Tensor]]] = {
    "Bernoulli": (xent.binary_cross_entropy_with_logits, torch.sigmoid),
    "continuous Bernoulli": (
        xent.losses.continuous_bernoulli_loss,
        lambda logits: torch.distributions.ContinuousBernoulli(logits=logits).mean,
    ),
}


class Outcome(NamedTuple):
    """Results of one network on the test images, in bits per pixel."""

    model: Autoencoder
    reconstruction: float  # cross-entropy of the pixels
    kl: float
    bounds: Tensor  # (len(SAMPLES),), on -log p(x), from importance weights
    error: float  # standard error of the first of them, which is -ELBO without a formula for KL


def learn(pixel_loss: PixelLoss, x: Tensor, test: Tensor, seed: int, epochs: int) -> Outcome:
    """Train one network and judge it."""
    torch.manual_seed(seed)
    model = Autoencoder()
    train_classifier(
        model, (x, x), NegativeELBO(pixel_loss), epochs=epochs, batch_size=BATCH, lr=LEARNING_RATE,
        seed=seed, quiet=True,
    )  # fmt: skip
    return judge(model, pixel_loss, test)


@torch.no_grad()
def judge(model: Autoencoder, pixel_loss: PixelLoss, x: Tensor) -> Outcome:
    """Return the parts of -ELBO, and the bounds from importance weights."""
    most, images = max(SAMPLES), len(x)
    reconstruction, log_weights = [], []
    for rows in x.split(50):
        posterior = model.posterior(rows)
        z = posterior.sample((most,))  # (K, n, CODE)
        logits = model.decode(z)
        nats = pixel_loss(logits, rows.expand_as(logits), reduction="none").sum(-1)
        reconstruction.append(nats.mean(0))
        log_weights.append((PRIOR.log_prob(z) - posterior.log_prob(z)).sum(-1) - nats)
    log_weight = torch.cat(log_weights, 1).double()  # (K, N)
    bounds = [  # all from the same samples, in groups of k
        math.log(k) - log_weight.view(-1, k, images).logsumexp(1).mean() for k in SAMPLES
    ]
    return Outcome(
        model,
        BITS * torch.cat(reconstruction).mean().item(),
        BITS * kl_divergence(model.posterior(x), PRIOR).sum(-1).mean().item(),
        BITS * torch.stack(bounds),
        BITS * (log_weight.var(0).mean() / (most * images)).sqrt().item(),
    )


def show(outcomes: dict[str, list[Outcome]], floor: float) -> str:
    """Return the table: means over the seeds, and the standard deviation of -ELBO."""
    titles = ["reconstruction", "excess", "KL", "-ELBO", *(f"K = {k}" for k in SAMPLES[1:])]
    lines = [f"{'':20}" + "".join(f"{title:>18}" for title in titles)]
    for name, found in outcomes.items():
        elbo = torch.tensor([o.reconstruction + o.kl for o in found])
        reconstruction = sum(o.reconstruction for o in found) / len(found)
        cells = [
            f"{reconstruction:.4f}",
            f"{reconstruction - floor:.4f}" if name == "Bernoulli" else "",
            f"{sum(o.kl for o in found) / len(found):.4f}",
            over_seeds(elbo, 4),
            *(f"{v:.4f}" for v in torch.stack([o.bounds for o in found]).mean(0)[1:].tolist()),
        ]
        lines.append(f"{name:20}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


@torch.no_grad()
def claims(
    outcomes: dict[str, list[Outcome]], test: Tensor, floor: float, single: float
) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    everyone = [o for found in outcomes.values() for o in found]
    model, x = outcomes["Bernoulli"][0].model, test.double()
    logits = model.decode(model.posterior(test).mean).double()
    whole = xent.binary_cross_entropy_with_logits(logits, x) / math.log(2)
    excess = xent.losses.reconstruction_excess(logits, x) / math.log(2)
    return {
        "with the KL divergence in closed form -ELBO is that of samples, to 4 standard errors": (
            all(abs(o.reconstruction + o.kl - o.bounds[0]) < 4 * o.error for o in everyone)
        ),
        "ten times the samples tighten the bound each time, with both losses and every seed": all(
            (o.bounds.diff() < 0).all() for o in everyone
        ),
        "but the last ten times less than the first": all(
            o.bounds.diff()[-1].abs() < o.bounds.diff()[0].abs() for o in everyone
        ),
        "xent.losses.reconstruction_excess is the cross-entropy above its floor, to 1e-6": bool(
            abs(whole - floor - excess) < 1e-6
        ),
        "Bernoulli: -ELBO, code included, is below the best single image's bits": all(
            o.reconstruction + o.kl < single for o in outcomes["Bernoulli"]
        ),
    }


@torch.no_grad()
def draw(outcomes: dict[str, list[Outcome]], test: Tensor, path: Path) -> None:
    """Draw images, reconstructions and samples."""
    from matplotlib.figure import Figure

    shown = 12
    torch.manual_seed(0)
    z = torch.randn(shown, CODE)
    lines = {"test images": test[:shown]}
    for name, found in outcomes.items():
        pixels, model = WAYS[name][1], found[0].model
        lines[f"{name}: reconstructions"] = pixels(model.decode(model.posterior(test[:shown]).mean))
        lines[f"{name}: samples of the prior"] = pixels(model.decode(z))
    figure = Figure(figsize=(14, 5), layout="constrained")
    images, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    for ax, (name, rows) in zip(images.subplots(len(lines)), lines.items(), strict=True):
        strip = nn.functional.pad(rows.view(shown, 8, 8), (0, 1), value=1.0)
        ax.imshow(strip.transpose(0, 1).flatten(1), cmap="gray", vmin=0, vmax=1)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_axis_off()
    for ax, (name, found) in zip(right.subplots(2, 1, sharex=True), outcomes.items(), strict=True):
        for seed, o in enumerate(found):
            ax.axhline(o.reconstruction + o.kl, color=f"C{seed}", linewidth=0.8, linestyle=":")
            ax.plot(SAMPLES, o.bounds, "o-", color=f"C{seed}", label=f"seed {seed}")
        ax.set(
            xscale="log",
            ylabel="bits per pixel",
            title=f"{name}: more samples, a tighter bound\n(dotted: -ELBO)",
        )
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    ax.set_xlabel("samples of the code for each image, K")
    save(figure, path, dpi=110)


def main() -> None:
    """Train with both losses and every seed; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(3, 1), epochs=(80, 40), images=(1_000_000, 100))
    torch.set_num_threads(1)  # the tensors are small
    x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    training, test = x[:TRAINING_ROWS], x[TRAINING_ROWS:][: chosen.images]
    outcomes: dict[str, list[Outcome]] = {}
    for name, seed in tqdm([(n, s) for n in WAYS for s in chosen.seeds], unit="network"):
        found = learn(WAYS[name][0], training, test, seed, chosen.epochs)
        outcomes.setdefault(name, []).append(found)
    mean = training.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(test)
    floor, single = (
        xent.binary_cross_entropy(p.double(), test.double()).item() / math.log(2)
        for p in (test, mean)
    )
    print(f"{len(test)} test images, bits per pixel; mean and standard deviation over the seeds")
    print(f"floor of Bernoulli pixels {floor:.4f}, the best single image {single:.4f}\n")
    print(show(outcomes, floor), "\n")
    hold(claims(outcomes, test, floor, single))
    draw(outcomes, test, chosen.picture)


if __name__ == "__main__":
    main()
