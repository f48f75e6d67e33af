"""Runs the examples and keeps what they print and draw: ``python docs/experiments.py [NAME ...]``.

Each example is an experiment that fails where its claims are not borne out. Its output goes to
``docs/experiments/NAME.txt``, its picture beside it, and ``docs/experiments/README.md`` shows all.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
EXAMPLES = {path.stem: path for path in sorted((PROJECT / "examples").glob("*.py"))}
OUT = PROJECT / "docs" / "experiments"


def main(names: list[str]) -> int:
    """Run the examples of these names, or all; the number of those that failed."""
    unknown = [name for name in names if name not in EXAMPLES]
    if unknown:
        sys.exit(f"no example {', '.join(unknown)}; there are {', '.join(EXAMPLES)}")
    OUT.mkdir(exist_ok=True)
    failed = [name for name in names or EXAMPLES if not run(name)]
    (OUT / "README.md").write_text(index(), encoding="utf-8")
    print(f"{OUT / 'README.md'}; failed: {', '.join(failed) or 'none'}")
    return len(failed)


def run(name: str) -> bool:
    """Run one example, and keep its output if it succeeds."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    options = ["--picture", str(OUT / f"{name}.png")] if draws(name) else []
    done = subprocess.run(
        [sys.executable, EXAMPLES[name], *options], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    print(f"{done.stdout}{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if done.returncode == 0:
        output = done.stdout.replace(f"{PROJECT}/", "")
        (OUT / f"{name}.txt").write_text(output, encoding="utf-8")
    return done.returncode == 0


def draws(name: str) -> bool:
    """Whether the example has a picture."""
    return '"--picture"' in EXAMPLES[name].read_text(encoding="utf-8")


def index() -> str:
    """The page that shows all results there are."""
    parts = [
        "# Experiments\n\nWritten by `make experiments`; each fails if its claims do not hold."
    ]
    for name, path in EXAMPLES.items():
        if (OUT / f"{name}.txt").exists():
            title = path.read_text(encoding="utf-8").partition("\n")[0].strip('"')
            parts.append(f"## {name}\n\n{title} [`examples/{name}.py`](../../examples/{name}.py)")
            parts.append(f"```\n{(OUT / f'{name}.txt').read_text(encoding='utf-8').rstrip()}\n```")
        if (OUT / f"{name}.png").exists():
            parts.append(f"![{name}]({name}.png)")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
