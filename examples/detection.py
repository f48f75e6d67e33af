"""A YOLO head from scratch: find squares, v2 with one label per box and v3 with two.

    python examples/detection.py [--small] [--steps 400] [--seed 0] [--picture runs/detection.png]

Needs matplotlib for the picture. Takes about half a minute.

Images of 48 x 48 pixels hold up to three squares: filled, hollow or striped, warm or cold. A small
convolutional network predicts two anchors in each cell of a 6 x 6 grid. Everything that is a
cross-entropy is one call of ``xent.losses.yolo_loss``; width and height are a regression and stay
here.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

import xent
from _experiment import hold, options, save

SIZE, CELL, OBJECTS = 48, 8, 3
GRID = SIZE // CELL
ANCHORS = torch.tensor([8.0, 18.0])  # sides, in pixels
LABELS = ("filled", "hollow", "striped", "warm", "cold")
TEXTURES = 3  # number of labels that are textures; v2 learns only these
Version = Literal["v2", "v3"]


class Scene(NamedTuple):
    """Images and their objects. An object that is not there has sides of 0."""

    images: Tensor  # (B, 3, SIZE, SIZE)
    boxes: Tensor  # (B, OBJECTS, 4): left, top, right, bottom
    labels: Tensor  # (B, OBJECTS, 5): of each object a texture and a colour


def make_scene(batch: int, generator: torch.Generator) -> Scene:
    """Draw squares of random place, size and looks on noise; later squares cover earlier ones."""

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    side = (7 + 15 * random(OBJECTS, 1)).round()
    side[:, 1:] *= random(OBJECTS - 1, 1) < 0.6
    corner = (random(OBJECTS, 2) * (SIZE - side)).round()
    boxes = torch.cat([corner, corner + side], -1)
    texture, colour = (3 * random(OBJECTS)).long(), (2 * random(OBJECTS)).long()
    tints = torch.tensor([[1.0, 0.5, 0.1], [0.1, 0.5, 1.0]])

    images = 0.2 * random(3, SIZE, SIZE)
    x = torch.arange(SIZE) + 0.5
    y = x.view(-1, 1)
    for k in range(OBJECTS):
        left, top, right, bottom = boxes[:, k].view(batch, 4, 1, 1).unbind(1)
        depth = torch.minimum(
            torch.minimum(x - left, right - x), torch.minimum(y - top, bottom - y)
        )
        looks = torch.stack([depth > 0, (depth > 0) & (depth < 2), (depth > 0) & (y % 4 < 2)])
        paint = looks[texture[:, k], torch.arange(batch)].unsqueeze(1)
        images = torch.where(paint, tints[colour[:, k]].view(batch, 3, 1, 1), images)
    one_hot = nn.functional.one_hot
    return Scene(images, boxes, torch.cat([one_hot(texture, 3), one_hot(colour, 2)], -1))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of boxes ``(..., 4)``."""
    common = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    common = common.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return common / (areas[0] + areas[1] - common)


def predicted_boxes(head: Tensor) -> Tensor:
    """Return the boxes ``(B, A, H, W, 4)`` that a head ``(B, A, 5 + C, H, W)`` predicts."""
    x, y, w, h = head[:, :, :4].unbind(2)
    cell = torch.arange(GRID)
    middle = torch.stack([x.sigmoid() + cell, y.sigmoid() + cell.view(-1, 1)], -1) * CELL
    sides = torch.stack([w, h], -1).exp() * ANCHORS.view(-1, 1, 1, 1)
    return torch.cat([middle - sides / 2, middle + sides / 2], -1)


class Targets(NamedTuple):
    """Targets of each predicted box."""

    responsible: Tensor  # (B, A, H, W)
    owner: Tensor  # (B, A, H, W): the object that a responsible box answers for
    center: Tensor  # (B, A, 2, H, W)
    log_side: Tensor  # (B, A, 2, H, W), in units of the anchor
    labels: Tensor  # (B, A, 5, H, W)


