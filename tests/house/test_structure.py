"""The library (``src/xent``, "the house") as a whole: imports, docstrings, compiled core."""

import ast
import doctest
import importlib
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xent
from tests.conftest import LONG
from xent.nn.twins import Loss

HOUSE = Path(xent.__file__).parent
PROJECT = Path(__file__).parents[2]
SOURCES = [*HOUSE.rglob("*.py"), *(PROJECT / "benchmarks").rglob("*.py")]

# The rooms (modules or folders), lowest first. A room imports rooms below it, and nothing else.
FLOORS = [
    {"_core", "_package"},
    {"collectives", "engines.modes", "engines.contract", "engines.pool"},
    {
        "_check",
        "_files",
        "_printable",
        "_start",
        "_suggestions",
        "_series",
        "arrays",
        "extremes",
        "agreement",
    },
    {"row_merge"},
    {"row_statistics"},
    {"_probabilities", "_texts", "logits", "heads.stand_in"},
    {"targets"},
    {"shards"},
    {"heads.logits"},
    {"heads.distributed"},
    {"overrides"},
    {"heads.log_probs", "softmax"},
    {
        "engines.core",
        "engines.rows.algebra",
        "engines.rows.problem",
        "engines.rows.programs",
        "engines.elements.problem",
        "engines.dense.problem",
    },
    {"engines.triton"},
    {"engines.choice"},
    {"engines.rows", "engines.elements", "engines.dense"},
    {"engines"},
    {"heads", "hyperparameters", "class_dim"},
    {"measurement", "information"},
    {"log_probs", "heads.answers", "frames"},
    {"losses", "policy"},
    {"nn", "evaluation", "diagnose"},
    {""},  # the names of `xent`
    {"plot", "integrations", "learn", "playground", "parallel"},
]
FLOOR = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}
# The doors: modules that may import every room.
DOORS = {"", "__main__", "cli", "commands"}

# Rooms on top import only public names of other rooms, those in `__all__` of a module, as users do.
# These rooms could be a package of their own. They also import a few modules that know nothing of
# losses: checks of arguments, files that are written completely or not at all, the package's name,
# text for terminals, Ctrl-C, modes of PyTorch.
ON_TOP = ("learn", "plot", "integrations", "commands", "cli", "__main__")
UTILITIES = {
    "_check", "_files", "_package", "_printable", "_probabilities", "_start", "_suggestions",
    "arrays",
    "engines.modes",
}  # fmt: skip
# Only `xent info` says how the library was built.
BUILD = {"commands/info.py": {"engines.core", "engines.triton"}}


def room_of(module: str) -> str:
    """Return the room of a module: its longest name that a floor knows."""
    while module and module not in FLOOR and module not in DOORS:
        module = module.rpartition(".")[0]
    return module


def imports_of(file: Path) -> set[str]:
    """Return the modules of the house that a file imports, by their names within the house."""
    package = ("xent", *file.relative_to(HOUSE).with_suffix("").parts)
    found, tree = set(), ast.parse(file.read_text())
    for_types = {  # imports for type checkers only
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: -node.level] if node.level else ()
        module = ".".join([*base, *([node.module] if node.module else [])])
        found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.partition(".")[2] for name in found if name.partition(".")[0] == "xent"}


@pytest.mark.parametrize("room", sorted(FLOOR.keys() - DOORS - {"_core"}))
def test_imports_run_downwards(room):
    place = HOUSE / room.replace(".", "/")
    files = [place.with_suffix(".py")] if not place.is_dir() else list(place.rglob("*.py"))
    for file in files:
        own = room_of(".".join(file.relative_to(HOUSE).with_suffix("").parts))
        for module in imports_of(file):
            other = room_of(module)
            assert other == own or FLOOR[other] < FLOOR[own], f"{file} imports {module}"


@pytest.mark.parametrize("room", ON_TOP)
def test_what_stands_on_top_imports_public_names(room):
    place = HOUSE / room
    for file in [place.with_suffix(".py")] if not place.is_dir() else list(place.rglob("*.py")):
        allowed = UTILITIES | BUILD.get(file.relative_to(HOUSE).as_posix(), set())
        for name in imports_of(file):
            module, _, last = name.rpartition(".")
            if name == "__version__" or name.split(".")[0] in ON_TOP or {name, module} & allowed:
                continue
            home = importlib.import_module(f"xent.{module}".rstrip("."))
            assert last in getattr(home, "__all__", ()), f"{file} imports {name}"


