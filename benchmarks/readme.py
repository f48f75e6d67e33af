"""Write figures and tables of pages from results: ``python -m benchmarks.readme``.

The pages are README.md and docs/index.md, docs/benchmarks.md, docs/speed.md and docs/parallel.md.

A table stands between two lines, ``<!-- table: NAME -->`` and ``<!-- end -->``. A table whose
results are not there yet stays as it is.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import cost_model, versions
from .gpu import model
from .harness import report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{x}.md" for x in ("index", "benchmarks", "speed", "parallel", "gpu")),
]
BLOCK = re.compile(r"(?s)(<!-- table: (\w+) -->\n\n).*?(\n\n<!-- end -->)")


def logits(result: dict[str, Any]) -> str:
    """Cross-entropy of logits that are there."""
    return report.markdown(result)


def in_a_step(result: dict[str, Any]) -> str:
    """Cross-entropy within training steps and in new processes."""
    rows = []
    for cell in result["cells"]:
        loss, fresh = cell["loss"], cell["fresh"]
        rows.append([
            f"{cell['rows']} x {cell['classes']}",
            *(report.digits(loss[name]["ms"]) for name in ("xent", "torch")),
            *(_times(loss), _times(fresh)),
        ])  # fmt: skip
    head = ["logits, float32", "xent, ms", "PyTorch, ms", "in a step", "in a new process"]
    return _table(head, rows, result)


def _times(of: dict[str, dict[str, Any]]) -> str:
    """PyTorch's time divided by that of xent; bold where xent is slower."""
    return report.markdown_ratio({"ratio": of["torch"]["ms"] / of["xent"]["ms"]})


def family_in_words(result: dict[str, Any]) -> str:
    """The losses of one class per row beside cross-entropy."""
    lines = []
    for cell in result["cells"]:
        shape, _, targets = cell["name"].partition(", ")
        if targets == "classes":
            base = cell["rows"]["cross_entropy"]["xent"]["ms"]
            ratios = {name: e["xent"]["ms"] / base for name, e in cell["rows"].items()}
            del ratios["cross_entropy"]
            low, high = min(ratios.values()), max(ratios.values())
            most = max(ratios, key=lambda name: ratios[name])
            lines.append(
                f"- {shape}: the {len(ratios)} other losses of one class per row take {low:.2f} to "
                f"{high:.2f} times as long as `cross_entropy` on the same logits, the median is "
                f"{statistics.median(ratios.values()):.2f}; `{most}` takes the most."
            )
    return "\n".join(lines)


def family(result: dict[str, Any]) -> str:
    """The losses of the family that others have, in float32."""
    cells = [c for c in result["cells"] if " float32," in c["name"]]
    lines: dict[str, dict[str, str]] = {}
    others: dict[str, None] = {}
    for cell in cells:
        for name, entries in cell["rows"].items():
            rivals = {who: report.markdown_ratio(e) for who, e in entries.items() if who != "xent"}
            if rivals and name != "cross_entropy":
                shape = cell["name"].partition(" float32")[0]
                ours = entries["xent"]
                rivals["xent"] = f"{report.digits(ours['ms'])} ms, {ours['copies']:.2f} copies"
                lines[f"`{name}`, {shape}"] = rivals
                others |= dict.fromkeys(who for who in rivals if who != "xent")
    rows = [[name, found["xent"], *(found.get(who, "") for who in others)]
            for name, found in lines.items()]  # fmt: skip
    return _table(["loss", "xent", *others], rows, result)


def linear(result: dict[str, Any]) -> str:
    """Losses behind a linear head, in multiples of the bare products, and peak memory."""
    names = [
        name
        for name in result["cells"][0]["contestants"]
        if any("ratio" in cell["contestants"][name] for cell in result["cells"])
    ]
    rows = []
    for cell in result["cells"]:
        entries = cell["contestants"]
        plain = [name for name in names if "memory" in entries[name] and name not in LEAN_VARIANTS]
        rows.append([
            f"{cell['rows']}, {cell['features']}, {cell['classes']} {cell['dtype']}",
            *(f"{entries[n]['ratio']:.2f}" if "ratio" in entries[n] else "" for n in names),
            " / ".join(f"{entries[name]['memory'] / 2**20:.0f}" for name in plain),
        ])  # fmt: skip
    return _table(["N, D, V", *names, "MiB of xent / torch / chunked"], rows, result)


