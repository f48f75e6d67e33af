"""Every loss of class indices beside plain cross-entropy, and beside what people use today.

    python benchmarks/family.py [--shapes 2048,32000 65536,100] [--dtypes float32 bfloat16]

One run, everybody in turn, round after round, medians of forward and backward. ``ratio`` is the
time of the loss over that of ``xent.cross_entropy`` on the same logits; then how many times as long
others take for the same loss: its textbook formula in PyTorch, that compiled, and the libraries
that are installed. Below 1 they are faster.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.commands.bench import describe_machine
from xent.commands.bench_report import machine_text
from xent.losses import CATALOG

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[], object]
MIN_ROUNDS, SECONDS = 7, 4.0


# ---- the same losses as they are commonly written -----------------------------------------------


def log_prob(z: Tensor, y: Tensor) -> Tensor:
    return F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]


def torch_focal(z: Tensor, y: Tensor) -> Tensor:
    ce = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def torch_poly1(z: Tensor, y: Tensor) -> Tensor:
    ce = F.cross_entropy(z, y, reduction="none")
    return (ce + 2 * (1 - torch.exp(-ce))).mean()


def torch_smoothed(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, label_smoothing=0.1)


def torch_penalty(z: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(z, 1)
    return F.nll_loss(log_p, y) + 0.1 * (log_p.exp() * log_p).sum(1).mean()


def torch_gce(z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z, 1).gather(1, y[:, None])[:, 0]
    return ((1 - p**0.7) / 0.7).mean()


def torch_mae(z: Tensor, y: Tensor) -> Tensor:
    return 2 * (1 - F.softmax(z, 1).gather(1, y[:, None])[:, 0]).mean()


def torch_sce(z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z, 1).clamp(1e-7, 1)
    hot = F.one_hot(y, z.shape[1]).to(z.dtype).clamp(1e-4, 1)
    return 0.1 * F.cross_entropy(z, y) - (p * hot.log()).sum(1).mean()


def torch_nce(z: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(z, 1)
    return (log_p.gather(1, y[:, None])[:, 0] / log_p.sum(1)).mean()


def torch_brier(z: Tensor, y: Tensor) -> Tensor:
    return (F.softmax(z, 1) - F.one_hot(y, z.shape[1])).square().sum(1).mean()


def torch_cosface(z: Tensor, y: Tensor) -> Tensor:
    margin = torch.zeros_like(z).scatter_(1, y[:, None], 0.35)
    return F.cross_entropy(64 * (z - margin), y)


def torch_adjusted(z: Tensor, y: Tensor) -> Tensor:
    prior = torch.ones(z.shape[1], dtype=z.dtype)
    return F.cross_entropy(z + torch.log(prior / prior.sum()), y)


def torch_hinge_of_top(z: Tensor, y: Tensor) -> Tensor:
    rest = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return (1 + rest - z.gather(1, y[:, None])[:, 0]).clamp(min=0).mean()


TEXTBOOK: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "focal_loss": torch_focal,
    "poly1_loss": torch_poly1,
    "smoothed_cross_entropy": torch_smoothed,
    "confidence_penalty_loss": torch_penalty,
    "generalized_cross_entropy": torch_gce,
    "mae_loss": torch_mae,
    "symmetric_cross_entropy": torch_sce,
    "normalized_cross_entropy": torch_nce,
    "brier_loss": torch_brier,
    "cosface_loss": torch_cosface,
    "logit_adjusted_loss": torch_adjusted,
    "crammer_singer_loss": torch_hinge_of_top,
}


# ---- libraries ----------------------------------------------------------------------------------


def kornia_steps(z: Tensor, y: Tensor) -> dict[str, Step]:
    from kornia.losses import focal_loss

    def focal(z: Tensor, y: Tensor) -> Tensor:
        return focal_loss(z, y, alpha=None, gamma=2.0, reduction="mean")

    return {"focal_loss": step(focal, z, y)}


def optax_steps(z: Tensor, y: Tensor) -> dict[str, Step]:
    """On arrays of its own: no conversion is timed."""
    import jax
    import jax.numpy as jnp
    import optax

    def poly1(z: Any, y: Any) -> Any:
        hot = jax.nn.one_hot(y, z.shape[1])
        return optax.losses.poly_loss_cross_entropy(z, hot, epsilon=2.0).mean()

    def smoothed(z: Any, y: Any) -> Any:
        hot = optax.smooth_labels(jax.nn.one_hot(y, z.shape[1]), 0.1)
        return optax.softmax_cross_entropy(z, hot).mean()

    def plain(z: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    dtype = jnp.bfloat16 if z.dtype == torch.bfloat16 else jnp.float32
    array, labels = jnp.asarray(z.float().numpy(), dtype), jnp.asarray(y.numpy())

    def ready(loss: Callable[[Any, Any], Any]) -> Step:
        both = jax.jit(jax.value_and_grad(loss))
        return lambda: jax.block_until_ready(both(array, labels))

    return {
        "cross_entropy": ready(plain),
        "poly1_loss": ready(poly1),
        "smoothed_cross_entropy": ready(smoothed),
    }


# ---- measuring ----------------------------------------------------------------------------------


def members(classes: int) -> dict[str, Loss]:
    """Every loss of one class per row that one sweep serves, at its defaults.

    Those with a matrix of classes by classes are another matter: it may be larger than the logits.
    """
    required = {
        "prior": torch.linspace(1, 2, classes),
        "counts": torch.linspace(1, 2, classes),
        "rate": 0.2,
        "theta": (0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5),
    }
    found: dict[str, Loss] = {}
    for name, member in CATALOG.items():
        missing = {
            p.name
            for p in inspect.signature(member.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        }
        if member.targets == "classes" and not member.second_pass and missing <= required.keys():
            found[name] = partial(member.function, **{key: required[key] for key in missing})
    return found


def step(loss: Loss, z: Tensor, y: Tensor) -> Step:
    """Forward and backward, into memory that is let go again."""
    leaf = z.detach().requires_grad_()

    def run() -> None:
        loss(leaf, y).backward()
        leaf.grad = None

    return run


def contestants(z: Tensor, y: Tensor) -> Iterator[tuple[str, str, Step]]:
    """(loss, who, one step)."""
    for name, loss in members(z.shape[1]).items():
        yield name, "xent", step(loss, z, y)
    for name, loss in TEXTBOOK.items():
        yield name, "torch", step(loss, z, y)
        yield name, "compiled", step(torch.compile(loss), z, y)
    for library, steps in (("kornia", kornia_steps), ("optax", optax_steps)):
        try:
            calls = steps(z, y)
        except ImportError:
            print(f"{library} is not installed")
            continue
        for name, call in calls.items():
            yield name, library, call


def measure(calls: dict[Any, Step]) -> dict[Any, float]:
    """Median seconds of each, in turns; never of the first call after somebody else's memory."""
    for call in calls.values():
        call()
    times: dict[Any, list[float]] = {key: [] for key in calls}
    start = time.perf_counter()
    while len(times[next(iter(times))]) < MIN_ROUNDS or time.perf_counter() - start < SECONDS:
        for key, call in calls.items():
            call()
            before = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - before)
    return {key: statistics.median(values) for key, values in times.items()}


def table(seconds: dict[tuple[str, str], float]) -> str:
    """One line per loss."""
    base = seconds["cross_entropy", "xent"]
    others = list(dict.fromkeys(who for _, who in seconds if who != "xent"))
    lines = [f"{'':36}{'ms':>9}{'ratio':>8}" + "".join(f"{who:>10}" for who in others)]
    for name, who in seconds:
        if who != "xent":
            continue
        mine = seconds[name, who]
        cells = [
            f"{seconds[name, other] / mine:10.2f}" if (name, other) in seconds else f"{'':10}"
            for other in others
        ]
        lines.append(f"{name:36}{1e3 * mine:9.2f}{mine / base:8.2f}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["2048,32000", "65536,100"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()
    print(machine_text(describe_machine(torch.get_num_threads())))
    for shape in args.shapes:
        rows, classes = map(int, shape.split(","))
        for dtype in args.dtypes:
            torch.manual_seed(0)
            z = torch.randn(rows, classes).to(getattr(torch, dtype))
            y = torch.randint(classes, (rows,))
            print(f"\n{rows} x {classes} {dtype}, forward and backward")
            print(table(measure({(n, who): call for n, who, call in contestants(z, y)})))


if __name__ == "__main__":
    main()
