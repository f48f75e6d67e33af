"""Arithmetic that stays right where a factor is 0 or a number infinite, with its derivatives."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_of_exp(log_prob: Tensor) -> Tensor:
    """``logit(exp(log_prob))``; infinite at ``log_prob`` 0, with a finite derivative there."""
    certain = log_prob >= 0  # above 0 only if a target has negative entries
    x = torch.where(certain, -1.0, log_prob)
    return torch.where(certain, torch.inf, x - torch.log(-torch.expm1(x)))


def product(factor: Tensor, value: Tensor) -> Tensor:
    """``factor * value`` where 0 times infinity is 0; a factor of 0 keeps its derivative."""
    void = (factor == 0) & ~value.isfinite()
    return factor * torch.where(void, 0.0, value)


def log_sum_exp(x: Tensor) -> Tensor:
    """Log-sum-exp over the first axis; where all are ``-inf``, so is the sum, with derivative 0."""
    largest = x.detach().amax(0)
    shift = torch.where(largest.isfinite(), largest, 0.0)
    total = (x - shift).exp_().sum(0)
    none = total == 0
    return torch.where(none, -torch.inf, shift + torch.log(torch.where(none, 1.0, total)))