def assign(scene: Scene) -> Targets:
    """Give each object to the cell of its middle and the anchor nearest in size."""
    batch = len(scene.boxes)
    boxes = (batch, len(ANCHORS), GRID, GRID)
    owner = torch.full(boxes, -1)
    middle = (scene.boxes[..., :2] + scene.boxes[..., 2:]) / (2 * CELL)
    side = scene.boxes[..., 2:] - scene.boxes[..., :2]
    column, row = middle.long().unbind(-1)
    anchor = (side[..., :1].log() - ANCHORS.log()).abs().argmin(-1)
    for k in range(OBJECTS):
        there = (side[:, k, 0] > 0).nonzero()[:, 0]
        owner[there, anchor[there, k], row[there, k], column[there, k]] = k

    def of_owner(values: Tensor) -> Tensor:
        """Return ``(B, OBJECTS, K)`` as ``(B, A, K, H, W)``."""
        index = owner.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return values.gather(1, index).view(*boxes, -1).movedim(-1, 2)

    log_side = of_owner(side.clamp(min=1).log()) - ANCHORS.log().view(-1, 1, 1, 1)
    return Targets(
        owner >= 0, owner.clamp(min=0), of_owner(middle).frac(), log_side, of_owner(scene.labels)
    )


def loss_parts(output: Tensor, scene: Scene, version: Version) -> dict[str, Tensor]:
    """Return the cross-entropies of the head, and the squared error of the sides."""
    targets = assign(scene)
    head = output.unflatten(1, (len(ANCHORS), -1))
    with torch.no_grad():  # every predicted box against every object
        iou = overlap(predicted_boxes(head).unsqueeze(-2), scene.boxes[:, None, None, None])
        iou = iou.nan_to_num(0)
    one_label = targets.labels[:, :, :TEXTURES].argmax(2)
    parts = xent.losses.yolo_loss(
        output,
        targets.responsible,
        one_label if version == "v2" else targets.labels,
        version=version,
        iou=iou.gather(-1, targets.owner.unsqueeze(-1)).squeeze(-1) if version == "v2" else None,
        best_iou=iou.amax(-1),
        center=targets.center,
    )
    error = (head[:, :, 2:4] - targets.log_side).square() * targets.responsible.unsqueeze(2)
    return {**parts._asdict(), "sides": error.sum() / len(output)}


def make_network(labels: int) -> nn.Sequential:
    """Return a network of five convolutions, from pixels to the head."""
    layers: list[nn.Module] = []
    widths = (3, 16, 32, 48, 64)
    for k, (before, after) in enumerate(itertools.pairwise(widths)):
        stride = 2 if k < 3 else 1
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], len(ANCHORS) * (5 + labels), 1))


