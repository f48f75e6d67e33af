"""The kernels' own memory stays with their threads."""

import os
import subprocess
import sys

import pytest

from xent.engines import core

pytestmark = pytest.mark.skipif(
    not core.available() or sys.platform != "linux", reason="asks malloc of Linux to trim"
)

CODE = """
import resource, torch, xent
torch.set_num_threads(2)
z, y = torch.randn(1024, 1000, requires_grad=True), torch.zeros(1024, dtype=torch.long)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
xent.cross_entropy(z, y), xent.cross_entropy(z, y)
before = faults()
for _ in range(50):
    xent.cross_entropy(z, y)
print(faults() - before)
"""


def test_a_call_faults_no_pages_again_where_malloc_trims_its_heap():
    # In the heap of a second thread; that of the first has holes, which are large enough.
    path = os.pathsep.join(p for p in sys.path if p)
    trims = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    env = {**os.environ, "PYTHONPATH": path, **trims}
    result = subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 50, result.stdout  # not one a call
