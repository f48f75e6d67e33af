"""Log-probabilities of classes that are split over ranks, and losses of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..engines.modes import wide_dtype
from ..frames.reduction import RowValues, mass_of_labels, read_reduction
from ..frames.row_checks import refuse_probabilities
from ..heads.problem import make_problem
from ..measurement import statistics
from ..shards import ShardedLogits, all_parts, summed_gradient, takes_shards
from ..targets import any_class


@takes_shards
def log_softmax(input: ShardedLogits, dtype: torch.dtype) -> Tensor:
    """The log-probabilities of this rank's classes."""
    input = input.mapped(lambda own: own.to(dtype))
    lse = statistics(input, any_class(input)).lse  # pyright: ignore
    # All columns of all ranks have the log-sum-exp in them.
    lse = summed_gradient(lse, input.shard.group).unsqueeze(input.class_axis)
    z = input.own.to(torch.promote_types(dtype, torch.float32))
    most = lse.detach().to(z.dtype)  # in two parts, since z may be much larger than the difference
    return ((z - most) - (lse - most).to(z.dtype)).to(dtype)


@takes_shards
def nll_loss(
    input: ShardedLogits, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", normalizer: Any = None, row_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Minus the number of the target, by one gather of one number per row."""
    refuse_probabilities("nll_loss", input, target)
    problem = make_problem(input, target, weight, ignore_index)
    how = read_reduction(reduction, normalizer, row_weight, "nan", problem.rows, problem.device)
    labels, shard, axis = problem.tensors.target, input.shard, problem.axis
    here = (labels >= shard.start) & (labels < shard.stop)
    place = torch.where(here, labels - shard.start, 0).unsqueeze(axis)
    own = problem.logits.gather(axis, place).squeeze(axis).to(wide_dtype(problem.logits))
    found = all_parts(torch.where(here, own, 0.0), shard.group).sum(0)
    kept, mass = mass_of_labels(labels, problem.settings.ignore_index, weight)
    return how.of(RowValues(-found * mass, kept, mass)).to(problem.result_dtype())


@takes_shards
def kl_div(input: ShardedLogits, target: Tensor, log_target: bool) -> Tensor:
    """The divergence of each number of this rank."""
    own: Any = input.own
    values = losses.kl_div(own, target, reduction="none", log_target=log_target)
    input.shard.ask(input.dtype, input.rows.numel())
    return values
