r"""Losses that teach a model to know what it does not know.

Some are for rows that belong to no class: outliers, and rows without a label. They need no target;
if there is one, it only says which rows count: any class does, and ``ignore_index`` leaves a row
out. Others keep a model from being surer than its evidence allows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._check import finite_number, one_of
from ..class_dim import takes_class_dim
from ..engines.modes import deferred, wide_dtype
from ..frames.dense_loss import dense_loss, explained
from ..frames.dense_rows import CHUNK, DenseRows
from ..frames.reduction import Reduction
from ..frames.row_checks import refuse_probabilities
from ..frames.row_loss import row_loss
from ..heads.logits import LinearLogits, are_logits
from ..hyperparameters import Number, Positive, Range
from ..row_statistics import RowStatistics
from .catalog import member
from .classification import cross_entropy

# ---- rows of no class ---------------------------------------------------------------------------


@member(proper=False, convex=True)
@row_loss(needs="mean", soft=False, labelled=False)
def outlier_exposure_loss(s: RowStatistics) -> Tensor:
    r"""Cross-entropy from the uniform distribution, for rows that belong to no class.

    .. math:: \ell = -\frac1C \sum_j \log p_j = \mathrm{lse} - \bar z

    The authors add half of it, over a batch of outliers, to cross-entropy over a batch of the data.
    The class of a target has no say. Classes masked by ``-inf`` take no part in the mean.

    Use:
        For extra rows that belong to no class, beside cross-entropy on the data; not for rows of
        the data, since it teaches to be undecided.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> xent.losses.outlier_exposure_loss(logits, reduction="none")
        tensor([0.6931, 2.0181])

    References:
        Hendrycks, Mazeika & Dietterich, *Deep anomaly detection with outlier exposure*, ICLR 2019.
    """
    return s.lse - s.mean


@member(proper=False, convex=False, in_nats=False)
@row_loss(soft=False, labelled=False)
def energy_loss(s: RowStatistics, margin: Number | None = None, outliers: bool = False) -> Tensor:
    r"""Squared hinge on the free energy of a row: low for the data, high for outliers.

    .. math:: E = -\mathrm{lse}, \qquad
        \ell = \max(0,\ E - m)^2 \quad\text{or, for outliers,}\quad \max(0,\ m - E)^2

    The authors add a tenth of the sum of both to cross-entropy, and call a row an outlier where its
    energy is above a threshold. The class of a target has no say.

    Use:
        To tell outliers by the log-sum-exp of their logits, beside cross-entropy; not with the
        default margins if your logits are of another size.

    Args:
        margin: ``m``; unless given, the authors' -25 for rows of the data and -7 for outliers.
        outliers: whether the rows are outliers.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[9.0, 0.0], [30.0, 0.0]])
        >>> loss = xent.losses.energy_loss
        >>> loss(logits, reduction="none")
        tensor([255.9960,   0.0000])
        >>> loss(logits, outliers=True, reduction="none")
        tensor([  4.0005, 529.0000])

    References:
        Liu et al., *Energy-based out-of-distribution detection*, NeurIPS 2020.
    """
    if outliers:
        return torch.relu((-7.0 if margin is None else margin) + s.lse).square()
    return torch.relu(-s.lse - (-25.0 if margin is None else margin)).square()


@member(proper=False, bounded=True, convex=False)
@row_loss(needs="entropy", soft=False, labelled=False)
def entropy_loss(s: RowStatistics) -> Tensor:
    r"""Entropy of the prediction: makes a model decide about rows whose class nobody knows.

    .. math:: \ell = -\sum_j p_j \log p_j

    For learning from rows without labels, and for adaptation at test time. The class of a target
    has no say.

    Use:
        For rows without labels, to make a trained model decide; not from scratch, since the same
        sure answer to every row makes it 0.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> xent.losses.entropy_loss(logits, reduction="none")
        tensor([0.6931, 0.0901])

    References:
        Grandvalet & Bengio, *Semi-supervised learning by entropy minimization*, NeurIPS 2004. Wang
        et al., *Tent: fully test-time adaptation by entropy minimization*, ICLR 2021.
    """
    return s.entropy


# ---- evidence -----------------------------------------------------------------------------------


@member(proper=True, convex=False)
@row_loss(needs="mean", soft=False)
def evidential_loss(
    s: RowStatistics, form: Literal["likelihood", "expected"] = "likelihood"
) -> Tensor:
    r"""Loss of a Dirichlet distribution over predictions, with evidence ``exp(z)`` for each class.

    .. math:: \alpha_j = 1 + e^{z_j}, \quad S = \sum_j \alpha_j, \qquad
        \ell = \log S - \log \alpha_y \quad\text{or}\quad \psi(S) - \psi(\alpha_y)

    The first is the negative log-likelihood of the label, the second the cross-entropy expected
    under the Dirichlet distribution; :math:`\psi` is the digamma function. The model predicts
    :math:`\alpha_j / S`, of which the likelihood is a proper loss. ``C / S`` says how much of the
    prediction is doubt. Both losses are computed from

    .. math:: \log \frac{\alpha_y}{S - \alpha_y}
        = \log(1 + e^{z_y}) - \log \Bigl(C - 1 + \sum_{j \ne y} e^{z_j}\Bigr)

    which keeps the digits of the surest row. ``C`` counts the classes that are not masked by
    ``-inf``.

    Use:
        When one network should say how much evidence a prediction has; not in the place of softmax
        cross-entropy, since the model predicts other probabilities.

    Args:
        form: ``"likelihood"`` (type II maximum likelihood) or ``"expected"``.

    Example:
        >>> import torch, xent
        >>> logits, label = torch.tensor([[3.0, 0.0], [-9.0, -9.0]]), torch.tensor([0, 0])
        >>> xent.losses.evidential_loss(logits, label, reduction="none")
        tensor([0.0906, 0.6931])
        >>> xent.losses.evidential_loss(logits, label, form="expected", reduction="none")
        tensor([0.0927, 1.0000])

    References:
        Sensoy, Kaplan & Kandemir, *Evidential deep learning to quantify classification
        uncertainty*, NeurIPS 2018.
    """
    one_of("form", form, ("likelihood", "expected"))
    log_alpha = -logsigmoid(-s.target)
    others = torch.where(s.target == -torch.inf, s.support, s.support - 1)
    alone = others <= 0
    log_others = torch.where(alone, 1.0, others).log()
    log_rest = log_others - logsigmoid(log_others - s.rest)  # log(S - alpha)
    nats = torch.where(alone, 0.0, -logsigmoid(log_alpha - log_rest))
    if form == "likelihood":
        return nats
    # psi(x) = log x + a small rest, whose difference loses nothing that the logarithms have.
    return nats + _digamma_less_log(-log_alpha - nats) - _digamma_less_log(-log_alpha)


def _digamma_less_log(minus_log: Tensor) -> Tensor:
    r"""``digamma(x) - log(x)`` of ``x`` from 1 on, given ``-log(x)``: overflows for no ``x``.

    A series in ``1 / x`` where that is small, elsewhere the series at ``x + 16``: the derivative of
    ``torch.digamma`` has nine digits.
    """
    u = minus_log.exp()
    small = torch.where(u < 1 / 16, 0.0, u)
    terms = [small / (1 + k * small) for k in range(16)]
    shifted = torch.log1p(16 * small) - sum(terms[1:], terms[0])
    u = torch.where(u < 1 / 16, u, small / (1 + 16 * small))
    v = u * u
    series = v * (1 / 12 - v * (1 / 120 - v * (1 / 252 - v * (1 / 240 - v / 132))))
    return shifted - u / 2 - series


# ---- logits of one length -----------------------------------------------------------------------


@member(proper=False, bounded=True, convex=False, second_pass=True)
@explained
@takes_class_dim(refuses=False)
def logit_norm_loss(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    temperature: Positive = 0.04,
    class_dim: int | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Cross-entropy of logits of one length, so that a model cannot be surer by larger logits.

    .. math:: \ell = -\log \mathrm{softmax}_y \Bigl(\frac{z}{\tau \lVert z \rVert}\Bigr)

    A row of zeros stays as it is. Classes masked by ``-inf`` add nothing to the length. Behind a
    linear head, ``z = W h``, the lengths come from the matrix of products ``W' W`` of the size of a
    row of features squared, :math:`\lVert z \rVert^2 = h' (W' W) h`, without a look at the logits.

    Use:
        When outliers should stand out by low confidence; not when probabilities are used as they
        are, since the temperature sets how sure they can be.

    Args:
        temperature: ``tau``, positive: no logit is larger than ``1 / tau``. The authors choose it
            between 0.001 and 0.1; 0.04 is for CIFAR-10.

    Example:
        >>> import torch, xent
        >>> logits, label = torch.tensor([[3.0, 4.0], [300.0, 400.0]]), torch.tensor([0, 0])
        >>> xent.losses.logit_norm_loss(logits, label, temperature=0.1, reduction="none")
        tensor([2.1269, 2.1269])

    References:
        Wei et al., *Mitigating neural network overconfidence with logit normalization*, ICML 2022.
    """
    are_logits("input", input)
    refuse_probabilities("logit_norm_loss", input, target)
    temperature = finite_number("temperature", temperature)
    Range(0, open=True).check("temperature", temperature, None)
    options: Any = {
        "ignore_index": ignore_index, "reduction": reduction, "normalizer": normalizer,
        "row_weight": row_weight, "empty": empty,
    }  # fmt: skip
    if not isinstance(input, LinearLogits) or not _is_product(input):
        return _logit_norm(input, target, weight, temperature=temperature, **options)
    kept = target != ignore_index
    if row_weight is not None and kept.shape == row_weight.shape:
        kept = kept & (row_weight != 0)
    hidden = input.hidden
    if kept.shape == hidden.shape[:-1]:
        hidden = torch.where(kept.unsqueeze(-1), hidden, 0)  # an ignored row may hold NaN
    z = _without_bias(input.with_hidden(hidden))
    scale = 1 / (temperature * _lengths(z.hidden, z.weight) * abs(z.recorded()[0] or 1.0))
    return cross_entropy(z, target, weight, logit_scale=scale, **options)


