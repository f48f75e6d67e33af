"""Run the trainers of TRL 1.0 and of the newest TRL: ``make test-trl``.

Each version gets an environment of its own, which is removed afterwards. A version that cannot be
installed is left out, by name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.house.other_pythons import PROJECT, Failure, pip, run, show, wheel_in, wheels

VERSIONS = ["trl~=1.0.0", "trl"]
# TRL 1.0 imports requests without naming it.
PACKAGES = ["torch", "numpy", "peft", "requests", "pytest", "hypothesis"]
FACTS = """
from importlib.metadata import version
print(*map(version, ("trl", "transformers", "torch")))
"""


class Row(NamedTuple):
    """Result for one version of TRL."""

    wanted: str
    result: str  # passed, failed or skipped
    trl: str = ""
    transformers: str = ""
    torch: str = ""
    note: str = ""


def tried(wanted: str, wheels: Path) -> Row:
    """Make an environment, install, run the tests, remove the environment."""
    with tempfile.TemporaryDirectory(prefix="xent-trl-") as folder:
        python = Path(folder, "bin", "python")
        try:
            run(sys.executable, "-m", "venv", folder)
            pip(python, "install", "-c", "constraints.txt", wanted, *PACKAGES)
        except Failure as failure:
            return Row(wanted, "skipped", note=f"cannot be installed: {failure}")
        try:
            pip(python, "install", wheel_in(wheels))
            facts = run(python, "-c", FACTS).split()
        except Failure as failure:
            return Row(wanted, "failed", note=str(failure))
        start = time.perf_counter()
        command = [python, "-m", "pytest", "-q", "tests/trl"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=PROJECT, env=environment, check=False)
        seconds = time.perf_counter() - start
    return Row(wanted, "failed" if done.returncode else "passed", *facts, f"{seconds:.0f} s")


def main() -> int:
    """Try all versions, print a table; return the number of failures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # environments are removed on the way out
    with wheels() as folder:
        rows = [tried(wanted, folder) for wanted in VERSIONS]
    show([Row("wanted", "result", "trl", "transformers", "torch", "note"), *rows])
    return sum(row.result == "failed" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
