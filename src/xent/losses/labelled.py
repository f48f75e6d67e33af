"""Examples with labels, each compared with all others: a frame for losses of a batch.

Each example is a row, the examples that it is compared with are its classes, and those with its
label, its positives, are the set of right ones. Neither the similarities of all pairs are in memory
at once, nor the matrix that says which examples belong together: a chunk of rows is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._check import whole_number
from ..engines.modes import wide_dtype
from ..engines.rows.labels import check_labels
from ..engines.rows.problem import Index
from ..frames.by_chunks import reduce_by_chunks
from ..frames.docstrings import complete, described, sections
from ..frames.reduction import Reduce, Reduction, RowValues, read_reduction
from ..heads.kept import rows_of
from ..heads.logits import LinearLogits, Products
from ..heads.problem import make_problem
from ..hyperparameters import Hyperparameters
from ..overrides import overridable
from ..targets import any_class
from .classification import cross_entropy
from .sets import lse_of
from .similarity import at_temperature, check_features, labels_of, normalized, paired

KeyMask = Callable[[Tensor], Tensor]


class Compared(NamedTuple):
    """Comparison of some rows with all columns."""

    z: Tensor  # (n, M), similarities, float32 at least
    same: Tensor  # (n, M), bool: the columns that belong to the row, its positives
    out: Tensor | None  # (n, M), bool: columns that take no part; None for no column
    positives: Tensor  # (n,), how many there are, float64

    @property
    def other(self) -> Tensor:
        """The negatives, bool."""
        return ~(self.same if self.out is None else self.same | self.out)

    @property
    def apart(self) -> Tensor:
        """The similarities, -inf for columns that take no part."""
        return self.z if self.out is None else self.z.masked_fill(self.out, -torch.inf)

    def mean(self) -> Tensor:
        """The mean similarity of the positives; 0 where there is none."""
        total = torch.where(self.same, self.z, 0).sum(-1, dtype=torch.float64)
        return total / self.positives.clamp(min=1)


def lse(z: Tensor, among: Tensor) -> Tensor:
    """Log-sum-exp of ``z``, (n, M), over the columns of a mask; -inf where there is none."""
    return lse_of(make_problem(z, any_class(z)), torch.where(among, z, -torch.inf))


class Labelled(NamedTuple):
    """Rows and columns that belong together where their labels are equal.

    With ``itself`` row n is column n, which takes no part, and neither does a column that is
    ignored. ``key_mask`` says of some rows which columns take part; positives always do.
    """

    row: Tensor  # (N,), int64
    column: Tensor  # (M,), int64
    ignore_index: int
    itself: bool = False
    key_mask: KeyMask | None = None

    @property
    def columns(self) -> Tensor | None:
        """A mask of the columns that take part whatever the row; None for all."""
        return self.column != self.ignore_index if self.itself else None

    def counts(self) -> tuple[Tensor, Tensor]:
        """The number of positives of each row, and of its negatives before ``key_mask``."""
        ranked = self.column.sort().values
        row = self.row.contiguous()
        first = torch.searchsorted(ranked, row)
        alike = torch.searchsorted(ranked, row, right=True) - first
        columns = self.columns
        total = self.column.shape[0] if columns is None else columns.sum()
        return alike - int(self.itself), total - alike

    def compare(self, index: Index, z: Tensor, positives: Tensor) -> Compared:
        """Compare some rows, given their similarities and how many positives they have."""
        same, out = self.row[index].unsqueeze(-1) == self.column, None  # (n, M)
        number = torch.arange(self.row.shape[0], device=z.device)[index]
        if self.itself:
            itself = number.unsqueeze(-1)
            same = same.scatter(1, itself, 0)
            out = (~same & (self.column == self.ignore_index)).scatter(1, itself, 1)
        if self.key_mask is not None:
            masked = ~(_masked(self.key_mask, number, same) | same)
            out = masked if out is None else out | masked
        wide = torch.promote_types(z.dtype, torch.float32)
        return Compared(z.to(wide), same, out, positives[index].double())

    def reduce(
        self,
        source: LinearLogits,
        body: Callable[[Compared], Tensor],
        reduce: Reduce,
        *,
        leaves_out: str = "",
    ) -> Tensor:
        """The reduction of ``body`` over the rows.

        Args:
            source: the similarities.
            body: gives one value per row.
            reduce: the options of the call.
            leaves_out: rows without what are left out: ``"positives"``, ``"negatives"`` (rows
                without either), or ``""`` for ignored rows only.
        """
        positives, negatives = self.counts()
        kept = self.row != self.ignore_index
        if leaves_out:
            kept = kept & (positives > 0)
        if leaves_out == "negatives":
            kept = kept & (negatives > 0)
        kept, reduce = reduce.counting(kept)

        def values_of(index: Index, z: Tensor) -> RowValues:
            compared = z.numel() > 0  # without columns there are no classes
            values = body(self.compare(index, z, positives)) if compared else z.sum(-1)
            here = kept[index]
            return RowValues(values.double(), here, here.double())

        read = (self.row, self.column, kept, positives)
        return reduce_by_chunks((source,), rows_of(kept), values_of, read, reduce)


def _masked(key_mask: KeyMask, rows: Tensor, like: Tensor) -> Tensor:
    """The mask of the columns of some rows, from the caller's function."""
    mask = key_mask(rows)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != like.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else mask
        raise ValueError(
            f"`key_mask` must return booleans for the rows and all keys, shape "
            f"{tuple(like.shape)}, True for a key that takes part; got {got}"
        )
    return mask


