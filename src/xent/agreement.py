"""Agreement of ranks on a call, before the first of its collectives.

A collective of ranks that disagree hangs, aborts the process or gives a wrong number. So every call
on logits whose classes are split over ranks begins with one gather of a record of fixed size, which
cannot mismatch: what the rank is about to do, or the error that it has found in its own arguments.
Every rank reads all records, and all raise, or none.

On an accelerator the processor would wait for each record. There the ranks gather records once for
each signature, which holds no values of tensors.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .collectives import gathered

_MOST_AGREED = 1000  # signatures of a group
# The signatures that the ranks of a group agree on, and the height of their chunks.
_AGREED: weakref.WeakKeyDictionary[Any, dict[Record, int]] = weakref.WeakKeyDictionary()

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LEARNED = ("features", "scale", "class_bias", "class_scale")  # what `reach` is given
_ODD = (0x9E3779B97F4A7C1, 0x5851F42D4C957F2D, 0x14057B7EF767814F)  # of the checksum
_TEXT = 512  # bytes of a record that hold words
_Describe = Callable[[int], str]


class Record(NamedTuple):
    """A description of what a rank is about to do: numbers, and words of up to 512 bytes."""

    failed: int = 0  # 1: the words are those of an error
    rows: int = 0
    start: int = 0
    stop: int = 0
    classes: int = 0
    dtype: int = 0
    statistics: int = 0  # the fields that the kernels compute, as bits
    options: int = 0  # a checksum
    targets: int = 0  # a checksum of class indices; 0 for probabilities
    learned: int = 0  # which of the tensors that all ranks have require a gradient, as bits
    height: int = 0  # rows of a chunk behind a head, as this rank alone would take them
    products: int = 0  # the types of the products with a head
    words: str = ""

    def packed(self, device: torch.device) -> Tensor:
        """The record as one tensor of int64."""
        text = self.words.encode()[:_TEXT].ljust(_TEXT, b"\0")
        words = torch.frombuffer(bytearray(text), dtype=torch.int64)
        numbers = torch.tensor(self[:-1], dtype=torch.int64, device="cpu")
        return torch.cat([numbers, words]).to(device)


def unpacked(record: Tensor) -> Record:
    """The record of a packed one."""
    numbers, words = record[: len(Record._fields) - 1].tolist(), record[len(Record._fields) - 1 :]
    text = bytes(words.view(torch.uint8).tolist()).rstrip(b"\0")
    return Record._make([*numbers, text.decode(errors="replace")])


class Agreement:
    """Consent of all ranks of a group to one call.

    Args:
        name: the function.
        given: its arguments by name.
        group: the process group.
        device: where collectives of the group take their tensors.
    """

    def __init__(
        self, name: str, given: Mapping[str, Any], group: Any, device: torch.device
    ) -> None:
        self.name, self.given, self.group, self.device = name, given, group, device
        self.reached = False  # True once the records have been gathered
        self.height = 0  # rows of a chunk that all ranks have the memory for

    def reach(
        self, dtype: torch.dtype, rows: int, classes: tuple[int, int, int], fields: int,
        labels: Tensor | None, learned: Sequence[Tensor | None], height: int,
        products: Sequence[torch.dtype],
    ) -> None:  # fmt: skip
        """Gather the records; raise unless all ranks are about to do the same.

        Args:
            dtype: the dtype of the logits.
            rows: number of rows.
            classes: the first class of this rank, one past the last, and how many all ranks have.
            fields: the fields that kernels compute, as bits.
            labels: class indices; None for probabilities.
            learned: the tensors that all ranks have and whose gradients they add up, if they
                require one.
            height: the rows of a chunk behind a head; 0 without a head.
            products: the types of the products with a head.
        """
        given = {k: v for k, v in self.given.items() if k not in _PER_RANK}
        words = ", ".join(f"{k}={self._shown(v)}" for k, v in given.items())
        sums = [self._checksum(x) for x in given.values() if isinstance(x, Tensor)]
        options = zlib.crc32(repr((self.name, words, sums)).encode())
        own = Record(
            0, rows, *classes, _DTYPES.index(dtype), fields, options, self._checksum(labels),
            sum(1 << k for k, x in enumerate(learned) if x is not None and _is_learned(x)),
            height, sum(len(_DTYPES) ** k * _DTYPES.index(x) for k, x in enumerate(products)),
            f"{self.name}({words})",
        )  # fmt: skip
        known = _AGREED.setdefault(self.group, {}) if _reading_waits(self.device) else {}
        if own not in known:
            records = self._exchanged(own)
            _compare(records, self.name)
            if len(known) >= _MOST_AGREED:  # as with an option that is another at each step
                known.clear()
            known[own] = min(record.height for record in records)
        self.reached, self.height = True, known[own]
        self.given = {}  # a loss that is kept must not keep the logits

    def refuse(self, error: Exception) -> None:
        """Tell the other ranks of an error of this rank, unless the records are gathered."""
        if not self.reached:
            self._exchanged(Record(failed=1, words=f"{type(error).__name__}: {error}"))

    def _shown(self, value: Any) -> str:
        """An option in words, with a part of the checksum of a tensor."""
        if not isinstance(value, Tensor):
            return repr(value)
        gradient = " that requires a gradient" * _is_learned(value)
        return f"a tensor {tuple(value.shape)}{gradient} #{self._checksum(value) % 2**16:04x}"

    def _checksum(self, x: Tensor | None) -> int:
        return 0 if x is None or _reading_waits(self.device) else _checksum(x)

    def _exchanged(self, own: Record) -> list[Record]:
        self.reached = True
        table = gathered(own.packed(self.device), self.group).cpu()
        return [unpacked(record) for record in table]


_PER_RANK = ("input", "target", "class_dim")  # arguments that the options do not hold


def _reading_waits(device: torch.device) -> bool:
    """True where a number can be read only after all that was asked of the device before."""
    return device.type != "cpu"


def _is_learned(x: Tensor) -> bool:
    """True for a tensor that gets a gradient, so that its call may take another way."""
    return x.requires_grad and torch.is_grad_enabled()


def _checksum(x: Tensor) -> int:
    """A number that is the same for equal tensors and hardly for others."""
    if x.is_floating_point():
        x = x.detach().double().contiguous().view(torch.int64)
    flat = x.detach().reshape(-1).to(torch.int64)
    places = torch.arange(1, flat.numel() + 1, dtype=torch.int64, device=flat.device)
    # Odd factors lose no digit; shifts bring the high digits, which differ most, to the low ones.
    mixed = (flat + places * _ODD[0]) * _ODD[1]
    mixed = (mixed ^ (mixed >> 29)) * _ODD[2]
    return int((mixed ^ (mixed >> 32)).sum())


def same_on_all(name: str, numbers: Mapping[str, int], group: Any, device: torch.device) -> None:
    """Gather a few numbers of a call, before a collective that needs them to be the same.

    Raises:
        ValueError: on all ranks, if some have other numbers.
    """
    own = torch.tensor(list(numbers.values()), dtype=torch.int64, device=device)
    table = gathered(own, group).tolist()
    if any(row != table[0] for row in table):
        found = "; ".join(
            f"rank {k}: " + ", ".join(f"{n}={x}" for n, x in zip(numbers, row, strict=True))
            for k, row in enumerate(table)
        )
        raise ValueError(f"{name}: the ranks must agree on {', '.join(numbers)}. {found}")


def _learned(record: Record) -> str:
    """The tensors of a record that require a gradient."""
    names = [name for k, name in enumerate(LEARNED) if record.learned >> k & 1]
    return ", ".join(names) or "none"


def _compare(records: Sequence[Record], name: str) -> None:
    """Raise unless all ranks are about to do the same, on shards that fit together."""
    for rank, record in enumerate(records):
        if record.failed:
            raise ValueError(
                f"{name}: rank {rank} of the group refuses its arguments: {record.words}"
            )
    differences: list[tuple[str, str, _Describe]] = [
        ("options", "another call or other options", lambda k: records[k].words),
        ("statistics", "other statistics", lambda k: records[k].words),
        ("rows", "another number of rows", lambda k: f"{records[k].rows} rows"),
        ("dtype", "another dtype of `input`", lambda k: str(_DTYPES[records[k].dtype])),
        ("classes", "another number of `classes`", lambda k: f"{records[k].classes} classes"),
        (
            "products",
            'another type of products with the head (pass products="float32")',
            lambda k: ", ".join(str(_DTYPES[n]) for n in divmod(records[k].products, len(_DTYPES))),
        ),
        ("learned", "other tensors that require a gradient", lambda k: _learned(records[k])),
    ]
    for field, what, describe in differences:
        if len({getattr(record, field) for record in records}) > 1:
            found = "; ".join(f"rank {k}: {describe(k)}" for k in range(len(records)))
            raise ValueError(f"{name}: some ranks have {what}. {found}")
    pieces = sorted((r.start, r.stop) for r in records if r.stop > r.start)
    ends = [0, *(stop for _, stop in pieces)]
    if [start for start, _ in pieces] != ends[:-1] or ends[-1] != records[0].classes:
        found = "; ".join(f"rank {k}: {r.start} to {r.stop}" for k, r in enumerate(records))
        raise ValueError(
            f"{name}: the classes of the ranks must be those from 0 to {records[0].classes}, each "
            f"on one rank, the end not included. {found}"
        )
    others = [k for k, r in enumerate(records) if r.targets != records[0].targets]
    if others:
        raise ValueError(
            f"{name}: `target` is not the same on rank 0 and rank {others[0]}. Where the classes "
            f"are split over ranks, all ranks of the group take the same rows. For rows of its own "
            f"on each rank, each with all classes, call the loss without `shard` and pass "
            f"normalizer=xent.parallel.global_normalizer(target)"
        )
