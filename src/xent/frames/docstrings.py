"""The parts of docstrings that all losses share, so that no loss repeats them.

A loss explains its formula and its hyperparameters; the frame adds the arguments of this module.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

_ARGUMENTS = {
    "input": "logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``-inf`` masks a class.",
    "target": "class indices of any integer type, in the shape of the rows, ``()``, ``(N,)`` or\n"
    "    ``(N, d1, ...)``{soft}.",
    "class_dim": "the axis of the classes, of ``input`` and of all that lies like it: -1 for the\n"
    "    ``(B, T, C)`` of language models. By default axis 1, or the only one; the last behind a\n"
    "    linear head. Must be given for a tensor of three or more axes and a target of its\n"
    "    shape, except in PyTorch's functions.",
    "weight": "class weights, ``(C,)``, of any floating-point type: each row counts as much as\n"
    "    its target class.",
    "ignore_index": "class index that marks rows to leave out.",
    "reduction": '``"none"``, ``"sum"`` or ``"mean"``. The mean divides by the summed class\n'
    "    weight of the rows that are kept{rows}.",
    "normalizer": 'another divisor of the mean: a number or 0-d tensor, ``"count"`` for the\n'
    '    number of rows kept, ``"weight"`` for the rule above.',
    "row_weight": "factor on each row, in the shape of the rows; 0 leaves a row out, whatever it\n"
    "    holds. The mean divides by its sum, too.",
    "logit_scale": "factor on the logits (an inverse temperature), a number or one per row.",
    "softcap": "replaces logits ``z`` by ``softcap * tanh(z / softcap)``, after the scale.",
    "class_bias": "added to the logits after scale and softcap, ``(C,)``.",
    "return_stats": "also return the :class:`xent.RowStatistics`.",
    "inplace_backward": "write the gradient over ``input``, which must be an intermediate result\n"
    "    that nobody reads any more.",
    "empty": '``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.',
    "engine": '``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``; see\n'
    "    :func:`xent.explain`.",
}

_RETURNS = """\
Returns:
    In nats unless the formula says otherwise; a scalar, or the shape of the rows for
    ``reduction="none"``, in the dtype of ``input`` (float32 under autocast).
"""

_RETURNS_STATISTICS = """\
    With ``return_stats``, that and the statistics.
"""

_RAISES = """\
Raises:
    ValueError: for shapes that do not fit, a class index out of range, or a value that an
        option or hyperparameter cannot take.
    TypeError: for dtypes that do not fit.
"""

_SECTION = re.compile(
    r"^(Use|Args|Returns|Raises|Example|Examples|References|Note):$", re.MULTILINE
)


def sections(doc: str) -> dict[str, str]:
    """The parts of a docstring by title; what comes before the first title has the title ""."""
    marks = list(_SECTION.finditer(doc))
    edges = [*(mark.start() for mark in marks), len(doc)]
    found = {"": doc[: edges[0]]}
    for mark, end in zip(marks, edges[1:], strict=True):
        found[mark[1]] = doc[mark.end() + 1 : end]
    return {title: text.rstrip() for title, text in found.items()}


def use(loss: Callable[..., Any]) -> str:
    """The sentence of a loss's docstring that says when to take the loss, and when not."""
    return " ".join(sections(inspect.getdoc(loss) or "").get("Use", "").split())


