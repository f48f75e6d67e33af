"""Coding: messages as short as the cross-entropy of a model."""
