"""Tools that learn or fit with the losses; each is imported when it is used.

``import xent`` loads none of them. The names below are imported from here, as in
``from xent.learn import SoftmaxRegression``; the modules hold more. They need what the
extra ``learn`` installs.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .._package import pip_install

_MODULE_OF: dict[str, str] = {
    "Bernoulli": "search.choices",
    "Categorical": "search.choices",
    "CrossEntropyMethod": "search.cross_entropy_method",
    "FixedModel": "coding.symbol_models",
    "Gaussian": "search.gaussians",
    "GaussianClasses": "evidence.gaussian_classes",
    "InfoNCEBound": "evidence.info_nce",
    "InformationEstimate": "evidence.mutual_information",
    "LogisticRegression": "regression.logistic_regression",
    "MixtureModel": "coding.symbol_models",
    "MutualInformation": "evidence.mutual_information",
    "NetworkClassifier": "networks.network_classifier",
    "OrderModel": "coding.symbol_models",
    "PolicyScores": "policies.policy_search",
    "RegularizationPath": "regression.regularization",
    "SeparationWarning": "regression.separation",
    "SoftmaxRegression": "regression.softmax_regression",
    "TrainingRecord": "networks.training",
    "class_activation_map": "evidence.activation_maps",
    "decode": "coding.arithmetic",
    "deep_cem": "policies.policy_learning",
    "encode": "coding.arithmetic",
    "evaluate_policy": "policies.policy_search",
    "find_label_issues": "label_noise",
    "fit_logit_weights": "mixtures",
    "fit_mixture_weights": "mixtures",
    "info_cam": "evidence.activation_maps",
    "info_nce_bound": "evidence.info_nce",
    "label_quality": "label_noise",
    "load_model": "regression.saved_models",
    "mixture_log_prob": "mixtures",
    "mutual_information_from_logits": "evidence.mutual_information",
    "predict_logits": "networks.training",
    "quantize": "coding.arithmetic",
    "rare_event": "search.rare_events",
    "regularization_path": "regression.regularization",
    "reinforce": "policies.policy_learning",
    "save_model": "regression.saved_models",
    "smallest_C": "regression.regularization",
    "train_classifier": "networks.training",
}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]
_MODULES = [module.name for module in iter_modules(__path__)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"xent.learn.{name} needs {error.name}: {pip_install('learn')}", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
