"""Linear classifiers in files: plain JSON, so that reading a file runs none of its contents."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from ..._files import write_whole
from ...losses import CATALOG
from .logistic_regression import LogisticRegression
from .softmax_regression import SoftmaxRegression

__all__ = ["load_model", "save_model"]

FORMAT, VERSION = "xent linear classifier", 1
CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (SoftmaxRegression, LogisticRegression)
}
TENSORS = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


def save_model(
    model: SoftmaxRegression, path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write a fitted classifier as JSON; a file that was there stays if the writing fails.

    Args:
        model: the classifier. A loss that is a function must be one of :mod:`xent`, or a
            ``functools.partial`` of one with numbers, words and lists.
        path: the file.
        about: further facts in types of JSON, such as how the features are made.

    Raises:
        TypeError: if the model is no linear classifier of xent, or holds what cannot be saved.
        ValueError: if the model is not fitted.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sklearn.datasets import load_iris
        >>> from xent.learn import SoftmaxRegression, load_model, save_model
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(x, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(model, Path(folder, "iris.json"))
        ...     again = load_model(Path(folder, "iris.json"))
        >>> bool((again.predict_proba(x) == model.predict_proba(x)).all())
        True
    """
    write_whole(Path(path), model_bytes(model, about))


def model_bytes(model: SoftmaxRegression, about: Mapping[str, Any] | None = None) -> bytes:
    """The content of the file that :func:`save_model` writes."""
    if CLASSES.get(type(model).__name__) is not type(model):
        raise TypeError(f"save_model takes one of {', '.join(CLASSES)}, got {type(model).__name__}")
    check_is_fitted(model)
    names = getattr(model, "feature_names_in_", None)
    precision = getattr(model, "precision_", None)
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "class": type(model).__name__,
            "parameters": {key: _plain(key, v) for key, v in model.get_params().items()},
            "classes": _plain_classes(model.classes_),
            "multilabel": _is_multilabel(model),
            "features": model.coef_.shape[1],
            "coef": model.coef_.tolist(),
            "intercept": model.intercept_.tolist(),
            "precision": None if precision is None else precision.tolist(),
            "iterations": int(model.n_iter_),
            "history": [float(objective) for objective in model.history_],
            "feature_names": None if names is None else names.tolist(),
            "about": dict(about or {}),
        },
        allow_nan=False,
        indent=1,
    ).encode()


def load_model(path: str | Path) -> SoftmaxRegression:
    """Read what :func:`save_model` wrote.

    Args:
        path: the file.

    Returns:
        The fitted classifier, which predicts the same bits and can learn from further rows.

    Raises:
        ValueError: if the file is damaged or something else.
        OSError: if the file cannot be read.

    Example:
        See :func:`save_model`.
    """
    return read_model(path)[0]


def read_model(path: str | Path) -> tuple[SoftmaxRegression, dict[str, Any]]:
    """Read a model as :func:`load_model` does, with the notes that were saved with it.

    Args:
        path: the file.

    Returns:
        ``(model, about)``.

    Raises:
        ValueError: if the file is damaged or something else.
        OSError: if the file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        saved = json.loads(data, parse_constant=_refuse_constant)
        _require(isinstance(saved, dict), "it holds something else")
        found = saved.get("format"), saved.get("version")
        _require(found[0] == FORMAT, f"its format is {found[0]!r}, not {FORMAT!r}")
        _require(found[1] == VERSION, f"its version is {found[1]!r}; this xent reads {VERSION}")
        return _model(saved), dict(saved["about"])
    except KeyError as error:
        raise ValueError(f"{path} is not a readable model: it lacks {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable model: {error}") from None


def _model(saved: dict[str, Any]) -> SoftmaxRegression:
    """Return the classifier of a file, after a check of each part."""
    _require(saved["class"] in CLASSES, f"there is no class {saved['class']!r}")
    parameters = {key: _restored(key, value) for key, value in saved["parameters"].items()}
    kind = CLASSES[saved["class"]]
    model = kind(**parameters)
    model._check_parameters()
    model.classes_ = _restored_classes(saved["classes"])
    multilabel = bool(saved["multilabel"])
    if kind is LogisticRegression:
        model.multilabel_ = multilabel
    scores = len(model.classes_)
    if scores == 2 and not _is_multilabel(model):
        scores = 1
    features = model.n_features_in_ = int(saved["features"])
    model.coef_ = _matrix("coef", saved["coef"], (scores, features))
    model.intercept_ = _matrix("intercept", saved["intercept"], (scores,))
    if saved["precision"] is not None:
        shape = scores, features + bool(model.fit_intercept)
        model.precision_ = _matrix("precision", saved["precision"], shape)
    if saved["feature_names"] is not None:
        _require(len(saved["feature_names"]) == features, f"`feature_names` are not {features}")
        model.feature_names_in_ = np.array(saved["feature_names"], dtype=object)
    model.n_iter_, model.history_ = int(saved["iterations"]), [*map(float, saved["history"])]
    return model


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"it holds {word}")


def _is_multilabel(model: SoftmaxRegression) -> bool:
    return bool(getattr(model, "multilabel_", False))


def _matrix(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return finite numbers of this shape, or raise."""
    array = np.array(value, dtype=object)  # as objects, rows of different lengths raise nothing
    _require(array.shape == shape, f"`{name}` has the shape {array.shape}, wanted {shape}")
    numbers = all(type(one) in (int, float) and math.isfinite(one) for one in array.flat)
    _require(numbers, f"`{name}` holds other things than finite numbers")
    return array.astype(np.float64)


