"""Pictures of losses and results: every function takes Matplotlib axes and returns them.

Without axes a picture makes its own, on a figure that belongs to no window;
``ax.figure.savefig("picture.png")`` writes it to a file. matplotlib is imported when a picture is
drawn.
"""

from .coefficients import coefficient_paths
from .diagrams import binary_terms, confusion_matrix, jacobian, reliability
from .evidence import activation_map, information, information_bars
from .family import loss_curves
from .training import curves, learning_curves

__all__ = [
    "activation_map",
    "binary_terms",
    "coefficient_paths",
    "confusion_matrix",
    "curves",
    "information",
    "information_bars",
    "jacobian",
    "learning_curves",
    "loss_curves",
    "reliability",
]
