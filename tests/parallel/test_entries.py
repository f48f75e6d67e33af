"""A shard sent down every public entry: one gather and the result of one process, or an error."""

import importlib
import re
import sys

import pytest
import torch

from tests.site import DOCS

from . import entries_on_ranks
from .pool import values

pytestmark = pytest.mark.slow
WAY_OUT = re.compile(r"gather\(\)|shard\(\)")  # what an error names
MANY = ("xent.learn.calibration.fit_temperature",)  # one gather for each step


@pytest.fixture(scope="module")
def entries():
    """The public names that take logits."""
    sys.path.insert(0, str(DOCS / "site"))
    try:
        names = importlib.import_module("public_names").names()
    finally:
        sys.path.remove(str(DOCS / "site"))
    things = {name: public.thing for name, public in names.items() if public.is_explained_here}
    found = {name for name, thing in things.items() if entries_on_ranks.logits_of(thing)}
    found = {name for name in found if not name.startswith("xent.plot.")}
    return sorted(
        found - {"xent.parallel.shard", "xent.targets.class_axis"}
    )  # these do not compute


def test_every_entry_gathers_once_or_raises(ranks, entries):
    answered = 0
    for found in values(ranks.run(entries_on_ranks.of_shard, 2, entries)):
        for name, (result, gathers) in found.items():
            if isinstance(result, tuple):
                kind, text = result
                assert kind in ("TypeError", "ValueError", "NotImplementedError"), (name, result)
                assert WAY_OUT.search(text), (name, result)
                assert not gathers, (name, gathers)
                continue
            answered += 1
            assert set(gathers) == {"all_gather"}, (name, gathers, result)
            assert len(gathers) == 1 or name in MANY, (name, gathers)
            whole = entries_on_ranks.called(name, entries_on_ranks.logits(), slice(None))
            assert isinstance(result, torch.Tensor), (name, result, whole)
            torch.testing.assert_close(
                result, whole, rtol=1e-12, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert answered > 2 * 60
