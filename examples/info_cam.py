"""Where a classifier sees its evidence: class-activation maps and infoCAM on digits in a frame.

    python examples/info_cam.py [--small] [--seeds 3] [--seed 0] [--picture runs/info_cam.png]

Needs scikit-learn and SciPy, and matplotlib for the picture. Takes about two minutes on two cores.

A handwritten digit lies somewhere in a larger frame among shreds of other digits. A network learns
which digit it is, never where. Its map of the class it predicts says where: the box around what is
above a threshold is compared with that of the digit. The threshold of each kind of map is the best
on training images. Then the same vector is added to the weights of all classes, which changes no
prediction, because softmax does not see it: plain maps lose their place, infoCAM's stay the same.
"""

from __future__ import annotations

from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import xent
from _experiment import hold, options, over_seeds, save
from xent.learn import class_activation_map, info_cam
from xent.plot import activation_map

FRAME, DIGIT, SHRED, SHREDS = 40, 16, 6, 6  # pixels, and how many shreds
BATCH, LEARNING_RATE = 64, 4e-3
SHIFT = 5  # times a vector of standard normal numbers
THRESHOLDS = torch.linspace(0.05, 0.8, 16).tolist()
KINDS = ("CAM", "infoCAM", "infoCAM+", "CAM, shifted", "infoCAM, shifted")


class Scenes(NamedTuple):
    """Digits in frames: images (N, 1, H, W), classes (N,), boxes (N, 4) as top, left, end, end."""

    images: Tensor
    labels: Tensor
    boxes: Tensor


def compose(digits: Tensor, labels: Tensor, generator: torch.Generator) -> Scenes:
    """Place each digit somewhere in a frame, among shreds of other digits, under noise."""

    def place(size: int) -> list[int]:
        return torch.randint(FRAME - size + 1, (2,), generator=generator).tolist()

    images, boxes = torch.zeros(len(digits), FRAME, FRAME), []
    for image, digit in zip(images, digits, strict=True):
        for other in torch.randint(len(digits), (SHREDS,), generator=generator):
            (top, left), (row, column) = (
                place(SHRED),
                (torch.randint(10, (2,), generator=generator)),
            )
            shred = digits[other, row : row + SHRED, column : column + SHRED]
            image[top : top + SHRED, left : left + SHRED] = shred
        top, left = place(DIGIT)
        image[top : top + DIGIT, left : left + DIGIT] = digit
        ink = (digit > 0.3).nonzero()
        low, high = ink.amin(0), ink.amax(0) + 1
        boxes.append(torch.cat([low, high]) + torch.tensor([top, left] * 2))
    images += 0.1 * torch.randn(images.shape, generator=generator)
    return Scenes(images.unsqueeze(1), labels, torch.stack(boxes))