LEAN_VARIANTS = ("xent, 60 % ignored", "xent, focal", "xent, smoothing")


def memory_in_words(result: dict[str, Any]) -> str:
    """The memory of a step behind a linear head."""
    cell = result["cells"][0]
    xent, torch = (cell["contestants"][who]["memory"] / 2**20 for who in ("xent", "torch"))
    return (
        f"- **Memory.** Loss and gradient behind a linear head, of {cell['rows']} rows with "
        f"{cell['features']} features and {cell['classes']} classes in {cell['dtype']}, need "
        f"{xent:.0f} MiB beyond inputs and gradients; with PyTorch they need {torch:.0f} MiB."
    )


def time_in_words(result: dict[str, Any]) -> str:
    """The time of the loss within a training step: a large batch, and the smallest."""
    told = {
        f"{cell['rows']} x {cell['classes']}": [
            report.digits(cell["loss"][who]["ms"]) for who in ("xent", "torch")
        ]
        for cell in result["cells"]
    }
    large, small = "2048 x 32000", "32 x 10"
    return (
        f"- **Time.** Within a training step on the CPU, loss and gradient of {large} logits in "
        f"float32 take {told[large][0]} ms; in PyTorch they take {told[large][1]} ms. On small "
        f"batches PyTorch is faster: {small} logits take {told[small][0]} ms here, "
        f"{told[small][1]} ms there."
    )


def small_calls(result: dict[str, Any]) -> str:
    """Calls on 32 x 10 logits."""
    rows = [
        [
            f"`{entry['call']}`",
            f"{1e3 * entry['ours']['ms']:.0f}",
            f"{entry['ours']['ms'] / entry['theirs']['ms']:.2f}",
            entry["other"],
        ]
        for entry in result["calls"]
    ]
    return _table(["call", "us", "times the other call", "the other call"], rows, result)


def before_and_now(result: dict[str, Any]) -> str:
    """This version beside an earlier one."""
    return _table(versions.HEAD, versions.table(result["cells"]), result)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], result: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", report.machine_text(result["machine"]) + "."])


def as_printed(text: str) -> str:
    """Return what a benchmark has printed."""
    return f"```text\n{text.rstrip()}\n```"


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "in_a_step": ("in_a_step.json", in_a_step),
    "logits": ("cpu.json", logits),
    "family_in_words": ("family.json", family_in_words),
    "family": ("family.json", family),
    "linear": ("linear.json", linear),
    "memory_in_words": ("linear.json", memory_in_words),
    "time_in_words": ("in_a_step.json", time_in_words),
    "small_calls": ("small_calls.json", small_calls),
    "versions": ("versions.json", before_and_now),
    "pairs": ("pairs.txt", as_printed),
    "over_ranks": ("over_ranks.txt", as_printed),
}
# What is computed from no result.
MODELS: dict[str, Callable[[], str]] = {
    "gpu_logits": model.table,
    "gpu_card": model.assumptions,
    "gpu_heads": model.table_of_heads,
    "costs": cost_model.table,
    "costs_of_a_head": cost_model.table_of_heads,
    "costs_in_bytes": cost_model.in_bytes,
    "costs_crossings": cost_model.crossings,
    "costs_in_words": cost_model.in_words,
}


def with_tables(text: str) -> str:
    """Return the text with every table made anew from the results."""

    def replace(block: re.Match[str]) -> str:
        if block[2] in MODELS:
            return block[1] + MODELS[block[2]]() + block[3]
        name, make = TABLES[block[2]]
        path = RESULTS / name
        if not path.is_file():
            return block[0]
        text = path.read_text(encoding="utf-8")
        return block[1] + make(json.loads(text) if path.suffix == ".json" else text) + block[3]

    return BLOCK.sub(replace, text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
