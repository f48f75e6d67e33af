"""``benchmarks/gpu/logits.py`` without a GPU: its output, its truth and its arithmetic."""

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import contestants as gpu_contestants
from benchmarks.gpu import logits as gpu_logits
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.contestants import BY_ROW, CONTESTANTS, Contestant, Task
from benchmarks.gpu.timing import (
    SWEEPS,
    Budget,
    CudaTimer,
    Timer,
    Turn,
    figures,
    gigabytes_per_second,
    race,
)
from benchmarks.harness.contestants import Cell
from xent.engines import triton

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow
interpreter = pytest.mark.skipif(not triton.INTERPRETED, reason="Triton's interpreter is not here")
QUICK = [name for name in CONTESTANTS if name != "compile"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in a new process, which must find the interpreter by itself."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = (sys.executable, "-m", "benchmarks.gpu.logits", *words)
    return subprocess.run(words, capture_output=True, text=True, env=env, cwd=ROOT)


# ---- the whole of it, in the interpreter ---------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "result.json"
    words = ["--interpret", "--shapes", "2,20", "--launches", "2,20", "--repeats", "1"]
    words += ["--contestants", *QUICK, "--markdown", "--quiet", "--json", str(path)]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, json.loads(path.read_text())


@interpreter
def test_the_header_says_that_the_times_mean_nothing(outcome):
    text, result = outcome
    assert "THE TIMES MEAN NOTHING" in text.splitlines()[0]
    assert text.splitlines()[1] == result["command"]
    assert "--interpret" in result["command"]
    assert {"torch", "triton"} <= set(result["machine"]["versions"])


@interpreter
def test_every_contestant_has_a_row_or_a_reason(outcome):
    text, result = outcome
    (cell,) = result["cells"]
    assert sorted([*cell["contestants"], *result["absent"]]) == sorted([*QUICK, "copy"])
    assert {"xent", BY_ROW, "torch"} <= set(cell["contestants"])
    assert all(result["absent"].values())
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith("  ")]
    for name, entry in cell["contestants"].items():
        assert "failed" not in entry
        if name != "copy":  # once in each of the tables: times, errors, launches
            assert sum(line[0] == name and line[1][0].isdigit() for line in lines) == 2 + (
                name in gpu_logits.GRAPHS
            )
    assert all(
        f"{name} does not take part: {why}" in text for name, why in result["absent"].items()
    )


@interpreter
def test_the_json_is_complete(outcome):
    _, result = outcome
    (cell,) = result["cells"]
    assert (cell["rows"], cell["classes"], cell["dtype"]) == (2, 20, "bfloat16")
    copy = cell["contestants"].pop("copy")["both"]
    assert copy["gb_s"] == pytest.approx(2 * 2 * 20 * 2 / copy["ms"] / 1e6)
    for entry in cell["contestants"].values():
        assert set(entry) == {*SWEEPS, "errors", "memory"}
        assert entry["memory"] == {"forward": None, "both": None}  # nobody counts it on a CPU
        for mode, sweeps in SWEEPS.items():
            time = entry[mode]
            assert len(time["ms_all"]) == 1
            assert time["gb_s"] == pytest.approx(sweeps * 2 * 20 * 2 / time["ms"] / 1e6)
            assert time["of_copy"] == pytest.approx(100 * time["gb_s"] / copy["gb_s"])
            assert time["one_pass"] == pytest.approx(100 * copy["ms"] / time["ms"])
            ours = cell["contestants"]["xent"][mode]
            assert time["ratio"] == pytest.approx(time["ms"] / ours["ms"])
    assert (result["family"], result["left_out"], result["failed"]) == ([], [], {})
    for entry in result["launches"][0]["contestants"].values():
        assert all(set(entry[mode]) == {"called", "replayed"} for mode in ("forward", "both"))


@interpreter
@pytest.mark.parametrize("name", ["xent", BY_ROW])
def test_errors_of_xent_are_those_of_one_rounding(outcome, name):
    """The interpreter rounds by cutting off: up to one unit instead of half a unit."""
    found = outcome[1]["cells"][0]["contestants"][name]["errors"]
    assert found["loss"] < torch.finfo(torch.bfloat16).eps
    assert found["gradient_ulps"] < 1 + 2**-10


