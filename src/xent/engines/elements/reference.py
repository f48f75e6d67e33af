"""The reference engine for losses of single elements: plain operations in float64.

Whole tensors of intermediate results in float64 would take ten times the memory of the logits and
several times the time, so what need not be differentiated twice is computed piece by piece, in the
caches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..modes import deferred, refuse_where
from .problem import ElementProblem

# What PyTorch gives one thread. Pieces of whole multiples are cut into vectors alike by any number
# of threads, so they have the same bits.
PIECE = 32768
PIECE_ELSEWHERE = 1 << 24  # on accelerators, whose caches do not hold a piece that keeps them busy
LINE = 4096  # values added up in one sum


def is_small(problem: ElementProblem) -> bool:
    """Whether a problem fits into one piece, where plain operations cost least."""
    return problem.input.numel() <= PIECE


def plain_values(problem: ElementProblem) -> Tensor:
    """One value per element, in float64, in operations that transforms can take apart."""
    z, t = _wide(problem.input), _wide(problem.target)
    kept = problem.kept()
    if kept is not None:
        z, t = torch.where(kept, z, 0.0), torch.where(kept, t, 0.0)
    pos_weight = None if problem.pos_weight is None else _wide(problem.pos_weight)
    values = problem.body(z, t, pos_weight)
    if problem.weight is not None:
        weight = _wide(problem.weight)
        if weight.requires_grad:  # learned, so that elements of weight 0 are looked at, too
            values = torch.where((weight == 0) & ~values.isfinite(), 0.0, values)
        values = values * weight
    return values if kept is None else torch.where(kept, values, 0.0)


def plain_loss(problem: ElementProblem, divisor: float | Tensor) -> Tensor:
    """The sum over all elements by ``divisor``, 0-d, likewise."""
    lines = _line_sums(plain_values(problem).flatten())
    return (_total(lines) / divisor).to(problem.dtype)


def loss(
    problem: ElementProblem, divisor: float | Tensor, ahead: bool
) -> tuple[Tensor, Tensor | None]:
    """The same piece by piece; with ``ahead`` also its gradient, on the CPU.

    Elsewhere looking at the slope, whether it is 1, would cost waiting.
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
    """Whether a gradient that was computed ahead, for slope 1, is the one for this slope."""
    return slope.item() == 1


def values(problem: ElementProblem) -> Tensor:
    """One value per element, piece by piece."""
    result = _empty(problem, problem.dtype)
    for begin, part in _pieces(problem):
        with torch.no_grad():
            found = plain_values(part)
        result[begin : begin + found.numel()] = found
    return result.view(problem.input.shape)


def gradient(
    problem: ElementProblem, upstream: Tensor, divisor: float | Tensor, ahead: Tensor | None = None
) -> Tensor:
    """The gradient for slopes ``upstream`` by ``divisor``, a number or one per element.

    One that was computed ahead gives its memory.
    """
    result = _empty(problem, problem.input.dtype) if ahead is None else ahead.view(-1)
    slopes = _wide(upstream)
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
    """Raise for a target outside [0, 1]; only on the CPU, where looking costs no waiting."""
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
    return torch.empty(problem.input.numel(), dtype=dtype, device=problem.input.device)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _pieces(problem: ElementProblem) -> Iterator[tuple[int, ElementProblem]]:
    """The problem cut up: where each piece begins, and the piece, whose input is a leaf."""
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
    """The elements of a tensor that broadcasts, one after the other; 0-d if all are one."""
    if x is None:
        return None
    if x.numel() == 1 and x is not input:
        return x.detach().reshape(())
    return x.detach().expand(input.shape).reshape(-1)


def _spans(input: Tensor) -> Iterator[tuple[int, int]]:
    count = input.numel()
    piece = PIECE * torch.get_num_threads() if input.is_cpu else PIECE_ELSEWHERE
    begin = 0
    while begin < count:
        left = count - begin
        # Of the rest first what is a whole multiple.
        size = min(piece, left // PIECE * PIECE or left)
        yield begin, begin + size
        begin += size


def _line_sums(values: Tensor) -> Tensor:
    """The sums of lines of values, and of what is left over."""
    if deferred():
        return values.sum().unsqueeze(0)
    whole = values.numel() // LINE * LINE
    sums = values[:whole].view(-1, LINE).sum(-1)
    return torch.cat([sums, values[whole:].sum().unsqueeze(0)]) if whole < values.numel() else sums


def _total(lines: Tensor) -> Tensor:
    while lines.numel() > LINE:
        lines = _line_sums(lines)
    return lines.sum()