# ---- classes: JSON knows their values, but not their dtype --------------------------------------


def _plain_classes(classes: np.ndarray) -> dict[str, Any]:
    plain = {"dtype": classes.dtype.str, "values": classes.tolist()}
    words = all(isinstance(value, str) for value in plain["values"])
    if classes.dtype.kind not in "biufU" and not words:
        raise TypeError(f"classes of {classes.dtype} cannot be saved; use numbers or words")
    return plain


def _restored_classes(plain: dict[str, Any]) -> np.ndarray:
    values, dtype = plain["values"], np.dtype(plain["dtype"])
    _require(dtype.kind in "biufUO", f"there are no classes of {dtype}")
    kind: type | tuple[type, ...] = {"b": bool, "f": float, "U": str, "O": str}.get(dtype.kind, int)
    _require(all(isinstance(value, kind) for value in values), f"`classes` are not {dtype}")
    # The length of words is taken from the words: a file could claim any length, and memory.
    classes = np.array(values, dtype=str if dtype.kind == "U" else dtype)
    ascending = len(classes) > 1 and bool((classes[:-1] < classes[1:]).all())
    _require(ascending and classes.tolist() == values, "`classes` are not two or more, ascending")
    return classes


# ---- parameters ---------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> Any:
    """Return a parameter as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if name == "loss" and callable(value):
        return _plain_loss(value)
    if name == "class_weight" and isinstance(value, Mapping):  # keys of JSON are words
        return [[_plain(name, one) for one in pair] for pair in value.items()]
    if name == "C" and value == math.inf:
        return "inf"  # JSON has no such number
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"`{name}` cannot be saved: {value!r}")


def _restored(name: str, value: Any) -> Any:
    if name == "C" and value == "inf":
        return math.inf
    if name == "class_weight" and isinstance(value, list):
        return dict(value)
    return _restored_loss(value) if name == "loss" and isinstance(value, dict) else value


def _plain_loss(loss: Callable[..., Any]) -> dict[str, Any]:
    """Return the name of a loss in the catalog, and its options."""
    simple = isinstance(loss, partial) and not loss.args
    function, options = (loss.func, loss.keywords) if simple else (loss, {})
    name = getattr(function, "__name__", "")
    if name not in CATALOG or CATALOG[name].function is not function:
        raise TypeError(
            f"`loss` cannot be saved, since it is none of xent's: {loss!r}; predictions do not "
            "depend on it, so name another one by model.set_params(loss=...) and save that"
        )
    return {"name": name, "options": {key: _plain_option(key, v) for key, v in options.items()}}


def _plain_option(name: str, value: Any) -> Any:
    dtype = str(getattr(value, "dtype", "")).rpartition(".")[2]
    if isinstance(value, torch.Tensor) and dtype in TENSORS:
        return {"dtype": dtype, "values": value.tolist()}
    return _plain(f"loss: {name}", value)


def _restored_loss(plain: dict[str, Any]) -> Callable[..., Any]:
    _require(plain["name"] in CATALOG, f"there is no loss {plain['name']!r}")
    options = {key: _restored_option(value) for key, value in plain["options"].items()}
    function = CATALOG[plain["name"]].function
    return partial(function, **options) if options else function


def _restored_option(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    _require(value["dtype"] in TENSORS, f"there are no numbers of type {value['dtype']!r}")
    return torch.tensor(value["values"], dtype=TENSORS[value["dtype"]], device="cpu")
