"""The sigmoid family: losses of one logit and one number in [0, 1], for every element."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ..class_dim import NO_CONTAINERS
from ..engines.elements.problem import Form
from ..engines.modes import autocasts
from ..frames.element_checks import check_unit_range
from ..frames.element_loss import Elements, element_loss, product
from ..frames.reduction import Reduction
from ..heads.logits import LinearLogits
from ..heads.stand_in import Lean
from ..hyperparameters import Range
from .catalog import member
from .classification import _legacy_reduction


@member("binary", proper=True, convex=True)
def binary_cross_entropy_with_logits(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_value: float | None = None,
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    unnormalized: bool = False,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Sigmoid cross-entropy: the negative log-likelihood of labels, from logits. In nats.

    A drop-in for :func:`torch.nn.functional.binary_cross_entropy_with_logits` with all its digits.
    With targets between 0 and 1 the least loss is the entropy of the targets, not 0; see
    :func:`xent.losses.reconstruction_excess`.

    .. math:: \ell = w \bigl(-w_+ \, t \log \sigma(z) - (1 - t) \log \sigma(-z)\bigr)

    Use:
        For answers yes or no, such as two classes or the pixels of a mask; not for classes that
        exclude each other, which are for :func:`~xent.cross_entropy`.

    Args:
        input: logits, of any shape: one per label, per pixel, per pair.
        target: probabilities of label 1 in the shape of ``input``, in [0, 1]; labels 0 and 1 may
            also be booleans or integers. Nothing is broadcast.
        weight: factor on each element; broadcasts to the shape of ``input``. A map of weights over
            pixels, ``(N, 1, H, W)`` or ``(H, W)``, or a factor for each label, ``(C,)``. 0 leaves
            an element out, whatever it holds.
        size_average: deprecated in PyTorch; use ``reduction``.
        reduce: deprecated in PyTorch; use ``reduction``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``. The mean divides by the number of elements
            that are kept, whatever their weights.
        pos_weight: factor on the targets, the term of label 1; broadcasts likewise.
        label_smoothing: in [0, 1]: how far targets move towards 1/2, as in Keras: a label 1 becomes
            ``1 - label_smoothing / 2``.
        ignore_value: target that marks elements to leave out: -1 say, 255, or NaN.
        normalizer: another divisor of the mean: a number or 0-d tensor, ``"weight"`` for the
            sum of the weights, ``"count"`` for the rule above.
        unnormalized: take targets outside [0, 1], too, as PyTorch does. The loss may then be
            negative, without a lower bound.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no elements.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``. For a scalar loss the
            engines with kernels compute the gradient in the same sweep.

    Returns:
        A scalar, or the shape of ``input`` for ``reduction="none"``, in the dtype of ``target`` as
        in PyTorch (that of ``input`` for booleans and integers; float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, a target outside [0, 1] (looked for on the CPU), or
            a value that an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([-30.0, 0.0, 2.0]), torch.tensor([0.0, 0.5, 1.0])
        >>> xent.binary_cross_entropy_with_logits(logits, target, reduction="none")
        tensor([9.3576e-14, 6.9315e-01, 1.2693e-01])

    References:
        Cox, *The regression analysis of binary sequences*, 1958.
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    function = _cross_entropy.of_tensors if type(input) in NO_CONTAINERS else _cross_entropy
    loss = function(
        input, target, weight, pos_weight=pos_weight, unnormalized=unnormalized,
        label_smoothing=label_smoothing, ignore_value=ignore_value, reduction=reduction,
        normalizer=normalizer, empty=empty, engine=engine,
    )  # fmt: skip
    narrows = target.is_floating_point() and target.dtype.itemsize < loss.dtype.itemsize
    return loss.to(target.dtype) if narrows and not autocasts(input) else loss


@element_loss(form=lambda: Form(), pos_weight=True, unnormalized=True, label_smoothing=True)
def _cross_entropy(e: Elements) -> Tensor:
    return e.nll


@member("other", proper=True, convex=True)
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    eps: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_value: float | None = None,
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Cross-entropy of predicted probabilities. In nats.

    A drop-in for :func:`torch.nn.functional.binary_cross_entropy` without hidden clipping: the loss
    is infinite where the formula is. At every ``q`` the gradient is :math:`(q - t) / (q (1 - q))`,
    the second derivative :math:`t / q^2 + (1 - t) / (1 - q)^2`, and the gradient by the target
    :math:`\log((1 - q) / q)`. If you have logits, :func:`binary_cross_entropy_with_logits` keeps
    more digits: float32 cannot tell :math:`\sigma(17)` from 1.

    .. math:: \ell = w \bigl(-t \log q - (1 - t) \log(1 - q)\bigr), \qquad 0 \log 0 = 0

    Use:
        For probabilities that a model returns already; not if you have logits, since float32
        probabilities near 1 have lost their digits.

    Args:
        input: probabilities ``q``, of any shape, in [0, 1].
        target: probabilities of label 1 in the shape of ``input``, in [0, 1]; labels 0 and 1 may
            also be booleans or integers. Nothing is broadcast.
        weight: factor on each element; broadcasts to the shape of ``input``.
        size_average: deprecated in PyTorch; use ``reduction``.
        reduce: deprecated in PyTorch; use ``reduction``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``. The mean divides by the number of elements
            that are kept, whatever their weights.
        eps: probabilities are moved into ``[eps, 1 - eps]`` first, for a finite loss. The gradient
            is that of the formula there, so that it does not vanish.
        label_smoothing: in [0, 1]: how far targets move towards 1/2.
        ignore_value: target that marks elements to leave out: -1 say, 255, or NaN.
        normalizer: another divisor of the mean, as for
            :func:`binary_cross_entropy_with_logits`.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no elements.
        engine: ``"auto"`` or ``"reference"``.

    Returns:
        A scalar, or the shape of ``input`` for ``reduction="none"``, in the dtype of ``input`` and
        ``target`` together (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, a probability or target outside [0, 1] (looked for
            on the CPU), or a value that an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> q, target = torch.tensor([0.0, 0.2, 1.0]), torch.tensor([0.0, 0.5, 0.0])
        >>> xent.binary_cross_entropy(q, target, reduction="none")
        tensor([0.0000, 0.9163,    inf])
    """
    if isinstance(input, Lean):
        raise TypeError(
            "`input` must hold probabilities; logits behind a linear head are for "
            "xent.binary_cross_entropy_with_logits"
        )
    if isinstance(input, Tensor) and input.is_floating_point():
        hint = "logits are for xent.binary_cross_entropy_with_logits"
        check_unit_range("input", input, hint, weight)
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    return _of_probabilities(
        input, target, weight, eps=eps, label_smoothing=label_smoothing,
        ignore_value=ignore_value, reduction=reduction, normalizer=normalizer, empty=empty,
        engine=engine,
    )  # fmt: skip


