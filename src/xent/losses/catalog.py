"""The losses by name, with the facts about each as data.

The catalog drives :mod:`xent.nn`, the laws in the tests, the pages of the losses on the site and
``xent losses``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from ..frames.docstrings import use
from ..overrides import overridable

__all__ = ["CATALOG", "Member", "Targets", "member"]

F = TypeVar("F", bound=Callable[..., Any])
Targets = Literal["classes", "soft", "binary", "other"]
"""Kinds of targets that a loss takes; :class:`Member` explains the words."""


class Member(NamedTuple):
    """A loss and the facts about it, at its default hyperparameters.

    Attributes:
        name: name of the loss in :mod:`xent.losses`.
        function: the loss.
        targets: ``"classes"`` if it takes one class per row (most take soft targets, too),
            ``"soft"`` if a distribution per row, ``"binary"`` if a number in [0, 1] per logit,
            ``"other"`` where the function explains it.
        proper: whether its expectation under a distribution is least where that distribution is
            predicted, and nowhere else.
        bounded: whether there is a largest loss of a row.
        convex: whether the loss is convex in the logits.
        symmetric: whether the losses of all possible targets add up to a constant, which makes the
            loss robust to labels that are wrong uniformly at random.
        second_pass: whether the loss sweeps the logits more than once, or keeps tensors of their
            size.
        in_nats: whether the loss is in nats, as log-probabilities and differences of logits are;
            powers of probabilities, squares and shares are not.
    """

    name: str
    function: Callable[..., Any]
    targets: Targets
    proper: bool
    bounded: bool
    convex: bool
    symmetric: bool
    second_pass: bool
    in_nats: bool

    @property
    def room(self) -> str:
        """The module of :mod:`xent.losses` that defines the loss."""
        return self.function.__module__.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of the docstring of the loss."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def use(self) -> str:
        """The sentence of the docstring that says when to take the loss, and when not."""
        return use(self.function)

    def needs(self, **hyperparameters: Any) -> tuple[str, ...]:
        """The statistics that the loss asks for, beyond those that every loss has."""
        asked = getattr(self.function, "needs", None)
        return asked(**hyperparameters) if asked else ()


CATALOG: dict[str, Member] = {}
"""The losses by name, from the plainest to the most special."""


def member(
    targets: Targets = "classes",
    *,
    proper: bool,
    bounded: bool = False,
    convex: bool,
    symmetric: bool = False,
    second_pass: bool = False,
    in_nats: bool = True,
) -> Callable[[F], F]:
    """Enter a loss into the catalog. A decorator; the facts are those of :class:`Member`."""

    def enter(function: F) -> F:
        function, name = overridable(function), function.__name__
        assert name not in CATALOG, name
        CATALOG[name] = Member(
            name, function, targets, proper, bounded, convex, symmetric, second_pass, in_nats
        )
        return function

    return enter
