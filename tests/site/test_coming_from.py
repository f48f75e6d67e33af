"""The pairs of docs/coming-from: xent gives the number of the page, and the other library, too."""

import importlib.util
import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("pairs", DOCS / "site" / "pairs.py")
PAIRS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(PAIRS)

PAGES = list(PAIRS.LIBRARIES)
QUICK = {"pytorch", "scikit-learn"}  # these are loaded already, or in no time
OTHERS = [
    pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)
    for page in PAGES
    if PAIRS.LIBRARIES[page].module
]


def told(page: str, side: int) -> list:
    """Return the numbers of a page: theirs for side 0, xent's for side 1."""
    return [PAIRS.number(pair.told[side]) for pair in PAIRS.pairs(page) if pair.told]


def assert_equal(found, expected, where: str) -> None:
    """Assert that numbers are equal to five digits, the sixth being rounded."""
    np.testing.assert_allclose(
        np.array(found, float), np.array(expected, float), rtol=1e-5, err_msg=where
    )


@pytest.mark.parametrize("page", PAGES)
def test_xent_gives_the_number_of_the_page(page):
    pairs = PAIRS.pairs(page)
    found = PAIRS.values([pair.ours for pair in pairs], {})
    told = [(pair, value) for pair, value in zip(pairs, found, strict=True) if pair.told]
    assert len(told) >= 4
    for pair, value in told:
        assert_equal(value, PAIRS.number(pair.told[1]), pair.ours)


@pytest.mark.parametrize("page", OTHERS)
def test_the_other_library_gives_the_number_of_the_page(page):
    module = PAIRS.LIBRARIES[page].module
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    theirs = PAIRS.numbers_of(page) if page in QUICK else in_a_process(page)
    for value, number in zip(theirs, told(page, 0), strict=True):
        assert_equal(value, number, page)


def in_a_process(page: str) -> list:
    """Return the numbers of a library whose settings and warnings stay in a process of its own."""
    command = [sys.executable, str(DOCS / "site" / "pairs.py"), page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if page == "torchvision" and "operator torchvision::nms does not exist" in done.stderr:
        pytest.skip("torchvision does not load beside this PyTorch")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_formulas_of_flux_give_the_numbers_of_the_page():
    pairs, names = PAIRS.pairs("flux"), {}
    PAIRS.values([pair.ours for pair in pairs], names)
    arrays = {k: v.numpy() for k, v in names.items() if isinstance(v, torch.Tensor)}
    z = arrays["z"]
    arrays["p"] = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    formulas = [pair for pair in pairs if pair.told]
    assert all(pair.formula for pair in formulas)
    for pair in formulas:
        found = eval(pair.formula, {"np": np, **arrays})
        assert_equal(found, PAIRS.number(pair.told[0]), pair.formula)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_the_version_that_gave_its_numbers(page):
    library = PAIRS.LIBRARIES[page]
    text = (DOCS / "coming-from" / f"{page}.md").read_text(encoding="utf-8")
    assert f"{library.title} {library.version}" in " ".join(text.split())


def test_numbers_can_be_read():
    assert PAIRS.number("[0.5, inf]") == [0.5, math.inf]
    assert math.isnan(PAIRS.number("nan"))
    pair = PAIRS.pair("f(y)\n===\ng(y)\n===\n1.0\n2.0\n")
    assert pair == ("f(y)", "g(y)", ["1.0", "2.0"], None)
    assert PAIRS.pair("import f\n===\nimport g").told == []
