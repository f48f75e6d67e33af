"""Log-probabilities of tokens and the entropy of predictions, as reinforcement learning needs them.

The classes are on the last axis here, as in :class:`torch.distributions.Categorical`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ._check import at_hand, class_indices, finite_number, is_tensor, scalar, whole_number
from .engines.modes import refuse_where
from .heads.logits import LinearLogits, are_logits
from .heads.measure import measure
from .heads.problem import flatten, make_problem
from .overrides import overridable
from .row_statistics import RowStatistics
from .shards import ShardedLogits, own_logits, takes_shards
from .targets import moved_labels


class TokenLogProbs(NamedTuple):
    """Result of :func:`xent.token_log_probs` with ``entropy=True``; both in nats.

    Attributes:
        log_prob: log-probability of each target.
        entropy: entropy of the prediction for that target.
    """

    log_prob: Tensor
    entropy: Tensor


@overload
def token_log_probs(
    input: Tensor | LinearLogits | ShardedLogits,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    shift: int = 0,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    entropy: Literal[False] = False,
    engine: str = "auto",
) -> Tensor: ...


@overload
def token_log_probs(
    input: Tensor | LinearLogits | ShardedLogits,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    shift: int = 0,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    entropy: Literal[True],
    engine: str = "auto",
) -> TokenLogProbs: ...


@overridable(classes_last=True)
@takes_shards
def token_log_probs(
    input: Tensor | LinearLogits | ShardedLogits,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    shift: int = 0,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    entropy: bool = False,
    engine: str = "auto",
) -> Tensor | TokenLogProbs:
    r"""Log-probability of each target token, and the entropy of the prediction for that token.

    .. math:: \log p_y = \log \mathrm{softmax}_y(z / T), \qquad H = -\sum_j p_j \log p_j

    One pass over the logits gives both, right to a few units in the last place however sure the
    prediction is. With a :class:`xent.LinearLogits` the logits are never all in memory. The classes
    are on the *last* axis whatever the number of axes, unlike those of the losses.

    Args:
        input: logits, ``(..., V)``: a tensor, or :class:`xent.LinearLogits`. ``-inf`` masks a
            class.
        target: class indices of any integer type, ``(...)``.
        temperature: ``T``, which divides the logits, after softcap and bias, as in sampling. A
            positive number, a 0-d tensor, or a tensor with a number for each row: ``(...)``, where
            an axis may have length 1, ``(B, 1)`` say. With ``softcap`` it must be a number, with
            ``class_bias`` the same for all rows.
        ignore_index: class index that marks rows to leave out. Their log-probability, entropy and
            gradient are 0.
        shift: how many places the targets are ahead: token ``t + shift`` is predicted by row ``t``
            (1 in a causal model whose targets are its own input). Labels are moved, not logits.
            Instead, rows of several documents take :func:`xent.shift_labels` with ``documents``.
        softcap: replaces logits ``z`` by ``softcap * tanh(z / softcap)``.
        class_bias: added to the logits after the softcap, ``(V,)``.
        entropy: also return the entropy.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``; see :func:`xent.explain`.

    Returns:
        In nats, ``(...)``, with ``shift`` ``(..., T - shift)``; ``-inf`` for a masked target. With
        ``entropy``, :class:`TokenLogProbs` of two such tensors. Float64 for float64 logits, float32
        for any other, also under autocast: ratios of rounded log-probabilities are noise.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, or a value an option
            cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 30.0], [0.0, 0.0]]])  # (B, T, V)
        >>> tokens = torch.tensor([[1, 0, 1]])
        >>> log_prob, entropy = xent.token_log_probs(logits, tokens, shift=1, entropy=True)
        >>> [f"{value:.4e}" for value in (*log_prob[0].tolist(), *entropy[0].tolist())]
        ['-1.2693e-01', '-9.3576e-14', '3.6533e-01', '2.9009e-12']
    """
    shift = whole_number("shift", shift)
    ignore_index = whole_number("ignore_index", ignore_index)
    if shift:
        target = moved_labels(("target", target), ("shift", shift), ignore_index)
    requests = ("entropy",) if entropy else ()
    stats = _measure(
        input, target, temperature, ignore_index, softcap, class_bias, requests, engine
    )
    fields = [stats.log_prob, stats.entropy] if entropy else [stats.log_prob]
    kept = target.shape[-1] - shift if shift else None
    log_prob, *others = (_rounded(x if kept is None else x[..., :kept], input) for x in fields)
    return TokenLogProbs(log_prob, *others) if entropy else log_prob


@overridable(classes_last=True)
@takes_shards
def entropy(
    input: Tensor | LinearLogits | ShardedLogits,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    engine: str = "auto",
) -> Tensor:
    r"""Entropy of the predictions that logits make.

    .. math:: H = -\sum_j p_j \log p_j, \qquad p = \mathrm{softmax}(z / T)

    Takes logits, never probabilities: for probabilities, or a result in bits, use
    :func:`xent.information.entropy`. :func:`xent.token_log_probs` gives the entropy along with the
    log-probability of a token. The smallest entropies keep their digits.

    Args:
        input: logits, ``(..., V)``, the classes on the last axis: a tensor, or
            :class:`xent.LinearLogits`, whose logits are never all in memory. ``-inf`` masks a
            class.
        temperature: divides the logits, as for :func:`xent.token_log_probs`.
        softcap: replaces logits ``z`` by ``softcap * tanh(z / softcap)``.
        class_bias: added to the logits after the softcap, ``(V,)``.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``; see :func:`xent.explain`.

    Returns:
        In nats, ``(...)``, at most the logarithm of ``V``. Float64 for float64 logits, float32 for
        any other.

    Raises:
        ValueError: for shapes that do not fit, or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> xent.entropy(torch.tensor([[0.0, 0.0], [2.0, 0.0], [-torch.inf, 0.0]]))
        tensor([0.6931, 0.3653, 0.0000])
    """
    own = own_logits(input)
    _check_logits(own)
    if own.shape[-1] == 0 and own is input:
        raise ValueError(f"`input` must have a class, got shape {tuple(own.shape)}")
    # The entropy does not depend on the target, so class 0 will do.
    target = torch.zeros((), dtype=torch.int64, device=own.device).expand(own.shape[:-1])
    stats = _measure(input, target, temperature, -100, softcap, class_bias, ("entropy",), engine)
    return _rounded(stats.entropy, input)


def _measure(
    input: Any,
    target: Tensor,
    temperature: float | Tensor,
    ignore_index: int,
    softcap: float | None,
    class_bias: Tensor | None,
    requests: tuple[str, ...],
    engine: str,
) -> RowStatistics:
    """Statistics of the rows of logits ``(..., V)``, whose classes come last."""
    given, input = input, own_logits(input)
    _check_logits(input)
    if isinstance(given, ShardedLogits) and given.class_axis != given.ndim - 1:
        raise ValueError(
            f"the classes of `input` are on axis {given.class_axis} of {given.ndim}, but are read "
            f"on the last axis here: pass class_dim=-1 to shard()"
        )
    is_tensor("target", target)
    rows, scale = input.shape[:-1], None
    if target.shape != rows:
        squeeze = "; pass target.squeeze(-1)" * (target.shape == (*rows, 1))
        raise ValueError(
            f"`target` must have shape {tuple(rows)} to hold one class index for each row of "
            f"`input`, shape {tuple(input.shape)}, classes last; got {tuple(target.shape)}{squeeze}"
        )
    target = class_indices("target", target)
    temperature = read_temperature(temperature, rows, input.device)
    softcap = None if softcap is None else finite_number("softcap", softcap)
    if not isinstance(input, Tensor):
        input, target, scale, softcap = flatten(input, target, None, softcap)
    elif input.is_contiguous():  # kernels are fastest on rows one after the other
        input, target = input.view(math.prod(rows), input.shape[-1]), target.reshape(-1)  # (N, V)
    elif input.ndim > 2:
        input = input.movedim(-1, 1)  # (N, V, d1, ...)
    if isinstance(temperature, Tensor) and temperature.ndim:
        temperature = temperature.expand(rows).reshape(target.shape)
    scale = 1 / temperature if scale is None else scale / temperature
    softcap, class_bias = _divided(softcap, class_bias, temperature)
    if isinstance(given, ShardedLogits):
        input = given.with_own(input)
    problem = make_problem(input, target, None, ignore_index, scale, softcap, class_bias, requests)
    return measure(problem, engine).reshape(rows)


def _divided(
    softcap: float | None, class_bias: Tensor | None, temperature: float | Tensor
) -> tuple[float | None, Tensor | None]:
    """Softcap and class bias, divided by the temperature.

    The scale is divided by the temperature, too. So the temperature comes after cap and bias.
    """
    if softcap is None and class_bias is None:
        return None, None
    if isinstance(temperature, Tensor) and (softcap is not None or temperature.ndim):
        raise ValueError(
            "`temperature` must be a number where logits have a softcap, and the same for all rows "
            "with `class_bias`. Apply these to the logits first, or call once per temperature"
        )
    if softcap is not None and softcap > 0:
        softcap = softcap / float(temperature)
    if isinstance(class_bias, Tensor) and class_bias.is_floating_point():
        wide = torch.promote_types(class_bias.dtype, torch.float32)
        class_bias = class_bias.to(wide) / temperature
    return softcap, class_bias


def _check_logits(input: Any) -> None:
    are_logits("input", input)
    if input.ndim == 0:
        raise ValueError("`input` must have a class axis, the last one: shape (..., V)")


def read_temperature(
    temperature: float | Tensor, rows: torch.Size, device: torch.device
) -> float | Tensor:
    """The temperature, checked; a tensor in float64."""
    if not isinstance(temperature, Tensor) or temperature.ndim == 0:
        temperature = scalar("temperature", temperature, device)
    if not isinstance(temperature, Tensor):
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        return temperature
    # One number per sequence must have shape (B, 1): where B = T, (B,) could be taken for (T,).
    fits = temperature.ndim in (0, len(rows)) and all(
        have in (1, want) for have, want in zip(temperature.shape, rows, strict=False)
    )
    if not fits:
        raise ValueError(
            f"`temperature` must be a number, 0-d, or have the axes of the rows, {tuple(rows)}, "
            f"each of them in full or of length 1; got shape {tuple(temperature.shape)}. One for "
            f"each sequence is temperature[:, None]"
        )
    message = "`temperature` must be positive and finite in every row"
    wrong = ~((temperature > 0) & temperature.isfinite())
    refuse_where(wrong, lambda: ValueError(message), message)
    return at_hand("temperature", temperature, device).to(torch.float64)


def _rounded(x: Tensor, input: Tensor | LinearLogits | ShardedLogits) -> Tensor:
    return x.to(torch.promote_types(input.dtype, torch.float32))