@element_loss(label_smoothing=True)
def _of_probabilities(e: Elements, eps: Annotated[float, Range(0, 0.5)] = 0.0) -> Tensor:
    q, t = e.input, e.target
    if eps:
        q = q + (q.clamp(eps, 1 - eps) - q).detach()
    # An infinite logarithm is not read where its factor is 0.
    log_prob = torch.where((t == 0) & (q == 0), 1.0, q).log()
    log_miss = torch.log1p(-torch.where((t == 1) & (q == 1), 0.0, q))
    return t * -log_prob + (1 - t) * -log_miss


# ---- targets between 0 and 1: pixels ------------------------------------------------------------


@member("binary", proper=True, convex=True)
@element_loss(form=lambda: Form(excess=1.0))
def reconstruction_excess(e: Elements) -> Tensor:
    r"""Sigmoid cross-entropy above its floor: the KL divergence of predictions from targets.

    .. math:: \ell = t \log \frac{t}{p} + (1 - t) \log \frac{1 - t}{1 - p}

    The cross-entropy of grey pixels is never 0: its floor is the entropy of the pixels. The excess
    over that floor is what a reconstruction can still gain. The gradient is that of cross-entropy.
    Near 0 the excess keeps all its digits, where the difference of cross-entropy and entropy has
    none.

    Use:
        To report how far a reconstruction is above its floor; not to train better, since its
        gradient is that of sigmoid cross-entropy.

    Example:
        >>> import torch, xent
        >>> target = torch.tensor([0.25, 0.25, 0.0], dtype=torch.float64)
        >>> logits = torch.tensor([0.25001, 0.250001, 0.5], dtype=torch.float64).logit()
        >>> values = xent.losses.reconstruction_excess(logits, target, reduction="none")
        >>> [f"{v:.1e}" for v in values.tolist()]
        ['2.7e-10', '2.7e-12', '6.9e-01']
    """
    yes = _excess(e.target, e.prob, e.log_prob, -e.residual)
    return yes + _excess(1 - e.target, e.miss, e.log_miss, e.residual)


