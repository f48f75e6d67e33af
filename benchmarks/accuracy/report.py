"""The atlas of many cells: a table, a file and a page with a picture of each loss."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .losses import ENGINES, LEFT_OUT, SIZES, SUBJECTS
from .measure import NOT_FINITE
from .others import LIBRARIES
from .pictures import picture
from .rows import MARGINS
from .run import DTYPES, Records, cell_of, cells

DOCS = Path(__file__).parents[2] / "docs"
WHAT = ("value", "gradient")
OURS = (*ENGINES, "xent")
ORDER = (*OURS, *LIBRARIES)


def summarised(records: Records, missing: dict[str, str]) -> dict[str, Any]:
    """Return the worst of all numbers of classes and offsets, for each loss, type and contestant.

    The result has lists with one number for each margin. ``worst`` is the cell of the largest part
    of what arithmetic allows.
    """
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in records:
        if "failed" in record:
            continue
        key = record["loss"], record["by"], record["dtype"]
        line = lines.setdefault(key, dict(zip(("loss", "by", "dtype"), key, strict=True)))
        for what in WHAT:
            _merge(line, what, record[what])
            mean = f"{what}, mean"
            line.setdefault(mean, []).append(record[mean])
            _note(line, record, what)
    for line in lines.values():
        for what in WHAT:
            columns = zip(*line[f"{what}, mean"], strict=True)
            line[f"{what}, mean"] = [_mean(column) for column in columns]
    names = list(SUBJECTS)
    ordered = sorted(
        lines.values(),
        key=lambda x: (names.index(x["loss"]), ORDER.index(x["by"]), DTYPES.index(x["dtype"])),
    )
    return {
        "margins": list(MARGINS), "left out": LEFT_OUT, "not at hand": missing,
        "measured": _coverage(records), "lines": ordered,
    }  # fmt: skip


def _coverage(records: Records) -> list[str]:
    """Return, for each number of classes, how many cells of the whole atlas were measured."""
    whole, done = set(cells(SUBJECTS, DTYPES, SIZES)), {cell_of(record) for record in records}
    counts = {cell.classes: [0, 0] for cell in sorted(whole, key=lambda cell: cell.classes)}
    for cell in whole:
        counts[cell.classes][0] += cell in done
        counts[cell.classes][1] += 1
    return [f"{n:,} classes: {some} of {all_}" for n, (some, all_) in counts.items()]


def _merge(line: dict[str, Any], what: str, numbers: list[float | None]) -> None:
    old = line.get(what, [None] * len(numbers))
    line[what] = [_largest(pair) for pair in zip(old, numbers, strict=True)]


def _note(line: dict[str, Any], record: dict[str, Any], what: str) -> None:
    """Keep the cell that takes the largest part of what is allowed."""
    parts = record[f"{what}, of allowed"]
    part = _largest(parts)
    if part is not None and part > line.get("worst", {"part": -1})["part"]:
        line["worst"] = {
            "what": what, "part": part, "margin": MARGINS[parts.index(part)],
            "classes": record["classes"], "offset": record["offset"],
        }  # fmt: skip


def _largest(numbers: Any) -> float | None:
    return max((x for x in numbers if x is not None), default=None)


def _mean(numbers: Any) -> float | None:
    known = [x for x in numbers if x is not None]
    return float(f"{math.fsum(known) / len(known):.3g}") if known else None


# ---- text ---------------------------------------------------------------------------------------


def shown(x: float | None) -> str:
    """Return an error in a few characters."""
    if x is None:
        return "-"
    if x >= NOT_FINITE:
        return "inf"
    return f"{x:.1f}" if x < 99 else f"{x:.0e}".replace("e+0", "e").replace("e+", "e")


def table(atlas: dict[str, Any]) -> str:
    """Return a line for each loss and contestant: worst errors of values and gradients in ulps."""
    head = "".join(f"{dtype:>18}" for dtype in DTYPES)
    below = f"{'value':>9}{'gradient':>9}" * len(DTYPES)
    text = [f"{'worst error in ulps':46}{head}{'part':>9}", f"{'':46}{below}"]
    for loss, by, lines in _grouped(atlas):
        cells = []
        for dtype in DTYPES:
            line = lines.get(dtype)
            cells += [shown(_largest(line[what])) if line else "" for what in WHAT]
        part = max(line["worst"]["part"] for line in lines.values())
        text.append(f"{loss:36}{by:10}" + "".join(f"{x:>9}" for x in cells) + f"{shown(part):>9}")
    text.append("cells measured, " + "; ".join(atlas["measured"]))
    text += [f"{name} is left out: {why}" for name, why in atlas["left out"].items()]
    text += [f"{name} is not at hand: {why}" for name, why in atlas["not at hand"].items()]
    return "\n".join(text)


def _grouped(atlas: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield loss, contestant, and the lines of each type."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in atlas["lines"]:
        found.setdefault((line["loss"], line["by"]), {})[line["dtype"]] = line
    for (loss, by), lines in found.items():
        yield loss, by, lines


# ---- the page -----------------------------------------------------------------------------------

PAGE = """\
# An atlas of errors

