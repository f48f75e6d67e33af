"""`xent train --parallel` under torchrun: a rank that is killed, and a signal to all."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xent.cli import main
from xent.commands import trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists children"),
]
# The lanes of text are shared unevenly; a step takes some hundredths of a second.
SMALL = ["--dim", "32", "--batch", "6", "--length", "24", "--steps", "60", "--threads", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of made-up sentences."""
    path, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "a", "cat", "dog", "house", "tree", "sees", "likes", "and", "or", "not"]
    for i in range(30):
        lines = (" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(40))
        (path / f"{i}.txt").write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory) -> dict:
    """Return the record of one process."""
    out = tmp_path_factory.mktemp("alone")
    assert main(["train", str(text), "--out", str(out), *SMALL, "--quiet"]) == 0
    return json.loads((out / "record.json").read_text())


def launched(ranks: int, *words: str) -> subprocess.Popen:
    """Start torchrun, with no more of the environment than a service has."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = {**kept, "PYTHONPATH": str(Path(trainer.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "xent", "train", *words]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def at_a_checkpoint(launch: subprocess.Popen, out: Path) -> list[int]:
    """Wait until a run has saved anew; return the processes of its ranks, in their order."""
    file, deadline = out / "checkpoint.pt", time.monotonic() + 120
    before = file.stat().st_mtime_ns if file.exists() else None
    while not file.exists() or file.stat().st_mtime_ns == before:
        assert launch.poll() is None, launch.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    tasks = Path(f"/proc/{launch.pid}/task").glob("*/children")
    children = [int(word) for task in tasks for word in task.read_text().split()]
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found = [one for one in environment if one.startswith(b"RANK=")]
        if found:
            ranks[int(found[0].removeprefix(b"RANK="))] = child
    return [ranks[k] for k in sorted(ranks)]


def test_killed_on_four_ranks_and_stopped_on_two_it_is_the_training_of_one(text, alone, tmp_path):
    """A rank that is killed ends the others, and a signal to torchrun saves where all ranks are."""
    launch = launched(4, str(text), "--out", str(tmp_path), *SMALL, "--parallel", "data")
    pids = at_a_checkpoint(launch, tmp_path)
    assert len(pids) == 4
    os.kill(pids[2], signal.SIGKILL)
    killed = time.monotonic()
    _, err = launch.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert launch.returncode
    assert "xent train: rank 0 does not hear from another rank any more" in err
    assert "SIGKILL" in err  # torchrun names the rank
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    resumed = ["--resume", "--out", str(tmp_path), "--threads", "1"]
    launch = launched(2, *resumed, "--parallel", "classes")
    at_a_checkpoint(launch, tmp_path)
    launch.send_signal(signal.SIGTERM)
    out, err = launch.communicate(timeout=60)
    assert out == ""
    assert err.count("2 ranks share the classes") == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["ranks"] == 2
    again = "torchrun --nproc-per-node 2 -m xent train --parallel classes --resume --out"
    steps = len(record["history"]["loss"])
    assert err.count(f"stopped after step {steps}; continue: {again} {tmp_path}") == 1

    assert main(["train", *resumed, "--quiet"]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert 12 <= steps < len(record["history"]["loss"]) == 60
    assert record["history"]["loss"] == pytest.approx(alone["history"]["loss"], abs=1e-4)
    nats = [one["results"]["nats_per_token"] for one in (record, alone)]
    assert nats[0] == pytest.approx(nats[1], abs=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt", "record.json", "curves.png"
    }  # fmt: skip