@interpreter
def test_all_that_runs_by_default(tmp_path):
    path = tmp_path / "result.json"
    small = ("--shapes", "2,9", "--launches", "2,9", "--family", "2,9", "--repeats", "1")
    small += ("--contestants", "xent", "xent-by-row", "torch")  # and no compiler
    done = command("--interpret", "--quiet", *small, "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["failed"] == {}
    (family,) = result["family"]
    assert family["failed"] == {}
    assert {"focal_loss", "poly1_loss", "cross_entropy, z_loss=1e-4"} <= set(family["ms"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_logits.main([])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no GPU" in line
    assert "--interpret" in line


@pytest.mark.parametrize(
    "words",
    [
        ["--shapes", "5"],
        ["--rows", "0"],
        ["--dtypes", "float64"],
        ["--json", "/no/such/folder/x.json"],
    ],
)
def test_arguments_that_make_no_sense(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_logits.main(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_plan():
    parse = gpu_logits.parser().parse_args
    steps = gpu_logits.plan(parse([]))
    assert [cell for part, cell in steps if part == "launches"] == [
        Cell(65536, 100, "bfloat16"), Cell(4096, 1000, "bfloat16")
    ]  # fmt: skip
    cells = [cell for part, cell in steps if part == "cells"]
    assert len(cells) == len(set(cells)) == 17
    for classes in (100, 256, 512):
        most = max(cell.rows for cell in cells if cell.classes == classes)
        assert most * classes >= 1 << 26
    words = ["--rows", "7", "--dtypes", "float32", "bfloat16", "--shapes", "9,5", "8,5", "3,6"]
    few = gpu_logits.plan(parse([*words, "--family", "4,4"]))
    shapes = [(7, 5), (3, 6)]
    assert few == [
        ("family", Cell(4, 4, "float32")),
        *(("cells", Cell(*one, dtype)) for dtype in ("float32", "bfloat16") for one in shapes),
    ]


# ---- arithmetic ----------------------------------------------------------------------------------


def test_bytes_and_percent():
    assert gigabytes_per_second(3, 2 * 10**9, 1.5) == pytest.approx(4000)
    size, copy_ms = 10**9, 0.5  # 4000 GB/s
    times = zip(SWEEPS, (0.25, 1, 1), strict=True)
    forward, backward, both = (figures(mode, [ms], size, copy_ms) for mode, ms in times)
    assert (forward["gb_s"], backward["gb_s"], both["gb_s"]) == pytest.approx((4000, 2000, 3000))
    assert [one["of_copy"] for one in (forward, backward, both)] == pytest.approx([100, 50, 75])
    assert (both["copies"], both["one_pass"]) == pytest.approx((2, 50))
    median = figures("both", [3.0, 1.0, 2.0], size, copy_ms)
    assert (median["ms"], median["ms_all"]) == (2, [3, 1, 2])


def cells_with(ratios: list[dict[str, float]]) -> list[dict]:
    def entry(ratio):
        return {mode: {"ms": ratio, "ratio": ratio} for mode in ("forward", "both")}

    return [
        {"rows": 2, "classes": k, "dtype": "float32", "others_busy": None,
         "contestants": {name: entry(ratio) for name, ratio in cell.items()}}
        for k, cell in enumerate(ratios)
    ]  # fmt: skip


def test_the_summary_shows_losses_beside_wins():
    cells = cells_with(
        [{"xent": 1, BY_ROW: 0.5, "torch": 4}, {"xent": 1, BY_ROW: 1, "torch": 0.25}]
    )
    for cell in cells:
        cell["contestants"]["quack"] = {"failed": "as it is"}
    text = gpu_report.summary_text(cells)
    rows = {line.split(",")[0].strip(): line.split() for line in text.splitlines() if line}
    assert rows["quack"][2:] == ["-"] * 4
    assert rows["torch"][2:] == ["1.00", "1", "of", "2"] * 2
    assert rows[BY_ROW][2:] == ["0.71", "0", "of", "2"] * 2
    assert "at least as fast in 2 of 4 comparisons" in text
    assert text.count("slower:") == 2
    assert "slower: 2 x 1 float32, forward: torch 0.25x" in text


def test_steps_end_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_timing.time, "monotonic", lambda: now[0])
    budget = Budget(10.0)
    done = []
    for step in budget.within([4, 1, 2, 9, 1]):  # seconds
        now[0] += step
        done.append(step)
    assert (done, budget.left_out) == ([4, 1, 2], [9, 1])  # another 4 could end after 11


# ---- truth and errors ----------------------------------------------------------------------------


def exact_gradient(logits, target):
    z = logits.detach().double().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(z, target)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("part", [1, 40, 10**6])
def test_the_truth_comes_in_parts_of_rows(part, monkeypatch):
    monkeypatch.setattr(gpu_contestants, "ERROR_ELEMENTS", part)
    logits, target = gpu_contestants.make_inputs(Cell(17, 10, "bfloat16"), "cpu")
    found, (loss, gradient) = (
        gpu_contestants.truth_of(logits, target),
        exact_gradient(logits, target),
    )
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-14)
    assert found.rows[0] == 0
    assert found.rows[-1] == 16
    assert len(found.rows) == {1: 2, 40: 4, 10**6: 17}[part]
    torch.testing.assert_close(found.gradient, gradient[found.rows], rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_relative_and_in_units_of_the_last_place(dtype):
    logits, target = torch.randn(5, 8), torch.randint(8, (5,))
    loss, gradient = exact_gradient(logits, target)
    truth = gpu_contestants.truth_of(logits, target)
    off = gradient.to(dtype)
    off[2, 3] = torch.nextafter(off[2, 3], torch.tensor(9.0, dtype=dtype))
    off[4, 1] = off[4, 1] * 1.25  # a quarter: 32 to 64 units of bfloat16
    found = gpu_contestants.errors(loss * 1.01, off, truth)
    assert found["loss"] == pytest.approx(0.01)
    assert 0.24 < found["gradient_ulps"] * torch.finfo(dtype).eps < 0.51
    off[4, 1] = gradient[4, 1]
    assert 0.5 <= gpu_contestants.errors(loss, off, truth)["gradient_ulps"] <= 1.5


def overwriting(z, y):
    """Overwrite the logits with the gradient in the forward pass, as Liger does."""

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            loss, gradient = exact_gradient(z, y)
            z.detach().copy_(gradient)
            ctx.save_for_backward(z.detach())
            return loss.to(z.dtype)

        @staticmethod
        def backward(ctx, upstream):
            return ctx.saved_tensors[0] * upstream

    return Loss.apply(z)


def broken(z, y):
    raise RuntimeError("no such luck\nand more")


@pytest.fixture
def setting(monkeypatch):
    """Three contestants that need no interpreter; one overwrites its logits, another fails."""
    found = {
        "xent": Contestant(lambda engine: F.cross_entropy),
        "spoiler": Contestant(lambda engine: overwriting, overwrites=True),
        "broken": Contestant(lambda engine: broken),
    }
    monkeypatch.setattr(gpu_logits, "CONTESTANTS", found)
    return gpu_logits.Setting(Timer(), "auto", list(found), 3)


def test_a_contestant_that_overwrites_the_logits_spoils_nothing(setting):
    cell = gpu_logits.measure_cell(Cell(6, 9, "float32"), setting)
    spoiler = cell["contestants"]["spoiler"]
    assert len(spoiler["backward"]["ms_all"]) == 3
    assert spoiler["errors"]["gradient_ulps"] <= 0.5 + 1e-6  # compared with the original logits
    assert spoiler["errors"]["loss"] < 2**-24
    logits, target = torch.randn(6, 9), torch.randint(9, (6,))
    before = logits.clone()
    task = Task(overwriting, logits, target, overwrites=True)
    task.warm_up(SWEEPS)
    assert torch.equal(logits, before)


def test_a_failing_contestant_is_reported_and_the_others_go_on(setting):
    cell = gpu_logits.measure_cell(Cell(6, 9, "float32"), setting)
    assert cell["contestants"]["broken"] == {"failed": "RuntimeError: no such luck"}
    assert "broken failed: RuntimeError: no such luck" in gpu_report.cell_text(cell)
    assert "broken, float32" in gpu_report.summary_text([cell])


def test_a_launch_that_fails_is_reported(setting, monkeypatch):
    monkeypatch.setattr(gpu_logits, "GRAPHS", ("xent", "broken"))
    found = gpu_logits.measure_launches(Cell(6, 9, "float32"), setting)
    assert found["contestants"]["xent"]["both"]["called"] > 0
    text = gpu_report.launches_text(found)
    assert "broken, forward, failed: RuntimeError: no such luck" in text


class Taximeter(Timer):
    """A fake clock that counts a millisecond for every loss computed."""

    def __init__(self):
        self.losses = 0

    def loss(self, z, y, engine, times=1):
        self.losses += times
        return F.cross_entropy(z, y)

    def milliseconds(self, turn):
        turn.ready()
        before = self.losses
        turn.call()
        return float(self.losses - before)


def test_the_family_beside_cross_entropy(setting, monkeypatch):
    meter = Taximeter()
    losses = {
        "cross_entropy": partial(meter.loss, times=2),
        "slow": partial(meter.loss, times=5),
        "broken": lambda z, y, engine: broken(z, y),
    }
    monkeypatch.setattr(gpu_logits, "members", lambda *where: losses)
    found = gpu_logits.measure_family(Cell(6, 9, "float32"), setting._replace(timer=meter))
    assert found["failed"] == {"broken": "RuntimeError: no such luck"}
    assert found["ms"] == {"cross_entropy": 2, "slow": 5, "cross_entropy, z_loss=1e-4": 0}
    lines = [line.split() for line in gpu_report.family_text(found).splitlines()]
    assert ["cross_entropy", "2.00", "1.00"] in lines
    assert ["slow", "5.00", "2.50"] in lines
    assert ["broken", "failed:", "RuntimeError:", "no", "such", "luck"] in lines


# ---- timing --------------------------------------------------------------------------------------


def test_a_race_is_run_in_turns_after_one_round_to_warm_up(monkeypatch):
    order = []
    turns = {name: Turn(lambda: None, lambda name=name: order.append(name)) for name in "ab"}
    found = race(turns, Timer(), 3)
    assert order == list("ab" * 4)
    assert {len(times) for times in found.values()} == {3}
    monkeypatch.setattr(gpu_timing, "CELL_SECONDS", 0.0)
    assert len(race(turns, Timer(), 99)["a"]) == gpu_timing.MIN_ROUNDS


class Clockwork:
    """A fake of ``torch.cuda`` that records the calls of the timing; memory comes from a list."""

    def __init__(self, monkeypatch):
        self.diary, self.allocated, self.most = [], 100, 100
        monkeypatch.setattr(CudaTimer, "device", "cpu")
        monkeypatch.setattr(gpu_timing, "FLUSH_BYTES", 64)
        clockwork, names = self, cycle(("start", "end"))

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                self.name = next(names)

            def record(self):
                clockwork.diary.append(f"{self.name} recorded")

            def synchronize(self):
                clockwork.diary.append(f"{self.name} awaited")

            def elapsed_time(self, other):
                return 7.0 if (self.name, other.name) == ("start", "end") else math.nan

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.diary.append("all awaited"))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.most)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def reset(self):
        self.most = self.allocated

    def allocate(self, size):
        self.allocated += size
        self.most = max(self.most, self.allocated)

    def note(self, text):
        return lambda: self.diary.append(text)


def test_on_a_gpu_events_enclose_the_call_without_a_wait_inside(monkeypatch):
    clockwork = Clockwork(monkeypatch)
    timer = CudaTimer()
    monkeypatch.setattr(timer, "flush", clockwork.note("flush"))
    assert timer.milliseconds(Turn(clockwork.note("ready"), clockwork.note("call"))) == 7.0
    assert clockwork.diary == [
        "ready", "flush", "start recorded", "call", "end recorded", "end awaited"
    ]  # fmt: skip


def test_on_a_gpu_a_flush_writes_the_ballast_and_a_burst_waits_once(monkeypatch):
    clockwork = Clockwork(monkeypatch)
    timer = CudaTimer()
    timer.ballast.fill_(1)
    timer.flush()
    assert timer.ballast.nbytes == 64
    assert not timer.ballast.any()
    timer.burst(clockwork.note("call"))
    assert clockwork.diary == ["call", "all awaited", *["call"] * timer.calls, "all awaited"]


def test_on_a_gpu_the_peak_is_counted_from_when_all_is_ready(monkeypatch):
    clockwork = Clockwork(monkeypatch)

    def call():
        clockwork.allocate(50)
        clockwork.allocate(-50)

    assert CudaTimer().peak(Turn(lambda: clockwork.allocate(1000), call)) == 50


def test_on_a_gpu_a_graph_is_captured_after_warming_up_on_another_stream(monkeypatch):
    clockwork = Clockwork(monkeypatch)

    @contextmanager
    def within(thing):
        clockwork.diary.append(f"in {thing}")
        yield
        clockwork.diary.append(f"out of {thing}")

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def __str__(self):
            return self.name

        def wait_stream(self, other):
            clockwork.diary.append(f"{self} after {other}")

    class Graph:
        replay = "replay"

        def __str__(self):
            return "graph"

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", within)
    assert CudaTimer().captured(clockwork.note("call")) == "replay"
    assert clockwork.diary == [
        "side after main", "in side", *["call"] * gpu_timing.WARM_UP, "out of side",
        "main after side", "in graph", "call", "out of graph",
    ]  # fmt: skip


def test_on_a_gpu_the_header_names_card_driver_and_cuda(monkeypatch):
    Clockwork(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    answer = subprocess.CompletedProcess([], 0, stdout="580.10\n580.10\n")
    monkeypatch.setattr(gpu_timing.subprocess, "run", lambda *words, **options: answer)
    assert CudaTimer().describe() == "NVIDIA H200, driver 580.10, CUDA 13.0"

    def missing(*words, **options):
        raise FileNotFoundError

    monkeypatch.setattr(gpu_timing.subprocess, "run", missing)
    assert CudaTimer().describe() == "NVIDIA H200, driver unknown, CUDA 13.0"


def test_where_there_is_a_gpu_it_is_taken(monkeypatch):
    Clockwork(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = gpu_logits.parser().parse_args(["--contestants", "torch"])
    setting, absent = gpu_logits.setting_for(args)
    assert isinstance(setting.timer, CudaTimer)
    assert (setting.engine, setting.names, setting.rounds) == ("auto", ["xent", "torch"], 20)
    assert absent == {}