Written by `python -m benchmarks.accuracy --docs`. It compares every loss of the catalog with the
textbook formula in 110 digits, for the logits as the type holds them.

**Rows.** The logit of the target is -100 to 100 nats above the largest of the other classes (the
*margin*): on the left the model is surely wrong, on the right surely right. There are 10 classes,
also with 10,000 added to all logits; 1000 classes; and 128,256 classes, whose logits have a few
distinct values, so that the exact sums have few terms. Cosines have margins of a hundredth,
similarities of a tenth of that. Single logits have targets 1, 0, 1/4 and 3/4; their margin is the
distance from 0. In bfloat16 and float16 most logits near 10,000 are equal, whatever their margin
was before.

**Errors** are in *ulps*, units in the last place of the type of the result, at the true value. The
best possible error is 0.5. An error of 1.7e7 in float32 (9.0e15 in float64, 256 in bfloat16, 2048
in float16) is one of 100 %. `inf` says that the result is infinite or NaN and the true one is not.
Gradients are compared entry by entry.

**What arithmetic allows.** An entry of a gradient may be a difference of nearly equal terms, and
the exponential of a number that is rounded has an error of half an ulp for each nat. So each cell
is also computed, in all digits, from logits that are off by half a unit of their distance from the
largest; and from exponentials that are off as much while the logits are right, because a logarithm
of a probability is rounded apart from the probability. What that changes is the *floor*. The signs
of these errors are such that those of a class, of the target and of the largest other class add up
once. Classes with the same logit are rounded one by one, so is the teacher of a distillation, and
so is a target between 0 and 1. Allowed are four times the floor, and 4 ulps and one for each
doubling of the number of classes. The column *part* has the largest error of a line as a part of
what is allowed: below 1 the errors come from rounding that no arithmetic of this width avoids.

Where the truth is 0 or nearly so, an ulp is tiny and the number of ulps has no meaning, but the
part has: the gradient of the Brier score among equal probabilities, 2 p (p - sum of p^2), is 0 and
its terms are rounded. The threshold of the truncated loss is 1/10, which is the probability of
each of 10 equal classes: whether such a row counts depends on the last bit.

**Who.** `native`, `triton` and `reference` are the engines; `xent` stands for a loss without a
choice of engines. `torch` is PyTorch's own function, or the textbook formula in its operations as
people write it; the functions of other libraries are called as they are. Triton's and Liger's
kernels run in Triton's interpreter, up to 1000 classes. The losses of `xent.policy` take
log-probabilities, not logits, and are not here.
"""


BEYOND = """
Two kinds are known to stay. In float32 the entry of a wrong class that has nearly all of the
probability is a sum of terms of its square and cube (`taylorglo_loss`, `brier_loss`), a few percent
of the largest; the coefficients of the terms are rounded to float32. The inverse of a noise matrix
has entries that are products of as many factors as the classes are apart, each rounded
(`backward_corrected_cross_entropy`).
"""


def page(atlas: dict[str, Any]) -> str:
    """Return the text of docs/accuracy.md."""
    parts = [PAGE, "## All losses\n", "```", table(atlas), "```\n", _beyond(atlas), "## Pictures\n"]
    losses = dict.fromkeys(line["loss"] for line in atlas["lines"])
    parts += [f"### {loss}\n\n![{loss}](accuracy/{slug(loss)}.png)\n" for loss in losses]
    return "\n".join(parts)


def _beyond(atlas: dict[str, Any]) -> str:
    """Return the cells in which this library does worse than arithmetic allows."""
    text = []
    for line in atlas["lines"]:
        worst = line["worst"]
        if line["by"] in OURS and worst["part"] > 1:
            text.append(
                f"- {line['loss']}, {line['by']}, {line['dtype']}: the {worst['what']} at margin "
                f"{worst['margin']}, {worst['classes']} classes, offset {worst['offset']:g}: "
                f"{shown(worst['part'])} of what is allowed"
            )
    listed = "\n".join(text) + f"\n{BEYOND}" if text else "Nothing.\n"
    return f"## Beyond what is allowed\n\n{listed}"


def slug(loss: str) -> str:
    """Return the name of the file of a loss."""
    return loss.replace(", ", "_").replace(" ", "_")


def write_docs(atlas: dict[str, Any], docs: Path = DOCS) -> None:
    """Write the page, a picture of each loss, and the numbers."""
    folder = docs / "accuracy"
    folder.mkdir(exist_ok=True)
    (docs / "accuracy.md").write_text(page(atlas))
    head = {key: value for key, value in atlas.items() if key != "lines"}
    lines = ",\n".join(json.dumps(line, separators=(",", ":")) for line in atlas["lines"])
    (folder / "atlas.json").write_text(json.dumps(head)[:-1] + f', "lines": [\n{lines}\n]}}\n')
    for loss in dict.fromkeys(line["loss"] for line in atlas["lines"]):
        lines = [line for line in atlas["lines"] if line["loss"] == loss]
        (folder / f"{slug(loss)}.png").write_bytes(picture(loss, lines))
