"""Functions of logits along the classes, computed a chunk at a time behind a linear head.

Answers to PyTorch's functions and methods ``logsumexp``, ``argmax``, ``max``, ``topk``,
``log_softmax`` and ``gather``; and :func:`sample`, which takes tensors, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._check import at_hand, scalar
from ..engines.modes import autocasts, can_look_at
from ..measurement import statistics
from ..overrides import overridable
from ..row_statistics import RowStatistics
from ..targets import any_class
from . import arithmetic, gradients, layouts, row_operations  # noqa: F401  (they register, too)
from .log_probs import LinearEntropyTerms, LinearLogProbs, LinearProbs
from .logits import LinearLogits, are_logits
from .measure import comes_by_chunks
from .problem import flat_rows, problem_of


@overridable(classes_last=True)
def sample(
    input: Tensor | LinearLogits,
    *,
    temperature: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One class for each row of logits, drawn from their softmax.

    Takes one random number per row, so that the classes drawn do not depend on chunks.

    Args:
        input: logits with the classes on the last axis, ``(..., V)``; or :class:`LinearLogits`.
        temperature: divides them: positive, a number or one per row, ``(...)``.
        generator: source of the randomness; by default PyTorch's global one.

    Returns:
        Classes, int64, ``(...)``.

    Raises:
        ValueError: if a temperature is not positive, or a row has no class that can be drawn.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[0.0, 9.0, 0.0], [5.0, -torch.inf, -torch.inf]])
        >>> xent.sample(logits, generator=torch.Generator().manual_seed(0))
        tensor([1, 0])
    """
    are_logits("input", input)
    if not input.is_floating_point() or input.ndim == 0:
        raise TypeError(
            f"`input` must hold floating-point logits, (..., V), got {input.dtype} of shape "
            f"{tuple(input.shape)}"
        )
    rows = input.shape[:-1]
    if isinstance(temperature, Tensor) and temperature.ndim:
        t = at_hand("temperature", temperature, input.device).to(torch.float64)
        if t.ndim > len(rows) or any(n not in (1, m) for n, m in zip(t.shape[::-1], rows[::-1])):  # noqa: B905
            raise ValueError(
                f"`temperature` must be a number or one per row, shape {tuple(rows)}; got shape "
                f"{tuple(t.shape)}"
            )
    else:
        t = scalar("temperature", temperature, input.device)
        t = torch.as_tensor(t, dtype=torch.float64, device=input.device)
    if not bool((t > 0).all()):
        raise ValueError(f"`temperature` must be positive, got {temperature}; argmax is its limit")
    t = t.expand(rows).reshape(-1)
    drawn = torch.rand(t.shape, dtype=torch.float64, device=input.device, generator=generator)

    def draw(z: Tensor, index: Any) -> Tensor:
        p = torch.softmax(z.double() / t[index].unsqueeze(-1), -1).cumsum(-1)
        total = p[:, -1:]
        if not bool((total > 0).all()):  # NaN
            raise ValueError("a row of `input` is NaN, or masked as a whole; no class can be drawn")
        below = torch.nextafter(total, torch.zeros_like(total))  # a class of probability 0 is last
        return torch.searchsorted(
            p, torch.minimum(drawn[index].unsqueeze(-1) * total, below), right=True
        )

    with torch.no_grad():
        if isinstance(input, LinearLogits):
            return torch.cat(_of_chunks(input, draw)).reshape(rows)
        return draw(input.reshape(-1, input.shape[-1]), ...).reshape(rows)


def _of_chunks(logits: LinearLogits, function: Callable[[Tensor, Any], Any]) -> list[Any]:
    """The results of ``function(logits, rows)`` for one chunk of rows after the other."""
    problem = problem_of(logits.constant())
    if not comes_by_chunks(problem):
        return [function(problem.transform(problem.source.materialize()), ...)]
    rows = gradients.RowFunction((problem.source,), None, lambda _, z: z)
    return [function(problem.of_rows(index, z).transformed(), index) for index, z in rows.values()]


def _along_classes(input: LinearLogits | LinearLogProbs, dim: Any) -> bool:
    return dim in (-1, input.ndim - 1)


def _by_chunks(input: LinearLogits) -> bool:
    """True if logits may come by chunks, and are not those between the two halves of a softcap."""
    return not input.capped and comes_by_chunks(problem_of(input))


def _statistics(input: LinearLogits, **requests: bool) -> RowStatistics:
    """Return the statistics that depend on no target."""
    return statistics(input, any_class(input), **requests)  # pyright: ignore


def _logsumexp(input: LinearLogits, dim: Any, keepdim: bool = False) -> Tensor:
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    if len(axes) != 1 or not _along_classes(input, axes[0]) or not _by_chunks(input):
        return NotImplemented
    lse = _statistics(input).lse.to(input.dtype)
    return lse.unsqueeze(-1) if keepdim else lse


