"""Model of the time of the kernels for GPUs. It measures nothing.

``python -m benchmarks.readme`` writes its tables into docs/gpu.md. A kernel takes the longer of two
times: that of its bytes at the rate of a copy, and that of its instructions. A linear head takes
the time of three products of matrices, and that of what lies between them. :data:`CARD` is an
assumption, which ``python -m benchmarks.gpu.card`` replaces by figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

NUMBERS = 1 << 28  # logits of a table
WIDE = 2  # bytes of a bfloat16 number


class Card(NamedTuple):
    """Rates of a GPU, per second."""

    name: str
    copy: float  # bytes that are read, and bytes that are written, of a plain copy
    issue: float  # instructions of single lanes
    products: float  # operations of products of bfloat16 matrices


CARD = Card("H200", 4.3e12, 26.8e12, 730e12)

# Instructions for a bfloat16 logit, at most; one in float64 counts twice.
# tests/engines/triton/test_compile_kernels.py counts those of the machine code for compute
# capability 9.0.
ONE_SWEEP = {100: 50, 1000: 32, 4096: 25, 128256: 25}  # cross-entropy and gradient of a mean
ROW_LOSS = {100: 55, 1000: 32, 4096: 31}  # the same of another loss, focal_loss, by groups of rows
STATISTICS = {100: 24, 1000: 16, 4096: 16, 128256: 16}  # first of two sweeps
GRADIENT = {100: 20, 1000: 14, 4096: 14, 128256: 14}  # second
IDLE = {100: 28 / 128}  # threads of a row without a class


class Head(NamedTuple):
    """A linear head of bfloat16: rows, features, classes, and bytes of a chunk of logits."""

    rows: int
    features: int
    classes: int
    workspace: int = 1 << 30

    @property
    def products(self) -> float:
        """Operations of logits, gradient of the features and gradient of the weight."""
        return 6.0 * self.rows * self.features * self.classes

    @property
    def chunks(self) -> int:
        """Number of chunks that share the rows evenly, each of a multiple of 128 rows."""
        most = max(128, self.workspace // (WIDE * self.classes) // 128 * 128)
        return -(-self.rows // most)

    def between(self, card: Card) -> float:
        """Seconds beside the products: sweeps over the logits, and sums of the weight's gradient.

        The first chunk writes the sum in float32, the others read and write it, and backward reads
        it once and writes the gradient. One chunk has no sum.
        """
        logits = 3 * WIDE * self.rows * self.classes  # read, read again, written
        entries = self.features * self.classes
        sums = (4 * 2 * (self.chunks - 1) + 4 + WIDE) * entries if self.chunks > 1 else 0
        return (logits + sums) / card.copy


HEADS = (Head(1024, 4096, 128256), Head(4096, 4096, 128256), Head(8192, 4096, 128256))


def seconds(instructions: float, sweeps: int, classes: int, card: Card = CARD) -> float:
    """The time of a kernel that reads or writes :data:`NUMBERS` logits ``sweeps`` times."""
    work = instructions / (1 - IDLE.get(classes, 0.0)) / card.issue
    return NUMBERS * max(sweeps * WIDE / card.copy, work)


def table() -> str:
    """Time of loss and gradient of logits, in percent of the time of a copy."""
    copy = seconds(0, 2, 4096)
    rows = []
    for classes, instructions in ONE_SWEEP.items():
        reads = 3 if classes == 128256 else 2  # a long row is read twice, and written
        one = seconds(instructions, reads, classes)
        any_loss = ROW_LOSS.get(classes)
        two = seconds(STATISTICS[classes], 1, classes) + seconds(GRADIENT[classes], 2, classes)
        of_two = f"{STATISTICS[classes]} and {GRADIENT[classes]}"
        rows.append((
            f"{classes}", f"{instructions}", _percent(copy / one),
            f"{any_loss}" if any_loss else "",
            _percent(copy / seconds(any_loss, 2, classes)) if any_loss else "",
            of_two, _percent(copy / two),
        ))  # fmt: skip
    rate = "of the rate of a copy"
    head = ("classes", "cross-entropy, one sweep", rate, "other losses, by groups", rate,
            "two sweeps", rate)  # fmt: skip
    return _markdown(head, rows)


def table_of_heads() -> str:
    """Time of a linear head beside its three products."""
    rows = []
    for head in HEADS:
        bare = head.products / CARD.products
        whole = bare + head.between(CARD)
        sizes = f"{head.rows} x {head.features} x {head.classes}"
        times = f"{1e3 * bare:.1f}", f"{1e3 * whole:.1f}", _percent(bare / whole)
        rows.append((sizes, f"{head.chunks}", *times))
    names = ("rows x features x classes", "chunks", "bare products, ms", "head, ms",
             "bare / head")  # fmt: skip
    return _markdown(names, rows)


def assumptions() -> str:
    """The figures of the card, in words."""
    return (
        f"Assumed of an {CARD.name}: a copy reads and writes {CARD.copy / 1e12:.1f} TB/s together, "
        f"{CARD.issue / 1e12:.1f} T instructions of lanes are issued in a second, products of "
        f"bfloat16 matrices run at {CARD.products / 1e12:.0f} TFLOP/s. At the rate of a copy that "
        f"is {2 * WIDE * CARD.issue / CARD.copy:.0f} instructions for a logit that is read and "
        f"written."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])
