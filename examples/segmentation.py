"""Segmentation: a class for every pixel, with pixels left out and pixels that count more.

    python examples/segmentation.py [--small] [--seeds 3] [--seed 0] [--picture PATH]

Needs scipy, and matplotlib for the picture. Takes about a minute.

Noisy images of discs, squares and crosses, some of them nearly touching. A small U-Net gives every
pixel four logits, (N, 4, H, W), and ``xent.cross_entropy`` takes them as they are, with targets
(N, H, W). Two things are asked of the loss:

- Where masks are drawn by hand, the pixels at borders belong to nobody and are marked 255.
  ``ignore_index=255`` leaves them out: they have no gradient, and the mean divides by the others.
  The mistake is to take them for background.
- The gaps between shapes are few pixels, and a network fills them in. U-Net's weights
  w = 1 + w0 exp(-(d1 + d2)^2 / 2 s^2), where d1 and d2 are the distances to the two nearest shapes,
  make them count, ``row_weight=w``.

The scores are on exact masks: intersection over union (IoU) of the classes, and how many pixels of
the gaps are seen as such.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt, grey_dilation, grey_erosion
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d
from tqdm import tqdm

import xent
from _experiment import hold, options, save
from xent.learn import predict_logits, train_classifier
from xent.plot.canvas import COLORS

CLASSES = ("background", "disc", "square", "cross")
SIZE, SHAPES, VOID = 32, 6, 255
TEST_IMAGES, BATCH, LEARNING_RATE = 60, 8, 1e-2
BRIGHTNESS, NOISE = numpy.array([0.1, 0.4, 0.7, 1.0]), 0.25
GAP, STRENGTH, SPREAD = 1.5, 5.0, 2.0  # a pixel in a gap has two shapes within GAP pixels


class Scenes(NamedTuple):
    """Artificial images with their masks and weights."""

    images: Tensor  # (N, 1, H, W)
    exact: Tensor  # (N, H, W), classes
    marked: Tensor  # (N, H, W), the same with 255 on both sides of a border
    weight: Tensor  # (N, H, W), U-Net's w(x)
    gap: Tensor  # (N, H, W), background between two shapes that are close


def make_shape(kind: int, draw: numpy.random.Generator) -> numpy.ndarray:
    """Return a mask with one shape of a class, (H, W)."""
    rows, columns = numpy.mgrid[:SIZE, :SIZE]
    (y, x), r = draw.uniform(4, SIZE - 4, 2), draw.uniform(3, 5.5)
    dy, dx = abs(rows - y), abs(columns - x)
    if kind == 1:
        return dy**2 + dx**2 <= r**2
    if kind == 2:
        return numpy.maximum(dy, dx) <= 0.85 * r
    return (numpy.minimum(dy, dx) <= 0.3 * r) & (numpy.maximum(dy, dx) <= 1.1 * r)


def make_scene(draw: numpy.random.Generator) -> tuple[numpy.ndarray, ...]:
    """Return one image: shapes with at least a pixel of background between them."""
    exact, shapes = numpy.zeros((SIZE, SIZE), int), []
    for _ in range(4 * SHAPES):
        kind = int(draw.integers(1, len(CLASSES)))
        shape = make_shape(kind, draw)
        if len(shapes) < SHAPES and not (binary_dilation(shape) & (exact > 0)).any():
            exact[shape] = kind
            shapes.append(shape)
    border = grey_dilation(exact, size=3) != grey_erosion(exact, size=3)
    near = numpy.sort([distance_transform_edt(~shape) for shape in shapes], 0)
    far = numpy.full((1, SIZE, SIZE), numpy.inf)
    first, second = numpy.concatenate([near, far, far])[:2]
    outside = exact == 0
    weight = 1 + outside * STRENGTH * numpy.exp(-((first + second) ** 2) / (2 * SPREAD**2))
    gap = outside & (second <= GAP)
    image = BRIGHTNESS[exact] + draw.normal(0, NOISE, exact.shape)
    return image[None], exact, numpy.where(border, VOID, exact), weight, gap


def make_scenes(count: int, seed: int) -> Scenes:
    """Return ``n`` images."""
    draw = numpy.random.default_rng(seed)
    columns = zip(*(make_scene(draw) for _ in range(count)), strict=True)
    scenes = Scenes(*(torch.as_tensor(numpy.stack(column)) for column in columns))
    return scenes._replace(images=scenes.images.float(), weight=scenes.weight.float())


class UNet(nn.Module):
    """A network down to a quarter of the size and up again, with skip connections."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        w = width
        self.down = nn.ModuleList([block(1, w), block(w, 2 * w), block(2 * w, 4 * w)])
        self.up = nn.ModuleList([block(6 * w, 2 * w), block(3 * w, w)])
        self.head = nn.Conv2d(w, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of each pixel, (N, C, H, W)."""
        whole = self.down[0](x)
        half = self.down[1](max_pool2d(whole, 2))
        deep = self.down[2](max_pool2d(half, 2))
        half = self.up[0](torch.cat([half, interpolate(deep, scale_factor=2)], 1))
        whole = self.up[1](torch.cat([whole, interpolate(half, scale_factor=2)], 1))
        return self.head(whole)


def weighted(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute cross-entropy in which each pixel counts as much as its weight."""
    loss = xent.cross_entropy(logits, target, row_weight=weight)
    assert isinstance(loss, Tensor)
    return loss


class Way(NamedTuple):
    """A way to train a network: the tensors it learns from, after the images, and the options."""

    targets: Callable[[Scenes], tuple[Tensor, ...]]
    loss: Callable[..., Tensor] = xent.cross_entropy
    count: Callable[..., float] | None = None


WAYS = {
    "exact masks": Way(lambda s: (s.exact,)),
    "exact masks, w(x)": Way(lambda s: (s.exact, s.weight), weighted, lambda y, w: w.sum()),
    "borders 255, left out": Way(
        lambda s: (s.marked,), partial(xent.cross_entropy, ignore_index=VOID)
    ),
    "borders 255, as background": Way(lambda s: (torch.where(s.marked == VOID, 0, s.marked),)),
}


class Outcome(NamedTuple):
    """Results of one network on the test images."""

    classes: Tensor  # predicted, (N, H, W)
    iou: Tensor  # of each class
    gap: float  # share of the pixels of gaps that are seen as background


def learn(way: Way, scenes: Scenes, test: Scenes, seed: int, epochs: int) -> Outcome:
    """Train one network and judge it."""
    torch.manual_seed(seed)
    model = UNet()
    train_classifier(
        model, (scenes.images, *way.targets(scenes)), way.loss, count=way.count, epochs=epochs,
        batch_size=BATCH, lr=LEARNING_RATE, seed=seed, quiet=True,
    )  # fmt: skip
    found = predict_logits(model, test.images).argmax(1)
    pairs = [(found == c, test.exact == c) for c in range(len(CLASSES))]
    iou = torch.stack([(a & b).sum() / (a | b).sum() for a, b in pairs])
    return Outcome(found, iou, (found[test.gap] == 0).double().mean().item())


def show(outcomes: dict[str, list[Outcome]]) -> str:
    """Return the table: means over the seeds, and the range of the last two columns."""
    lines = [
        f"{'IoU':27}" + "".join(f"{c:>12}" for c in CLASSES) + f"{'mean':>18}{'gaps seen':>18}"
    ]
    for name, found in outcomes.items():
        iou, gap = torch.stack([o.iou for o in found]), [o.gap for o in found]
        cells = "".join(f"{v:12.3f}" for v in iou.mean(0).tolist())
        for values in (iou.mean(1).tolist(), gap):
            cells += f"{f'{min(values):.3f} to {max(values):.3f}':>18}"
        lines.append(f"{name:27}{cells}")
    return "\n".join(lines)


def claims(outcomes: dict[str, list[Outcome]], scenes: Scenes, small: bool) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    plain, boundary, without, mistaken = outcomes.values()
    logits = torch.randn(8, len(CLASSES), SIZE, SIZE, requires_grad=True)
    marked = scenes.marked[:8]
    loss = xent.cross_entropy(logits, marked, ignore_index=VOID)
    (slope,) = torch.autograd.grad(loss, logits)
    kept = xent.cross_entropy(logits.movedim(1, -1)[marked != VOID], marked[marked != VOID])

    def iou(found: list[Outcome]) -> Tensor:
        """Return the mean over the classes, for each seed."""
        return torch.stack([o.iou.mean() for o in found])

    def gap(found: list[Outcome]) -> Tensor:
        return torch.tensor([o.gap for o in found])

    of_the_loss = {
        "pixels marked 255 have no gradient at all": not slope.movedim(1, -1)[marked == VOID].any(),
        "and the mean is that of the others alone": bool(torch.isclose(loss, kept, rtol=1e-6)),
    }
    if small:
        learnt = "leaving borders out ends above an IoU of 0.25, that of background alone"
        return of_the_loss | {learnt: bool((iou(without) > 0.25).all())}
    return of_the_loss | {
        "leaving borders out beats calling them background by 0.1 of IoU, every seed": bool(
            (iou(without) > iou(mistaken) + 0.1).all()
        ),
        "with exact masks w(x) finds more of the gaps, on average over the seeds": bool(
            gap(boundary).mean() > gap(plain).mean()
        ),
    }


def draw(test: Scenes, outcomes: dict[str, list[Outcome]], path: Path) -> None:
    """Draw images, masks, and the predictions of each network of the first seed."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    busiest = test.gap.sum((1, 2)).argsort(descending=True)[:5].tolist()
    colours = ListedColormap(["#f4f4f4", *COLORS[: len(CLASSES) - 1]])
    masks = {"mask": test.exact, **{name: found[0].classes for name, found in outcomes.items()}}
    columns = len(masks) + 2
    figure = Figure(figsize=(2.1 * columns, 2.1 * len(busiest)), layout="constrained")
    for line, n in zip(figure.subplots(len(busiest), columns), busiest, strict=True):
        line[0].imshow(test.images[n, 0], cmap="gray")
        line[1].imshow(test.weight[n], cmap="magma")
        for ax, classes in zip(line[2:], masks.values(), strict=True):
            ax.imshow(classes[n], cmap=colours, vmin=0, vmax=len(CLASSES) - 1)
        for ax in line:
            ax.set_axis_off()
        if n == busiest[0]:
            for ax, title in zip(line, ["image", "w(x)", *masks], strict=True):
                ax.set_title(title.replace(", ", ",\n"), fontsize=10)
    save(figure, path, dpi=110)


def main() -> None:
    """Train every way with every seed; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(3, 1), images=(120, 40), epochs=(15, 8))
    torch.set_num_threads(1)  # the tensors are small
    test = make_scenes(TEST_IMAGES, seed=10**6)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in WAYS}
    with tqdm(total=len(chosen.seeds) * len(WAYS), unit="network") as bar:
        for seed in chosen.seeds:
            scenes = make_scenes(chosen.images, seed)
            for name, way in WAYS.items():
                outcomes[name].append(learn(way, scenes, test, seed, chosen.epochs))
                bar.update()
    print(f"{TEST_IMAGES} test images with exact masks, {len(chosen.seeds)} seeds\n")
    print(show(outcomes), "\n")
    hold(claims(outcomes, scenes, chosen.small))
    draw(test, outcomes, chosen.picture)


if __name__ == "__main__":
    main()
