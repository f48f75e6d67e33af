"""The results of runs as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._package import not_installed
from ..plot.canvas import new_axes, rendered, styled
from .console import note
from .page import table


def report(records: Sequence[dict[str, Any]]) -> str:
    """A table with a column for each run."""
    columns = [_column(record) for record in records]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return table(rows)


def draw(records: Sequence[dict[str, Any]]) -> bytes | None:
    """Draw the curves as PNG, for several runs also over time; None without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        note(f"no picture: {not_installed('matplotlib', 'plot')}")
        return None
    return _drawn(records)


@styled
def _drawn(records: Sequence[dict[str, Any]]) -> bytes:
    from ..plot import curves

    several = len(records) > 1
    axes = new_axes(14 if several else 7, 5, 2 if several else 1)
    curves(records, axes[0], over="step").set_title("Loss after so many steps")
    if several:
        curves(records, axes[1], over="seconds").set_title("The same, after so much time")
    return rendered(axes[0].figure)


def _column(record: dict[str, Any]) -> dict[str, str]:
    r, memory = record["results"], record["results"]["peak_memory_bytes"]
    ranks = record.get("ranks", 1)
    return {
        "head": record["settings"]["head"],
        **({"ranks": str(ranks)} if ranks > 1 else {}),
        "steps": f"{r['steps']:,}",
        "training tokens": f"{r['training_tokens']:,}",
        "validation, nats per token": f"{r['nats_per_token']:.4f}",
        "  bits per token": f"{r['bits_per_token']:.4f}",
        "  perplexity": f"{r['perplexity']:.1f}",
        "  bits per byte *": f"{r['bits_per_byte']:.4f}",
        "  unknown tokens *": f"{r['unknown_share']:.1%}",
        "tokens per second": f"{r['tokens_per_second']:,.0f}",
        "share of time in head and loss **": _share(r.get("head_share_of_time")),
        f"peak memory{' of a rank' * (ranks > 1)}": (
            "not known" if memory is None else f"{memory / 1e9:.2f} GB"
        ),
    }


def _share(share: float | None) -> str:
    """Return a share of time as text; records of earlier versions do not have it."""
    return "not known" if share is None else f"{share:.1%}"


SPELLING = """\
* Per token, all unknown tokens are one class, which flatters. Bits per byte pays for their spelling
  too, 8 bits for each byte and 8 for the end: the length of a code that gives the text back."""
FOOTNOTE = f"""\
{SPELLING}
** From the features of the tokens to their gradient and that of the head: the three products of
  matrices with the embedding, and the cross-entropy between them."""
