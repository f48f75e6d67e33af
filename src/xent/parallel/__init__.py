"""Classes and tokens over many ranks, on ``torch.distributed`` alone.

:func:`shard` stands for logits whose classes are split over ranks: every loss of rows takes it, and
gives the loss, the digits and the gradients of one process, with one gather forward and none
backward. :func:`global_normalizer` counts the tokens of all ranks, and :func:`shift_labels` moves
labels where each rank has a piece of every sequence. :func:`loss_parallel` sends PyTorch's losses
of such DTensors here.
"""

from . import answers as answers  # registers what PyTorch's functions of a shard give
from .sharding import shard
from .tokens import global_normalizer, shift_labels
from .torch_losses import loss_parallel

__all__ = ["global_normalizer", "loss_parallel", "shard", "shift_labels"]
