"""The switch that makes a model lean."""

from __future__ import annotations

import warnings
from typing import Literal

from torch import nn

from ..._check import one_of
from .heads import head_of, is_compiled, objection_to, owner_of
from .hooks import Hooks


class lean:
    """Let a model of Transformers compute its loss without all logits in memory at once.

    With gradients ``outputs.logits`` are :class:`xent.LinearLogits`. Without gradients they are a
    tensor whose numbers are computed when something reads them; functions with a lean answer
    (``cross_entropy``, ``log_softmax`` and ``gather``, ``argmax``, slices) and all functions of
    this library read none. ``generate`` works as before. Parameters and saved files stay the same;
    copies and pickles are lean, too.

    On several ranks ``lean`` comes before or after ``fully_shard``, DistributedDataParallel and
    plans of tensor parallelism: loss and gradients are those of one process. A head whose classes
    lie on several ranks gives logits that are never gathered. A unit of FSDP that holds the head
    keeps its weights from forward to backward.

    As a context manager ``lean`` returns the model, and undoes the change at the end unless the
    model was lean before. Without ``with``, the change stays until :func:`unlean`.

    Args:
        model: any model whose output head is a :class:`torch.nn.Linear`, tied or not: causal,
            masked or sequence to sequence; or a PEFT model around one. A frozen head costs no
            matrix product for its gradient. What comes before the product of the head (hooks,
            casts, an own ``forward``) works as before. ``torch.compile`` of the whole model
            computes all logits; compile its body instead (``model.model.compile()``).
        when: ``"always"``, or ``"training"``: logits are late in training mode with gradients, and
            whenever ``labels`` are given; otherwise the model returns a tensor.
        max_workspace: bytes that a chunk of logits may take, as for :class:`xent.LinearLogits`.
        products: the type of the products with a head of 16 bits, as for
            :class:`xent.LinearLogits`.

    Raises:
        TypeError: for a model without an output head, or with a head that is quantised or not
            linear.
        ValueError: for a model that is lean already, with other options; for an unknown ``when`` or
            ``products``.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from xent.integrations.transformers import lean
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, num_hidden_layers=1, **sizes))
        >>> with lean(model.train()):
        ...     model(torch.tensor([[1, 2, 3]])).logits
        LinearLogits((1, 3, 32000), torch.float32, cpu)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        when: Literal["always", "training"] = "always",
        max_workspace: int | None = None,
        products: Literal["float32", "input"] | None = None,
    ) -> None:
        one_of("when", when, ("always", "training"))
        if products is not None:
            one_of("products", products, ("float32", "input"))
        options = {"max_workspace": max_workspace, "products": products}
        self.model = model
        owner = owner_of(model)
        hooks = getattr(owner, "_xent_hooks", None)
        self.was_lean = hooks is not None
        if hooks is None:
            objection = objection_to(head_of(owner))
            if objection is not None:
                raise TypeError(f"{type(owner).__name__} {objection}")
            if is_compiled(model, owner):
                warnings.warn(
                    "`model` is compiled as a whole, and compiled code computes all logits; "
                    "compile its body instead: model.model.compile()",
                    stacklevel=2,
                )
            owner._xent_hooks = hooks = Hooks(owner, when, options)  # pyright: ignore
            hooks.wrapped_in(model, owner)
            return
        hooks.wrapped_in(model, owner)
        before = {"when": hooks.when, **hooks.options}
        for name, value in {"when": when, **options}.items():
            if before[name] != value:
                raise ValueError(
                    f"this model is lean already, with another `{name}` than {value!r}; call "
                    f"unlean(model) first"
                )

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(self, *_: object) -> None:
        if not self.was_lean:
            unlean(self.model)


def unlean(model: nn.Module) -> None:
    """Undo :class:`lean`. A model that is not lean stays as it is.

    Args:
        model: the model, or a copy of it.

    Raises:
        TypeError: if ``model`` is not a model of Transformers.
    """
    owner = owner_of(model)
    hooks = getattr(owner, "_xent_hooks", None)
    if hooks is not None:
        hooks.remove(owner)
        del owner._xent_hooks
