"""Frames turn a few lines into a loss with weights, masks, reductions and engines.

``row_loss``: of statistics of a row; ``element_loss``: of single logits; ``dense_loss``: of all
logits of a row, where statistics do not suffice; ``token_loss``: of log-probabilities. They share
``reduction``, ``containers`` and ``docstrings``; ``row_frame`` holds the ways that a call may go.
"""
