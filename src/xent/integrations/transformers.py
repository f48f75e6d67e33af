"""The losses of Hugging Face models without all their logits in memory at once.

    lean(model)                # from now on, until unlean(model)
    with lean(model):          # or for a while
        model(input_ids, labels=labels).loss.backward()

The code of a model does not change; only its output head returns :class:`xent.LinearLogits` instead
of logits. The forward of the model scales, caps, shifts and flattens this stand-in as it would the
logits, and cross-entropy is computed a chunk of rows at a time. No model needs code of its own.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .. import LinearLogits
from .._check import one_of
from ..engines.modes import autocasts

MAX_WORKSPACE: int = inspect.signature(LinearLogits).parameters["max_workspace"].default


class lean:
    """Let a model of Transformers compute its loss without all logits in memory at once.

    The model is changed in training mode with gradients enabled, and whenever ``labels`` are given:
    then ``outputs.logits`` are :class:`xent.LinearLogits`, or without gradients a tensor that is
    computed when something reads it. Otherwise, as in ``generate``, the model works as before.
    Parameters and saved files stay the same; copies and pickles are lean, too. After a change of
    the head (``resize_token_embeddings``, an adapter on it) call ``lean`` again.

    As a context manager ``lean`` returns the model, and undoes the change at the end unless the
    model was lean before. Without ``with``, the change stays until :func:`unlean`.

    Args:
        model: any model whose output head is a :class:`torch.nn.Linear`, tied or not: causal,
            masked or sequence to sequence; or a PEFT model around one. A frozen head costs no
            matrix product for its gradient. ``torch.compile`` of the whole model computes all
            logits; compile its body instead (``model.model.compile()``). Weights that are sharded
            over processes (FSDP, ZeRO-3) are not tested.
        max_workspace: bytes that a chunk of logits may take.
        products: the type of the products with a head of 16 bits, as for
            :class:`xent.LinearLogits`.

    Raises:
        TypeError: for a model without an output head, or with a head that is quantised or not
            linear.
        ValueError: for a model that is lean already, with other options; for unknown ``products``.

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
        max_workspace: int = MAX_WORKSPACE,
        products: Literal["float32", "input"] | None = None,
    ) -> None:
        if products is not None:
            one_of("products", products, ("float32", "input"))
        options = {"max_workspace": max_workspace, "products": products}
        self.model = model
        owner = _owner(model)
        heads = _linear_heads(owner)
        hooks = getattr(owner, "_xent_hooks", None)
        self.was_lean = hooks is not None and hooks.heads == heads
        if not self.was_lean:
            unlean(model)
            owner._xent_hooks = _Hooks(owner, heads, options)  # pyright: ignore
        elif hooks.options != options:  # pyright: ignore
            name = next(name for name, value in options.items() if hooks.options[name] != value)  # pyright: ignore
            raise ValueError(
                f"this model is lean already, with another `{name}` than {options[name]!r}; call "
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
        for handle in hooks.handles:
            handle.remove()
        del owner._xent_hooks


class _Hooks:
    """The hooks of a lean model: on its forward, where labels arrive, and on its head."""

    def __init__(self, owner: nn.Module, heads: list[nn.Linear], options: dict[str, Any]) -> None:
        self.heads, self.options = heads, options  # of the LinearLogits
        self.labels_given = self.met = False
        self.handles = [
            owner.register_forward_pre_hook(self.enter, with_kwargs=True),
            owner.register_forward_hook(self.leave, always_call=True),
            *(head.register_forward_pre_hook(self.stand_in) for head in heads),
        ]

    def enter(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A flag, not a counter: the next call clears what an interrupted call left behind.
        labels = kwargs.get("labels")
        if labels is None and len(args) > 1:
            names = inspect.signature(owner.forward).parameters
            labels = dict(zip(names, args, strict=False)).get("labels")
        self.labels_given, self.met = labels is not None, False

    def leave(self, owner: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        given, self.labels_given = self.labels_given, False
        if given and not self.met and output is not None:
            warnings.warn(
                f"{type(owner).__name__} did not call the head that lean(model) found, so it had "
                f"all its logits. If the head is a new one, call lean(model) again",
                stacklevel=2,
            )
        if not given or torch.is_grad_enabled():
            return None
        # Code of an evaluation, as that of Trainer, needs tensors if it reads the logits.
        return tree_map_only(LinearLogits, _LateLogits, output)

    def stand_in(self, head: nn.Module, args: tuple[Any, ...]) -> Any:
        if args and (self.labels_given or (head.training and torch.is_grad_enabled())):
            self.met = True
            return _Hidden(args[0], self.options)
        return None


class _Hidden:
    """The features that go into the head; its own forward turns them into LinearLogits."""

    def __init__(self, tensor: Tensor, options: dict[str, Any]) -> None:
        self.tensor, self.options = tensor, options

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make LinearLogits; the only function that a head calls is torch.nn.functional.linear."""
        hidden, *parameters = args
        parts = [None if x is None else _autocast(x) for x in (hidden.tensor, *parameters)]
        return LinearLogits(*parts, **hidden.options)  # pyright: ignore


class _LateLogits(Tensor):
    """Logits that are computed when something reads them, for code that needs a tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore
    logits: LinearLogits | Tensor

    @staticmethod
    def __new__(cls, logits: LinearLogits) -> _LateLogits:
        late = Tensor._make_wrapper_subclass(
            cls, logits.shape, dtype=logits.dtype, device=logits.device
        )
        late.logits = logits
        return late

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(cls, cls.now, (args, kwargs or {}))
        return func(*args, **kwargs)

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """The logits as an array."""
        return self.now().numpy(*args, **kwargs)

    def tolist(self) -> Any:
        """The logits as lists of numbers."""
        return self.now().tolist()

    def __array__(self, *args: Any) -> Any:
        return self.now().__array__(*args)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.now().clone()

    def now(self) -> Tensor:
        """Compute the logits, once, and return them."""
        if isinstance(self.logits, LinearLogits):
            self.logits = self.logits.materialize()
        return self.logits


def _autocast(x: Tensor) -> Tensor:
    """Cast an argument of a product of matrices as autocast would."""
    if not autocasts(x) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _owner(model: nn.Module) -> nn.Module:
    """Return the model of Transformers inside a PEFT model; all calls reach that model."""
    inner = getattr(model, "get_base_model", None)
    owner = model if inner is None else inner()
    if not hasattr(owner, "get_output_embeddings"):
        raise TypeError(
            f"`model` must be a model of Transformers, or of PEFT around one; got "
            f"{type(model).__name__}. Elsewhere, hand xent.LinearLogits(hidden, weight) to the loss"
        )
    return owner


def _linear_heads(owner: nn.Module) -> list[nn.Linear]:
    head, name = owner.get_output_embeddings(), type(owner).__name__  # pyright: ignore
    if head is None:
        raise TypeError(
            f"{name} has no output head over a vocabulary (get_output_embeddings() is None). Take "
            f"its class for language models; a head of a few classes has nothing to gain"
        )
    heads = _layers(head)
    for layer in heads:
        none = torch.empty(0, dtype=torch.bool, device="cpu")
        kind, weight = type(layer), getattr(layer, "weight", none)
        plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
        if not isinstance(layer, nn.Linear) or kind.forward is not nn.Linear.forward or not plain:
            raise TypeError(
                f"the output head of {name} must be a torch.nn.Linear with a floating point "
                f"weight, got {layer}. Leave the head out of a quantisation (bitsandbytes: "
                f"llm_int8_skip_modules), or hand xent.LinearLogits(hidden, weight) to the loss"
            )
    return heads


def _layers(head: nn.Module) -> list[Any]:
    """Return the layers whose results are logits; PEFT may have wrapped the head."""
    if hasattr(head, "modules_to_save"):  # PEFT trains a copy beside the original
        return [head.original_module, *head.modules_to_save.values()]  # pyright: ignore
    if hasattr(head, "base_layer"):  # an adapter adds to the result of the layer
        return [head.base_layer, *getattr(head, "lora_B", {}).values()]
    return [head]
