"""Model of the collectives, bytes and time of classes over ranks. It measures nothing.

``python -m benchmarks.readme`` writes its tables into docs/parallel.md, and the pages draw its
picture (docs/site/cost_picture.py).

Formulas are in N rows that all ranks have, V classes of all ranks, D features, P ranks, K chunks of
a head and b bytes of an activation. Bytes are those that a rank receives when collectives go around
a ring: m (P - 1) for a gather of m bytes of each rank, 2 m (P - 1) / P for an all-reduce of m
bytes, m (P - 1) / P for a reduce-scatter or an all-to-all of m bytes. The bytes of xent are tested
against what really travels (tests/parallel/test_costs.py); those of others were read in their
sources, at the versions named.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xent import shards

MOST_RANKS = 4096
ROWS = (1024, 8192, 65536)  # of a table


class Formula(NamedTuple):
    """A formula as Python writes it: one text gives the number and the words of a page."""

    text: str

    def __call__(self, case: Case) -> float:
        """The number in a case."""
        return eval(self.text, {"__builtins__": {}}, case._asdict())

    def words(self) -> str:
        """The formula in Markdown."""
        return re.sub(r"[A-Za-z]+", r"*\g<0>*", self.text.replace(" * ", " "))


class Case(NamedTuple):
    """The sizes of a call."""

    N: int = 8192
    V: int = 128_256
    D: int = 4096
    P: int = 8
    K: int = 1
    b: int = 2


class Design(NamedTuple):
    """A way to compute the loss of class indices whose logits are split over ranks."""

    name: str
    version: str
    collectives: Formula
    received: Formula
    kept: Formula  # bytes beyond the own logits

    def seconds(self, case: Case, link: Link) -> float:
        """The time of the collectives: that to start each, and that of the bytes."""
        return self.collectives(case) * link.latency + self.received(case) / link.bandwidth


class Link(NamedTuple):
    """An assumption about the way between two ranks."""

    name: str
    bandwidth: float  # bytes per second
    latency: float  # seconds to start a collective


INSIDE = Link("inside a node", 300e9, 15e-6)
BETWEEN = Link("between nodes", 50e9, 40e-6)
FLOPS = 700e12  # of the products of a head, per second


def _design(name: str, version: str, collectives: str, received: str, kept: str) -> Design:
    return Design(name, version, Formula(collectives), Formula(received), Formula(kept))


ONE_GATHER = _design("`shard`, one gather", "", "K", "16 * N * (P - 1)", "16 * N * P")
SMOOTHED = _design("the same with label smoothing", "", "K", "40 * N * (P - 1)", "40 * N * P")
SOFT = _design("the same for probabilities", "", "K", "32 * N * (P - 1)", "32 * N * P")
TWO_STEPS = _design(
    "`shard`, two steps: all-to-all, gather", "", "2 * K", "32 * N * (P - 1) / P", "32 * N"
)
LOSS_PARALLEL = _design(
    "PyTorch `loss_parallel`", "2.13", "3", "6 * b * N * (P - 1) / P", "b * N * V / P"
)
TITAN = _design(
    "torchtitan, 8 chunks", "b5bcd76", "24", "24 * N * (P - 1) / P", "4 * N * V / (8 * P)"
)
MEGATRON = _design("Megatron-LM", "d98e8a6", "3", "24 * N * (P - 1) / P", "4 * N * V / P")
FUSED = _design("Megatron-LM, fused", "d98e8a6", "2", "24 * N * (P - 1) / P", "4 * N * V / P")
LIGER = _design("Liger", "ead96b6", "3", "24 * N * (P - 1) / P", "4 * N * V / P")
LIGER_SMOOTHED = _design(
    "Liger, exact smoothing", "ead96b6", "4", "32 * N * (P - 1) / P", "4 * N * V / P"
)
ENGINE = _design("TransformerEngine", "d0067d0", "1", "12 * N * (P - 1)", "4 * N * V / P")
FLASH = _design(
    "flash-attention", "0251105", "2", "4 * N * (P - 1) + 8 * N * (P - 1) / P", "4 * N * P"
)
GATHERED = _design(
    "a gather of all logits: DTensor, Transformers",
    "2.13, 5.24",
    "1",
    "b * N * V * (P - 1) / P",
    "b * N * V",
)
DESIGNS = (
    ONE_GATHER, SMOOTHED, SOFT, TWO_STEPS, LOSS_PARALLEL, TITAN, MEGATRON, FUSED, LIGER,
    LIGER_SMOOTHED, ENGINE, FLASH, GATHERED,
)  # fmt: skip

FEATURES = Formula("2 * b * N * D * (P - 1) / P")  # all-reduce, or gather and reduce-scatter
FSDP_HEAD = Formula("(b + 4) * V * D * (P - 1) / P")  # gathered weight, reduced gradient


def first_faster(new: Design, old: Design, case: Case, link: Link) -> int | None:
    """The least number of ranks from which on the one design is faster than the other.

    None if that is above :data:`MOST_RANKS`. The times may cross once, no oftener.
    """

    def faster(ranks: int) -> bool:
        at = case._replace(P=ranks)
        return new.seconds(at, link) < old.seconds(at, link)

    counts = range(2, MOST_RANKS + 1)
    place = bisect_left(counts, True, key=faster)
    return counts[place] if place < len(counts) else None


def rows_of_two_steps(link: Link) -> float:
    """Rows times other ranks, N (P - 1), from which two steps are faster than one gather.

    One collective more to start then takes as long as the bytes that it saves, nearly all.
    """
    return link.latency * link.bandwidth / ONE_GATHER.received(Case(N=1, P=2))


def classes_that_hide(case: Case, link: Link) -> float:
    """Classes of a rank whose three products take as long as the features' reduction.

    The products take 6 N D V / P operations; the reduction receives nearly 2 b N D bytes.
    """
    return 2 * case.b * FLOPS / (6 * link.bandwidth)


def rows_of_equal_bytes(case: Case) -> float:
    """Rows of all ranks for which features travel as many bytes as FSDP's head does."""
    return FSDP_HEAD(case) / FEATURES(case._replace(N=1))