# ---- sizes ----------------------------------------------------------------------------------

LONGEST_BODY, LONGEST_FILE = 50, 400  # lines; a docstring does not count


def bodies_of(file: Path) -> dict[str, int]:
    """Return the lines of the body of each function of a file, by name."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[ast.get_docstring(node) is not None :]
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            found[node.name] = max(lines, found.get(node.name, 0))
    return found


# Bodies and files that are too long; remove the name of each that becomes shorter.
LONG_BODIES = {
    "element_loss.element_loss", "row_loss.row_loss",
    "contrastive.sampled_cross_entropy",
}  # fmt: skip
LONG_FILES = {"xent/heads/logits.py"}


def name_of(file: Path) -> str:
    """Path inside the library, which may be an installed copy, or inside the project."""
    return file.relative_to(HOUSE.parent if HOUSE in file.parents else PROJECT).as_posix()


def test_no_body_of_a_function_is_long():
    long = {
        f"{file.stem}.{name}": lines
        for file in SOURCES
        for name, lines in bodies_of(file).items()
        if lines > LONGEST_BODY
    }
    assert long.keys() == LONG_BODIES, long


def test_no_file_is_long():
    sources = [*SOURCES, *(PROJECT / "csrc").glob("*.*")]
    lengths = {name_of(file): len(file.read_text().splitlines()) for file in sources}
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}
    assert long.keys() == LONG_FILES, long


def test_the_list_of_long_test_functions_names_no_other():
    tests = (PROJECT / "tests").rglob("test_*.py")
    assert set().union(*map(bodies_of, tests)) >= LONG


def test_the_measure_of_a_body(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('def f():\n    """Text,\n    more."""\n    x = (\n        1)\n    return x\n')
    assert bodies_of(file) == {"f": 3}


def python(code: str, *flags: str) -> str:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_the_import_brings_nothing_optional():
    optional = ["triton", "matplotlib", "sklearn", "transformers", "jax", "optax", "tqdm", "scipy"]
    optional += ["rich", "rich_argparse", "shtab"]
    code = """
import sys, json, torch
before = set(sys.modules)
import xent
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    brought = set(json.loads(python(code)))
    assert "xent" in brought
    assert not brought & {*optional, "numpy"}


TESTS = PROJECT / "tests"
# Folders of tests that are about all rooms, or about code outside of the package.
OF_ALL = {"benchmarks", "examples", "house", "mutants", "registry", "site", "trl"}


def test_tests_lie_in_the_folders_of_the_package():
    """Tests of a module outside of folders lie outside of folders, under its name."""
    folders = {p.relative_to(TESTS).parent for p in TESTS.rglob("test_*.py")}
    folders = {f for f in folders if f.parts and f.parts[0] not in OF_ALL}
    assert not [f for f in folders if not (HOUSE / f).is_dir()]
    assert not [p.name for p in TESTS.glob("test_*.py") if not (HOUSE / p.name[5:]).exists()]


def test_the_import_is_quick():
    """In processor time, relative to the import of PyTorch, so that slow machines pass."""
    code = """
import time
start = time.process_time()
import torch
between = time.process_time()
import xent
print((time.process_time() - between) / (between - start))
"""
    assert any(float(python(code)) < 0.2 for _ in range(5))  # 0.06 to 0.12, by Python