class Network(nn.Module):
    """Convolutions, the mean over all places, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32, 48)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if a == 1 else []
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(images).mean((2, 3)))


def train(digits: Tensor, labels: Tensor, seed: int, epochs: int, bar: Any) -> Network:
    """Train a network on digits in many places."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network().train()
    steps = epochs * (len(digits) // BATCH)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for _ in range(epochs):
        scenes = compose(digits, labels, generator)
        order = torch.randperm(len(digits), generator=generator)
        for rows in order[: len(order) - len(order) % BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            xent.cross_entropy(network(scenes.images[rows]), scenes.labels[rows]).backward()
            optimizer.step()
            schedule.step()
        bar.update()
    return network.eval()


@torch.no_grad()
def maps_of(network: Network, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return maps of the predicted classes at the size of the images, by kind, and predictions."""
    features, weight, bias = network.features(images), network.head.weight, network.head.bias
    logits = network(images)
    predicted = logits.argmax(1)
    common = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    shifted = weight + SHIFT * common
    maps = (
        class_activation_map(features, weight, predicted),
        info_cam(features, weight, predicted),
        info_cam(features, weight, predicted, bias=bias, against="lowest"),
        class_activation_map(features, shifted, predicted),
        info_cam(features, shifted, predicted),
    )
    # The sum of all places is the logit less the mean of the other logits.
    others = (logits.sum(1) - logits.amax(1)) / 9
    mean = info_cam(features, weight, predicted, bias=bias).mean((1, 2))
    torch.testing.assert_close(mean, logits.amax(1) - others, rtol=1e-4, atol=1e-4)
    return dict(zip(KINDS, map(enlarged, maps), strict=True)), predicted


def enlarged(maps: Tensor) -> Tensor:
    size = (FRAME, FRAME)
    return nn.functional.interpolate(maps.unsqueeze(1), size, mode="bilinear").squeeze(1)


def overlaps(maps: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """Return IoU of the boxes around each map's values above a share of its largest value."""
    return torch.tensor([
        overlap(box_around(map > threshold * map.max()), box.tolist())
        for map, box in zip(maps, boxes, strict=True)
    ])  # fmt: skip


def box_around(mask: Tensor) -> list[int]:
    """Return the box of the largest connected region."""
    regions, count = ndimage.label(mask.numpy())
    if not count:
        return [0, 0, 0, 0]
    sizes = ndimage.sum_labels(mask.numpy(), regions, range(1, count + 1))
    rows, columns = ndimage.find_objects(regions)[int(sizes.argmax())]
    return [rows.start, columns.start, rows.stop, columns.stop]


def overlap(a: list[int], b: list[int]) -> float:
    height, width = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    common = max(height, 0) * max(width, 0)
    total = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / (total - common)


def run(
    seed: int, digits: Tensor, labels: Tensor, chosen: Namespace, bar: Any
) -> tuple[Tensor, float, Any]:
    """Return mean IoU and hit rate of each kind of map (kinds, 2), accuracy, and images to draw."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows, known = chosen.rows, order[: chosen.training]
    new = order[chosen.training :][:rows]
    network = train(digits[known], labels[known], seed, chosen.epochs, bar)
    generator = torch.Generator().manual_seed(1000 + seed)
    tuning = compose(digits[known[:rows]], labels[known[:rows]], generator)
    test = compose(digits[new], labels[new], generator)
    tuning_maps, (maps, predicted) = (
        maps_of(network, tuning.images)[0],
        maps_of(network, test.images),
    )
    scores, thresholds = [], {}
    for kind in KINDS:
        fits = [overlaps(tuning_maps[kind], tuning.boxes, t).mean() for t in THRESHOLDS]
        thresholds[kind] = THRESHOLDS[int(torch.stack(fits).argmax())]
        found = overlaps(maps[kind], test.boxes, thresholds[kind])
        scores.append([found.mean().item(), (found >= 0.5).float().mean().item()])
    accuracy = (predicted == test.labels).float().mean().item()
    return torch.tensor(scores), accuracy, (test, maps, thresholds)


def show(scores: Tensor, accuracy: Tensor) -> str:
    """Return the table: mean and standard deviation over the seeds."""
    lines = [f"{'':20}{'mean IoU':>14}{'IoU of 0.5 or more':>22}"]
    for kind, row in zip(KINDS, scores.unbind(1), strict=True):
        iou, hits = row.unbind(1)
        cells = (
            over_seeds(iou, 3),
            f"{over_seeds(100 * hits)} %",
        )
        lines.append(f"{kind:20}{cells[0]:>14}{cells[1]:>22}")
    lines.append(f"digits named right: {over_seeds(100 * accuracy)} %")
    return "\n".join(lines)


def claims(scores: Tensor, small: bool) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    iou = dict(zip(KINDS, scores.mean(0)[:, 0].tolist(), strict=True))
    hits = dict(zip(KINDS, scores.mean(0)[:, 1].tolist(), strict=True))
    stays = {
        "adding one vector to all classes' weights leaves infoCAM's boxes where they are": (
            abs(iou["infoCAM, shifted"] - iou["infoCAM"]) < 0.005
        )
    }
    if small:  # one epoch is too short to learn places
        moves = "and moves those of plain maps"
        return stays | {moves: abs(iou["CAM, shifted"] - iou["CAM"]) > 0.005}
    return stays | {
        "infoCAM finds at least half of the digits (IoU 0.5) with no box ever shown": (
            hits["infoCAM"] >= 0.5
        ),
        "it places digits no worse than plain maps": iou["infoCAM"] >= iou["CAM"] - 0.01,
        "the same takes more than 0.1 of the IoU from plain maps, at their best threshold": (
            iou["CAM, shifted"] < iou["CAM"] - 0.1
        ),
    }


def draw(drawn: Any, path: Path) -> None:
    """Some test images with their maps, and both boxes."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    test, maps, thresholds = drawn
    columns = 6
    figure, panels = plt.subplots(
        len(KINDS), columns, figsize=(2 * columns, 2 * len(KINDS) + 0.4), layout="constrained"
    )
    for row, kind in zip(panels, KINDS, strict=True):
        for k, ax in enumerate(row):
            map = maps[kind][k]
            activation_map(test.images[k, 0], map, ax)
            boxes = (test.boxes[k].tolist(), "black", "--"), (
                box_around(map > thresholds[kind] * map.max()), "C0", "-"
            )  # fmt: skip
            for (top, left, bottom, right), colour, line in boxes:
                corner = (left - 0.5, top - 0.5)
                ax.add_patch(
                    Rectangle(
                        corner, right - left, bottom - top, fill=False, edgecolor=colour,
                        linestyle=line, linewidth=2,
                    )
                )  # fmt: skip
        row[0].set_ylabel(kind.replace(", ", ",\nweights "))
    figure.suptitle(
        "One vector added to all class weights changes no prediction, but it moves plain maps\n"
        "orange: for the class, purple: against it; dashed: the digit; blue: the box of the map"
    )
    save(figure, path, dpi=110)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(
        __file__, __doc__, seeds=(3, 2), training=(1400, 256), epochs=(10, 1), rows=(300, 40)
    )
    data: Any = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    digits = nn.functional.interpolate(small, (DIGIT, DIGIT), mode="bilinear").squeeze(1)
    labels = torch.tensor(data.target)
    with tqdm(total=len(chosen.seeds) * chosen.epochs, unit="epoch") as bar:
        each = [run(seed, digits, labels, chosen, bar) for seed in chosen.seeds]
    scores, accuracy = torch.stack([s for s, _, _ in each]), torch.tensor([a for _, a, _ in each])
    print(show(scores, accuracy), "\n")
    hold(claims(scores, chosen.small))
    draw(each[0][2], chosen.picture)


if __name__ == "__main__":
    main()