# ---- what the page shows -------------------------------------------------------------------------


def table() -> str:
    """Collectives, bytes and memory of the designs."""
    head = ("for *N* rows of class indices", "read at", "collectives", "bytes received",
            "bytes kept beyond the shard")  # fmt: skip
    rows = ((design.name, design.version, *(f.words() for f in design[2:])) for design in DESIGNS)
    return _markdown(head, rows)


def table_of_heads() -> str:
    """Table of what travels for a head beside the numbers of the loss."""
    head = ("of a head", "collectives, forward and backward", "bytes received")
    rows = (
        ("gradient of the features, added up", "*K*, awaited in backward", FEATURES.words()),
        ("features of the ranks gathered, their gradient scattered", "1 and 1",
         FEATURES.words()),
        ("FSDP: weight gathered, gradient scattered", "1 and 1", FSDP_HEAD.words()),
    )  # fmt: skip
    return _markdown(head, rows)


def in_bytes() -> str:
    """An example."""
    case = Case()
    few, many = (design.received(case) for design in (ONE_GATHER, GATHERED))
    return (
        f"For {case.N} rows and {case.V:,} classes in bfloat16 on {case.P} ranks, these are "
        f"{few / 1e6:.1f} MB by `shard`, {LOSS_PARALLEL.received(case) / 1e6:.1f} MB by "
        f"`loss_parallel` and {many / 1e9:.1f} GB by a gather of all logits."
    )


def crossings() -> str:
    """The numbers of ranks from which one design is faster than another, for several rows."""
    pairs = (
        ("two steps before one gather", TWO_STEPS, ONE_GATHER),
        ("Megatron's fused two before one gather", FUSED, ONE_GATHER),
        ("Megatron's three before one gather", MEGATRON, ONE_GATHER),
    )
    rows = []
    for what, new, old in pairs:
        for link in (INSIDE, BETWEEN):
            found = [first_faster(new, old, Case(N=n), link) for n in ROWS]
            rows.append((f"{what}, {link.name}", *map(str, found)))
    return _markdown(("faster from *P* =", *(f"*N* = {n}" for n in ROWS)), rows)


def in_words() -> str:
    """List of the sizes at which each design wins."""
    case = Case()
    many = [rows_of_two_steps(link) for link in (INSIDE, BETWEEN)]
    wide = {link: classes_that_hide(case, link) for link in (INSIDE, BETWEEN)}
    return "\n".join([
        f"- **Two steps** are faster than one gather from about *N* (*P* - 1) = {many[0]:,.0f} "
        f"inside a node and {many[1]:,.0f} between nodes, where the time to start a second "
        f"collective is that of the bytes saved. From three ranks on `shard` takes them above "
        f"{shards.ONE_GATHER:,}.",
        f"- **The reduction of the features' gradient** can hide behind the three products of a "
        f"head where a rank has more than {wide[INSIDE]:,.0f} classes inside a node, "
        f"{wide[BETWEEN]:,.0f} between nodes, at {FLOPS / 1e12:.0f} TFLOP/s: for {case.V:,} "
        f"classes, up to {case.V // wide[INSIDE]:.0f} and {case.V // wide[BETWEEN]:.0f} ranks.",
        f"- **A head over the data-parallel ranks** gathers their features and scatters the sum of "
        f"the gradients. FSDP gathers the weight and scatters its gradient in float32. The "
        f"features are fewer bytes while all ranks together have less than "
        f"{rows_of_equal_bytes(case) / case.V:g} *V* rows: {rows_of_equal_bytes(case):,.0f} for "
        f"{case.V:,} classes in bfloat16.",
        f"- **TransformerEngine's gather** of three float32 has "
        f"{100 - 100 * ENGINE.received(case) / ONE_GATHER.received(case):.0f} % fewer bytes than "
        f"two float64, which are the price of the digits.",
    ])  # fmt: skip


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])
