"""What is learnt or fitted with the losses; each tool in a module that only its use imports.

Nothing here is loaded by ``import xent``. What is named below comes directly from here,
``from xent.learn import SoftmaxRegression``; more stands in the modules. Extra: ``xent[learn]``.
"""

from importlib import import_module
from typing import Any

_MODULE_OF: dict[str, str] = {
    "Bernoulli": "search_distributions",
    "Categorical": "search_distributions",
    "CrossEntropyMethod": "cross_entropy_method",
    "Gaussian": "search_distributions",
    "PolicyScores": "policy_search",
    "deep_cem": "policy_learning",
    "evaluate_policy": "policy_search",
    "reinforce": "policy_learning",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"xent.learn.{name} needs {error.name}: pip install 'xent[learn]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
