"""Fixtures of every test: fixed seeds, two threads, and the engines to run on."""

import gc
import os
import shutil
import signal
from pathlib import Path
from random import Random

import torch

if not torch.cuda.is_available():  # Triton's kernels run in its interpreter, on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from hypothesis import settings

from xent.engines import core as native
from xent.engines import triton

settings.register_profile("xent", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("xent")


# A shell that starts the tests in the background ignores Ctrl-C; some tests send Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


if triton.INTERPRETED:
    from tests.engines.triton.interpreter import tame

    tame()


@pytest.fixture(autouse=True)
def _same_start():
    """Start each test from the same seed and thread count, whatever the order of the tests."""
    torch.manual_seed(0)
    torch.set_num_threads(2)


def _named(name: str, request) -> str:
    """Return the engine of this name, or skip if it cannot run this test here."""
    if name == "native" and not native.available():
        pytest.skip("the compiled core is not installed")
    if name == "triton" and torch.cuda.is_available():
        request.addfinalizer(lambda: torch.set_default_device(None))
        torch.set_default_device("cuda")
    elif name == "triton" and not triton.INTERPRETED:
        pytest.skip("Triton is not at hand")
    call = getattr(request.node, "callspec", None)  # of a parametrised test
    wide = call is not None and torch.float64 in call.params.values()
    if name == "triton" and (wide or request.node.get_closest_marker("float64")):
        pytest.skip("float64 is for the reference engine")
    return name


@pytest.fixture(params=["native", "reference"])
def engine(request) -> str:
    """Run a test on each engine; an installation without the core has only the reference."""
    return _named(request.param, request)


@pytest.fixture(params=["native", "triton", "reference"])
def every_engine(request) -> str:
    """Run a test on each engine, on Triton's too, which is slow in its interpreter."""
    return _named(request.param, request)


@pytest.fixture(params=["native", "triton"])
def kernels(request) -> str:
    """Run a test on each engine with kernels."""
    return _named(request.param, request)


@pytest.fixture
def on_triton(request) -> None:
    """Run a test of features that only Triton's kernels have, or skip it."""
    _named("triton", request)


@pytest.fixture
def core():
    """Give the compiled core to tests of features that only the core has."""
    if not native.available():
        pytest.skip("the compiled core is not installed")
    return native


@pytest.fixture(scope="session")
def browser():
    """Give the browser of the system to tests of pages."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as run:
        started = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


# Test functions whose first case takes more than a third of a second; `make check` skips them.
LONG = frozenset(Path(__file__).with_name("long_functions.txt").read_text().split())


def pytest_addoption(parser):
    """Declare the option of `make check`."""
    parser.addoption("--one-case", action="store_true", help="run one case of each test function")


def pytest_itemcollected(item):
    """Mark the functions that the list names."""
    if getattr(item, "originalname", None) in LONG:
        item.add_marker("long")


def of_functions(items) -> dict[str, list]:
    """Return the cases of each test function."""
    found = {}
    for item in items:
        found.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return found


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def pytest_sample(items):
    """Mark the cases outside the sample of ``sample(n)`` as slow; the draw is always the same."""
    sampled = [item for item in items if item.get_closest_marker("sample")]
    for name, cases in of_functions(sampled).items():
        size = cases[0].get_closest_marker("sample").args[0]
        chosen = Random(name).sample(cases, min(size, len(cases)))
        for item in cases:
            if item not in chosen:
                item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keep the first case of each test function, if ``--one-case`` asks for that."""
    if not config.getoption("--one-case"):
        return
    chosen = {cases[0] for cases in of_functions(items).values()}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def pytest_collection_finish():
    """Take what was collected out of the sight of the garbage collector, which reads it in vain."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let the collector see all again, so that extension modules can be unloaded without leaks."""
    gc.unfreeze()
