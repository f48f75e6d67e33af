"""The list of losses under test: how to call each, its formula, and the laws that it obeys.

    records.py            a loss in one setting with its formula, and an entry of the catalog
    formulas.py           textbook formulas of rows in float64
    element_formulas.py   textbook formulas of single elements in 50 digits and more
    family.py             an entry for every member of the catalog
    probes.py             losses as a user writes them, for what the frames offer and no member uses
    calls.py              every function of the library that takes logits, with tensors to call it

A new loss has an entry in ``family.py``; a setting with a formula makes all laws run over it.
"""

from .family import ENTRIES
from .probes import OF_REQUESTS, OF_STATISTICS
from .records import ElementLoss, Entry, Loss

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def settings_of(*names: str) -> list:
    """Return each setting with a formula of these members of the catalog."""
    return [loss for name in names for loss in REGISTRY[name].settings]


# ---- losses in one setting, with their formulas -------------------------------------------------

# Cross-entropy with each option, and losses as a user writes them: for tests of the frames.
BASIC: list[Loss] = [*settings_of("cross_entropy"), *OF_STATISTICS]
_EVERY = settings_of(*REGISTRY)
ELEMENTS: list[ElementLoss] = [loss for loss in _EVERY if isinstance(loss, ElementLoss)]
_ROWS: list[Loss] = [loss for loss in _EVERY if isinstance(loss, Loss)]
# Losses with an angular margin: their logits must be cosines.
ANGULAR: list[Loss] = settings_of("arcface_loss", "large_margin_loss")
# Losses of row statistics, on every engine; and those that need all logits of a row at once.
ROWS = BASIC + [loss for loss in _ROWS if loss.engines and loss not in BASIC + ANGULAR]
# One of these for each set of requested statistics, and for each option that a loss sets.
KINDS = BASIC + settings_of("brier_loss", "crammer_singer_loss", "taylorglo_loss")
DENSE = [loss for loss in _ROWS if not loss.engines]
REQUESTING: list[Loss] = list(OF_REQUESTS)

# ---- names of the catalog -----------------------------------------------------------------------

APART = {name for name, entry in REGISTRY.items() if entry.apart}
OF_A_BATCH = {name for name, entry in REGISTRY.items() if entry.batch}
OF_ELEMENTS = [name for name, entry in REGISTRY.items() if entry.labels == 1]
OF_LABELS = {name for name, entry in REGISTRY.items() if entry.labels > 1}
OTHERWISE_CALLED = {name for name, entry in REGISTRY.items() if entry.follows}

__all__ = [
    "ANGULAR", "APART", "BASIC", "DENSE", "ELEMENTS", "ENTRIES", "KINDS", "OF_A_BATCH",
    "OF_ELEMENTS", "OF_LABELS", "OTHERWISE_CALLED", "REGISTRY", "REQUESTING", "ROWS",
    "ElementLoss", "Entry", "Loss", "settings_of",
]  # fmt: skip
