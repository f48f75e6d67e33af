"""The family. A body is a few lines on the row statistics."""

from .catalog import CATALOG, Member
from .classification import cross_entropy, focal_loss

__all__ = ["CATALOG", "Member", "cross_entropy", "focal_loss"]
