"""The contract of an engine: the page for whoever writes a fourth one.

An engine is a module in ``rows/`` for the softmax family, one in ``elements/`` for the sigmoid
family, one in ``dense/`` if it has kernels for losses of all logits of a row, and an entry in
:mod:`xent.engines.choice` that says which tensors its kernels can read. Engines know tensors only,
checked by whoever calls them: no option, no loss, no linear head.
``rows/reference.py`` and ``elements/reference.py`` are the specification, and the laws in the tests
hold for every engine.

To add an engine: a module of each kind, its names in ``choice.ENGINES``, ``choice.KERNELS``, the
two tables ``MODULES`` and ``rows._GRADIENT`` (how the gradient is found, in words), its device in
``choice.kernels_for``, and its sentence in ``choice.where_kernels_run``. An engine that also finds
a loss and its gradient in one sweep (:class:`TotalEngine`) stands in ``rows.TOTALS``, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, dtype

if TYPE_CHECKING:
    from .dense.problem import DenseProblem
    from .elements.problem import ElementProblem
    from .rows.autograd import Total
    from .rows.problem import Problem, Tensors


class Kernels(Protocol):
    """Facts about an engine's kernels, known before anything is computed (``choice.KERNELS``)."""

    @property
    def TYPES(self) -> Sequence[dtype] | dict[dtype, int]:
        """The dtypes of logits, soft targets and weights."""
        ...

    def obstacle_of(self, tensors: Sequence[Tensor | None]) -> str | None:
        """The reason why no kernel can read these tensors, as a sentence ends; None if one can."""
        ...


class RowEngine(Protocol):
    """Losses of rows: statistics, their gradient, and the two at once for losses of one number."""

    def row_statistics(self, problem: Problem) -> tuple[Tensor, bool]:
        """The table of statistics, (fields, N...), float64, and whether no row is known ignored."""
        ...

    def row_gradient(
        self,
        problem: Problem,
        table: Tensor,
        partials: Sequence[Tensor | None],
        out: Tensor | None = None,
    ) -> Tensor:
        """The gradient of the logits for the partial derivatives by each field of the table.

        ``out``, which may be the logits themselves, receives the gradient.
        """
        ...


class TotalEngine(RowEngine, Protocol):
    """An engine that finds a sum over rows and its gradient in one sweep over the logits."""

    @property
    def READS_TENSORS(self) -> bool:
        """True if the divisor may be a 0-d tensor, too, not only a number, a name or None."""
        ...

    def takes(self, problem: Problem, row_weight: Tensor | None) -> bool:
        """True if the engine sums the programs of losses over the rows of this problem."""
        ...

    def total(
        self, tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor | None
    ) -> Tensor:
        """The sum, 0-d.

        ``gradient``, if not None, receives the gradient of the logits for slope 1. It has the
        shape of the logits, and their layout if they are dense; it may be the logits themselves.
        """
        ...

    def total_ahead(
        self, tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor
    ) -> tuple[Tensor, Total]:
        """The sum, and the order for :meth:`follow`, with the notes of the engine.

        ``gradient`` receives the gradient for the slope that the engine expects.
        """
        ...

    def fits(self, slope: Tensor, gradient: Tensor) -> bool:
        """True if the gradient ahead is, or was made, exactly the one for this slope."""
        ...

    def follow(
        self,
        tensors: Tensors,
        row_weight: Tensor | None,
        sum: Total,
        slope: Tensor,
        gradient: Tensor | None,
    ) -> Tensor:
        """The gradient for any slope, over the one of :meth:`total_ahead` if that is there."""
        ...


class ElementEngine(Protocol):
    """Losses of single elements: their sum with its gradient, or one value for each."""

    def loss(
        self, problem: ElementProblem, divisor: Any, ahead: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The sum by a divisor, 0-d, and with ``ahead`` the gradient of the logits for slope 1."""
        ...

    def values(self, problem: ElementProblem) -> Tensor:
        """One value for each element."""
        ...

    def gradient(
        self,
        problem: ElementProblem,
        upstream: Tensor,
        divisor: Any,
        ahead: Tensor | None = None,
    ) -> Tensor:
        """The gradient for slopes ``upstream`` by a divisor, over the one that is there."""
        ...

    def fits(self, slope: Tensor) -> bool:
        """True if a gradient for slope 1 is the one for this slope."""
        ...


class DenseEngine(Protocol):
    """Losses of all logits of a row: values of rows, or their sum with its gradients.

    Gradients are lists of two, by the logits and by those of a teacher; None where not ``needed``.
    A divisor is a number, "weight" or "count" for that of the rows kept, or None for 1; with
    ``never_zero`` a divisor of 0 becomes 1.
    """

    def values(self, problem: DenseProblem) -> Tensor:
        """The weighted value of each row."""
        ...

    def total(
        self,
        problem: DenseProblem,
        divisor: float | str | None,
        needed: Sequence[bool],
        never_zero: bool = False,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The sum over all rows by a divisor, 0-d, and its gradients for slope 1."""
        ...

    def gradients(
        self,
        problem: DenseProblem,
        slope: Tensor,
        divisor: float | str | None,
        needed: Sequence[bool],
        never_zero: bool = False,
        ahead: list[Tensor | None] | None = None,
    ) -> list[Tensor | None]:
        """The gradients for a slope, 0-d or one per row, over those for slope 1 that are there."""
        ...

    def fits(self, slope: Tensor, gradients: list[Tensor | None]) -> bool:
        """True if gradients for slope 1 are, or were made, exactly those for this slope."""
        ...
