"""The package: its name and version, the facts of the owner, and files that only services read."""

import importlib.util
import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

import xent
from xent._package import NAME, VERSION
from xent.commands import info

tomllib = pytest.importorskip("tomllib")  # Python 3.11
yaml = pytest.importorskip("yaml")

HOUSE = Path(xent.__file__).parent
PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
FORMS = sorted((PROJECT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# ---- name and version ---------------------------------------------------------------------------


def test_name_and_version_are_said_once():
    assert PYPROJECT["project"]["name"] == NAME
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert xent.__version__ == VERSION
    told = re.search(
        r"^## \[(.+)\] - (\d{4}-\d\d-\d\d)$", (PROJECT / "CHANGELOG.md").read_text(), re.M
    )
    assert told[1] == VERSION


def test_extras_name_the_package():
    wanted = {need for needs in EXTRAS.values() for need in needs}
    own = {
        m[1]: m[2].split(",") for m in (re.match(r"(\w+)\[(.+)\]", need) for need in wanted) if m
    }
    assert set(own) == {NAME}
    assert set(own[NAME]) <= EXTRAS.keys()


def test_messages_name_extras_that_there_are():
    call = re.compile(r"""(?:pip_install|not_installed)\((?:[^()]+, )?["'](\w+)["']\)""")
    texts = [file.read_text(encoding="utf-8") for file in HOUSE.rglob("*.py")]
    found = {extra for text in texts for extra in call.findall(text)}
    assert {"learn", "plot", "search", "transformers"} <= found <= EXTRAS.keys()


def test_no_line_installs_the_package_of_another_project():
    """On PyPI ``xent`` belongs to others."""
    foreign = re.compile(r"\bxent\[[a-z,]+\]|pip (?:install|download) (?:\S+ )*xent\b(?![./])")
    folders = ["src", "docs", "examples", "benchmarks", "tests", "package", ".github"]
    files = [p for folder in folders for p in (PROJECT / folder).rglob("*")]
    files = [p for p in files if p.suffix in (".py", ".md", ".yml", ".yaml", ".sh", ".txt")]
    found = [
        f"{file}: {line}"
        for file in [
            *files,
            PROJECT / "Makefile",
            PROJECT / "pyproject.toml",
            PROJECT / "README.md",
        ]
        for line in file.read_text(encoding="utf-8").splitlines()
        if foreign.search(line)
    ]
    assert not found


def test_without_the_core_the_command_compiles_what_was_installed(monkeypatch, tmp_path):
    def installed_from(origin):
        told = None if origin is None else json.dumps(origin)
        monkeypatch.setattr(
            info, "distribution", lambda name: SimpleNamespace(read_text=lambda _: told)
        )
        return info._source()

    monkeypatch.setattr(info, "FOLDER", PROJECT)
    assert installed_from(None) == f"-e {PROJECT}"  # a checkout, whatever else is installed
    monkeypatch.setattr(info, "FOLDER", tmp_path / "lib")
    assert installed_from(None) == f"--no-binary {NAME} {NAME}"  # from an index
    origin = {"url": "file:///home/me/my%20xent", "dir_info": {}}
    assert installed_from(origin) == "'/home/me/my xent'"
    wheel = tmp_path / ".venv" / "wheels" / "crossentropy-1-cp310-abi3-linux_x86_64.whl"
    origin = {"url": wheel.as_uri(), "archive_info": {}}
    assert installed_from(origin) == info.UNKNOWN  # a wheel alone has no sources
    (tmp_path / "src" / "xent").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    assert installed_from(origin) == str(tmp_path)  # the wheel that make built
    origin = {"url": "https://example.org/crossentropy-1.tar.gz", "archive_info": {}}
    assert installed_from(origin) == "https://example.org/crossentropy-1.tar.gz"
    told = {"vcs": "git", "commit_id": "abc", "requested_revision": "main"}
    origin = {"url": "https://example.org/xent.git", "vcs_info": told}
    assert installed_from(origin) == "git+https://example.org/xent.git@abc"

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(info, "distribution", missing)
    assert info._source() == info.UNKNOWN


# ---- facts of the owner -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts():
    spec = importlib.util.spec_from_file_location("facts", PROJECT / "package" / "facts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def filled(facts):
    """Every file with addresses, by its name."""
    addresses = {
        "repository": "https://code.example/xent",
        "site": "https://site.example",
        "contact": "Someone@Site.example",
    }
    given = facts.read()._replace(**addresses)
    return {name: facts.filled((PROJECT / name).read_text(), given) for name in facts.FILES}


def test_the_files_have_the_facts(facts, capsys):
    assert facts.main(["--check"]) == 0
    assert facts.main(["--check", "--tag", f"v{VERSION}"]) == 0
    assert facts.main(["--check", "--tag", "v0.0.1"]) == 1
    assert capsys.readouterr().out == f"the tag is v0.0.1, the version {VERSION}\n"


def test_every_block_is_in_a_file(facts):
    text = "".join((PROJECT / name).read_text() for name in facts.FILES)
    assert sorted(found["name"] for found in facts.BLOCK.finditer(text)) == sorted(facts.BLOCKS)


def test_files_with_addresses_are_whole(filled):
    urls = tomllib.loads(filled["pyproject.toml"])["project"]["urls"]
    assert urls["Documentation"] == "https://site.example"
    assert urls["Issues"] == "https://code.example/xent/issues"
    cited = yaml.safe_load(filled["CITATION.cff"])
    assert (cited["repository-code"], cited["version"]) == ("https://code.example/xent", VERSION)
    assert (
        yaml.safe_load(filled["package/recipe.yaml"])["about"]["homepage"] == urls["Documentation"]
    )
    links = yaml.safe_load(filled[".github/ISSUE_TEMPLATE/config.yml"])["contact_links"]
    assert all(link.keys() == {"name", "url", "about"} for link in links)
    for page in ("SECURITY.md", "CODE_OF_CONDUCT.md"):
        assert "Someone@Site.example" in filled[page]
        assert "project.toml" not in filled[page]


def test_what_was_filled_in_can_be_emptied(facts, filled):
    empty = facts.read()._replace(repository="", site="", contact="")
    for name, text in filled.items():
        emptied = facts.filled(text, empty)
        assert ".example" not in emptied, name
        assert facts.filled(emptied, empty) == emptied


# ---- files that services read -------------------------------------------------------------------


def test_the_recipe_needs_what_the_package_needs():
    recipe = load(PROJECT / "package" / "recipe.yaml")
    needs = {
        need.replace(" ", "").replace("pytorch", "torch") for need in recipe["requirements"]["run"]
    }
    assert needs - {"python"} == set(PYPROJECT["project"]["dependencies"])
    host = {need.replace(" ", "") for need in recipe["requirements"]["host"]}
    assert host - {"python", "pip"} == set(PYPROJECT["build-system"]["requires"])
    assert recipe["context"] == {"name": NAME, "version": VERSION}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_is_one_that_the_service_shows(form):
    told = load(form)
    assert told.keys() == {"name", "description", "labels", "body"}
    questions = [question for question in told["body"] if question["type"] != "markdown"]
    names = [question["id"] for question in questions]
    assert names
    assert len(set(names)) == len(names)
    for question in questions:
        assert question["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert question["attributes"]["label"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.stem)
def test_a_workflow_calls_targets_that_there_are(workflow):
    told = load(workflow)
    steps = [step for job in told["jobs"].values() for step in job["steps"]]
    assert told["permissions"] == {"contents": "read"}
    made = {
        word for step in steps for word in re.findall(r"^make (\S+)", step.get("run", ""), re.M)
    }
    makefile = (PROJECT / "Makefile").read_text()
    assert not [target for target in made if not re.search(rf"^{target}:", makefile, re.M)]


def test_the_tests_run_on_each_python_that_is_named():
    (pythons,) = load(WORKFLOWS[0].with_name("tests.yml"))["jobs"]["tests"]["strategy"][
        "matrix"
    ].values()
    named = re.findall(r":: (3\.\d+)\b", "\n".join(PYPROJECT["project"]["classifiers"]))
    assert set(named) <= set(pythons)
    assert f">={named[0]}" == PYPROJECT["project"]["requires-python"]
