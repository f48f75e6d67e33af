"""Losses of a batch of features with labels: examples of a class near each other, others apart."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..heads.problem import make_problem
from ..hyperparameters import Number, Positive
from ..targets import any_class
from .catalog import member
from .labelled import Compared, labelled_loss, lse, nll_of_positives
from .sets import set_statistics


@member("other", proper=False, convex=True, second_pass=True)
@labelled_loss(leaves_out="positives")
def supcon_loss(c: Compared, temperature: float | Tensor = 0.07) -> Tensor:
    r"""Supervised contrastive loss: cross-entropy of finding the examples with the same label.

    .. math:: \ell_n = -\frac{1}{|P_n|} \sum_{p \in P_n} \log
        \frac{\exp(x_n \cdot x_p / T)}{\sum_{m \ne n} \exp(x_n \cdot x_m / T)}, \qquad
        P_n = \{p \ne n : y_p = y_n\}

    The "out" form of the paper: a mean of logarithms. With two views of each example and its number
    for a label this is :func:`xent.losses.nt_xent_loss`. A row without positives is left out, but
    the others are compared with it.

    Use:
        For features in which the rows of a class are near each other; not with batches of one row
        per class, since a row without positives is left out.

    Args:
        temperature: ``T``, positive: a number, or a 0-d tensor to be learned.

    Example:
        >>> import torch, xent
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> round(xent.losses.supcon_loss(features, labels, temperature=0.5).item(), 4)
        0.8707

    References:
        Khosla et al., *Supervised contrastive learning*, NeurIPS 2020.
    """
    return nll_of_positives(c)


@member("other", proper=False, convex=False, second_pass=True)
@labelled_loss(leaves_out="positives", unit=False, distances=True)
def nca_loss(c: Compared, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Neighbourhood components analysis: cross-entropy of a random neighbour of the same label.

    .. math:: \ell_n = -\log \frac{\sum_{p \in P_n} \exp(-\|x_n - x_p\|^2 / T)}
        {\sum_{m \ne n} \exp(-\|x_n - x_m\|^2 / T)}, \qquad P_n = \{p \ne n : y_p = y_n\}

    The cross-entropy of a set, :func:`xent.losses.set_cross_entropy`, of minus the squared
    distances: one positive must be near, not all. A row without positives is left out, but the
    others are compared with it.

    Use:
        For features by whose nearest neighbours rows are classified; not when all rows of a class
        should meet, which is for :func:`~xent.losses.supcon_loss`.

    Args:
        temperature: ``T``, positive: a number, or a 0-d tensor to be learned.
        products: the type of the products of 16-bit features, of which the distances are
            differences: float32 unless given; ``"input"`` for that of the features.

    Example:
        >>> import torch, xent
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> round(xent.losses.nca_loss(features, labels).item(), 4)
        0.8707

    References:
        Goldberger et al., *Neighbourhood components analysis*, NeurIPS 2004.
    """
    z = c.apart
    return 0.0 - set_statistics(make_problem(z, any_class(z)), c.same).log_prob


@member("other", proper=False, convex=True, second_pass=True)
@labelled_loss(leaves_out="negatives")
def decoupled_contrastive_loss(c: Compared, temperature: float | Tensor = 0.1) -> Tensor:
    r"""Contrastive loss whose positives do not compete with the negatives.

    .. math:: \ell_n = \log \sum_{m : y_m \ne y_n} \exp(x_n \cdot x_m / T)
        - \frac{1}{|P_n|} \sum_{p \in P_n} x_n \cdot x_p / T, \qquad
        P_n = \{p \ne n : y_p = y_n\}

    :func:`xent.losses.supcon_loss` without the positives in its denominator, so that the gradient
    of a row does not fade as its positives come near. It has no least value. A row without
    positives, or without negatives, is left out, but the others are compared with it.

    Use:
        For contrastive learning in small batches; not as a likelihood, since it has no least value.

    Args:
        temperature: ``T``, positive: a number, or a 0-d tensor to be learned.

    Example:
        >>> import torch, xent
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss = xent.losses.decoupled_contrastive_loss(features, labels, temperature=0.5)
        >>> round(loss.item(), 4)
        0.2899

    References:
        Yeh et al., *Decoupled contrastive learning*, ECCV 2022.
    """
    return lse(c.z, c.other) - c.mean()


@member("other", proper=False, convex=True, second_pass=True, in_nats=False)
@labelled_loss()
def multi_similarity_loss(
    c: Compared, alpha: Positive = 2.0, beta: Positive = 50.0, base: Number = 0.5
) -> Tensor:
    r"""Positives above a similarity and negatives below it, the worst ones most of all.

    .. math:: \ell_n =
        \frac{1}{\alpha} \log\Bigl(1 + \sum_{p \in P_n}
        e^{-\alpha (x_n \cdot x_p - \lambda)}\Bigr)
        + \frac{1}{\beta} \log\Bigl(1 + \sum_{m : y_m \ne y_n}
        e^{\beta (x_n \cdot x_m - \lambda)}\Bigr)

    Multi-similarity loss without its mining of pairs. :math:`P_n` holds the other examples with the
    label of n; a row without any has the second term only.

    Use:
        For retrieval, when the worst positives and negatives should count most; not without tuning
        its threshold, a similarity that depends on the features.

    Args:
        alpha: sharpness for positives.
        beta: sharpness for negatives.
        base: ``lambda``, the similarity between positives and negatives.

    Example:
        >>> import torch, xent
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> round(xent.losses.multi_similarity_loss(features, labels).item(), 4)
        0.4988

    References:
        Wang et al., *Multi-similarity loss with general pair weighting for deep metric learning*,
        CVPR 2019.
    """
    above = c.z - base
    near, far = lse(-alpha * above, c.same), lse(beta * above, c.other)
    return 0.0 - logsigmoid(-near) / alpha - logsigmoid(-far) / beta


@member("other", proper=False, convex=False, second_pass=True)
@labelled_loss(leaves_out="negatives")
def circle_loss(c: Compared, margin: Number = 0.4, gamma: Positive = 80.0) -> Tensor:
    r"""Every positive above every negative, each pulled as hard as it is far from its optimum.

    .. math:: \ell_n = \log\Bigl(1 + \sum_{m : y_m \ne y_n} e^{\gamma a_m (s_m - \Delta)}
        \sum_{p \in P_n} e^{-\gamma a_p (s_p - 1 + \Delta)}\Bigr), \qquad
        a_m = [s_m + \Delta]_+, \quad a_p = [1 + \Delta - s_p]_+

    :math:`s_m = x_n \cdot x_m` are the similarities and :math:`P_n` holds the other examples with
    the label of n. The weights ``a`` count as constants in the gradient. A row without positives,
    or without negatives, is left out, but the others are compared with it.

    Use:
        For retrieval, when each pair is pulled as far as it is from its goal; not with batches in
        which rows lack positives or negatives, since such rows are left out.

    Args:
        margin: ``Delta``, how far positives may be from 1 and negatives from 0.
        gamma: the factor on the similarities.

    Example:
        >>> import torch, xent
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> round(xent.losses.circle_loss(features, labels).item(), 3)
        28.865

    References:
        Sun et al., *Circle loss: a unified perspective of pair similarity optimization*, CVPR 2020.
    """
    s = c.z.detach()
    pull, push = (1 + margin - s).relu(), (s + margin).relu()
    near = lse(-gamma * pull * (c.z - (1 - margin)), c.same)
    far = lse(gamma * push * (c.z - margin), c.other)
    return -logsigmoid(-(near + far))
