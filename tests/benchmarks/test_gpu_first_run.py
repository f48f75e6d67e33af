"""``benchmarks/gpu/first_run.sh`` and its parts, tried without a GPU."""

import ast
import json
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import xent
from benchmarks.gpu import card, clusters, head, kernels
from benchmarks.gpu.timing import Timer
from benchmarks.harness.contestants import Cell
from benchmarks.harness.internals import launch_sizes
from xent.engines import triton

GPU = Path(card.__file__).parent
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="this is the rehearsal for a GPU"),
    pytest.mark.skipif(not triton.INTERPRETED, reason="Triton's interpreter is not here"),
]


def run(*words: object, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a command that must find the Python interpreter by itself."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {name: str(value) for name, value in variables.items()}
    return subprocess.run(words, capture_output=True, text=True, env=env, cwd=GPU.parents[1])


@pytest.mark.slow
def test_the_whole_run(tmp_path):
    done = run(GPU / "first_run.sh", PYTHON=sys.executable, OUT=tmp_path, TOTAL=2000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A REHEARSAL" in done.stdout
    parts = ["card", "warm", "tests", "sizes", "head", "logits"]
    assert re.findall(r"^== (\w+): code 0$", done.stdout, re.M) == parts
    assert {file.name for file in tmp_path.iterdir()} == {
        *(f"{part}.txt" for part in parts), "head.json", "logits.json"
    }  # fmt: skip
    assert "failed" not in json.loads((tmp_path / "logits.json").read_text())["cells"][0]


@pytest.mark.slow
def test_a_part_that_fails_stops_no_other(tmp_path):
    done = run(GPU / "first_run.sh", "sanitize", "card", PYTHON=sys.executable, OUT=tmp_path)
    assert done.returncode == 1
    codes = dict(re.findall(r"^== (\w+): code (\d+)$", done.stdout, re.M))
    assert codes == {"card": "0", "sanitize": "127"}  # no such command here


def test_the_scripts_are_well_formed():
    for script in ("first_run.sh", "prepare.sh"):
        assert os.access(GPU / script, os.X_OK)
        assert run("bash", "-n", GPU / script).returncode == 0
    text = (GPU / "first_run.sh").read_text()
    named = set(re.findall(r"^part (\w+) ", text, re.M))
    assert named == set(re.findall(r"^\| `(\w+)` \|", (GPU / "README.md").read_text(), re.M))


def names_of_xent(file: Path) -> set[str]:
    """Names such as ``xent.losses.focal_loss`` that a file uses."""
    nodes = ast.walk(ast.parse(file.read_text()))
    chains = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return {chain for chain in chains if re.fullmatch(r"xent(\.\w+)+", chain)}


FILES = [GPU.parents[1] / "tests" / "engines" / "triton" / "test_gpu.py", *sorted(GPU.glob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_name_is_old(file):
    """Function bodies that run only on a GPU are checked, too."""
    for name in names_of_xent(file):
        operator.attrgetter(name.removeprefix("xent."))(xent)


def test_the_card(capsys):
    card.main()
    out = capsys.readouterr().out
    assert "THE TIMES MEAN NOTHING" in out
    assert "engine: triton" in out
    assert len(re.findall(r"^(copy|amax|product).*/s: [\d.e+-]+$", out, re.M)) == 3


def test_every_launch_size_is_there_and_comes_back():
    from xent.engines.triton import plans

    names = {name for sizes in kernels.ALL_SIZES for name in sizes}
    before = {name: getattr(plans, name) for name in names}
    for sizes in kernels.ALL_SIZES:
        with launch_sizes(**sizes):
            assert {name: getattr(plans, name) for name in sizes} == sizes
    assert {name: getattr(plans, name) for name in names} == before
    with pytest.raises(AttributeError), launch_sizes(NO_SUCH_SIZE=1):
        pass


def test_the_kernels_run_once(capsys):
    kernels.once()
    assert capsys.readouterr().out == "all ran\n"
    failed = kernels.run_once(kernels.Launch(10, "no such reduction"))
    assert failed is not None
    assert "reduction" in failed


def test_rates_of_the_kernels(capsys):
    found = kernels.percent_of_copy(Cell(3, 20, "bfloat16"), Timer())
    assert list(found) == ["statistics", "gradient", "one pass", "program"]
    assert all(rate > 0 for rate in found.values())


def test_the_pieces_of_a_head_and_who_computes_one():
    timer, inputs = Timer(), head.Head.of(6, 16, 40)
    assert len(head.pieces(inputs.chunks(4)[0], timer)) == 8
    found = head.measure(inputs, timer)
    ours = {name: entry for name, entry in found.items() if name not in ("liger", "cce", "quack")}
    assert not [entry for entry in ours.values() if "failed" in entry]
    assert next(iter(found)) == "bare products"
    assert {"xent", "torch", "pipeline, 4 rows", "xent, focal"} <= set(found)
    for name in ("xent", "torch", "torch, chunked", "pipeline, 4 rows"):
        assert max(found[name]["errors"]) < 3 * 2**-8, name
    assert found["bare products"]["errors"] is None
    assert all(name in head.table(found) for name in found)
    found["broken"] = {"failed": "RuntimeError: no such luck"}
    assert "broken failed: RuntimeError: no such luck" in head.table(found)


@pytest.mark.parametrize("rows", [6, 4])
def test_the_pipeline_is_a_gradient(rows):
    """In one chunk and in two; logits, slope and result each round below 2^-8."""
    inputs = head.Head.of(6, 16, 40)
    leaves = [x.double().requires_grad_() for x in inputs[:2]]
    exact = torch.autograd.grad(F.cross_entropy(F.linear(*leaves), inputs.target), leaves)
    for ours, true in zip(head.pipeline(inputs, rows), exact, strict=True):
        assert ((ours.double() - true).norm() / true.norm()).item() < 3 * 2**-8


@pytest.mark.slow
def test_clusters_compile_without_a_gpu(tmp_path):
    """Machine code for each number of classes, in a process that interprets no kernel."""
    code = f"""
from pathlib import Path
from benchmarks.gpu import clusters
clusters.BUILT = Path({str(tmp_path)!r})
clusters.CLUSTERS = {{32000: 2}}
clusters.compile_all()
"""
    done = run(sys.executable, "-c", code, TRITON_CACHE_DIR=tmp_path / "cache")
    if "num_ctas" in done.stderr:
        pytest.skip("this Triton knows no clusters")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one_row_32000.cubin").stat().st_size > 1000
    assert json.loads((tmp_path / "clusters.json").read_text())["32000"]["name"] == "one_row"


def test_the_error_of_clusters():
    logits, labels = torch.randn(9, 16).bfloat16(), torch.randint(16, (9,))
    masked = logits.double().scatter(1, labels[:, None], -torch.inf)
    gradient = masked.softmax(1)
    assert clusters.relative_error(logits, labels, gradient) == 0
    assert clusters.relative_error(logits, labels, 1.5 * gradient) == pytest.approx(0.5)
