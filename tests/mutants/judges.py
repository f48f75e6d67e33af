"""Tests by the lines that they run, and their verdict on a changed file."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

from .processes import written_to

OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
# Files of tests that look at docstrings and signatures, which are made on import.
OF_IMPORTS = ("test_docs", "test_doctests", "test_structure")
# Triton's interpreter is slow: of its tests, only those of code that no other engine runs.
MINE = ("-m", "not slow", "-k", "not triton or test_triton")


class Watch:
    """A plugin of pytest that records each test's lines and time, and if the test passes."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds, self.failed = coverage, {}, set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)


def watch(tests: Path, package: Path, notes: Path) -> int:
    """Run a file of tests; write which lines each test runs to files that begin with ``notes``."""
    import coverage
    import pytest

    written_to(Path(f"{notes}.log"))
    data = f"{notes}.coverage"
    measured = coverage.Coverage(data, include=[f"{package}/*"], config_file=False)
    measured.start()
    plugin = Watch(measured)
    pytest.main([*OPTIONS, *MINE, str(tests)], [plugin])
    measured.stop()
    measured.save()
    passed = {test: t for test, t in plugin.seconds.items() if test not in plugin.failed}
    Path(f"{notes}.json").write_text(json.dumps(passed))
    return 0


class Touching:
    """The tests that run each line of each file, and how many seconds each test takes."""

    def __init__(self, tests: dict[tuple[Path, int], set[str]], seconds: dict[str, float]) -> None:
        self.tests, self.seconds = tests, seconds

    @classmethod
    def read(cls, folder: Path, files: Iterable[Path]) -> Touching:
        """Read the records of :func:`watch` in a folder, without tests that did not pass.

        Code that runs on import is run by no test; tests of docstrings and signatures cover it.
        """
        import coverage

        tests, seconds = defaultdict(set), {}
        for passed in folder.glob("*.json"):
            seconds |= json.loads(passed.read_text())
        of_imports = {test for test in seconds if Path(test.split("::")[0]).stem in OF_IMPORTS}
        for measured in folder.glob("*.coverage"):
            data = coverage.CoverageData(str(measured))
            data.read()
            for file in files:
                for line, names in data.contexts_by_lineno(str(file)).items():
                    tests[file, line] |= seconds.keys() & names
                    if "" in names:
                        tests[file, line] |= of_imports
        return cls(tests, seconds)

    def quickest(self, file: Path, lines: Iterable[int], seconds: float) -> list[str]:
        """Return the quickest tests that run one of the lines, one of each function first.

        At least one, at most 200, and no more than take so many seconds together.
        """
        touching = set().union(*(self.tests.get((file, line), ()) for line in lines))
        variants = defaultdict(list)
        for test in sorted(touching, key=lambda test: (self.seconds[test], test)):
            variants[test.split("[")[0]].append(test)
        turns = [(turn, t) for tests in variants.values() for turn, t in enumerate(tests)]
        chosen = []
        for _, test in sorted(turns, key=lambda pair: (pair[0], self.seconds[pair[1]]))[:200]:
            seconds -= self.seconds[test]
            if chosen and seconds < 0:
                break
            chosen.append(test)
        return chosen


class _Changed(SourceFileLoader):
    """A loader of a module from a changed source."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder:
    """A finder of one module in a changed source, and of no other module."""

    def __init__(self, name: str, file: Path, source: bytes) -> None:
        self.name, self.loader = name, _Changed(name, str(file), source)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.loader.path, loader=self.loader)


def judge(module: str, file: Path, source: bytes, tests: list[str], log: Path) -> int:
    """Run tests on a changed source of a module; return 0 if all pass."""
    import pytest

    written_to(log)
    sys.meta_path.insert(0, Finder(module, file, source))
    return int(pytest.main(["-x", "--tb=line", *OPTIONS, *tests]))
