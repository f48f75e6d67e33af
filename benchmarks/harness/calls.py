"""Tables of calls: a line for each call of xent, a column for each rival, a plain copy beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .race import Plan, compare, race, turn_of
from .report import aligned, digits, disturbance, ratio_text, spread

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits and target
Step = Callable[[], object]
OURS, COPY = "xent", "copy"


def step(loss: Loss, z: Tensor, y: Tensor) -> Step:
    """Return a function that runs forward and backward, and frees the gradient."""
    leaf = z.detach().requires_grad_()

    def run() -> None:
        loss(leaf, y).backward()
        leaf.grad = None

    return run


def measure(
    steps: Mapping[tuple[str, str], Step], copy: Step, elements: int, plan: Plan
) -> dict[str, Any]:
    """Let all steps take turns.

    Args:
        steps: by the name of the line and that of the contestant, one of which is ``"xent"``.
        copy: moves the inputs once.
        elements: logits of the problem.
        plan: how long.

    Returns:
        ``rows``, the times of each contestant of each line; ``copy``; ``failed``, the reasons of
        those that failed; ``others_busy``. As plain types.
    """
    found = race({key: turn_of(s) for key, s in {**steps, (COPY, COPY): copy}.items()}, plan)
    times = {key: without_all(time) for key, time in found.times.items()}
    bare = times.pop((COPY, COPY))
    rows: dict[str, dict[str, Any]] = {}
    for (name, who), time in times.items():
        rows.setdefault(name, {})[who] = time
    for entries in rows.values():
        both = {who: {"both": time} for who, time in {**entries, COPY: bare}.items()}
        compare(both, ("both",), elements)
    failed = {f"{name}, {who}": reason for (name, who), reason in found.failed.items()}
    return {"rows": rows, "copy": bare, "failed": failed, "others_busy": found.others_busy}


def without_all(time: dict[str, Any]) -> dict[str, Any]:
    """Median, quartiles and the number of rounds: all times of hundreds of calls would be long."""
    return {"rounds": len(time["ms_all"]), **{k: v for k, v in time.items() if k != "ms_all"}}


def text(cell: dict[str, Any]) -> str:
    """The table of one cell."""
    who = rivals([cell])
    rows = [["", "ms", "spread", "ns", "copies", *who]]
    rows += [[name, *_columns(entries, who)] for name, entries in cell["rows"].items()]
    head = f"{cell['name']}: a copy takes {digits(cell['copy']['ms'])} ms{disturbance(cell)}"
    failed = [f"  {name} failed: {reason}" for name, reason in cell["failed"].items()]
    return "\n".join([head, aligned(rows), *failed])


def rivals(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the other contestants, in the order of their first appearance."""
    found = (who for cell in cells for entries in cell["rows"].values() for who in entries)
    return [who for who in dict.fromkeys(found) if who != OURS]


def slower(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Every case in which xent is slower, in words, with the reason if the cell knows one."""
    return [
        f"{cell['name']}, {name}: {who} {time['ratio']:.2f}x" + _why(cell, name)
        for cell in cells
        for name, entries in cell["rows"].items()
        for who, time in entries.items()
        if "LOSS" in ratio_text(time)
    ]


def _why(cell: dict[str, Any], name: str) -> str:
    reason = cell.get("why", {}).get(name)
    return f", because {reason}" if reason else ""


def _columns(entries: dict[str, Any], who: Sequence[str]) -> list[str]:
    if OURS not in entries:
        return ["failed", "", "", "", *[""] * len(who)]
    ours = entries[OURS]
    return [
        digits(ours["ms"]), spread(ours), digits(ours["ns"]), f"{ours['copies']:.2f}",
        *(ratio_text(entries[name]) if name in entries else "" for name in who),
    ]  # fmt: skip
