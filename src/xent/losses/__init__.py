"""The family. A body is a few lines on the row statistics."""

from .classification import cross_entropy

__all__ = ["cross_entropy"]