def _excess(a: Tensor, b: Tensor, log_b: Tensor, gap: Tensor) -> Tensor:
    """``a log(a / b) + b - a``, which is not negative, for probabilities with ``b - a = gap``.

    A term of a divergence, in which the gaps add up to 0. Near 0, with ``x = gap / a``, the term is
    ``a (x - log(1 + x))``, here as a series without the parts that cancel.
    """
    near = gap.abs() < a / 4
    x = torch.where(near, gap / torch.where(near, a, 1.0), 0.0)
    s = x / (2 + x)  # log(1 + x) = 2 (s + s^3 / 3 + s^5 / 5 + ...), and |s| < 1/7
    tail = torch.zeros_like(s)
    for k in range(19, 1, -2):
        tail = 1 / k + s.square() * tail
    series = a * s * (x - 2 * s.square() * tail)
    far = gap + torch.special.xlogy(a, a) - product(a, log_b)
    return torch.where(near, series, far)


@member("other", proper=True, convex=True)
@element_loss
def continuous_bernoulli_loss(e: Elements) -> Tensor:
    r"""Negative log-likelihood of numbers in [0, 1], such as grey pixels. In nats, may be negative.

    .. math:: \ell = -t \log p - (1 - t) \log(1 - p) - \log C(p), \qquad
        C = \frac{2 \operatorname{artanh}(1 - 2 p)}{1 - 2 p} = \frac{z}{\tanh(z / 2)}

    Cross-entropy alone does not belong to a density over [0, 1]; with the constant ``C`` it does.
    As a function of the logit the loss is :math:`\log((e^z - 1) / z) - t z`. It is stable
    everywhere, near 0 by a series.

    Use:
        For the likelihood of grey pixels, as in a variational autoencoder; not for labels 0 and 1,
        whose likelihood is sigmoid cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([0.0, 1e-3, 40.0])
        >>> target = torch.tensor([0.3, 0.3, 1.0])
        >>> xent.losses.continuous_bernoulli_loss(logits, target, reduction="none")
        tensor([ 0.0000e+00,  2.0004e-04, -3.6889e+00])

    References:
        Loaiza-Ganem and Cunningham, *The continuous Bernoulli*, NeurIPS 2019.
    """
    z, t = e.input, e.target
    near = z.abs() < 1
    a = torch.where(near, 1.0, z.abs())
    slope = torch.where(z > 0, 1 - t, t)  # factor of |z| where |z| is large
    far = product(slope, a) + torch.log1p(-(-a).exp()) - a.log()
    # log(sinh(h) / h) = h^2 / 6 - h^4 / 180 + ..., h = z / 2
    square = torch.where(near, z, 0.0).square() / 4
    series = torch.zeros_like(z)
    for coefficient in reversed(_LOG_SINHC):
        series = (series + coefficient) * square
    return torch.where(near, (0.5 - t) * z + series, far)


# 2^(2k-1) B_2k / (k (2k)!), B the Bernoulli numbers
_LOG_SINHC = (
    1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575,
    -3617 / 2605132530000, 43867 / 350813659321125, -174611 / 15313294652906250,
)  # fmt: skip