def nll_of_positives(c: Compared) -> Tensor:
    """Minus the log-probability of each positive among all columns; the mean over positives."""
    # A soft target keeps its largest class out of the sum, so a sure pair keeps all digits.
    total = cross_entropy(c.apart, c.same.to(c.z.dtype), reduction="none").double()
    return total / c.positives.clamp(min=1)  # 0 / 0 of a row that is left out would spread


def belonging(
    logits: LinearLogits,
    target: Tensor | None,
    labels: Tensor | None,
    key_labels: Tensor | None,
    ignore_index: int,
    key_mask: KeyMask | None,
) -> Labelled:
    """Tell which keys belong to which queries: by their numbers, ``target``, or by labels."""
    queries, keys = logits.hidden, logits.weight
    if labels is None and key_labels is not None:
        raise ValueError("`key_labels` are compared with `labels`; pass `labels`, too")
    if labels is None:
        row = paired(logits) if target is None else labels_of("target", target, "query", queries)
        check_labels(row, keys.shape[0], ignore_index)
        column = torch.arange(keys.shape[0], device=logits.device)
        return Labelled(row, column, ignore_index, key_mask=key_mask)
    if target is not None:
        raise ValueError("`target` and `labels` both say which keys belong; leave one out")
    row = labels_of("labels", labels, "query", queries)
    if key_labels is None and keys.shape[0] != queries.shape[0]:
        raise ValueError(
            f"{keys.shape[0]} keys cannot have the labels of {queries.shape[0]} queries; pass "
            f"`key_labels`"
        )
    column = row if key_labels is None else labels_of("key_labels", key_labels, "key", keys)
    return Labelled(row, column, ignore_index, key_mask=key_mask)


# ---- the frame ---------------------------------------------------------------------------------

_ARGUMENTS = {
    "features": "``x``, ``(N, D)``; several views of the same examples come one after the other.",
    "labels": "``y``, integers, ``(N,)``: classes, or with views the number of the example.",
    "normalize": "divide features by their length, so that similarities are cosines.",
    "ignore_index": "label that marks rows to leave out; no other row is compared with them.",
    "reduction": '``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept,\n'
    "    or by the sum of their ``row_weight``.",
    "normalizer": 'another divisor of the mean: a number or 0-d tensor, or ``"count"`` for the\n'
    "    number of rows kept.",
    "row_weight": "factor on the loss of each row, ``(N,)``. A row of weight 0 has no loss, but\n"
    "    the others are compared with it.",
    "empty": '``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.',
    "max_workspace": "bytes of a chunk of similarities, as for :class:`xent.LinearLogits`.",
    "products": "the type of the products of 16-bit features, as for :class:`xent.LinearLogits`.",
}
_RETURNS = """\
Returns:
    In nats; a scalar, or ``(N,)`` for ``reduction="none"``, in the dtype of ``features``. The
    similarities are never all in memory.
"""
_RAISES = """\
Raises:
    ValueError: for shapes that do not fit, or a value that an option cannot take.
    TypeError: for dtypes that do not fit.
"""


