"""The reference engine for losses of single elements: plain operations in float64.

Intermediate results of a whole tensor in float64 would take ten times the memory of the logits and
several times as long. So values, and gradients that need no second derivative, are computed piece
by piece; a piece fits the caches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..modes import deferred, refuse_where, widened
from .problem import ElementProblem

# PyTorch gives each thread at least 32768 elements. Whole multiples of this number are cut into the
# same vectors for any number of threads, so the bits are the same.
PIECE = 32768
PIECE_ELSEWHERE = 1 << 24  # on accelerators: a smaller piece would not give work to all their cores
LINE = 4096  # number of values in one partial sum


def is_small(problem: ElementProblem) -> bool:
    """Return True if a problem fits one piece; then plain operations take the least time."""
    return problem.input.numel() <= PIECE


def plain_values(problem: ElementProblem) -> Tensor:
    """Return one value per element, in float64, by operations that transforms can differentiate."""
    z, t = widened(problem.input), widened(problem.target)
    kept = problem.kept()
    if kept is not None:
        z, t = torch.where(kept, z, 0.0), torch.where(kept, t, 0.0)
    if problem.smoothing:
        t = t * (1 - problem.smoothing) + problem.smoothing / 2
    pos_weight = None if problem.pos_weight is None else widened(problem.pos_weight)
    values = problem.body(z, t, pos_weight)
    if problem.weight is not None:
        weight = widened(problem.weight)
        if weight.requires_grad:  # a learned weight of 0 has a gradient, unless the value is NaN
            values = torch.where((weight == 0) & ~values.isfinite(), 0.0, values)
        values = values * weight
    return values if kept is None else torch.where(kept, values, 0.0)


def plain_loss(problem: ElementProblem, divisor: float | Tensor) -> Tensor:
    """Return the sum over all elements by ``divisor``, 0-d, in plain differentiable operations."""
    lines = _line_sums(plain_values(problem).flatten())
    return (_total(lines) / divisor).to(problem.dtype)


def loss(
    problem: ElementProblem, divisor: float | Tensor, ahead: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum by ``divisor``, piece by piece; with ``ahead`` also its gradient.

    The gradient is None on other devices than the CPU, where :func:`fits` would have to wait for
    the device.
    """
    ahead = ahead and problem.input.is_cpu
    gradient = _empty(problem, problem.input.dtype) if ahead else None
    lines = []
    for begin, part in _pieces(problem):
        with torch.set_grad_enabled(ahead):
            values = plain_values(part)
        lines.append(_line_sums(values.detach()))
        if gradient is not None:
            slope = torch.ones_like(values) / divisor
            (g,) = torch.autograd.grad(values, part.input, slope)
            gradient[begin : begin + g.numel()] = g
    total = _total(torch.cat(lines)) / divisor
    if gradient is not None:
        gradient = gradient.view(problem.input.shape)
    return total.to(problem.dtype), gradient


def fits(slope: Tensor) -> bool:
    """Return True if a gradient that was computed with the loss, for slope 1, fits this slope."""
    return slope.item() == 1


def values(problem: ElementProblem) -> Tensor:
    """Return one value per element, computed piece by piece."""
    result = _empty(problem, problem.dtype)
    for begin, part in _pieces(problem):
        with torch.no_grad():
            found = plain_values(part)
        result[begin : begin + found.numel()] = found
    return result.view(problem.input.shape)


def gradient(
    problem: ElementProblem, upstream: Tensor, divisor: float | Tensor, ahead: Tensor | None = None
) -> Tensor:
    """Return the gradient for slopes ``upstream`` (0-d or one per element), divided by ``divisor``.

    ``ahead``, a gradient that was computed with the loss, is overwritten.
    """
    result = _empty(problem, problem.input.dtype) if ahead is None else ahead.view(-1)
    slopes = widened(upstream)
    each = slopes.ndim > 0
    slopes = slopes.flatten() if each else slopes / divisor
    for begin, part in _pieces(problem):
        with torch.enable_grad():
            values = plain_values(part)
        end = begin + values.numel()
        slope = slopes[begin:end] if each else slopes.expand_as(values)
        (result[begin:end],) = torch.autograd.grad(values, part.input, slope)
    return result.view(problem.input.shape)


def check_targets(problem: ElementProblem) -> None:
    """Raise for a target outside [0, 1]; only on the CPU, where no device must be waited for."""
    if not problem.bounded or problem.target.device.type != "cpu":
        return
    target, kept = problem.target, problem.kept()
    wrong = (target < 0) | (target > 1)
    if kept is not None:
        wrong = wrong & kept
    refuse_where(
        wrong,
        lambda: problem.out_of_range(target[wrong][0].item()),
        "`target` must lie between 0 and 1",
    )


def _empty(problem: ElementProblem, dtype: torch.dtype) -> Tensor:
    """Return a vector with memory for one number per element."""
    return torch.empty(problem.input.numel(), dtype=dtype, device=problem.input.device)


def _pieces(problem: ElementProblem) -> Iterator[tuple[int, ElementProblem]]:
    """Yield (number of the first element, piece) of a problem; the input of a piece is a leaf."""
    flat = [_flat(x, problem.input) for x in problem.tensors]
    for begin, end in _spans(problem.input):
        input, target, *weights = (x[begin:end] if x is not None and x.ndim else x for x in flat)
        assert input is not None
        part = problem._replace(
            input=input.detach().requires_grad_(), target=target,
            weight=weights[0], pos_weight=weights[1],
        )  # fmt: skip
        check_targets(part)
        yield begin, part


def _flat(x: Tensor | None, input: Tensor) -> Tensor | None:
    """Return a broadcast tensor as a vector of all elements, or 0-d if it is one number."""
    if x is None:
        return None
    if x.numel() == 1 and x is not input:
        return x.detach().reshape(())
    return x.detach().expand(input.shape).reshape(-1)


def _spans(input: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each piece; all but the last piece are whole multiples of PIECE."""
    count = input.numel()
    piece = PIECE * torch.get_num_threads() if input.is_cpu else PIECE_ELSEWHERE
    begin = 0
    while begin < count:
        left = count - begin
        size = min(piece, left // PIECE * PIECE or left)
        yield begin, begin + size
        begin += size


def _line_sums(values: Tensor) -> Tensor:
    """Return the sum of each line of values; the last line may be incomplete."""
    if deferred():
        return values.sum().unsqueeze(0)
    whole = values.numel() // LINE * LINE
    sums = values[:whole].view(-1, LINE).sum(-1)
    return torch.cat([sums, values[whole:].sum().unsqueeze(0)]) if whole < values.numel() else sums


def _total(lines: Tensor) -> Tensor:
    """Return the sum of partial sums, which are again added line by line."""
    while lines.numel() > LINE:
        lines = _line_sums(lines)
    return lines.sum()
