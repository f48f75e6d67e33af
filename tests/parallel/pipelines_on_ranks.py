"""A pipeline for the ranks of a test: its last stage gives the features of a head."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import xent

WIDTH, CLASSES = 6, 50


class Part(nn.Module):
    """The layers of one stage; the last stage has the head, whose product the loss takes."""

    def __init__(self, is_last: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False) if is_last else None

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        return torch.tanh(self.layer(x))


def parts(stages: int) -> list[Part]:
    """All stages, the same on all ranks."""
    torch.manual_seed(0)
    return [Part(k == stages - 1).double() for k in range(stages)]


def step(
    group: Any, x: Tensor, labels: Tensor, micro_batches: int, options: dict[str, Any]
) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step, which the last stage has, and the gradients of the own stage."""
    rank, stages = dist.get_rank(group), dist.get_world_size(group)
    part, tokens, losses = parts(stages)[rank], (labels != -100).sum(), []

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        return xent.linear_cross_entropy(features, part.head.weight, labels, normalizer=tokens)

    stage = PipelineStage(part, rank, stages, torch.device("cpu"), group=group)
    schedule = ScheduleGPipe(stage, micro_batches, loss_fn=loss, **options)
    if rank == 0:
        schedule.step(x)
    else:
        schedule.step(target=labels, losses=losses)
    total = sum(loss.item() for loss in losses)
    return total, {name: p.grad for name, p in part.named_parameters()}
