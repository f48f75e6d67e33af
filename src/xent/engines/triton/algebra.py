"""The algebra of a row in kernels: the source of :mod:`xent.engines.rows.algebra`, for Triton.

The functions have the source of that module, word for word. Each function gets other globals: a
copy of the names of that module, in which ``xp``, ``log1p`` and the others below are replaced by
functions of kernels. Triton compiles the functions (or, in tests, interprets them).
"""

from __future__ import annotations

import types

import triton
import triton.language as tl

from ..rows import algebra as text
from . import arithmetic

# The names that the source imports, and what they stand for in a kernel.
_MEANING = {
    "xp": tl,
    "Tensor": tl.tensor,
    "INF": arithmetic.INF,
    "constant": arithmetic.constant,
    "log1p": arithmetic.log1p,
    "logit_of_exp": arithmetic.logit_of_exp,
    "one_minus_exp": arithmetic.one_minus_exp,
    "product": arithmetic.product,
}


def _compiled() -> types.SimpleNamespace:
    """Return the functions of the source, compiled for kernels, and its named tuples."""
    names = {**vars(text), **_MEANING}
    for name, function in vars(text).items():
        written_there = getattr(function, "__module__", None) == text.__name__
        if isinstance(function, types.FunctionType) and written_there and name not in _MEANING:
            copy = types.FunctionType(function.__code__, names, name)
            copy.__module__ = __name__
            names[name] = triton.jit(copy)
    return types.SimpleNamespace(**names)


_algebra = _compiled()
fields_of_empty_rows = _algebra.fields_of_empty_rows
entropy_of = _algebra.entropy_of
finite_or_nan = _algebra.finite_or_nan
odds_of = _algebra.odds_of
gradient_at = _algebra.gradient_at
coefficient_of_mean = _algebra.coefficient_of_mean
coefficients_of_entropy = _algebra.coefficients_of_entropy
coefficients_of_index = _algebra.coefficients_of_index
coefficients_of_powers = _algebra.coefficients_of_powers
coefficients_of_soft = _algebra.coefficients_of_soft
sigmoid = _algebra.sigmoid
soft_fields = _algebra.soft_fields
unit_of = _algebra.unit_of
Coefficients = text.Coefficients

# The place in `EmptyRow` of the value of each field; 0 for a field without an entry here.
_PLACES = {field: text.EmptyRow._fields.index(entry) for field, entry in text.IN_EMPTY_ROW.items()}


@triton.constexpr_function
def empty_entry(field):
    """Return the place in :class:`~xent.engines.rows.algebra.EmptyRow` of the value of a field."""
    return _PLACES[field] if field in _PLACES else 0  # noqa: SIM401 - Triton reads this, too