def labelled_loss(
    *, leaves_out: str = "", unit: bool = True, distances: bool = False
) -> Callable[[Callable[..., Tensor]], Any]:
    """Turn a function of :class:`Compared` into a loss of features and labels. A decorator.

    A hyperparameter ``temperature`` of the function divides the similarities that it gets.

    Args:
        leaves_out: rows without what are left out, as for :meth:`Labelled.reduce`.
        unit: the default of ``normalize``.
        distances: whether a similarity is minus the squared distance (but for a number that all
            similarities of a row share) or the scalar product.
    """

    def made(body: Callable[..., Tensor]) -> Any:
        hyper = Hyperparameters(body)

        @functools.wraps(body)
        def loss(
            features: Tensor,
            labels: Tensor,
            *,
            normalize: bool = unit,
            ignore_index: int = -100,
            reduction: Reduction = "mean",
            normalizer: float | Tensor | str | None = None,
            row_weight: Tensor | None = None,
            empty: Literal["nan", "zero"] = "nan",
            max_workspace: int | None = None,
            products: Products | None = None,
            **hyperparameters: Any,
        ) -> Tensor:
            settings = hyper.settings(hyperparameters)
            check_features(("features", features), ("features", features))
            labels = labels_of("labels", labels, "features", features)
            ignore_index = whole_number("ignore_index", ignore_index)
            reduce = read_reduction(
                reduction, normalizer, row_weight, empty, labels.shape, features.device
            )
            # NaN in an ignored row must not spread.
            kept = labels != ignore_index
            x = torch.where(kept.unsqueeze(-1), features, 0)
            x = normalized(x) if normalize else x
            of_head: Any = {"max_workspace": max_workspace, "products": products}
            source = _distances(x, kept, **of_head) if distances else LinearLogits(x, x, **of_head)
            if "temperature" in settings:
                source = at_temperature(source, settings["temperature"])
            pairs = Labelled(labels, labels, ignore_index, itself=True)
            result = pairs.reduce(
                source, functools.partial(body, **settings), reduce, leaves_out=leaves_out
            )
            return result.to(features.dtype)

        explain = functools.partial(_docstring, body)
        return overridable(described(loss, hyper.parameters, (), explain))

    return made


def _distances(
    x: Tensor, kept: Tensor, max_workspace: int | None, products: Products | None
) -> LinearLogits:
    """Minus the squared distances of features from each other, but for a number of each row."""
    narrow, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    # A common offset changes no distance, but would cost the digits of the difference below.
    center = x.detach().to(wide_dtype(x)).sum(0) / kept.sum().clamp(min=1)
    x = (x - center).to(narrow if products == "input" else wide)
    bias = -x.to(wide).square().sum(-1)  # -|a - b|^2 = 2 a b - |b|^2 - |a|^2
    head = LinearLogits(2 * x, x, max_workspace=max_workspace, products=products)
    return head.absorb(None, bias)


def _docstring(body: Callable[..., Any], names: list[str]) -> str:
    """The docstring of a body with the arguments of the frame; own words about one come first."""
    doc = inspect.cleandoc(body.__doc__ or "")
    own = sections(doc).get("Args", "")
    told = {name: text for name, text in _ARGUMENTS.items() if f"    {name}: " not in own}
    return complete(doc, {n: told[n] for n in names if n in told}, _RETURNS, _RAISES)