def train(version: Version, steps: int, generator: torch.Generator) -> nn.Sequential:
    """Train a detector, printing the parts of its loss."""
    network = make_network(TEXTURES if version == "v2" else len(LABELS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    print(f"\n{version}: nats per image\n  step  objectness  classes   center    sides")
    for step in range(steps):
        scene = make_scene(32, generator)
        parts = loss_parts(network(scene.images), scene, version)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()
        schedule.step()
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"{step:6d}" + "".join(f"{part.item():9.3f}" for part in parts.values()))
    return network.eval()


class Found(NamedTuple):
    """A detection."""

    score: float
    box: Tensor
    labels: Tensor  # a probability for each


@torch.no_grad()
def detect(network: nn.Module, images: Tensor, version: Version) -> list[list[Found]]:
    """Return the detections in each image: the best boxes that do not overlap better boxes."""
    head = network(images).unflatten(1, (len(ANCHORS), -1))
    score = head[:, :, 4].sigmoid().flatten(1)
    boxes = predicted_boxes(head).flatten(1, 3)
    logits = head[:, :, 5:].movedim(2, -1).flatten(1, 3)
    labels = xent.softmax(logits, -1) if version == "v2" else logits.sigmoid()
    found = []
    for s, b, p in zip(score, boxes, labels, strict=True):
        kept: list[Found] = []
        for k in s.argsort(descending=True).tolist():
            if s[k] < 0.4:
                break
            if all(overlap(b[k], other.box) < 0.5 for other in kept):
                kept.append(Found(s[k].item(), b[k], p[k]))
        found.append(kept)
    return found


def judge(found: list[list[Found]], scene: Scene) -> tuple[float, float, float]:
    """Return precision and recall at an IoU of 0.5, and the share of hits with all labels right."""
    hits = right = 0
    for detections, boxes, labels in zip(found, scene.boxes, scene.labels, strict=True):
        free = (boxes[:, 2] > boxes[:, 0]).tolist()
        for one in detections:
            iou = overlap(one.box, boxes).nan_to_num(0)
            iou = torch.where(torch.tensor(free), iou, 0.0)
            best = int(iou.argmax())
            if iou[best] > 0.5:
                free[best] = False
                hits += 1
                wanted = labels[best, : len(one.labels)].bool()
                right += bool((names_of(one) == wanted).all())
    there = (scene.boxes[..., 2] > scene.boxes[..., 0]).sum().item()
    return hits / max(sum(map(len, found)), 1), hits / there, right / max(hits, 1)


def names_of(one: Found) -> Tensor:
    """Return the labels of a detection: the best of a softmax, or all likely labels in v3."""
    if len(one.labels) == TEXTURES:
        return one.labels == one.labels.max()
    return one.labels > 0.5


def draw(path: Path, scene: Scene, found: dict[str, list[list[Found]]]) -> None:
    """Draw some images with what was found in them, a row for each version."""
    from matplotlib import patches
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.3 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 4, squeeze=False)
    for (version, detections), row in zip(found.items(), rows, strict=True):
        for axes, image, here in zip(row, scene.images, detections, strict=False):
            axes.imshow(image.movedim(0, -1), extent=(0, SIZE, SIZE, 0))
            axes.set(xticks=[], yticks=[])
            for one in here:
                left, top, right, bottom = one.box.tolist()
                axes.add_patch(
                    patches.Rectangle(
                        (left, top), right - left, bottom - top, fill=False, color="white", lw=1.5
                    )
                )
                names = [LABELS[k] for k in names_of(one).nonzero()[:, 0].tolist()]
                axes.text(
                    left, top - 0.7, f"{' '.join(names)} {one.score:.2f}", color="white", size=8,
                    clip_on=True,
                )  # fmt: skip
        row[0].set_ylabel(f"{version}: {'softmax' if version == 'v2' else 'logistic'} classes")
    figure.suptitle("A softmax gives each box one name, logistic classes give it all its names")
    save(figure, path, dpi=110)


def main() -> None:
    """Train both versions, print how well they find and name the squares, check and draw."""
    chosen = options(__file__, __doc__, steps=(400, 100), seed=(0, 0))
    torch.set_num_threads(1)  # convolutions this small gain nothing from more
    test = make_scene(100 if chosen.small else 300, torch.Generator().manual_seed(chosen.seed + 1))
    found, scores = {}, {}
    versions: tuple[Version, ...] = ("v2", "v3")
    for version in versions:
        torch.manual_seed(chosen.seed)
        network = train(version, chosen.steps, torch.Generator().manual_seed(chosen.seed))
        found[version] = detect(network, test.images, version)
        scores[version] = judge(found[version], test)
    print("\n    precision   recall  labels right")
    for version, (precision, recall, named) in scores.items():
        print(f"{version}{precision:12.1%}{recall:9.1%}{named:14.1%}")
    print()
    hold(claims(scores, chosen.small))
    draw(chosen.picture, test, found)


def claims(scores: dict[Version, tuple[float, float, float]], small: bool) -> dict[str, bool]:
    """Return each claim with True if it holds: shares that both versions must reach."""
    precision, recall, named = (0.6, 0.4, 0.7) if small else (0.85, 0.8, 0.9)
    worst = [min(column) for column in zip(*scores.values(), strict=True)]
    return {
        f"{precision:.0%} of what either version finds is a square, IoU above 0.5": (
            worst[0] >= precision
        ),
        f"either finds {recall:.0%} of the squares": worst[1] >= recall,
        f"and gives {named:.0%} of them all their labels": worst[2] >= named,
    }


if __name__ == "__main__":
    main()
