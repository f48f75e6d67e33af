"""Losses of log-probabilities: policy gradients and preferences, with their helpers.

:func:`xent.token_log_probs` makes the log-probabilities that these functions take.
"""

from .advantages import group_advantages
from .policy_gradient import grpo_loss, kl_estimate, ppo_loss, reinforce_loss
from .preference import dpo_loss, kto_loss, orpo_loss, sequence_log_prob

__all__ = [
    "dpo_loss",
    "group_advantages",
    "grpo_loss",
    "kl_estimate",
    "kto_loss",
    "orpo_loss",
    "ppo_loss",
    "reinforce_loss",
    "sequence_log_prob",
]
