"""The losses of Hugging Face models without all their logits in memory at once.

The code of a model does not change::

    with lean(model):  # or lean(model): from now on, until unlean(model)
        model(input_ids, labels=labels).loss.backward()

Only the product of its output head is late: it becomes :class:`xent.LinearLogits`. The forward of
the model scales, caps, shifts and flattens this stand-in, and cross-entropy is computed a chunk of
rows at a time. Hooks of others see tensors until the product.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map_only

from .. import LinearLogits, explain
from .._check import one_of
from ..engines.modes import compiling
from ..heads.late import Late, in_evaluation
from ..heads.late_product import LateProduct
from ..measurement import LeanExplanation

__all__ = ["lean", "unlean"]

MAX_WORKSPACE: int = inspect.signature(LinearLogits).parameters["max_workspace"].default


class lean:
    """Let a model of Transformers compute its loss without all logits in memory at once.

    With gradients ``outputs.logits`` are :class:`xent.LinearLogits`. Without gradients they are a
    tensor whose numbers are computed when something reads them; functions with a lean answer
    (``cross_entropy``, ``log_softmax`` and ``gather``, ``argmax``, slices) and all functions of
    this library read none. ``generate`` works as before. Parameters and saved files stay the same;
    copies and pickles are lean, too.

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
        max_workspace: bytes that a chunk of logits may take.
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
        max_workspace: int = MAX_WORKSPACE,
        products: Literal["float32", "input"] | None = None,
    ) -> None:
        one_of("when", when, ("always", "training"))
        if products is not None:
            one_of("products", products, ("float32", "input"))
        options = {"max_workspace": max_workspace, "products": products}
        self.model = model
        owner = _owner(model)
        hooks = getattr(owner, "_xent_hooks", None)
        self.was_lean = hooks is not None
        if hooks is None:
            objection = _objection(_head(owner))
            if objection is not None:
                raise TypeError(f"{type(owner).__name__} {objection}")
            if _is_compiled(model, owner):
                warnings.warn(
                    "`model` is compiled as a whole, and compiled code computes all logits; "
                    "compile its body instead: model.model.compile()",
                    stacklevel=2,
                )
            owner._xent_hooks = Hooks(owner, when, options)  # pyright: ignore
            return
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
    owner = _owner(model)
    hooks = getattr(owner, "_xent_hooks", None)
    if hooks is not None:
        hooks.remove(owner)
        del owner._xent_hooks


class Call(threading.local):
    """State of the call of a model; each thread has a call of its own."""

    def __init__(self) -> None:
        self.plainly = False  # True within `generate`
        self.inside = self.labels_given = False
        self.head_called = self.met = False
        self.obstacle: str | None = None  # why the product of this call was not late
        self.products: list[LateProduct] = []  # the modes that are on

    def __reduce__(self) -> tuple[type[Call], tuple[()]]:
        return Call, ()

    def begin(self, labels_given: bool) -> None:
        """Begin a call of the model."""
        self.switch_off()
        # Flags, not counters: the next call clears what an interrupted call left behind.
        self.inside, self.labels_given = True, labels_given
        self.head_called, self.met, self.obstacle = False, False, None

    def switch_off(self) -> None:
        """Switch off late products that an interrupted call left on."""
        while self.products:
            product = self.products.pop()
            if torch.overrides._get_current_function_mode() is product:
                product.__exit__(None, None, None)


