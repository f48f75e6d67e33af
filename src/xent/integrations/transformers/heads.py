"""Output heads of models: where they are, and whether their product can be late."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def owner_of(model: nn.Module) -> nn.Module:
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


def head_of(owner: nn.Module) -> Any:
    """Return the output head of a model, which may be None."""
    return owner.get_output_embeddings()  # pyright: ignore


def modules_around(part: nn.Module, whole: nn.Module) -> list[nn.Module]:
    """Return the modules inside ``whole`` that have a part, and ``whole``, the innermost first."""
    name = next((name for name, module in whole.named_modules() if module is part), "")
    names = name.split(".")
    return [whole.get_submodule(".".join(names[:k])) for k in reversed(range(len(names)))]


def layer_of(head: Any) -> Any:
    """Return the layer of a head inside the wrappers of PEFT."""
    while True:
        inner = getattr(head, "base_layer", None) or getattr(head, "original_module", None)
        if inner is None:
            return head
        head = inner


def classes_of(head: nn.Module) -> set[int]:
    """Return how many results a product with all classes may have."""
    layer = layer_of(head)
    return {layer.out_features, layer.weight.shape[0]}


def objection_to(head: Any) -> str | None:
    """Say why a head cannot be late; None if it can."""
    if head is None:
        return (
            "has no output head over a vocabulary (get_output_embeddings() is None). Take its "
            "class for language models; a head of a few classes has nothing to gain"
        )
    layer = layer_of(head)
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


def is_compiled(model: nn.Module, owner: nn.Module) -> bool:
    """Return True if the model is compiled as a whole."""
    compiled = getattr(owner, "_compiled_call_impl", None) is not None  # by its own `compile`
    return compiled or hasattr(model, "_orig_mod")
