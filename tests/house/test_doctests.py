"""Every example in a docstring, and those of the README, print the text below them.

They print the same on other processors, which is tried by changing the last digits of results.
"""

import copy
import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import xent
from xent._package import NAME

PROJECT = Path(__file__).parents[2]
PAGES = "README.md", "docs/language-models.md", "docs/cheat-sheet.md"

# Functions whose last digits depend on the processor or on the number of threads.
ROUNDED = [
    getattr(torch.ops.aten, name)
    for name in (
        "exp", "exp_", "exp2", "expm1", "log", "log_", "log2", "log1p", "pow", "sigmoid", "tanh",
        "softplus", "log_sigmoid_forward", "erfinv", "sum", "mean", "cumsum", "logsumexp",
        "logcumsumexp", "_softmax", "_log_softmax", "dot", "mv", "mm", "addmm", "bmm",
        "linalg_vector_norm",
    )
]  # fmt: skip


class OtherProcessor(TorchDispatchMode):
    """A mode that moves results of functions and sums by some units in the last place.

    Each result moves the same way every time. Numbers of few digits, such as 0 and 1, stay: every
    processor computes them exactly.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in ROUNDED:
            for x in result if isinstance(result, tuple) else [result]:
                if x.dtype in (torch.float32, torch.float64):
                    moved = x * (1 + self.units * torch.finfo(x.dtype).eps)
                    x.copy_(torch.where(x.bfloat16() == x, x, moved))
        return result


class Runner(doctest.DocTestRunner):
    """A runner that skips an example whose package is not installed."""

    def report_unexpected_exception(self, out, test, example, exc_info):
        if isinstance(exc_info[1], ImportError) and is_extra(exc_info[1]):
            pytest.skip(str(exc_info[1]))
        super().report_unexpected_exception(out, test, example, exc_info)


def is_extra(error: ImportError) -> bool:
    """Return True if the missing package is not a part of xent."""
    return f"pip install '{NAME}[" in str(error) or not (error.name or "xent").startswith("xent")


def modules() -> Iterator[ModuleType]:
    """Return every module of the library that can be imported here."""
    yield xent
    for found in walk_packages(xent.__path__, "xent."):
        if found.name != "xent.__main__":
            try:
                yield importlib.import_module(found.name)
            except ImportError as error:
                if not is_extra(error) and error.name != "xent._core":
                    raise


def examples() -> list[doctest.DocTest]:
    """Return the examples of all docstrings and of the pages."""
    finder, read = doctest.DocTestFinder(), doctest.DocTestParser().get_doctest
    found = []
    for page in PAGES:
        text = (PROJECT / page).read_text(encoding="utf-8")
        found.append(read(text, {"torch": torch, "xent": xent}, page, str(PROJECT / page), 0))
    for module in modules():
        name = module.__name__
        found.append(read(module.__doc__ or "", {}, name, module.__file__, 0))
        for own, thing in vars(module).items():
            defined = getattr(thing, "__module__", None) == name
            if defined and (inspect.isfunction(thing) or inspect.isclass(thing)):
                found += finder.find(thing, f"{name}.{own}", module=False, globs={})
    once = {test.docstring: test for test in reversed(found)}  # losses with a second name
    return [test for test in reversed(once.values()) if test.examples]


EXAMPLES = examples()


def run(example: doctest.DocTest) -> None:
    torch.set_printoptions(profile="default")
    example = copy.copy(example)
    example.globs = example.globs.copy()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, report = Runner(optionflags=flags), []
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_there_are_examples_everywhere():
    assert len({test.name for test in EXAMPLES}) > 130


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_examples(example):
    run(example)


@pytest.mark.slow
@pytest.mark.parametrize("units", [-4, 4])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_examples_on_another_processor(example, units):
    with OtherProcessor(units):
        run(example)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_examples_with_one_thread(example):
    torch.set_num_threads(1)
    run(example)
