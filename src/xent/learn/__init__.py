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
    "FixedModel": "symbol_models",
    "Gaussian": "search_distributions",
    "GaussianClasses": "gaussian_classes",
    "InfoNCEBound": "info_nce",
    "InformationEstimate": "mutual_information",
    "LogisticRegression": "linear_classifiers",
    "MixtureModel": "symbol_models",
    "MutualInformation": "mutual_information",
    "NetworkClassifier": "network_classifier",
    "OrderModel": "symbol_models",
    "PolicyScores": "policy_search",
    "RegularizationPath": "regularization",
    "SeparationWarning": "separation",
    "SoftmaxRegression": "linear_classifiers",
    "TrainingRecord": "networks",
    "class_activation_map": "activation_maps",
    "decode": "coding",
    "deep_cem": "policy_learning",
    "encode": "coding",
    "evaluate_policy": "policy_search",
    "find_label_issues": "label_noise",
    "fit_logit_weights": "mixtures",
    "fit_mixture_weights": "mixtures",
    "info_cam": "activation_maps",
    "info_nce_bound": "info_nce",
    "label_quality": "label_noise",
    "load_model": "saved_models",
    "mixture_log_prob": "mixtures",
    "mutual_information_from_logits": "mutual_information",
    "predict_logits": "networks",
    "quantize": "coding",
    "rare_event": "rare_events",
    "regularization_path": "regularization",
    "reinforce": "policy_learning",
    "save_model": "saved_models",
    "smallest_C": "regularization",
    "train_classifier": "networks",
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
