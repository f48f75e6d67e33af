"""Frames turn a few lines into a loss with weights, masks, reductions and engines.

``row_loss``: of statistics of a row; ``element_loss``: of single logits; ``dense_loss``: of all
logits of a row, where statistics do not suffice. They share ``reduction`` and ``docstrings``.
"""
