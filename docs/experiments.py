"""Runs the examples and keeps what they print and draw: ``python docs/experiments.py [NAME ...]``.

Each example is an experiment that fails if one of its claims does not hold. Its output goes to
``docs/experiments/NAME.txt``, its picture beside it, and ``docs/gallery/NAME.md`` shows both;
``times.txt`` is the table of a run of all examples. With ``--small`` each runs in its small
form, which takes seconds, and nothing is kept; ``--jobs 2`` runs two at a time, with one thread
each. An example that fails or lacks a package does not stop the others.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]
EXAMPLES = {
    path.stem: path
    for path in sorted((PROJECT / "examples").glob("*.py"))
    if not path.stem.startswith("_")
}
OUT = PROJECT / "docs" / "experiments"
# OpenMP threads that wait for work leave the cores to other processes.
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
# The last line of the error for a missing package, in the words of Python or of the examples.
MISSING = re.compile(
    r"^(?:ModuleNotFoundError: No module named '(\S+)'|.*needs (\S+): pip install)"
)


class Run(NamedTuple):
    """An example that has run: what it printed, how long it took, and how it ended."""

    name: str
    output: str
    seconds: float
    ended: str  # "passed", "failed", or "skipped: no PACKAGE"


def main() -> int:
    """Run the examples of these names, or all; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--small", action="store_true", help="seconds each; keeps nothing")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (%(default)s)")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in EXAMPLES]
    if unknown:
        parser.error(f"no example {', '.join(unknown)}; there are {', '.join(EXAMPLES)}")
    threads = {"OMP_NUM_THREADS": "1"} if chosen.jobs > 1 else {}

    def one(name: str) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            done = run(name, chosen.small, Path(folder), threads)
            if done.ended == "passed" and not chosen.small:
                keep(done, Path(folder))
        return done

    with ThreadPoolExecutor(chosen.jobs) as pool:
        runs = list(pool.map(one, chosen.names or EXAMPLES))
    table = times(runs)
    if not chosen.small:
        OUT.mkdir(exist_ok=True)
        if not chosen.names:
            (OUT / "times.txt").write_text(f"{machine()}\n\n{table}\n", encoding="utf-8")
    print(table)
    return int(any(run.ended == "failed" for run in runs))


def run(name: str, small: bool, folder: Path, threads: Mapping[str, str]) -> Run:
    """Run one example, which writes its picture into ``folder``."""
    print(f"{name} ...", flush=True)
    options = ["--picture", str(folder / f"{name}.png")] if draws(name) else []
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, EXAMPLES[name], *options, *(["--small"] if small else [])],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**QUIET_THREADS, **threads, **os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    seconds = time.perf_counter() - start
    last = (done.stderr.strip() or "no word").splitlines()[-1]
    missing = MISSING.match(last)
    if done.returncode == 0:
        ended = "passed"
    elif missing:
        ended = f"skipped: no {missing[1] or missing[2]}"
    else:
        ended = "failed"
    errors = done.stderr if ended == "failed" else ""
    print(f"{done.stdout}{errors}\n{name}: {ended}, {seconds:.0f} s\n", flush=True)
    return Run(name, done.stdout.replace(f"{folder}/", "docs/experiments/"), seconds, ended)


def keep(run: Run, folder: Path) -> None:
    """Write what an example has printed and drawn to ``docs/experiments``."""
    OUT.mkdir(exist_ok=True)
    (OUT / f"{run.name}.txt").write_text(run.output, encoding="utf-8")
    picture = folder / f"{run.name}.png"
    if picture.exists():
        (OUT / picture.name).write_bytes(picture.read_bytes())


def times(runs: list[Run]) -> str:
    """Return the table of all runs: name, seconds, and how each run ended."""
    lines = [f"{run.name:24}{run.seconds:7.0f} s  {run.ended}" for run in runs]
    total = sum(run.seconds for run in runs)
    passed = sum(run.ended == "passed" for run in runs)
    return "\n".join([*lines, f"{'all':24}{total:7.0f} s  {passed} of {len(runs)} passed"])


def machine() -> str:
    """Return the processor, its cores, and the versions of Python and PyTorch."""
    import torch

    processor = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        processor = re.findall(r"model name\s*: (.*)", cpu.read_text()) or [processor]
        processor = processor[0]
    python = platform.python_version()
    return f"{processor}, {os.cpu_count()} cores; Python {python}, PyTorch {torch.__version__}"


def draws(name: str) -> bool:
    """Return True if the example has a picture."""
    return "picture=False" not in EXAMPLES[name].read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