def complete(doc: str, arguments: dict[str, str], returns: str, raises: str) -> str:
    """A docstring with ``arguments`` explained before its own, and the sections it lacks added."""
    own = sections(doc)
    told = [f"    {name}: {text}".replace("\n", "\n    ") for name, text in arguments.items()]
    parts = [own.pop("")]
    if "Use" in own:
        parts.append("Use:\n" + own.pop("Use"))
    parts.append("Args:\n" + "\n".join([*told, own.pop("Args", "")]).rstrip())
    parts.append("Returns:\n" + own.pop("Returns") if "Returns" in own else returns)
    parts.append("Raises:\n" + own.pop("Raises") if "Raises" in own else raises)
    parts += [f"{title}:\n{text}" for title, text in own.items()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def described(
    loss: Any,
    hyperparameters: Sequence[inspect.Parameter],
    left_out: Collection[str],
    docstring: Callable[[list[str]], str | None],
) -> Any:
    """Return the loss, with the signature and the docstring that its callers see.

    Args:
        loss: takes the options of its frame, and hyperparameters as ``**hyperparameters``.
        hyperparameters: those of its body.
        left_out: options of the frame that this loss does not offer.
        docstring: gives the docstring for the names of the options that are offered.
    """
    options = inspect.signature(loss, follow_wrapped=False).parameters.values()
    offered = [p for p in options if p.name not in left_out and p.kind is not p.VAR_KEYWORD]
    loss.__signature__ = inspect.Signature([*offered, *hyperparameters])
    loss.__doc__ = docstring([p.name for p in offered])
    return loss


def loss_docstring(
    body: Callable[..., Any], parameters: Sequence[str], soft: bool, labelled: bool = True
) -> str | None:
    """The docstring of a row loss: that of its body, and the arguments that every loss takes."""
    if not body.__doc__:
        return None
    others = "; or class probabilities in the shape of ``input``" if soft else ""
    if not labelled:
        others = "; they only\n    say which rows count: None for all"
    words = {
        "soft": others,
        "rows": "; with probabilities by the number of rows" if soft else "",
    }
    told: dict[str, str] = {}
    for name in parameters:
        text = _ARGUMENTS[name]
        for key, words_for in words.items():
            text = text.replace("{" + key + "}", words_for)
        told[name] = text
    returns = _RETURNS + _RETURNS_STATISTICS if "return_stats" in told else _RETURNS
    return complete(inspect.cleandoc(body.__doc__), told, returns, _RAISES)


# ---- losses of single elements ------------------------------------------------------------------

_ELEMENT_ARGUMENTS = {
    "input": "logits, of any shape.",
    "target": "probabilities of label 1 in the shape of ``input``, in [0, 1]; labels 0 and 1 may\n"
    "    also be booleans or integers.",
    "weight": "factor on each element; broadcasts to the shape of ``input``. 0 leaves an element\n"
    "    out, whatever it holds.",
    "pos_weight": "factor on the targets, the term of label 1; broadcasts likewise.",
    "unnormalized": "take targets outside [0, 1], too.",
    "label_smoothing": "in [0, 1]: how far targets move towards 1/2.",
    "ignore_value": "target that marks elements to leave out: -1 say, 255, or NaN.",
    "reduction": '``"none"``, ``"sum"`` or ``"mean"``. The mean divides by the number of elements\n'
    "    that are kept, whatever their weights.",
    "normalizer": 'another divisor of the mean: a number or 0-d tensor, ``"weight"`` for the\n'
    '    sum of the weights, ``"count"`` for the rule above.',
    "empty": '``"nan"`` as PyTorch, or ``"zero"``: the mean of no elements.',
    "engine": '``"auto"``, ``"native"`` or ``"triton"`` (where the loss has a kernel) or\n'
    '    ``"reference"``.',
}

_ELEMENT_RETURNS = """\
Returns:
    In nats unless the formula says otherwise; a scalar, or the shape of ``input`` for
    ``reduction="none"``, in the dtype of ``input`` and ``target`` together (float32 under
    autocast).
"""

_ELEMENT_RAISES = """\
Raises:
    ValueError: for shapes that do not fit, a target outside [0, 1] (looked for on the CPU), or a
        value that an option or hyperparameter cannot take.
    TypeError: for dtypes that do not fit.
"""


def element_docstring(body: Callable[..., Any], parameters: Sequence[str]) -> str | None:
    """The docstring of an element loss: that of its body, and the arguments all of them take."""
    if not body.__doc__:
        return None
    told = {name: _ELEMENT_ARGUMENTS[name] for name in parameters}
    return complete(inspect.cleandoc(body.__doc__), told, _ELEMENT_RETURNS, _ELEMENT_RAISES)
