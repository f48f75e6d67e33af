"""Policies of gymnasium environments, learnt by weighted cross-entropy."""