def _topk(
    input: LinearLogits, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    if not _along_classes(input, dim) or not _by_chunks(input):
        return NotImplemented
    found = _of_chunks(input, lambda z, _: z.topk(k, -1, largest, sorted).indices)
    classes = torch.cat(found).reshape(*input.shape[:-1], k)
    return torch.return_types.topk((_gather(input, -1, classes), classes))


def _max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    topk: Any = _most_likely if isinstance(input, LinearLogProbs) else _topk
    found = NotImplemented if isinstance(dim, Tensor) else topk(input, 1, dim)
    if found is NotImplemented:
        return NotImplemented
    values, classes = found
    pair = (values, classes) if keepdim else (values[..., 0], classes[..., 0])
    return torch.return_types.max(pair)


def _amax(input: LinearLogits, dim: Any = (), keepdim: bool = False) -> Tensor:
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    found = _max(input, axes[0], keepdim) if len(axes) == 1 else NotImplemented
    return found if found is NotImplemented else found.values


def _argmax(
    input: LinearLogits | LinearLogProbs, dim: int | None = None, keepdim: bool = False
) -> Tensor:
    logits = input.logits if isinstance(input, LinearLogProbs) else input
    if not _along_classes(input, dim) or logits.capped:
        return NotImplemented
    logits, sign = (input.logits, input.sign) if isinstance(input, LinearLogProbs) else (input, 1)
    found = torch.cat(_of_chunks(logits, lambda z, _: (sign * z).argmax(-1)))
    found = found.reshape(input.shape[:-1])
    return found.unsqueeze(-1) if keepdim else found


def _normalised(name: str, kind: Callable[..., LinearLogProbs]) -> Callable[..., Any]:
    """``softmax`` or ``log_softmax`` along the classes."""

    def answer(
        input: LinearLogits,
        dim: int | None = None,
        *options: Any,
        dtype: torch.dtype | None = None,
        _stacklevel: int = 0,
    ) -> LinearLogProbs | Tensor:
        # The functions have a `_stacklevel` before the dtype, the methods have not.
        dtype = next((x for x in options if isinstance(x, torch.dtype)), dtype)
        if not _along_classes(input, dim):
            return NotImplemented
        if dtype is None and input.device.type == "cuda" and autocasts(input):
            dtype = torch.float32  # as PyTorch's
        # A copy: what changes the logits in place later leaves their log-probabilities alone.
        return kind(input.copy() if dtype is None else input.cast(dtype))

    return answer


_softmax = _normalised("softmax", LinearProbs)
_log_softmax = _normalised("log_softmax", LinearLogProbs)


def _gather(input: LinearLogits, dim: int, index: Tensor, **options: Any) -> Tensor:
    if index.shape[:-1] != input.shape[:-1] or not _along_classes(input, dim):
        return NotImplemented
    classes, features = input.weight.shape
    gathered = index.numel() * features * max(4, input.weight.itemsize)
    if index.shape[-1] * features <= classes and gathered <= input.max_workspace:
        return _few(input, index)
    problem, (flat,) = problem_of(input), flat_rows(input.shape[:-1], index)
    if not comes_by_chunks(problem):
        return NotImplemented

    question = problem.with_source(None)

    def values_of(rows: Any, z: Tensor) -> Tensor:
        return question.of_rows(rows, z).transformed().gather(-1, flat[rows])

    rows = gradients.RowFunction((problem.source,), None, values_of, (flat,))
    values = gradients.row_values(rows)
    return values.to(input.dtype).reshape(index.shape)


def _few(input: LinearLogits, index: Tensor) -> Tensor:
    """The logits of a few classes of each row: products with the weights of these classes only."""
    input.unchanged()
    wide = torch.promote_types(input.weight.dtype, torch.float32)
    weight = gradients.rows_of_weight(input.weight, index).to(wide)
    z = (weight @ input.hidden.to(wide).unsqueeze(-1))[..., 0]
    if input.bias is not None:
        z = z + input.bias[index].to(wide)
    return input.transform(z)


def _gather_log_probs(input: LinearLogProbs, dim: int, index: Tensor, **options: Any) -> Tensor:
    logits, fits = input.logits, index.shape[:-1] == input.shape[:-1]
    if not (fits and _along_classes(input, dim) and _by_chunks(logits)):
        return NotImplemented
    if can_look_at(index) and bool(((index < 0) | (index >= input.shape[-1])).any()):
        raise IndexError(f"gather: `index` must hold classes from 0 to {input.shape[-1] - 1}")
    if index.shape == (*input.shape[:-1], 1):
        log_prob = statistics(logits, index[..., 0]).log_prob
        return input.sign * log_prob.to(input.dtype).unsqueeze(-1)
    log_prob = _gather(logits, dim, index) - _logsumexp(logits, -1, keepdim=True)
    return (input.sign * log_prob).to(input.dtype)


def _gather_probs(input: LinearProbs, dim: int, index: Tensor, **options: Any) -> Tensor:
    log_probs = LinearLogProbs(input.logits)
    found = _gather_log_probs(log_probs, dim, index, **options)
    return found if found is NotImplemented else found.exp().to(input.dtype)


def _most_likely(
    input: LinearLogProbs, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    """``topk`` of probabilities or their logarithms: of the classes with the largest logits."""
    found = NotImplemented
    if input.sign > 0:
        found = _topk(input.logits, k, dim, largest, sorted)
    if found is NotImplemented:
        return NotImplemented
    classes = found.indices
    if isinstance(input, LinearProbs):
        return torch.return_types.topk((_gather_probs(input, -1, classes), classes))
    return torch.return_types.topk((_gather_log_probs(input, -1, classes), classes))


def _other_sign(input: LinearLogProbs) -> LinearLogProbs:
    return LinearLogProbs(input.logits, -input.sign, input.dtype)


def _exp(input: LinearLogProbs) -> LinearProbs | Tensor:
    if input.sign < 0:
        return NotImplemented
    return LinearProbs(input.logits, dtype=input.dtype)


def _entropy_terms(input: Any, other: Any) -> LinearEntropyTerms | Tensor:
    """Probabilities times their logarithms, in any order; other products need all numbers."""
    kinds = {type(input): input, type(other): other}
    log_probs, probs = kinds.get(LinearLogProbs), kinds.get(LinearProbs)
    if log_probs is None or probs is None or log_probs.sign < 0:
        return NotImplemented
    if not log_probs.logits.equals(probs.logits):
        return NotImplemented
    return LinearEntropyTerms(log_probs.logits, dtype=log_probs.dtype)


def _minus_entropy(
    input: LinearEntropyTerms, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if not _along_classes(input, dim) or not _by_chunks(input.logits):
        return NotImplemented
    value = -_statistics(input.logits, entropy=True).entropy
    return (value.unsqueeze(-1) if keepdim else value).to(dtype or input.dtype)


def _over_classes(name: str) -> Callable[..., Tensor]:
    """``sum`` or ``mean`` of all log-probabilities of a row; label smoothing asks for both."""

    def answer(
        input: LinearLogProbs, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Tensor:
        logits, classes = input.logits, input.shape[-1]
        if not _along_classes(input, dim) or not _by_chunks(logits):
            return NotImplemented
        s = _statistics(logits, mean=True)
        masked = s.support < classes  # a class of probability 0 costs infinitely much
        value = input.sign * torch.where(masked, -torch.inf, s.mean - s.lse)
        value = value * classes if name == "sum" else value
        return (value.unsqueeze(-1) if keepdim else value).to(dtype or input.dtype)

    return answer


def _of_logits(name: str) -> Callable[..., Tensor]:
    """``sum`` or ``mean`` of the logits of each row, or of all rows."""

    def answer(input: LinearLogits, dim: Any = None, keepdim: bool = False, *, dtype: Any = None):
        axes = dim if isinstance(dim, (tuple, list)) else (dim,)
        along = len(axes) == 1 and (axes[0] is None or _along_classes(input, axes[0]))
        if not along or not _by_chunks(input):
            return NotImplemented
        s = _statistics(input, mean=True)
        value = torch.where(s.support < input.shape[-1], -torch.inf, s.mean)
        value = value * input.shape[-1] if name == "sum" else value
        if axes[0] is None:
            value = getattr(value, name)()
        elif keepdim:
            value = value.unsqueeze(-1)
        return value.to(dtype or input.dtype)

    return answer


def _register(answers: dict[Any, Any], name: str, answer: Callable[..., Any]) -> None:
    for home in (torch, torch.Tensor, torch.nn.functional):
        if hasattr(home, name):
            answers[getattr(home, name)] = answer


for _name, _answer in (
    ("logsumexp", _logsumexp), ("topk", _topk), ("max", _max), ("argmax", _argmax),
    ("log_softmax", _log_softmax), ("softmax", _softmax), ("gather", _gather), ("amax", _amax),
    ("sum", _of_logits("sum")), ("mean", _of_logits("mean")),
):  # fmt: skip
    _register(LinearLogits.lean, _name, _answer)
for _name, _answer in (
    ("gather", _gather_log_probs), ("mean", _over_classes("mean")),
    ("sum", _over_classes("sum")),
    ("argmax", _argmax), ("neg", _other_sign), ("__neg__", _other_sign),
):  # fmt: skip
    _register(LinearLogProbs.lean, _name, _answer)
for _name in ("exp", "mul", "__mul__", "__rmul__"):
    _register(LinearLogProbs.lean, _name, _exp if _name == "exp" else _entropy_terms)
    if _name != "exp":
        _register(LinearProbs.lean, _name, _entropy_terms)
_register(LinearEntropyTerms.lean, "sum", _minus_entropy)
for _name, _answer in (("gather", _gather_probs), ("argmax", _argmax)):
    _register(LinearProbs.lean, _name, _answer)
for _name, _answer in (("topk", _most_likely), ("max", _max), ("amax", _amax)):
    _register(LinearLogProbs.lean, _name, _answer)
    _register(LinearProbs.lean, _name, _answer)