# Public functions and classes, by the name that users write.
PUBLIC = {
    f"{room.__name__}.{name}": getattr(room, name)
    for room in (xent, xent.losses, xent.policy, xent.information)
    for name in room.__all__
    if callable(getattr(room, name))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_symbol_has_an_example(name):
    """The examples run in ``test_doctests``."""
    thing = PUBLIC[name]
    doc = inspect.getdoc(thing)
    plain = issubclass(thing, (tuple, Exception)) if inspect.isclass(thing) else False
    assert doc
    assert plain or doctest.DocTestParser().get_examples(doc), f"{name} has no example"


def test_every_module_that_is_written_has_an_example():
    """Modules made from functions point to the examples of the functions."""
    written = [twin for twin in vars(xent.nn).values() if inspect.isclass(twin)]
    written = [twin for twin in written if issubclass(twin, torch.nn.Module) and twin is not Loss]
    written = [twin for twin in written if twin.__module__ != "xent.nn"]
    assert written
    for twin in written:
        assert doctest.DocTestParser().get_examples(inspect.getdoc(twin) or ""), twin


def test_every_public_function_says_what_it_takes_and_raises():
    for name, thing in PUBLIC.items():
        if inspect.isfunction(thing):
            doc = inspect.getdoc(thing)
            assert "Args:" in doc, name
            for parameter in inspect.signature(thing).parameters:
                assert f"{parameter}:" in doc, f"{name} does not explain {parameter}"


@pytest.mark.parametrize("room", [xent, xent.losses, xent.policy, xent.information])
def test_all_lists_what_is_public(room):
    public = {
        name
        for name, value in vars(room).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("xent")
    }
    assert public <= set(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)
    assert room.__all__ == sorted(room.__all__)
    assert set(room.__all__) <= set(dir(room))


def test_packages_are_imported_at_their_first_use():
    code = """
import sys, xent
packages = "integrations", "learn", "parallel", "plot"
assert not any(f"xent.{name}" in sys.modules for name in packages)
assert set(packages) <= set(dir(xent))
print(xent.learn.mixture_log_prob.__name__, xent.plot.loss_curves.__name__)
print(xent.learn.calibration.__name__, xent.integrations.boosting.__name__)
print(xent.parallel.shard.__name__)
"""
    words = [
        "mixture_log_prob",
        "loss_curves",
        "xent.learn.calibration",
        "xent.integrations.boosting",
        "shard",
    ]
    assert python(code).split() == words


@pytest.mark.parametrize(
    "room", ["losses", "policy", "nn", "information", "learn", "parallel", "plot"]
)
def test_the_error_for_a_name_of_a_package_says_where_it_is(room):
    names = set(getattr(xent, room).__all__) - set(xent.__all__)
    assert names
    for name in names:
        with pytest.raises(AttributeError) as error:
            getattr(xent, name)
        assert f"`xent.{name}` is `xent.{room}.{name}`" in str(error.value)
        assert error.value.name == name


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="did you mean cross_entropy"):
        xent.crossentropy  # noqa: B018
    assert not hasattr(xent, "__wrapped__")
    assert not hasattr(xent.learn, "nothing")
    assert not hasattr(xent.integrations, "nothing")


# ---- the compiled core ----------------------------------------------------------------------


def test_the_stub_lists_what_the_core_has(core):
    stub = ast.parse((HOUSE / "_core.pyi").read_text())
    told = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    constants = [node.target for node in stub.body if isinstance(node, ast.AnnAssign)]
    told |= {name.id for name in constants if isinstance(name, ast.Name)}
    assert told == {name for name in dir(core._core) if not name.startswith("_")}


def test_kernels_of_different_instruction_sets_share_no_symbol():
    # The linker could keep a weak symbol compiled for AVX-512 for every machine.
    objects = list((PROJECT / "build").rglob("xent_*.dir/**/*.o"))
    nm = shutil.which("nm")
    if not objects or nm is None:
        pytest.skip("no build tree here")
    for file in objects:
        lines = subprocess.run([nm, file], capture_output=True, text=True, check=True).stdout
        kinds = {line.split()[-2] for line in lines.splitlines() if len(line.split()) >= 2}
        assert not kinds & set("VvWwu"), file


def test_instruction_sets(core):
    assert core.isas()[0] == "baseline"
    assert core.isa in core.isas()
    with pytest.raises(ValueError, match="baseline"):
        core.set_isa("sse9")


def test_the_environment_chooses_the_instruction_set(core):
    code = "from xent.engines import core as native; print(native.isa)"
    env = {"XENT_ISA": "baseline", "PYTHONPATH": str(HOUSE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.split() == ["baseline"]


def test_without_the_core_the_reference_does_everything():
    code = """
import os; os.environ["XENT_NO_CORE"] = "1"
import torch, xent
from xent.engines import core as native
assert not native.available()
z = torch.tensor([[10.0, -10.0, -10.0]])
print(xent.explain(z, torch.tensor([0])).engine, f"{xent.cross_entropy(z, torch.tensor([0])):.6e}")
"""
    assert python(code).split() == ["reference", "4.122307e-09"]