class Hooks:
    """The hooks of a lean model: around its forward, and around its head.

    Attributes:
        when: the argument of :class:`lean`.
        options: of the LinearLogits.
    """

    def __init__(self, owner: nn.Module, when: str, options: dict[str, Any]) -> None:
        self.when, self.options = when, options
        self.call, self.warned = Call(), False
        self.in_use = True
        self.readers: list[str] = []  # the operations that read all logits
        self.of_owner = [
            owner.register_forward_pre_hook(self.enter, with_kwargs=True),
            owner.register_forward_hook(self.leave, always_call=True),
        ]
        self.head: nn.Module | None = None
        self.of_head: list[Any] = []
        self.hook_head(_head(owner))
        if hasattr(type(owner), "generate"):
            owner.generate = Generate(owner, self)  # pyright: ignore

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy. With a copied head come hooks that no model calls, so not in use."""
        vars(self).update(state, in_use=False)

    def hook_head(self, head: nn.Module) -> None:
        """Put the hooks around a head, unless they are there."""
        if head is not self.head:
            for handle in self.of_head:
                handle.remove()
            self.head = head
            self.of_head = [
                head.register_forward_pre_hook(self.before_head, with_kwargs=True),
                head.register_forward_hook(self.after_head, always_call=True),
            ]

    def remove(self, owner: nn.Module) -> None:
        """Take all hooks away."""
        self.call.switch_off()
        for handle in (*self.of_owner, *self.of_head):
            handle.remove()
        given = vars(owner).get("generate")
        if isinstance(given, Generate):  # and not what others put in its place
            given.undo()

    def explanation(self, owner: nn.Module) -> LeanExplanation:
        """Explain the model with these hooks, for :func:`xent.explain`."""
        layer = _layer(_head(owner))
        weight = layer.weight
        outline = torch.empty(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
        target = torch.zeros(1, dtype=torch.int64, device=weight.device)
        how = explain(LinearLogits(outline, outline, **self.options), target).products
        compiled = ["compiled code, since the model is compiled as a whole"]
        read = (*compiled * _is_compiled(owner, owner), *self.readers)
        return LeanExplanation(self.when, f"{layer}, {weight.dtype}", how, read)

    # ---- the forward of the model ----------------------------------------------------------------

    def enter(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what a call of the model is given, and follow a head that was replaced."""
        if compiling():
            return
        labels = kwargs.get("labels")
        if labels is None and len(args) > 1:
            names = inspect.signature(owner.forward).parameters
            labels = dict(zip(names, args, strict=False)).get("labels")
        self.in_use = True
        self.call.begin(labels is not None)
        head = _head(owner)
        if head is not self.head and _objection(head) is None:  # resized, or an adapter on it
            self.hook_head(head)

    def leave(self, owner: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Make late tensors of what a call without gradients returns; warn of logits."""
        if compiling():
            return None
        call = self.call
        wanted = call.inside and not call.met and self.wanted(owner)
        call.inside = call.labels_given = False
        if wanted and not self.warned and _has_logits(output):
            self.warned = True
            self.readers.append(f"the model, since {self.why()}")
            warnings.warn(f"{type(owner).__name__} had all its logits: {self.why()}", stacklevel=2)
        return _evaluated(output)

    def wanted(self, module: nn.Module) -> bool:
        """True if logits are to be late in this call of a module."""
        call = self.call
        if call.plainly or not self.in_use:
            return False
        learns = torch.is_grad_enabled()
        always = self.when == "always" or call.labels_given or in_evaluation.get()
        evaluates = not (learns or module.training)
        if always and (call.inside or evaluates):  # adapters may call a forward without hooks
            return True
        return module.training and learns

    def why(self) -> str:
        """Say why a call had all its logits."""
        if not self.call.head_called:
            return (
                "it multiplies by the weight of its head without calling the head. For a lean loss "
                "hand xent.LinearLogits(hidden, weight) to the loss"
            )
        return self.call.obstacle or (
            f"its head, {type(self.head).__name__}, computes its product itself, as quantised "
            f"layers do"
        )

    # ---- its head --------------------------------------------------------------------------------

    def before_head(self, head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Switch the late product on."""
        if compiling():
            return
        self.call.head_called = True
        hidden = next(iter((*args, *kwargs.values())), None)
        if isinstance(hidden, Tensor) and self.wanted(head):
            product = LateProduct(hidden.shape[:-1], _classes(head), self.options, self.readers)
            self.call.products.append(product)
            product.__enter__()

    def after_head(self, head: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Switch the late product off; outside of a call of the model, make late tensors."""
        call = self.call
        if compiling() or not call.products:
            return None
        product = call.products.pop()
        product.__exit__(None, None, None)
        call.met, call.obstacle = call.met or product.met, product.obstacle
        return None if call.inside else _evaluated(output)


class Generate:
    """The ``generate`` of a lean model, in which all works as in an untouched one."""

    def __init__(self, owner: Any, hooks: Hooks) -> None:
        self.owner, self.hooks = owner, hooks
        self.before = vars(owner).get("generate")  # of others, who replaced it first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as an untouched model does."""
        generate = self.before or type(self.owner).generate.__get__(self.owner)
        call = self.hooks.call
        outer, call.plainly = call.plainly, True
        try:
            return generate(*args, **kwargs)
        finally:
            call.plainly = outer

    def undo(self) -> None:
        """Give the model its own ``generate`` back."""
        del self.owner.generate
        if self.before is not None:
            self.owner.generate = self.before


def _evaluated(output: Any) -> Any:
    """Return late tensors in the place of logits without gradients: evaluations need tensors."""
    return None if torch.is_grad_enabled() else tree_map_only(LinearLogits, Late, output)


def _has_logits(output: Any) -> bool:
    """True if a model returned logits; it has none where another fused loss ran."""
    logits = output.get("logits") if isinstance(output, dict) else output
    return any(isinstance(x, Tensor) and x.ndim > 1 for x in tree_leaves(logits))


def _owner(model: nn.Module) -> nn.Module:
    """Return the model of Transformers inside wrappers; all calls reach that model."""
    owner: Any = model
    while True:
        if hasattr(owner, "get_base_model"):  # of PEFT
            owner = owner.get_base_model()
        elif hasattr(owner, "_orig_mod"):  # of torch.compile
            owner = owner._orig_mod
        elif isinstance(owner, (nn.DataParallel, DistributedDataParallel)):
            owner = owner.module
        else:
            break
    if not hasattr(owner, "get_output_embeddings"):
        raise TypeError(
            f"`model` must be a model of Transformers, or of PEFT around one; got "
            f"{type(model).__name__}. Elsewhere, hand xent.LinearLogits(hidden, weight) to the loss"
        )
    return owner


def _head(owner: nn.Module) -> Any:
    return owner.get_output_embeddings()  # pyright: ignore


def _layer(head: Any) -> Any:
    """Return the layer of a head inside the wrappers of PEFT."""
    while True:
        inner = getattr(head, "base_layer", None) or getattr(head, "original_module", None)
        if inner is None:
            return head
        head = inner


def _classes(head: nn.Module) -> set[int]:
    layer = _layer(head)
    return {layer.out_features, layer.weight.shape[0]}


def _objection(head: Any) -> str | None:
    """Say why a head cannot be late; None if it can."""
    if head is None:
        return (
            "has no output head over a vocabulary (get_output_embeddings() is None). Take its "
            "class for language models; a head of a few classes has nothing to gain"
        )
    layer = _layer(head)
    elsewhere = "hand xent.LinearLogits(hidden, weight) to the loss"
    if isinstance(layer, nn.Embedding):
        return (
            f"multiplies by the weight of its output head, {layer}, without calling it, so the "
            f"product cannot be late; {elsewhere}"
        )
    if not isinstance(layer, nn.Linear):
        return f"has an output head that is not a torch.nn.Linear, got {layer}; {elsewhere}"
    if not layer.weight.is_floating_point():
        return (
            f"has an output head with a weight of {layer.weight.dtype}: {layer}. Leave the head "
            f"out of a quantisation (bitsandbytes: llm_int8_skip_modules), or {elsewhere}"
        )
    return None


def _is_compiled(model: nn.Module, owner: nn.Module) -> bool:
    compiled = getattr(owner, "_compiled_call_impl", None) is not None  # by its own `compile`
    return compiled or hasattr(model, "_orig_mod")
