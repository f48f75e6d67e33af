"""The tables that ``xent bench`` prints, also where xent is slower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

TITLES = {"both": "forward+backward", "forward": "forward"}
LEGEND = """\
Milliseconds are medians over the rounds, the spread is the distance of the quartiles. "vs xent" is
how many times as long as xent: above 1, xent is faster. "copies" counts plain copies of the logits,
"ns" is nanoseconds per logit. Errors are against float64: of the loss in units in the last place,
of the gradient relative to its largest entry, and the worst relative error of the entry at the
target."""
ERRORS = ("loss_ulps", "gradient", "target_entry")


def machine_text(machine: dict[str, Any]) -> str:
    """Return one line on hardware and software."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    device = f"{machine['device']}; " if "device" in machine else ""
    return (
        f"{device}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['isa']}; {versions}; {machine['system']}, {machine['date']}"
    )


def cell_text(cell: dict[str, Any]) -> str:
    """Return the tables of one cell: time, then errors."""
    entries = cell["contestants"]
    modes = [mode for mode in TITLES if any(mode in entry for entry in entries.values())]
    parts = [_headline(cell)]
    if modes:
        parts.append(_time_table(entries, modes))
    if any("errors" in entry for entry in entries.values()):
        parts.append(_error_table(entries))
    parts += [f"  {name} failed: {e['failed']}" for name, e in entries.items() if "failed" in e]
    return "\n".join(parts)


def _headline(cell: dict[str, Any]) -> str:
    rounds = len(cell["contestants"]["xent"].get("both", {}).get("ms_all", ()))
    size = _size(_logit_bytes(cell))
    return f"{_name(cell)}: {size} of logits, {rounds} rounds{disturbance(cell)}"


def disturbance(cell: dict[str, Any]) -> str:
    """Return an addition to a headline where other processes were busy meanwhile, or nothing."""
    if not _disturbed(cell):
        return ""
    return f"; DISTURBED: other processes kept {cell['others_busy']:.1f} cores busy"


def _disturbed(cell: dict[str, Any]) -> bool:
    """Return True if others kept the processor busier than an idle system does."""
    return cell["others_busy"] is not None and cell["others_busy"] > 0.15


def _logit_bytes(cell: dict[str, Any]) -> int:
    return cell["rows"] * cell["classes"] * (4 if cell["dtype"] == "float32" else 2)


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{digits(number)} {unit}"
        number /= 1024
    return f"{digits(number)} GiB"


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['rows']} x {cell['classes']} {cell['dtype']}"


def _time_table(entries: dict[str, dict[str, Any]], modes: Sequence[str]) -> str:
    rows = [[""], [""]]
    for mode in modes:
        rows[0] += [TITLES[mode], "", "", "", ""]
        rows[1] += ["ms", "spread", "vs xent", "copies", "ns"]
    for name, entry in entries.items():
        if any(mode in entry for mode in modes):
            rows.append([name, *(text for mode in modes for text in _time_columns(entry, mode))])
    return aligned(rows)


def _time_columns(entry: dict[str, Any], mode: str) -> list[str]:
    time = entry.get(mode)
    if time is None:
        return [""] * 5
    copies = f"{time['copies']:.2f}" if "copies" in time else ""
    return [digits(time["ms"]), spread(time), ratio_text(time), copies, digits(time["ns"])]


def spread(time: dict[str, Any]) -> str:
    """Return the distance of the quartiles as a share of the median."""
    low, high = time["ms_quartiles"]
    return f"{100 * (high - low) / time['ms']:.0f}%"


def ratio_text(time: dict[str, Any]) -> str:
    """Return how many times as long as xent a contestant takes, marked where xent is slower."""
    if "ratio" not in time:
        return ""
    return f"{time['ratio']:.2f}x" + (" LOSS" if _lost(time) else "")


def _lost(time: dict[str, Any]) -> bool:
    """Return True if the ratio to xent is below 1 when rounded to two decimal places."""
    return round(time["ratio"], 2) < 1


