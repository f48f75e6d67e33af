"""The losses of Hugging Face models without all their logits in memory at once.

The code of a model does not change::

    with lean(model):  # or lean(model): from now on, until unlean(model)
        model(input_ids, labels=labels).loss.backward()

Only the product of its output head is late: it becomes :class:`xent.LinearLogits`. The forward of
the model scales, caps, shifts and flattens this stand-in, and cross-entropy is computed a chunk of
rows at a time. Hooks of others see tensors until the product.
"""

from .switch import lean, unlean

__all__ = ["lean", "unlean"]
