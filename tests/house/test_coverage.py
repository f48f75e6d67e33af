"""The table of the losses of other libraries, docs/coverage.tsv."""

import importlib
import inspect
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import xent

from .test_docs import script

PROJECT = Path(__file__).parents[2]
COVERAGE = script("coverage_page")
LOSSES = COVERAGE.losses()
NAMES = {
    name: getattr(room, name) for room in (xent, xent.losses, xent.policy) for name in room.__all__
}


def by(verdict):
    rows = [loss for loss in LOSSES if loss.verdict == verdict]
    return pytest.mark.parametrize("loss", rows, ids=lambda loss: f"{loss.peer} {loss.name}")


def test_the_page_and_readme_are_those_of_the_table():
    assert COVERAGE.PAGE.read_text() == COVERAGE.page(), "run python docs/coverage_page.py"
    readme = " ".join((PROJECT / "README.md").read_text().split())
    assert COVERAGE.counts(LOSSES) in readme


def test_each_loss_has_one_row_and_a_verdict():
    assert len({loss[:3:2] for loss in LOSSES}) == len(LOSSES)
    assert {loss.verdict for loss in LOSSES} == set(COVERAGE.VERDICTS)
    assert all(loss.place for loss in LOSSES)


@by("here")
def test_what_is_here_exists(loss):
    assert loss.known_as in NAMES
    for option in re.findall(r"(\w+)=", loss.place):
        assert option in inspect.signature(NAMES[loss.known_as]).parameters, option


def examples():
    """Return a batch of each kind, by the names that expressions use."""
    torch.manual_seed(0)
    a, b = F.normalize(torch.randn(4, 6)), F.normalize(torch.randn(4, 6))
    h, w, z, y = torch.randn(4, 6), torch.randn(5, 6), torch.randn(4, 5), torch.tensor([0, 1, 2, 1])
    label = torch.tensor([0, 0, 1, 1])
    return {
        "z": z, "y": y, "q": torch.softmax(torch.randn(4, 5), -1), "many": (z > 0).float(),
        "h": h, "w": w, "a": a, "b": b, "views": [torch.randn(4, 5).softmax(-1) for _ in range(3)],
        "tail": torch.randn(4, 3), "in_tail": torch.tensor([-100, 0, -100, 2]),
        "prior": torch.rand(5), "smoothed": torch.randn(4, 5), "sim": a @ a.T,
        "dist": (a @ a.T).neg() + 1, "same": (label[:, None] == label) & ~torch.eye(4).bool(),
        "mask_of_pairs": torch.eye(4) + 1, "angle": torch.rand(4), "label": torch.rand(4),
        "alike": (label == 0).float(), "words": torch.randn(4, 3, 6), "s": torch.randn(4),
        "relevance": torch.tensor([3.0, 0.0, 1.0, 2.0]), "better": torch.randn(4),
        "worse": torch.randn(4), "gain": torch.randn(4), "good": label == 0,
        "log_prob": -torch.rand(4, 3), "old": -torch.rand(4, 3), "advantage": torch.randn(4),
        "chosen": -torch.rand(4), "rejected": -torch.rand(4), "ref_chosen": -torch.rand(4),
        "ref_rejected": -torch.rand(4), "lengths": torch.tensor([1.0, 2.0, 3.0, 3.0]),
    }  # fmt: skip


@by("lines")
def test_what_is_a_few_lines_runs(loss):
    value = eval(loss.place, {**NAMES, "xent": xent, "torch": torch, "F": F, **examples()})
    assert value.ndim == 0
    assert bool(value.isfinite())


# ---- no loss of an installed library is missing --------------------------------------------------


def of_module(name, *, classes=True):
    """Public names of a module that end as losses do."""
    module = importlib.import_module(name)
    kind = inspect.isclass if classes else inspect.isfunction
    return {n for n, x in vars(module).items() if kind(x) and n.lower().endswith("loss")}


def of_transformers():
    mapping = importlib.import_module("transformers.loss.loss_utils").LOSS_MAPPING
    return {loss.__name__ for loss in mapping.values()}


SENTENCE_TRANSFORMERS = [
    f"sentence_transformers.{kind}.losses"
    for kind in (
        "base", "cross_encoder", "multi_vector_encoder", "sentence_transformer", "sparse_encoder"
    )
]  # fmt: skip
FOUND = {
    "torch.nn": ("torch", lambda: of_module("torch.nn")),
    "transformers": ("transformers", of_transformers),
    "optax": ("optax", lambda: of_module("optax.losses", classes=False)),
    "timm": ("timm", lambda: of_module("timm.loss")),
    "kornia": ("kornia", lambda: of_module("kornia.losses")),
    "segmentation-models-pytorch": (
        "segmentation-models-pytorch",
        lambda: of_module("segmentation_models_pytorch.losses"),
    ),
    "monai": ("monai", lambda: of_module("monai.losses")),
    "pytorch-metric-learning": (
        "pytorch-metric-learning",
        lambda: of_module("pytorch_metric_learning.losses"),
    ),
    "lightly": ("lightly", lambda: of_module("lightly.loss")),
    "sentence-transformers": (
        "sentence-transformers",
        lambda: set().union(*map(of_module, SENTENCE_TRANSFORMERS)),
    ),
}


@pytest.mark.parametrize("peer", FOUND)
def test_no_loss_of_an_installed_library_is_missing(peer):
    package, names = FOUND[peer]
    try:
        installed = version(package).partition("+")[0]
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    rows = {loss.name: loss.version for loss in LOSSES if loss.peer == peer}
    if set(rows.values()) != {installed}:
        pytest.skip(f"the table has {package} {set(rows.values()).pop()}, not {installed}")
    assert names() <= set(rows)