def _error_table(entries: dict[str, dict[str, Any]]) -> str:
    rows = [
        ["errors", "random logits", "", "", "confident by 20 nats", "", ""],
        ["", *("loss/ulp", "gradient", "at target") * 2],
    ]
    for name, entry in entries.items():
        if "errors" in entry:
            found = entry["errors"]
            numbers = [found[batch][e] for batch in ("random", "confident") for e in ERRORS]
            rows.append([name, *map(error_text, numbers)])
    return aligned(rows)


def error_text(number: float) -> str:
    """Return an error as text, with an exponent where the error is small."""
    return f"{number:.2f}" if 0.01 <= number < 100 else f"{number:.1e}"


def memory_text(cells: list[dict[str, Any]]) -> str:
    """Return a table of peak memory beyond the inputs, in MiB: forward / forward+backward."""
    cells = [c for c in cells if any("memory" in e for e in c["contestants"].values())]
    if not cells:
        return "no memory to measure: the logits are too small"
    names = [n for n in cells[0]["contestants"] if n != "copy"]
    rows = [["MiB beyond inputs", "logits", *names]]
    for cell in cells:
        entries = cell["contestants"]
        size = digits(_logit_bytes(cell) / 2**20)
        rows.append([_name(cell), size, *(_memory(entries.get(n, {})) for n in names)])
    explanation = "(forward / forward+backward, the gradient included)"
    return f"{aligned(rows)}\n  {explanation}"


def _memory(entry: dict[str, Any]) -> str:
    if "memory" not in entry:
        return "-"
    return " / ".join(f"{entry['memory'][mode] / 2**20:.1f}" for mode in ("forward", "both"))


def verdict(cells: list[dict[str, Any]]) -> str:
    """Return a count of comparisons in which xent is faster, and every case in which it is not."""
    rivals = list(_rivals(cells))
    lost = [text for text, time in rivals if _lost(time)]
    lines = [f"xent is at least as fast in {len(rivals) - len(lost)} of {len(rivals)} comparisons."]
    if any(map(_disturbed, cells)):
        lines.append("The machine was busy with other processes: repeat this when it is idle.")
    return "\n".join([*lines, *(f"  slower: {text}" for text in lost)])


def _rivals(cells: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for cell in cells:
        for name, entry in cell["contestants"].items():
            for mode in TITLES:
                if name != "xent" and "ratio" in entry.get(mode, {}):
                    text = f"{_name(cell)}, {TITLES[mode]}: {name} {entry[mode]['ratio']:.2f}x"
                    yield text, entry[mode]


def markdown(result: dict[str, Any]) -> str:
    """Return a compact table for a README."""
    cells = result["cells"]
    rivals = [n for n in cells[0]["contestants"] if n not in ("xent", "copy")]
    titles = ["logits", "xent, ms", *rivals, "copies", *(f"{n}, forward" for n in rivals)]
    lines = [
        "Forward and backward in milliseconds; how many times as long the others take (**bold**: "
        "xent is slower); xent in plain copies of the logits; the same ratios for forward alone.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{'---|' * len(titles)}",
    ]
    lines += [f"| {' | '.join(_markdown_row(cell, rivals))} |" for cell in cells]
    if any(map(_disturbed, cells)):
        lines += ["", "\\* while other processes kept the machine busy."]
    return "\n".join([*lines, "", machine_text(result["machine"]) + "."])


def _markdown_row(cell: dict[str, Any], rivals: list[str]) -> list[str]:
    entries = cell["contestants"]
    ours = entries["xent"].get("both", {})
    return [
        _name(cell) + (" \\*" if _disturbed(cell) else ""),
        digits(ours["ms"]) if ours else "-",
        *(markdown_ratio(entries[name].get("both", {})) for name in rivals),
        f"{ours['copies']:.1f}" if "copies" in ours else "-",
        *(markdown_ratio(entries[name].get("forward", {})) for name in rivals),
    ]


def markdown_ratio(time: dict[str, Any]) -> str:
    """Return how many times as long as xent a contestant takes, bold where xent is slower."""
    if "ratio" not in time:
        return "-"
    text = f"{time['ratio']:.2f}" if time["ratio"] < 10 else f"{time['ratio']:.0f}"
    return f"**{text}**" if _lost(time) else text


def in_one_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def digits(number: float) -> str:
    """Return a number with three significant digits and no exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}".rstrip(".")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = map(str.rjust, others, widths[1:])
        lines.append("  " + "  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
