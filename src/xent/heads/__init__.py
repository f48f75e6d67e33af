"""Behind a linear head: logits that are never there as a whole.

==================  ===========================================================================
``stand_in.py``     what stands for a tensor without holding its numbers
``logits.py``       :class:`xent.LinearLogits`, the product of features and weight, as a stand-in
``log_probs.py``    the same for its log-probabilities
``problem.py``      the door: a call is read, whether its logits are a tensor or lie behind a head
``chunks.py``       the rows of some heads, a chunk at a time: their logits and gradients
``gradients.py``    functions of such rows, differentiable without all logits
``totals.py``       sums over such rows, whose gradient is taken while the logits are there
``measure.py``      row statistics of tensors and of heads: the front door for both
``answers.py``      what PyTorch's functions answer: topk, argmax, logsumexp, ...
==================  ===========================================================================
"""
