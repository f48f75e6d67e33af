"""Losses inside other libraries; each module is imported when it is first used."""

from importlib import import_module
from types import ModuleType

__all__ = ["boosting", "transformers"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
