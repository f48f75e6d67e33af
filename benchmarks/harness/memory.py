"""Peak memory of a call on a CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .internals import release_memory


def _release_memory() -> None:
    """Hand freed memory back to the system; otherwise it counts as memory in use."""
    gc.collect()
    release_memory()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes: VmRSS now, VmHWM at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def peak_beyond_now(call: Callable[[], object]) -> int:
    """Return the bytes by which the process grows at most during a call."""
    _release_memory()
    try:
        # Linux can reset this peak, but not that of `ru_maxrss`, which a child process inherits.
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
