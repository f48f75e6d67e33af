"""The frame of losses of sampled tokens: checks of log-probabilities, masks and reductions.

Log-probabilities are ``(B, T)`` for tokens of sequences, or ``(N,)`` for single actions; work is
done in float64, because these tensors are small compared with the logits. A mean divides by a
number of tokens or sequences, or by ``normalizer``; never by weights, which may be negative.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .._check import is_tensor, one_of
from ..engines.modes import widened
from ..hyperparameters import Range
from ..overrides import overridable
from .docstrings import complete
from .reduction import Reduce, RowValues, read_reduction

Average = Literal["token", "sequence"] | float
F = TypeVar("F", bound=Callable[..., Tensor])

_SHARED = {
    "log_prob": "log-probabilities of the sampled tokens, ``(B, T)`` or ``(N,)``, float32 or\n"
    "    float64: in 16 bits a ratio of them is noise.",
    "old_log_prob": "the same under the policy that has sampled them; a constant. None for the\n"
    "    policy itself: all ratios are 1, and have their gradient.",
    "advantage": "how much better than expected each token was, in the shape of ``log_prob``, or\n"
    "    one number per sequence, ``(B,)`` or ``(B, 1)``; a constant.",
    "mask": "bool, in the shape of ``log_prob``: which tokens count. What the others hold leaves\n"
    "    no trace.",
    "max_log_ratio": "the largest log-ratio of two policies, in nats, whose exponential is taken;\n"
    "    above it the loss goes on along its tangent, so that neither the loss nor a gradient\n"
    "    overflows. By default 40 for float32 and 350 for float64; see\n"
    "    :func:`xent.policy.kl_estimate`.",
    "entropy": "of each prediction, in the shape of ``log_prob``.",
    "entropy_weight": "how much of the entropy is subtracted from each token's loss.",
    "average": 'what ``"mean"`` is of. ``"token"``: of all tokens (DAPO). ``"sequence"``: of the\n'
    "    means of each sequence (GRPO). A number ``L``, the longest answer allowed say: of the\n"
    "    sums of each sequence over ``L`` (Dr. GRPO), so that length has no say. Sequences that\n"
    "    keep no token do not count.",
    "reduction": '``"mean"``; ``"sum"``, the same undivided: of tokens, of means or of sums over\n'
    '    ``L``; or ``"none"``: a loss for each token.',
    "normalizer": "another divisor of the mean than the number of tokens or sequences: a\n"
    "    number or 0-d tensor, such as that number over all micro-batches and machines.",
    "empty": '``"nan"``, or ``"zero"``: the mean of no tokens.',
}
_RETURNS = """\
Returns:
    A scalar, or the shape of ``log_prob`` for ``reduction="none"``, in the dtype of ``log_prob``.
"""
_RAISES = """\
Raises:
    ValueError: for shapes that do not fit, or a value an option cannot take.
    TypeError: for dtypes that do not fit.
