"""The idea behind the library: a handful of numbers per row, and one way to merge them.

For one row of logits ``z`` and its class ``y`` let

* ``target`` = ``z_y``, the logit of the target (for a soft target ``q``: ``sum_j q_j z_j``),
* ``rest`` = the log-sum-exp of every *other* class,
* ``log_odds`` ``d = target - rest``.

Softmax cross-entropy of the row is *binary* cross-entropy on the single number ``d``:

    prob = sigmoid(d)             1 - prob = sigmoid(-d)
    log_prob = log sigmoid(d)     lse = target - log_prob

Nowhere are two nearly equal numbers subtracted. So loss and gradient keep all their digits, that
is, they are right to a few units in the last place, even for the most confident model, where
``lse - z_y`` rounds to zero. Every loss of the family is a few lines on these numbers.

The numbers of two parts of a row merge into the numbers of the whole, in any order and grouping (a
commutative monoid), whether the parts are tiles of a kernel, chunks of a vocabulary or the shards
of several machines.

Everything per row is float64: N numbers cost nothing beside N x V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .row_merge import NO_CLASS, merged

# The fields that an engine may return, in the order of the C++ struct `Statistics`.
FIELDS = (
    "shift",
    "sum",
    "log_odds",
    "log_prob",
    "target",
    "lse",
    "mass",
    "top",
    "top_logit",
    "pivot_log_odds",
    "entropy",
    "log_sum",
    "mean",
    "support",
    "mean_mass",
    "rest_top",
    "rest_top_logit",
    "rest_squares",
    "rest_cubes",
)
INDEX = {name: k for k, name in enumerate(FIELDS)}

REQUESTS = ("entropy", "mean", "top", "squares", "cubes")
INDEX_ONLY = ("squares", "cubes")  # requests that a soft target cannot make


def _bits(*fields: str) -> int:
    return sum(1 << INDEX[name] for name in fields)


# The fields as bits, a pair each, for class indices and for soft targets. First those that are
# always computed, then those of each request.
_EVERY = ("shift", "sum", "log_odds", "log_prob", "target", "lse", "mass")
_ALWAYS = (_bits(*_EVERY), _bits(*_EVERY, "top", "pivot_log_odds"))
_ASKED = {
    "entropy": (_bits("entropy", "log_sum"),) * 2,
    "mean": (_bits("mean", "support", "mean_mass"),) * 2,
    "top": (_bits("top", "rest_top", "rest_top_logit"), _bits("top", "top_logit")),
    "squares": (_bits("rest_squares"),) * 2,
    "cubes": (_bits("rest_cubes"),) * 2,
}


def field_mask(soft: bool, requests: tuple[str, ...]) -> int:
    """The fields to compute, as the bits that the engines understand."""
    mask = _ALWAYS[soft]
    for name in requests:
        mask |= _ASKED[name][soft]
    return mask


def fields_of(mask: int) -> tuple[str, ...]:
    """The names of the fields, in the order of their table."""
    return tuple([name for k, name in enumerate(FIELDS) if mask >> k & 1])


def _requested(name: str, request: str, doc: str) -> property:
    """A property for a statistic that is computed on request only."""

    def get(self: RowStatistics) -> Tensor:
        if name not in self.on_request:
            raise AttributeError(
                f"`{name}` was not computed, because nobody asked for it: pass {request}=True to "
                f'xent.statistics, or declare @row_loss(needs="{request}")'
            )
        return self.on_request[name]

    return property(get, doc=f"{doc} On request.")


# Statistics on request that are a field of the table without any change.
_AS_THEY_ARE = (
    "entropy", "mean", "mean_mass", "support", "rest_top_logit", "rest_squares", "rest_cubes",
)  # fmt: skip


@dataclass(frozen=True)
class RowStatistics:
    r"""Statistics of each row of logits, all that a loss may use; in natural logarithms.

    Every attribute has the shape of the target without its class axis, in float64, and is
    differentiable with respect to the logits unless marked *constant*. With :meth:`merge` and
    :meth:`identity` the statistics of disjoint sets of classes form a commutative monoid.

    Attributes:
        log_odds: ``target - rest``, the log-odds of the target against all other classes.
        log_prob: log-probability of the target, ``log sigmoid(log_odds)``; for a soft target
            ``q`` the expected one, ``sum_j q_j log p_j``.
        target: logit of the target; for a soft target ``sum_j q_j z_j``.
        lse: log-sum-exp of all classes.
        mass: *constant*. Weight of the row: the class weight of its target class (1 without
            weights, 0 if the row is ignored), or the sum of its (weighted) soft target.
        soft: whether the targets are probabilities rather than class indices.
        label: *constant*. Class of the target, int64, negative in ignored rows; None for soft
            targets.
        classes: number of classes, masked ones included.
        complete: whether it is known that no row is ignored.

    On request:
        entropy: with ``entropy=True``, the entropy of the predicted distribution.
        mean: with ``mean=True``, the mean logit over the classes that are not masked by ``-inf``;
            with class weights their weighted sum over the number of those classes.
        mean_mass: *constant*. Sum of the coefficients of ``mean``: 1 without class weights.
        support: *constant*. Number of classes that are not masked.
        top: *constant*. Class of the largest logit, int64, ties to the lowest class.
        top_logit: the largest logit; *constant* for soft targets.
        rest_top: *constant*. With ``top``, index targets only: the likeliest class but the target.
        rest_top_logit: the logit of ``rest_top``; ``-inf`` where there is no other class.
        rest_squares: ``squares=True``, index targets only: sum of ``p_j ** 2`` over every class but
            the target.
        rest_cubes: ``cubes=True``, likewise ``p_j ** 3``.

    An ignored row is a row predicted with certainty: ``log_prob`` 0, ``log_odds`` infinite,
    ``mass`` 0.

    Example:
        >>> import torch, xent
        >>> s = xent.statistics(torch.tensor([[10.0, -10.0, -10.0]]), torch.tensor([0]))
        >>> f"{-s.log_prob.item():.6e}"
        '4.122307e-09'
        >>> f"{s.prob.item():.4f} {s.rest.item():.4f}"
        '1.0000 -9.3069'
    """

    log_odds: Tensor
    log_prob: Tensor
    target: Tensor
    lse: Tensor
    mass: Tensor
    soft: bool = False
    label: Tensor | None = None
    classes: int = 0
    on_request: Mapping[str, Tensor] = field(default_factory=dict)
    complete: bool = False

    @property
    def prob(self) -> Tensor:
        """Probability of the target; for a soft target the geometric mean over its classes."""
        return self.log_prob.exp()

    @property
    def log_miss(self) -> Tensor:
        """Log-probability of everything but the target, ``log(1 - prob)`` with all its digits."""
        return torch.nn.functional.logsigmoid(-self.log_odds)

    @property
    def miss(self) -> Tensor:
        """Probability of everything but the target, ``1 - prob`` with all its digits."""
        return self.log_miss.exp()  # torch.sigmoid's derivative has a rounded 1 - p

    @property
    def rest(self) -> Tensor:
        """Log-sum-exp of every class but the target."""
        absent = self.target == -torch.inf  # masked, or in another shard: all classes are rest
        return torch.where(absent, self.lse, self.target - self.log_odds)

    @property
    def nll(self) -> Tensor:
        """Negative log-likelihood with the class weights, the term of a row in cross-entropy."""
        return -self.log_prob if self.soft else -self.log_prob * self.mass

    entropy = _requested("entropy", "entropy", "Entropy of the predicted distribution.")
    mean = _requested("mean", "mean", "Mean logit over the unmasked classes.")
    mean_mass = _requested("mean_mass", "mean", "Sum of the coefficients of ``mean``.")
    support = _requested("support", "mean", "Number of unmasked classes.")
    top = _requested("top", "top", "Class of the largest logit.")
    top_logit = _requested("top_logit", "top", "The largest logit.")
    rest_top = _requested("rest_top", "top", "Most likely class but the target.")
    rest_top_logit = _requested("rest_top_logit", "top", "Largest logit but the target's.")
    rest_squares = _requested("rest_squares", "squares", "Sum of ``p_j ** 2`` over the rest.")
    rest_cubes = _requested("rest_cubes", "cubes", "Sum of ``p_j ** 3`` over the rest.")

    def of_label(self, values: Tensor) -> Tensor:
        """Look up the number of each row's target class in ``values``, ``(C,)``; in float64.

        Ignored rows get 0. Differentiable with respect to ``values``.
        """
        if self.label is None:
            raise ValueError("of_label: soft targets have no single class to look up")
        inside = (self.label >= 0) & (self.label < values.shape[0])
        found = values.to(self.mass.dtype)[torch.where(inside, self.label, 0)]
        return torch.where(inside, found, 0.0)

    @classmethod
    def from_fields(
        cls,
        values: Sequence[Tensor],
        fields: tuple[str, ...],
        soft: bool,
        first_class: int = 0,
        constant_masses: bool = True,
        label: Tensor | None = None,
        classes: int = 0,
        complete: bool = False,
    ) -> RowStatistics:
        """Make statistics of the fields that an engine returns.

        Masses do not depend on the logits. ``constant_masses=False`` keeps the gradients of masses
        by soft targets and class weights.
        """
        row = dict(zip(fields, values, strict=True))
        if constant_masses:
            row |= {k: row[k].detach() for k in ("mass", "mean_mass", "support") if k in row}
        requested = {name: row[name] for name in _AS_THEY_ARE if name in fields}
        if "rest_top_logit" in fields:
            requested["rest_top"] = row["rest_top"].detach().to(torch.int64) + first_class
            requested["top_logit"] = torch.maximum(row["target"], row["rest_top_logit"])
        if "top_logit" in fields:
            requested["top_logit"] = row["top_logit"].detach()
        if "top_logit" in requested:
            requested["top"] = row["top"].detach().to(torch.int64) + first_class
        return cls(
            log_odds=row["log_odds"],
            log_prob=row["log_prob"],
            target=row["target"],
            lse=row["lse"],
            mass=row["mass"],
            soft=soft,
            label=label,
            classes=classes,
            complete=complete,
            on_request=requested,
        )

    def reshape(self, shape: tuple[int, ...]) -> RowStatistics:
        """Return the statistics with other axes for the rows."""
        names = ("log_odds", "log_prob", "target", "lse", "mass", "label")
        own = {n: x.reshape(shape) for n in names if (x := getattr(self, n)) is not None}
        asked = {name: value.reshape(shape) for name, value in self.on_request.items()}
        return replace(self, **own, on_request=asked)

    @classmethod
    def identity(
        cls,
        shape: tuple[int, ...] = (),
        *,
        soft: bool = False,
        entropy: bool = False,
        mean: bool = False,
        top: bool = False,
        squares: bool = False,
        cubes: bool = False,
        device: torch.device | str | None = None,
    ) -> RowStatistics:
        """Statistics of no class at all: merging with them changes nothing.

        Args:
            shape: shape of the rows.
            soft: for soft targets.
            entropy: hold an entropy, as the statistics to merge with do.
            mean: likewise.
            top: likewise.
            squares: likewise.
            cubes: likewise.
            device: where to put the tensors.
        """

        def full(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        nothing = {
            "entropy": {"entropy": full(0.0)},
            "mean": {name: full(0.0) for name in ("mean", "mean_mass", "support")},
            "squares": {"rest_squares": full(0.0)},
            "cubes": {"rest_cubes": full(0.0)},
            "top": {},
        }
        for peak in ("top",) if soft else ("top", "rest_top"):
            nothing["top"][peak] = full(NO_CLASS, torch.int64)
            nothing["top"][f"{peak}_logit"] = full(-torch.inf)
        wanted = zip(REQUESTS, (entropy, mean, top, squares, cubes), strict=True)
        return cls(
            log_odds=full(torch.inf if soft else -torch.inf),
            log_prob=full(0.0 if soft else -torch.inf),
            target=full(0.0 if soft else -torch.inf),
            lse=full(-torch.inf),
            mass=full(0.0),
            soft=soft,
            on_request={k: v for name, on in wanted if on for k, v in nothing[name].items()},
        )

    def merge(self, other: RowStatistics) -> RowStatistics:
        """Statistics of the union of two disjoint sets of classes. Differentiable.

        Associative and commutative up to rounding; both sides must hold the same requests.

        Args:
            other: statistics of the same rows over other classes, as
                ``statistics(..., first_class=...)`` gives them.

        Raises:
            ValueError: if one side has soft targets, or a request, that the other lacks.
        """
        return merged((self, other))
