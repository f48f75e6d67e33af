"""The machine on which figures are measured, and how busy its processors are."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xent

from .internals import instruction_set

PACKAGES = (
    "torch", "triton", "jax", "optax", "scikit-learn", "liger-kernel", "cut-cross-entropy",
    "quack-kernels", "flash-attn",
)  # fmt: skip


def describe_machine(threads: int) -> dict[str, Any]:
    """Return hardware, versions and date, which a reader needs to compare figures."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": instruction_set(),
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"xent": xent.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_seconds_of_all() -> float | None:
    """Return seconds of work of all cores since the system started; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    idle, waiting = float(fields[3]), float(fields[4])
    return (sum(map(float, fields)) - idle - waiting) / os.sysconf("SC_CLK_TCK")
