"""The algebra of a row in kernels: the source of :mod:`xent.engines.rows.algebra`, for Triton.

The functions are those of that module, word for word. Each gets a copy of the names of the module
in which ``xp``, ``log1p`` and the others below have their meaning in a kernel, and Triton compiles
it (or, in tests, interprets it).
"""

from __future__ import annotations

import types

import triton
import triton.language as tl

from ..rows import algebra as text
from . import arithmetic

# What the names that the text imports mean in a kernel.
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
    """Return the functions of the text, compiled for kernels, and its named tuples."""
    names = {**vars(text), **_MEANING}
    for name, function in vars(text).items():
        written_there = getattr(function, "__module__", None) == text.__name__
        if isinstance(function, types.FunctionType) and written_there and name not in _MEANING:
            copy = types.FunctionType(function.__code__, names, name)
            copy.__module__ = __name__
            names[name] = triton.jit(copy)
    return types.SimpleNamespace(**names)


_algebra = _compiled()
blank_fields = _algebra.blank_fields
entropy_of = _algebra.entropy_of
finite_or_nan = _algebra.finite_or_nan
odds_of = _algebra.odds_of
slope_at = _algebra.slope_at
slope_of_mean = _algebra.slope_of_mean
slopes_of_entropy = _algebra.slopes_of_entropy
slopes_of_index = _algebra.slopes_of_index
slopes_of_powers = _algebra.slopes_of_powers
slopes_of_soft = _algebra.slopes_of_soft
soft_fields = _algebra.soft_fields
unit_of = _algebra.unit_of
Coefficients = text.Coefficients

# The place in `Blank` of the value of each field; 0 for a field that is not here.
_PLACES = {field: text.Blank._fields.index(entry) for field, entry in text.BLANK.items()}


@triton.constexpr_function
def blank_entry(field):
    """Return the place in :class:`~xent.engines.rows.algebra.Blank` of the value of a field."""
    return _PLACES[field] if field in _PLACES else 0  # noqa: SIM401 - Triton reads this, too
