"""A page to play with losses: one file, without a server, that runs the losses of the library.

The few lines that make a loss of a row's statistics are arithmetic. ``torch.fx`` records the lines
as they stand (``trace.py``), ``losses.py`` tells what the page has to know of a loss, and
``page.py`` puts everything into one file of HTML. In the browser the numbers carry their
derivatives along, so every loss has its gradient. ``xent play`` writes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..losses.catalog import Member
from .losses import of_catalog, of_function, of_member
from .page import assembled
from .trace import Untraceable

__all__ = ["Untraceable", "page"]

START = ("cross_entropy", "focal_loss")


def page(
    chosen: Sequence[tuple[Member | Callable[..., Any], Mapping[str, Any]]] = (),
) -> str:
    """The page with all losses whose bodies are formulas, as HTML.

    Args:
        chosen: one or two losses to begin with, each a member of the catalog or a loss of your own
            that :func:`xent.row_loss` or :func:`xent.element_loss` made, with hyperparameters.

    Raises:
        Untraceable: if a loss to begin with has no form in JavaScript. It is a ValueError.
        ValueError: for more than two losses, or a hyperparameter out of its range.

    Example:
        >>> import xent
        >>> from xent.playground import page
        >>> @xent.row_loss
        ... def my_loss(s, power=2.0):
        ...     return s.miss**power - s.log_prob
        >>> html = page([(my_loss, {"power": 3.0})])
        >>> "my_loss" in html and "https:" not in html
        True
    """
    if len(chosen) > 2:
        raise ValueError(f"the page begins with one or two losses, got {len(chosen)}")
    catalog, left_out = of_catalog()
    losses, start = dict(catalog), []
    for loss, given in chosen:
        name = loss.name if isinstance(loss, Member) else loss.__name__
        try:
            losses[name], word = _begun(loss, name, given)
        except Untraceable as error:
            raise Untraceable(f"{name} is not for the playground: {error}") from None
        start.append(word)
    return assembled(losses, left_out, [*start, *START][:2] if start else START)


def _begun(
    loss: Member | Callable[..., Any], name: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The entry of a loss, and the word that begins with it at these hyperparameters.

    Hyperparameters that the page has no slider for keep the values given.
    """
    made_of: Any = of_member if isinstance(loss, Member) else of_function
    made_of(loss, **given)  # checks the values
    made: dict[str, Any] = made_of(loss)
    moved = [f"{key}={value}" for key, value in given.items() if key in made["options"]]
    fixed = {key: value for key, value in given.items() if key not in made["options"]}
    return made_of(loss, **fixed), f"{name}:{','.join(moved)}" if moved else name
