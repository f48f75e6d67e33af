"""A small language of losses: weighted sums of terms of the row statistics.

:mod:`xent.learn.loss_search` searches among such sums, and prints the best one found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import RowStatistics, row_loss

__all__ = ["Formula", "Term"]

DIGITS = 4  # significant digits of the numbers in a formula, printed and judged alike


class Term(NamedTuple):
    """A term of the sum: its source code, its value, and the statistics that it requests.

    In the code, ``{e}`` stands for the exponent, if the term has one. Powers are written as
    exponentials of a logarithm, whose gradient is finite at 0.
    """

    code: str
    value: Callable[[RowStatistics, Any], Tensor]
    needs: tuple[str, ...] = ()

    @property
    def has_exponent(self) -> bool:
        """True if the term has an exponent to fit."""
        return "{e}" in self.code


TERMS = (
    Term("-s.log_prob", lambda s, _: -s.log_prob),
    Term("(s.lse - s.mean)", lambda s, _: s.lse - s.mean, ("mean",)),
    Term("s.entropy", lambda s, _: s.entropy, ("entropy",)),
    Term("({e} * s.log_miss).exp()", lambda s, e: (e * s.log_miss).exp()),
    Term("({e} * s.log_prob).exp()", lambda s, e: (e * s.log_prob).exp()),
)
EXPONENTS = sum(term.has_exponent for term in TERMS)
CROSS_ENTROPY = (1.0, *[0.0] * (len(TERMS) + EXPONENTS - 1))  # a point of the search


@dataclass(frozen=True)
class Formula:
    """A weighted sum of ``TERMS``: a loss that prints as the body of ``@xent.row_loss``.

    Args:
        coefficients: one for each term.
        exponents: one for each term that has one.

    Example:
        >>> from xent.learn.loss_search import Formula
        >>> formula = Formula((1.0, 0.25, 0.0, -0.5, 0.0), (2.0, 1.0))
        >>> print(formula)
        1.0 * -s.log_prob + 0.25 * (s.lse - s.mean) - 0.5 * (2.0 * s.log_miss).exp()
        >>> formula.needs
        ('mean',)
        >>> import torch
        >>> f"{formula.loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item():.4f}"
        '0.4016'
    """

    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.coefficients) != len(TERMS) or len(self.exponents) != EXPONENTS:
            raise ValueError(
                f"a formula takes {len(TERMS)} coefficients and {EXPONENTS} exponents, got "
                f"{len(self.coefficients)} and {len(self.exponents)}"
            )

    @classmethod
    def at(cls, point: Sequence[float]) -> Formula:
        """The formula at a point of the search space: coefficients, then log2 of the exponents."""
        numbers = [float(v) for v in point]
        exponents = [2.0 ** max(-8.0, min(8.0, v)) for v in numbers[len(TERMS) :]]
        return cls(tuple(map(_rounded, numbers[: len(TERMS)])), tuple(map(_rounded, exponents)))

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that the loss requests."""
        used = zip(TERMS, self.coefficients, strict=True)
        return tuple(need for term, c in used if c for need in term.needs)

    @cached_property
    def loss(self) -> Callable[..., Tensor]:
        """The loss itself, with everything the frame gives it."""

        def found(s: RowStatistics) -> Tensor:
            return weighted_sum(s, self.coefficients, self.exponents)

        return row_loss(needs=self.needs, soft=False)(found)

    def source(self, name: str = "found_loss") -> str:
        """The definition of the loss, ready to be pasted.

        Args:
            name: of the function.
        """
        names = ", ".join(f'"{need}"' for need in self.needs)
        names = f"({names})" if len(self.needs) > 1 else names
        asks = f"needs={names}, " if names else ""
        lines = [f"@xent.row_loss({asks}soft=False)", f"def {name}(s):", "    return ("]
        return "\n".join([*lines, *(f"        {term}" for term in self._terms()), "    )\n"])

    def __str__(self) -> str:
        return " ".join(self._terms())

    def _terms(self) -> list[str]:
        """The terms as they are written one after the other, each with its sign."""
        exponents = iter(self.exponents)
        terms: list[str] = []
        for term, c in zip(TERMS, self.coefficients, strict=True):
            code = term.code.format(e=next(exponents) if term.has_exponent else None)
            if c and terms:
                terms.append(f"{'-' if c < 0 else '+'} {abs(c)} * {code}")
            elif c:
                terms.append(f"{c} * {code}")
        return terms or ["0.0 * s.lse"]


def weighted_sum(s: RowStatistics, coefficients: Sequence[Any], exponents: Sequence[Any]) -> Tensor:
    """The sum of the terms; coefficients and exponents are numbers, or one per row.

    Args:
        s: the statistics.
        coefficients: one for each term; a number 0 leaves its term out.
        exponents: one for each term that has one.
    """
    remaining = iter(exponents)
    total = torch.zeros_like(s.log_prob)
    for term, c in zip(TERMS, coefficients, strict=True):
        exponent = next(remaining) if term.has_exponent else None
        if isinstance(c, Tensor) or c:
            total = total + c * term.value(s, exponent)
    return total


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