@dense_loss(soft=False)
def _logit_norm(rows: DenseRows, temperature: float) -> Tensor:
    masked = rows.logits == -torch.inf
    z = torch.where(masked, 0.0, rows.logits)
    z = z / (temperature * _root(z.square().sum(-1, keepdim=True)))
    return -rows.log_prob(torch.where(masked, -torch.inf, z))


def _is_product(logits: LinearLogits) -> bool:
    """True if the logits are a product of features and weight, times a number."""
    scale, softcap = logits.recorded()
    is_number = scale is None or (isinstance(scale, float) and scale != 0)
    return is_number and softcap is None and not logits.masked


def _without_bias(logits: LinearLogits) -> LinearLogits:
    """Logits without a bias, which becomes the weight of one more feature, 1 in every row."""
    hidden, weight, bias = logits.hidden, logits.weight, logits.bias
    if bias is None:
        return logits
    hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)
    return logits.with_parts(hidden, torch.cat([weight, bias.unsqueeze(-1)], -1), None)


def _lengths(hidden: Tensor, weight: Tensor) -> Tensor:
    """The length of each row of ``hidden @ weight.T``, in float64; 1 for a row of zeros."""
    h = hidden.to(wide_dtype(hidden))  # (..., D)
    return _root(((h @ _gram(weight)) * h).sum(-1))


def _gram(weight: Tensor) -> Tensor:
    """``weight.T @ weight`` in float64, ``(D, D)``, some rows of the weight at a time."""
    from torch.utils import checkpoint

    def product(some: Tensor) -> Tensor:
        wide = some.to(wide_dtype(some))
        return wide.T @ wide

    parts = weight.split(max(1, 8 * CHUNK // max(1, weight.shape[1])))
    if deferred() or len(parts) == 1:
        return product(weight)
    again: Any = checkpoint.checkpoint  # pyright: ignore
    products = [again(product, x, use_reentrant=False, preserve_rng_state=False) for x in parts]
    return torch.stack(products).sum(0)


def _root(squares: Tensor) -> Tensor:
    """The square root; 1 of what is not positive, with a derivative of 0."""
    none = squares <= 0
    return torch.where(none, 1.0, torch.where(none, 1.0, squares).sqrt())