"""


def explained(function: F) -> F:
    """Make a loss overridable, and add the arguments that policy losses share to its docstring."""
    doc = inspect.cleandoc(function.__doc__ or "")
    shared = {n: _SHARED[n] for n in inspect.signature(function).parameters if n in _SHARED}
    function.__doc__ = complete(doc, shared, _RETURNS, _RAISES)
    return overridable(function)


class Tokens:
    """The log-probabilities of a call, checked; and a reader of other numbers per token.

    Tensors come out in float64, and 0 where ``mask`` is False, whatever they held there.
    """

    def __init__(self, log_prob: Tensor, mask: Tensor | None = None) -> None:
        check_log_probs("log_prob", log_prob)
        self.given, self.mask = log_prob, mask
        if mask is not None:
            is_tensor("mask", mask)
            if mask.dtype != torch.bool or mask.shape != log_prob.shape:
                raise ValueError(
                    f"`mask` must be bool, in the shape of `log_prob`, {tuple(log_prob.shape)}; "
                    f"got {mask.dtype} of shape {tuple(mask.shape)}. Of zeros and ones make "
                    f"mask.bool()"
                )
            self.same_device("mask", mask)
        self.log_prob = self._kept(log_prob)

    def read(self, name: str, x: Tensor) -> Tensor:
        """Check and return another number per token, of the kind of log-probabilities."""
        check_log_probs(name, x, ("log_prob", self.given))
        return self._kept(x)

    def advantage(self, advantage: Tensor) -> Tensor:
        """Return the advantage of each token as a constant; it may be given by sequence."""
        is_tensor("advantage", advantage)
        if advantage.is_complex():
            raise TypeError(f"`advantage` must hold real numbers, got {advantage.dtype}")
        shape = self.given.shape
        if advantage.shape == shape[:-1] and shape:
            advantage = advantage.unsqueeze(-1)
        if advantage.shape not in (shape, (*shape[:-1], 1)):
            raise ValueError(
                f"`advantage` must have the shape of `log_prob`, {tuple(shape)}, or hold a number "
                f"per sequence, {tuple(shape[:-1])}; got {tuple(advantage.shape)}"
            )
        self.same_device("advantage", advantage)
        return self._kept(advantage.detach().expand(shape))

    def same_device(self, name: str, x: Tensor) -> None:
        """Raise unless a tensor is where the log-probabilities are."""
        if x.device != self.given.device:
            raise ValueError(f"`{name}` is on {x.device} but `log_prob` on {self.given.device}")

    def lengths(self) -> Tensor:
        """Return the number of tokens that each sequence keeps, ``(B, 1)``."""
        return self.counted().sum(-1, keepdim=True)

    def counted(self) -> Tensor:
        """1 for each token that counts, 0 for the others."""
        x = self.log_prob
        return torch.ones_like(x) if self.mask is None else self.mask.to(x.dtype)

    def need_sequences(self, option: str) -> None:
        """Raise for single actions."""
        if self.given.ndim < 2:
            raise ValueError(
                f"`{option}` speaks of sequences, but `log_prob` has shape "
                f'{tuple(self.given.shape)}; make it (B, T), or pass {option}="token"'
            )

    def reduce(
        self,
        values: Tensor,
        average: Average,
        reduction: str,
        normalizer: float | Tensor | None,
        empty: str,
    ) -> Tensor:
        """The mean over tokens, or over the sums or means of the tokens of each sequence."""
        reduce = read_reduction_of_tokens(reduction, normalizer, empty, values)
        share = self._share(average)
        if share is not None and reduce.normalizer is None:
            reduce = reduce._replace(normalizer=(self.lengths() > 0).sum())
        if reduction != "none":
            reduce = reduce._replace(row_weight=share)
        return reduce.of(RowValues(values, self.mask, self.counted())).to(self.given.dtype)

    def _share(self, average: Average) -> Tensor | None:
        """Return the share of each token in its sequence; None if sequences do not matter."""
        if isinstance(average, str):
            one_of("average", average, ("token", "sequence"))
            if average == "token":
                return None
        else:
            average = Range(0, open=True).check("average", average, None)
        self.need_sequences("average")
        length = self.lengths().clamp(min=1)
        return 1 / (length if isinstance(average, str) else torch.full_like(length, average))

    def _kept(self, x: Tensor) -> Tensor:
        x = widened(x)
        return x if self.mask is None else torch.where(self.mask, x, 0.0)


def check_log_probs(name: str, x: Tensor, like: tuple[str, Tensor] | None = None) -> None:
    """Raise unless ``x`` holds log-probabilities with digits enough to compare them."""
    is_tensor(name, x)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"`{name}` must be float32 or float64, got {x.dtype}: with so few digits differences "
            f"are noise. xent.token_log_probs returns float32 for any logits"
        )
    if like is not None and (x.shape, x.device) != (like[1].shape, like[1].device):
        raise ValueError(
            f"`{name}` must have the shape of `{like[0]}`, {tuple(like[1].shape)}, on "
            f"{like[1].device}; got {tuple(x.shape)} on {x.device}"
        )


def read_reduction_of_tokens(
    reduction: str, normalizer: float | Tensor | None, empty: str, values: Tensor
) -> Reduce:
    """The options of the reduction; raise for one that losses of tokens do not have."""
    if isinstance(normalizer, str):
        raise ValueError(f"`normalizer` must be a number or a 0-d tensor, got {normalizer!r}")
    return read_reduction(reduction, normalizer, None, empty, values.shape, values.device)
