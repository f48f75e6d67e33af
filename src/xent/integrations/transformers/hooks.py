"""The hooks of a lean model: around its forward, and around its head."""

from __future__ import annotations

import inspect
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ... import LinearLogits, explain
from ...engines.modes import compiling
from ...heads.late import Late, in_evaluation
from ...heads.late_product import LateProduct
from ...measurement import LeanExplanation
from .heads import classes_of, head_of, is_compiled, layer_of, modules_around, objection_to
from .plans import late_forward, torn_tie
from .units import HeadUnits


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

    def product_is_late(self) -> bool:
        """Return True while a head runs whose product is to be late."""
        return bool(self.products)

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
        self.wrappers: list[nn.Module] = []  # around the owner, the innermost first
        self.call, self.warned, self.torn = Call(), False, False
        self.in_use = True
        self.readers: list[str] = []  # the operations that read all logits
        self.of_owner = [
            owner.register_forward_pre_hook(self.enter, with_kwargs=True),
            owner.register_forward_hook(self.leave, always_call=True),
        ]
        self.hook_head(owner, head_of(owner))
        self.follow_plan(owner)
        if hasattr(type(owner), "generate"):
            owner.generate = Generate(owner, self)  # pyright: ignore

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy. With a copied head come hooks that no model calls, so not in use."""
        vars(self).update(state, in_use=False)

    def hook_head(self, owner: nn.Module, head: nn.Module) -> None:
        """Put the hooks around a head."""
        self.head = head
        self.units = HeadUnits(head, [*modules_around(head, owner), *self.wrappers])
        self.forward = None
        self.of_head = [
            head.register_forward_pre_hook(self.before_head, with_kwargs=True),
            head.register_forward_hook(self.after_head, always_call=True),
        ]

    def wrapped_in(self, model: nn.Module, owner: nn.Module) -> None:
        """Note the modules around the owner, since one of them may be the unit of the head."""
        if model is not owner:
            self.wrappers = modules_around(owner, model)
            self.units.around = [*modules_around(self.head, owner), *self.wrappers]

    def leave_head(self) -> None:
        """Take the hooks around the head away."""
        for handle in self.of_head:
            handle.remove()
        self.units.undo()
        if self.forward is not None:
            self.forward.undo()

    def remove(self, owner: nn.Module) -> None:
        """Take all hooks away."""
        self.call.switch_off()
        self.leave_head()
        for handle in self.of_owner:
            handle.remove()
        given = vars(owner).get("generate")
        if isinstance(given, Generate):  # and not what others put in its place
            given.undo()

    def explanation(self, owner: nn.Module) -> LeanExplanation:
        """Explain the model with these hooks, for :func:`xent.explain`."""
        layer = layer_of(head_of(owner))
        weight = layer.weight
        outline = torch.empty(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
        target = torch.zeros(1, dtype=torch.int64, device=weight.device)
        how = explain(LinearLogits(outline, outline, **self.options), target).products
        compiled = ["compiled code, since the model is compiled as a whole"]
        read = (*compiled * is_compiled(owner, owner), *self.readers)
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
        head = head_of(owner)
        if head is not self.head and objection_to(head) is None:  # resized, or an adapter on it
            self.leave_head()
            self.hook_head(owner, head)
        self.follow_plan(owner)

    def follow_plan(self, owner: nn.Module) -> None:
        """Take the place of a plan's ``forward``, and warn of a tie that a plan has torn."""
        layer = layer_of(self.head)
        found = late_forward(layer, self.call.product_is_late)
        self.forward = self.forward if found is None else found
        torn = None if self.torn else torn_tie(owner, layer)
        if torn is not None:
            self.torn = True
            warnings.warn(torn, stacklevel=2)

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
            self.units.keep()
            product = LateProduct(
                hidden.shape[:-1], classes_of(head), self.options, self.readers,
                self.units.original_of,
            )  # fmt: skip
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
    """Return late tensors in the place of logits without gradients: evaluations need tensors.

    Logits that stand for a DTensor stay, since a plan asks them for their placements.
    """
    if torch.is_grad_enabled():
        return None
    return tree_map_only(LinearLogits, lambda x: x if hasattr(x, "placements") else Late(x), output)


def _has_logits(output: Any) -> bool:
    """True if a model returned logits; it has none where another fused loss ran."""
    logits = output.get("logits") if isinstance(output, dict) else output
    return any(isinstance(x, Tensor) and x.ndim > 1 for x in tree_leaves(logits))
