"""The blocks of docs/frameworks.md, each in a process of its own, and what the page says."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "frameworks.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^## (.+)$(?:.*\n)*?```python\n((?:.*\n)*?)```", re.MULTILINE)
BLOCKS = dict(BLOCK.findall(PAGE))

TEXTBOOK = """
import copy, torch
def focal_in_float64(logits, labels):
    log_p = logits.detach().double().log_softmax(1)[torch.arange(len(labels)), labels]
    return -((1 - log_p.exp()) ** 2 * log_p).mean()
def close(told, truth):  # within twenty roundings of numbers below 4
    return torch.allclose(torch.as_tensor(told).double(), truth, rtol=0, atol=80 * 2**-24)
torch.manual_seed(0)
"""
CLAIMS = {
    "Lightning": """
theirs = copy.deepcopy(first).double()
logits = theirs.head(theirs.body(rows.double()).relu())
truth = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
truth.backward()
assert close(trainer.logged_metrics["loss"], truth.detach())
for ours, theirs in zip(model.parameters(), theirs.parameters(), strict=True):
    assert close(ours.detach(), theirs.detach() - 0.1 * theirs.grad)
""",
    "Keras on PyTorch": """
told = model.evaluate(rows, labels, verbose=0, batch_size=64)
assert close(told, focal_in_float64(model(rows), labels))
types = set()
model.compile(optimizer="sgd", loss=lambda y, p: types.add((y.dtype, p.shape[1])) or focal(y, p))
model.evaluate(rows, labels, verbose=0)
assert types == {(torch.float32, 5)}, types  # the labels come first, and as float32
""",
    "skorch": """
logits = net.module_(rows).detach()
assert close(net.get_loss(logits, labels), focal_in_float64(logits, labels))
assert close(net.predict_proba(rows.numpy()), logits.double().softmax(1))
answers = net.predict(rows.numpy())
net.set_params(predict_nonlinearity="auto")
assert close(net.predict_proba(rows.numpy()), logits.double())  # no softmax, and no warning
assert (net.predict(rows.numpy()) == answers).all()
""",
}
MODULES = {"Lightning": "lightning", "Keras on PyTorch": "keras", "skorch": "skorch"}


@pytest.mark.slow
@pytest.mark.parametrize("title", CLAIMS)
def test_a_block_does_what_the_page_says(title, tmp_path):
    if find_spec(MODULES[title]) is None:
        pytest.skip(f"{MODULES[title]} is not installed")
    block = BLOCKS[title].replace("trainer.fit", "first = copy.deepcopy(model)\ntrainer.fit")
    done = subprocess.run(
        [sys.executable, "-c", TEXTBOOK + block + CLAIMS[title]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_each_block_that_was_not_run_says_so():
    untested = BLOCKS.keys() - CLAIMS.keys()
    assert untested == {"timm", "torchvision"}
    for title, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE):
        assert ("Not run here" in text) == (title in untested), title
        compile(BLOCKS[title], title, "exec")
