"""Steps of any optimiser, also of those that compute the loss more than once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .epoch_means import EpochMeans

LR = 1e-3


class Step:
    """Steps of an optimiser along the loss of batches.

    If ``step`` of the optimiser takes a closure, it gets one, so that L-BFGS, line searches and
    sharpness-aware steps can compute the loss of a batch again. The model then draws the same
    random numbers, because a line search needs a fixed function. Only the first loss counts for the
    means.

    Args:
        means: computes the loss of a batch, and counts it.
        optimizer: a class or function called as ``optimizer(parameters, lr=lr)``.
        parameters: what is trained.
        lr: step size; None for ``LR``. With None, an optimiser that must have a closure keeps its
            default, and a ``functools.partial`` that names ``lr`` keeps that.
    """

    def __init__(
        self,
        means: EpochMeans,
        optimizer: Callable[..., torch.optim.Optimizer],
        parameters: Sequence[Tensor],
        lr: float | None,
    ) -> None:
        self.means, self.device = means, parameters[0].device
        self.optimizer = _made(optimizer, parameters, lr)
        self.takes_closure = _closure_of(self.optimizer) is not None

    def __call__(self, batch: list[Tensor]) -> None:
        """Take one step, unless no row of the batch counts."""
        state = _random_state(self.device)
        loss: Tensor | None = self.means(batch)
        if loss is None:
            return
        if not loss.requires_grad:
            raise ValueError("`loss` has no gradient; compute it from the output of the model")
        told = [loss]

        def closure() -> Any:  # returns a tensor: all of PyTorch's optimisers take one
            if told[-1].grad_fn is None:  # the backward pass has freed the graph
                with _random_numbers_from(state, self.device):
                    told.append(self.means.loss_of(batch))
            self.optimizer.zero_grad()
            told[-1].backward()
            told[-1] = told[-1].detach()
            return told[-1]

        if not self.takes_closure:
            closure()
            self.optimizer.step()
            return
        self.optimizer.step(closure)
        if len(told) > 1 and not math.isfinite(told[-1].item()):
            raise ValueError(
                f"the loss became {told[-1].item()} in one step of "
                f"{type(self.optimizer).__name__}, at its evaluation {len(told)}; take a smaller "
                f'`lr`, or for L-BFGS line_search_fn="strong_wolfe"'
            )


def _made(
    optimizer: Callable[..., torch.optim.Optimizer], parameters: Sequence[Tensor], lr: float | None
) -> torch.optim.Optimizer:
    if lr is not None:
        return optimizer(parameters, lr=lr)
    if isinstance(optimizer, partial) and "lr" in optimizer.keywords:
        return optimizer(parameters)
    made = optimizer(parameters, lr=LR)
    closure = _closure_of(made)
    needed = closure is not None and closure.default is inspect.Parameter.empty
    return optimizer(parameters) if needed else made


def _closure_of(optimizer: torch.optim.Optimizer) -> inspect.Parameter | None:
    """The argument of ``step`` that takes a closure, if there is one."""
    return inspect.signature(optimizer.step).parameters.get("closure")


def _random_state(device: torch.device) -> list[Any]:
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


@contextmanager
def _random_numbers_from(state: list[Any], device: torch.device) -> Iterator[None]:
    """Draw random numbers from this state, and restore the state before afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        for own in state[1:]:
            torch.cuda.set_rng_state(own, device)
        yield
