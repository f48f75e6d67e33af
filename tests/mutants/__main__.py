"""Judge a sample of mutants by the tests that run their lines: ``python -m tests.mutants``.

    every change of the files --seed--> a sample --coverage--> tests that touch it --> killed or not

Results are kept in ``build/mutants``: a second call with the same sources continues.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scipy.stats import binomtest
from tqdm import tqdm

from .changes import Change, changes
from .judges import Touching, judge, watch
from .processes import LATE, each

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
ROOMS = (
    "frames", "losses", "row_statistics.py", "row_merge.py", "extremes.py", "heads", "information",
)  # fmt: skip
# Tests of the rooms on top: they train, plot or run commands, and are slow.
FAR = ("benchmarks", "commands", "examples", "learn", "plot", "test_cli.py", "test_evaluation.py")
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
CONTROLS = 5  # mutants whose tests run on the unchanged library first
LATE_AFTER = 120  # seconds of the processor


@dataclass(frozen=True)
class Mutant:
    """A file of the library and one change of it."""

    package: Path
    file: Path
    change: Change

    @property
    def where(self) -> str:
        return self.file.relative_to(self.package).as_posix()

    @property
    def name(self) -> str:
        """Name for files, and for the results that are kept."""
        text = f"{self.where} {self.change.start} {self.change.end} {self.change.new}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def module(self) -> str:
        parts = [self.package.name, *Path(self.where).with_suffix("").parts]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def __str__(self) -> str:
        """Return the change, wherever in its file it is now."""
        before, after = self.change.statement
        return f"{self.where}: {before} -> {after}"


Chosen = dict[Mutant, list[str]]


def main() -> None:
    """Sample, judge and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=400, help="how many mutants to judge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--rooms", nargs="*", default=ROOMS, help="folders or files of the package")
    options = parser.parse_args()
    package = Path(importlib.util.find_spec("xent").origin).parent  # which does not import it
    files = [file for room in options.rooms for file in _python_files(package / room)]
    tests = _python_files(TESTS)
    folder = ROOT / "build" / "mutants" / _digest([*_python_files(package), *tests])

    order = [Mutant(package, file, change) for file in files for change in changes(file)]
    random.Random(options.seed).shuffle(order)
    known = set(EQUIVALENT.read_text().splitlines())
    order = [mutant for mutant in order if str(mutant) not in known]
    sample = order[: options.sample]
    near = [file for file in tests if file.match("test_*") and _room(file) not in FAR]
    _watch(near, package, folder / "coverage", options.jobs)
    touching = Touching.read(folder / "coverage", files)
    chosen = {m: touching.quickest(m.file, m.change.lines, options.seconds) for m in sample}
    _check_controls({m: chosen[m] for m in sample[:CONTROLS]}, folder, options.jobs)
    _report(_verdicts(chosen, folder, options.jobs), chosen, len(order))


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _room(tests: Path) -> str:
    """Return the folder of a file of tests, or the file itself if it is in no folder."""
    return tests.relative_to(TESTS).parts[0]


def _name(tests: Path) -> str:
    """Return one word for a file of tests: others have the same name in another folder."""
    return ".".join(tests.relative_to(TESTS).with_suffix("").parts)


def _digest(files: list[Path]) -> str:
    text = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(text).hexdigest()[:12]


def _watch(tests: list[Path], package: Path, folder: Path, count: int) -> None:
    """Find out, file by file, which lines each test runs, unless that is known already."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = {file: folder / _name(file) for file in tests}
    left = [file for file in tests if not Path(f"{notes[file]}.json").exists()]
    jobs = [(file, partial(watch, file, package, notes[file]), 3600) for file in left]
    for file, code in tqdm(each(jobs, count), "coverage", len(jobs)):
        if code:
            raise SystemExit(f"{file}: {code}; see {notes[file]}.log")


def _check_controls(chosen: Chosen, folder: Path, count: int) -> None:
    """Stop if tests fail on the unchanged library when they are run like this."""
    jobs = [_job(mutant, tests, folder, changed=False) for mutant, tests in chosen.items() if tests]
    for mutant, code in tqdm(each(jobs, count), "controls", len(jobs)):
        if code:
            raise SystemExit(f"tests fail without {mutant}; see {folder / mutant.name}.log")


def _verdicts(chosen: Chosen, folder: Path, count: int) -> dict[Mutant, int | str]:
    """Return the exit code of each mutant's tests; 0 if no test notices, or if there is none."""
    file = folder / "verdicts.json"
    told = json.loads(file.read_text()) if file.exists() else {}
    left = [mutant for mutant in chosen if mutant.name not in told]
    told |= {mutant.name: 0 for mutant in left if not chosen[mutant]}
    jobs = [_job(mutant, chosen[mutant], folder) for mutant in left if chosen[mutant]]
    for mutant, code in tqdm(each(jobs, count), "mutants", len(jobs)):
        told[mutant.name] = code
        file.write_text(json.dumps(told))
    return {mutant: told[mutant.name] for mutant in chosen}


def _job(
    mutant: Mutant, tests: list[str], folder: Path, changed: bool = True
) -> tuple[Mutant, partial[int], int]:
    source = mutant.file.read_bytes()
    source = mutant.change.applied(source) if changed else source
    log = folder / f"{mutant.name}.log"
    return mutant, partial(judge, mutant.module, mutant.file, source, tests, log), LATE_AFTER


def _report(verdicts: dict[Mutant, int | str], chosen: Chosen, of: int) -> None:
    """Print the noticed share by room, with its interval, and the mutants that no test noticed."""
    print(f"{len(verdicts)} mutants of {of}\n")
    for room in (*ROOMS, ""):
        codes = [code for mutant, code in verdicts.items() if mutant.where.startswith(room)]
        if codes:
            print(_share(room or "together", codes))
    print("\nNot noticed:")
    for mutant, code in sorted(verdicts.items(), key=lambda pair: str(pair[0])):
        if code == 0:
            print(f"{mutant}\n    {len(chosen[mutant])} tests; {mutant.name}.log")


def _share(name: str, codes: list[int | str]) -> str:
    killed = sum(code != 0 for code in codes)
    interval = binomtest(killed, len(codes)).proportion_ci(method="exact")
    return (
        f"{name:20} {killed:4} of {len(codes):4} noticed, {killed / len(codes):.1%} "
        f"(95%: {interval.low:.1%} to {interval.high:.1%}), {codes.count(LATE)} by being late"
    )


if __name__ == "__main__":
    main()
