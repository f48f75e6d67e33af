"""Run fast tests on the other Pythons of this machine: ``make test-pythons``.

Each gets an environment of its own, which is removed afterwards. PyTorch is a download of gigabytes
where it is no file of this machine; with ``--no-download`` such a Python is left out, by name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
LEAST = (3, 10)
FILES = [
    "tests/test_hyperparameters.py",
    "tests/house/test_structure.py",
    "tests/losses/test_classification_errors.py",
    "tests/nn/test_twins.py",
    "tests/losses/test_noise_matrix.py",
    "tests/house/test_compile.py",
    "tests/house/test_doctests.py",
]
PACKAGES = ["numpy", "matplotlib", "triton", "pytest", "hypothesis", "mpmath", "expecttest"]
VERSION = 'import sys; print("%d.%d.%d" % sys.version_info[:3]); import venv, ensurepip'
FACTS = """
from importlib.metadata import version
from xent.engines import core as native
print(version("torch"), version("triton"), "yes" if native.available() else "no")
"""


class Row(NamedTuple):
    """Result for one Python."""

    python: str
    result: str  # passed, failed or skipped
    torch: str = ""
    triton: str = ""
    core: str = ""
    note: str = ""


class Failure(Exception):
    """A command that an environment needs did not succeed."""


def candidates() -> Iterator[Path]:
    """Return the commands ``python3`` and ``python3.X`` on the path, and pyenv's versions."""
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        yield from sorted(
            p for p in folder.glob("python3*") if re.fullmatch(r"python3(\.\d+)?", p.name)
        )
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(versions.glob("*/bin/python"))


def ask(path: Path) -> tuple[str, bool]:
    """Return a Python's version ("" if it does not start), and if it makes environments."""
    try:
        said = subprocess.run([path, "-c", VERSION], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "", False
    version = said.stdout.strip()
    return version if re.fullmatch(r"\d+\.\d+\.\d+", version) else "", said.returncode == 0


def found() -> tuple[dict[str, Path], list[Row]]:
    """Return a Python for each version but the running one, and the Pythons left out."""
    pythons, left_out = {}, []
    for path in candidates():
        version, complete = ask(path)
        if not version:
            left_out.append(Row(str(path), "skipped", note="does not start"))
        elif tuple(map(int, version.split(".")))[:2] < LEAST:
            left_out.append(Row(str(path), "skipped", note=f"{version} is too old"))
        elif not complete:
            left_out.append(Row(str(path), "skipped", note=f"{version} makes no environments"))
        elif version != platform.python_version():
            pythons.setdefault(version, path)
    return pythons, left_out


def run(*command: str | Path) -> str:
    """Run a command and return its output; raise if it fails."""
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], flush=True)
        raise Failure(f"{Path(command[0]).name} {' '.join(map(str, command[1:4]))} failed")
    return done.stdout


def pip(python: Path, *arguments: str | Path) -> str:
    """Run pip, under the constraints of the project."""
    return run(python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments)


def torch_address(python: Path) -> str | None:
    """Return the address where pip takes PyTorch from, or None if there is none."""
    wanted = "install --dry-run --no-deps --report - -c constraints.txt torch"
    try:
        (wheel,) = json.loads(pip(python, *wanted.split()))["install"]
    except Failure:
        return None
    return wheel["download_info"]["url"]


@contextmanager
def wheels() -> Iterator[Path]:
    """The folder of the wheel that make has built, or a folder that is removed afterwards."""
    made = Path(sys.prefix, "wheels")
    if made.is_dir():
        yield made
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def wheel_in(folder: Path) -> Path:
    """Build the project as a wheel, once: it is for the stable interface, so for every Python."""
    if not list(folder.glob("*.whl")):
        pip(Path(sys.executable), "wheel", "--no-deps", "-w", folder, ".")
    (wheel,) = folder.glob("*.whl")
    return wheel


def tried(version: str, path: Path, wheels: Path, download: bool) -> Row:
    """Make an environment, install, run the tests, remove the environment."""
    with tempfile.TemporaryDirectory(prefix=f"xent-{version}-") as folder:
        python = Path(folder, "bin", "python")
        try:
            run(path, "-m", "venv", folder)
            address = torch_address(python)
            if address is None:
                return Row(version, "skipped", note="pip finds no PyTorch for it")
            if not download and not address.startswith("file:"):
                return Row(version, "skipped", note="PyTorch would have to be downloaded")
            pip(python, "install", "-c", "constraints.txt", "torch", *PACKAGES, wheel_in(wheels))
            facts = run(python, "-c", FACTS).split()
        except Failure as failure:
            return Row(version, "failed", note=str(failure))
        start = time.perf_counter()
        done = subprocess.run([python, "-m", "pytest", "-q", "-m", "not slow", *FILES], cwd=PROJECT)
        seconds = time.perf_counter() - start
    return Row(version, "failed" if done.returncode else "passed", *facts, f"{seconds:.0f} s")


def show(table: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def main() -> int:
    """Try all Pythons, print a table; return the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-download", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # environments are removed on the way out
    pythons, rows = found()
    with wheels() as folder:
        for version, path in sorted(pythons.items()):
            print(f"\nPython {version}: {path}", flush=True)
            rows.append(tried(version, path, folder, not options.no_download))
    show([Row("python", "result", "torch", "triton", "core", "note"), *rows])
    counts = {
        name: sum(row.result == name for row in rows) for name in ("passed", "failed", "skipped")
    }
    print("pythons:", ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts["failed"]


if __name__ == "__main__":
    sys.exit(main())
