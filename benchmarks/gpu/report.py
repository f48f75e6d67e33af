"""The tables that ``benchmarks.gpu.logits`` prints, also where xent is slower."""

from __future__ import annotations

import math
import statistics
from typing import Any

from ..harness.contestants import Cell
from ..harness.report import aligned, digits, error_text, ratio_text, verdict
from .contestants import BY_ROW
from .timing import FLUSH_BYTES, SWEEPS

LEGEND = f"""\
Milliseconds are medians over rounds in which all take turns, by CUDA events, of calls queued behind
a flush of the caches ({FLUSH_BYTES >> 30} GiB written), which hides their launches while it lasts;
those who wait for the GPU within a call launch the rest of it in the open. GB/s count one read of
the logits for forward, a read and a write for backward, two reads and a write for both, whoever
does less; "% copy" is their share of the GB/s at which the same rounds copy the logits. "one pass"
is 100 at the bound of one read and one write for both, the time of that copy. A backward far above
100 was paid for in forward. Errors are against float64: relative of the loss, in ulps of the worst
entry of the gradient. MiB are at the peak, beyond the logits, the gradient included. Liger
overwrites the logits and gets a fresh copy every time, which is not timed."""


def cell_text(found: dict[str, Any]) -> str:
    """Return the tables of one cell: times and rates, then errors and memory."""
    entries = found["contestants"]
    times = [
        ["", "forward", *[""] * 3, "backward", *[""] * 2, "both", *[""] * 4],
        ["", *_RATES, "vs xent", *_RATES, *_RATES, "one pass", "vs xent"],
    ]
    rest = [["", "loss error", "gradient/ulp", "MiB, forward", "MiB, both"]]
    for name, entry in entries.items():
        if "errors" in entry:
            forward, backward, both = (entry[mode] for mode in SWEEPS)
            one_pass = [f"{both['one_pass']:.0f}", ratio_text(both)]
            middle = [ratio_text(forward), *_rates(backward)]
            times.append([name, *_rates(forward), *middle, *_rates(both), *one_pass])
            wrong = map(error_text, entry["errors"].values())
            rest.append([name, *wrong, *map(mebibytes, entry["memory"].values())])
    failed = [f"  {name} failed: {e['failed']}" for name, e in entries.items() if "failed" in e]
    return "\n".join([_headline(found), aligned(times), aligned(rest), *failed])


_RATES = ("ms", "GB/s", "% copy")


def _rates(time: dict[str, Any]) -> list[str]:
    return [digits(time["ms"]), digits(time["gb_s"]), f"{time['of_copy']:.0f}"]


def mebibytes(peak: int | None) -> str:
    """Return bytes as MiB, or a dash where they are not counted."""
    return "-" if peak is None else f"{peak / 2**20:.1f}"


def _cell(found: dict[str, Any]) -> Cell:
    return Cell(found["rows"], found["classes"], found["dtype"])


def _headline(found: dict[str, Any]) -> str:
    cell, copy = _cell(found), found["contestants"]["copy"]["both"]
    return (
        f"{cell}: {digits(cell.logit_bytes / 2**20)} MiB of logits, copied in "
        f"{digits(copy['ms'])} ms, {digits(copy['gb_s'])} GB/s; {len(copy['ms_all'])} rounds"
    )


def launches_text(found: dict[str, Any]) -> str:
    """Return a table of microseconds per call, called and replayed."""
    rows = [["", "forward", "", "both", ""], ["", *("called", "replayed") * 2]]
    failed = []
    for name, entry in found["contestants"].items():
        cells = []
        for mode, pair in entry.items():
            if "failed" in pair:
                failed.append(f"  {name}, {mode}, failed: {pair['failed']}")
            cells += [digits(1e3 * pair[how]) if how in pair else "" for how in rows[1][1:3]]
        rows.append([name, *cells])
    head = f"{_cell(found)}: microseconds per call, one right after the other, caches warm"
    return "\n".join([head, aligned(rows), *failed])


def family_text(found: dict[str, Any]) -> str:
    """Return a table of every loss as a multiple of cross-entropy."""
    base = found["ms"].get("cross_entropy", math.nan)
    rows = [[f"{_cell(found)}: loss and gradient", "ms", "ratio"]]
    rows += [[name, digits(ms), f"{ms / base:.2f}"] for name, ms in found["ms"].items()]
    failed = [f"  {name} failed: {why}" for name, why in found["failed"].items()]
    return "\n".join([aligned(rows), *failed])


def summary_text(cells: list[dict[str, Any]]) -> str:
    """Return geometric means of times over those of xent, and every case in which xent loses."""
    rows = [["times over those of xent:", "forward", "", "both", ""]]
    rows.append(["", *("geometric mean", "xent faster in") * 2])
    for name, dtype in {(name, c["dtype"]): 0 for c in cells for name in c["contestants"]}:
        if name not in ("xent", "copy"):
            entries = [c["contestants"][name] for c in cells if c["dtype"] == dtype]
            means = (text for mode in ("forward", "both") for text in _mean(entries, mode))
            rows.append([f"{name}, {dtype}", *means])
    rivals = [
        c | {"contestants": {n: e for n, e in c["contestants"].items() if n != BY_ROW}}
        for c in cells
    ]
    return f"{aligned(rows)}\n\n{verdict(rivals)}"


def _mean(entries: list[dict[str, Any]], mode: str) -> list[str]:
    ratios = [entry[mode]["ratio"] for entry in entries if "ratio" in entry.get(mode, {})]
    if not ratios:
        return ["-", "-"]
    faster = sum(ratio > 1 for ratio in ratios)
    return [f"{statistics.geometric_mean(ratios):.2f}", f"{faster} of {len(ratios)}"]
