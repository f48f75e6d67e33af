"""Plans of tensor parallelism: heads whose classes lie on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ... import LinearLogits
from ...engines.modes import is_dtensor


class LateForward:
    """The ``forward`` of a layer that Transformers has planned, while its product is to be late.

    A plan of PyTorch hooks into the layer, and takes late logits for the DTensor of all logits. A
    plan of Transformers replaces the ``forward``, and makes a DTensor of what the layer returns:
    there the layer is called without its plan.

    Args:
        layer: the layer, whose ``forward`` is the one that Transformers has put there.
        is_late: tells whether the product of this call is to be late.
    """

    def __init__(self, layer: Any, is_late: Callable[[], bool]) -> None:
        self.layer, self.is_late, self.before = layer, is_late, layer.forward

    def __call__(self, hidden: Tensor) -> Any:
        """The logits of all classes; late ones without the plan, unless only that can multiply."""
        late = self.without_plan(hidden) if self.is_late() else None
        return late.to_local() if isinstance(late, LinearLogits) else self.before(hidden)

    def without_plan(self, hidden: Any) -> Any:
        """Call the layer with a DTensor of features."""
        from torch.distributed.tensor import DTensor, Replicate

        if not is_dtensor(hidden):  # the ranks that share the classes have the same rows
            mesh = self.layer.weight.device_mesh
            hidden = DTensor.from_local(hidden, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return type(self.layer).forward(self.layer, hidden)

    def undo(self) -> None:
        """Give the layer the ``forward`` of its plan back."""
        if vars(self.layer).get("forward") is self:  # and not what others put in its place
            self.layer.forward = self.before


def late_forward(layer: nn.Module, is_late: Callable[[], bool]) -> LateForward | None:
    """Make the product of a layer that Transformers has planned late; None for other layers."""
    planned = vars(layer).get("forward")
    by_transformers = getattr(planned, "__module__", "").startswith("transformers.")
    if not (by_transformers and is_dtensor(getattr(layer, "weight", None))):
        return None
    layer.forward = forward = LateForward(layer, is_late)  # pyright: ignore
    return forward


def torn_tie(owner: Any, layer: nn.Module) -> str | None:
    """Say that the weights of embedding and head were one before a plan made two of them."""
    embedding = owner.get_input_embeddings()
    weights = [getattr(module, "weight", None) for module in (embedding, layer)]
    tied = getattr(owner.config.get_text_config(), "tie_word_embeddings", False)
    if not tied or weights[0] is weights[1] or not any(map(is_dtensor, weights)):
        return None
    names = {module: name for name, module in owner.named_modules()}
    first, second = names.get(embedding, "the embedding"), names.get(layer, "the head")
    return (
        f"{first}.weight and {second}.weight are one weight in {type(owner).__name__}, but two "
        f"here: parallelize_module has made a parameter of each, and each gets a part of the "
        f"gradient. Call model.tie_weights() after the plan, and before the optimizer is made"
    )
