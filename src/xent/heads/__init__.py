"""Behind a linear head: logits that are never all in memory at once.

====================  =============================================================================
``stand_in.py``       objects that stand for a tensor without holding its numbers
``logits.py``         :class:`xent.LinearLogits`, the product of features and weight, as a stand-in
``log_probs.py``      the log-probabilities and probabilities of such logits, as stand-ins
``layouts.py``        such logits with the classes on axis 1, where PyTorch's losses expect them
``late_product.py``   the product of a head of someone else's model, as such logits
``late.py``           tensors of an evaluation whose numbers are computed when something reads them
``products.py``       the type of the products: 16 bits in hardware, or float32
``problem.py``        reads a call, whether its logits are a tensor or lie behind a head
``kept.py``           the rows that are computed: those that are not ignored
``chunks.py``         the rows of some heads, a chunk at a time: their logits and gradients
``gradients.py``      functions of such rows, differentiable without all logits
``totals.py``         sums over such rows, whose gradient is taken while the logits are in memory
``measure.py``        row statistics of tensors and of heads
``operators.py``      the statistics of heads as operators, for compilers
``answers.py``        answers to PyTorch's functions: topk, argmax, logsumexp, ...
``arithmetic.py``     answers to its arithmetic: scales, softcaps, sums, masks of classes
``row_operations.py`` answers to what only moves, joins or repeats rows
====================  =============================================================================
"""
