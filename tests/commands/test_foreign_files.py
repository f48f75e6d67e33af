"""Foreign checkpoints and models: a bad file gives one line, runs no code, takes no memory."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from xent._files import checkpoint_bytes, fits, read_checkpoint
from xent.cli import main
from xent.commands.trainer import peak_memory

TEXT = "hello world, this is it.\n" * 500
SMALL = ["--steps", "3", "--dim", "8", "--batch", "2", "--length", "4", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "t.txt").write_text(TEXT)
    assert main(["train", str(folder / "t.txt"), "--out", str(folder / "run"), *SMALL]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def refused(file: Path) -> str:
    with pytest.raises(ValueError, match="is not a") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def peak() -> int:
    return (peak_memory() or 0) // 1024


# --- the file


def test_a_checkpoint_is_tensors_and_plain_types(tmp_path):
    state = {
        "a": torch.arange(6.0).view(2, 3), "b": torch.arange(3), "c": [1, 2.5, "x", None, True],
        "d": OrderedDict(e=torch.zeros(0), f=torch.tensor(3, dtype=torch.uint8)), "g": (1, 2),
        "h": torch.nn.Linear(2, 3).state_dict(), "big": 10**40, "text": "größe\n" * 1000,
    }  # fmt: skip
    file = tmp_path / "a.pt"
    file.write_bytes(checkpoint_bytes(state))
    again = read_checkpoint(file)
    assert torch.equal(again["a"], state["a"])
    assert torch.equal(again["h"]["weight"], state["h"]["weight"])
    assert {k: again[k] for k in "cg"} == {k: state[k] for k in "cg"}
    assert again["big"] == 10**40


def test_nothing_is_executed(tmp_path):
    mark = tmp_path / "executed"
    for content in ({"a": Call(os.mkdir, str(mark))}, [Call(os.mkdir, str(mark))]):
        torch.save(content, tmp_path / "a.pt")
        refused(tmp_path / "a.pt")
        (tmp_path / "b.pt").write_bytes(pickle.dumps(content))
        refused(tmp_path / "b.pt")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"a": Call(torch.FloatTensor, 10**9)},  # PyTorch allows this one
        {"a": Call(bytearray, 4 * 10**9)},
        {"a": torch.zeros(1).expand(10**9)},
        {f"{k}": torch.zeros(1000).expand(10, 1000) for k in range(500)},  # one memory, many times
    ],
    ids=["tensor", "bytearray", "expanded", "shared"],
)
def test_no_memory_that_a_file_asks_for(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    before = peak()
    refused(tmp_path / "a.pt")
    assert peak() - before < 200_000  # KiB


def test_what_is_compressed_is_refused(tmp_path):
    data = checkpoint_bytes({"a": torch.zeros(10**7)})
    with (
        zipfile.ZipFile(io.BytesIO(data)) as whole,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    assert (tmp_path / "a.pt").stat().st_size < 10**6
    refused(tmp_path / "a.pt")


def test_files_that_are_no_checkpoint(tmp_path):
    file = tmp_path / "a.pt"
    whole = checkpoint_bytes({"a": torch.zeros(100)})
    torch.save({"a": torch.zeros(3)}, old := io.BytesIO(), _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(other := io.BytesIO(), "w") as archive:
        archive.writestr("readme.txt", "a")
    contents = (b"", b"PK", whole[:-50], whole[:100], old.getvalue(), other.getvalue(), b"{}")
    for data in (*contents, checkpoint_bytes({1: torch.zeros(2)})[:-1], checkpoint_bytes([1])):  # pyright: ignore[reportArgumentType]
        file.write_bytes(data)
        refused(file)
    with pytest.raises(ValueError, match="is not a readable checkpoint: Is a directory"):
        read_checkpoint(tmp_path)


def test_forms():
    assert fits({"a": 1, "b": [1.0]}, {"a": int, "b": [float]})
    assert not fits({"a": 1}, {"a": int, "b": [float]})
    assert not fits({"a": True}, {"a": int})
    assert not fits([1], {"a": int})
    assert not fits({"a": 1}, [int])
    assert not fits([1, "x"], [int])
    assert fits(torch.zeros(2), torch.ones(2))
    assert not fits(torch.zeros(2), torch.ones(3))
    assert not fits(torch.zeros(2), torch.ones(2).double())
    assert not fits(None, torch.ones(2))


# --- the commands


def changed(state: dict, path: str, value: object) -> dict:
    """Return a copy of a state with one part replaced, or removed if the new part is ...."""
    key, _, rest = path.partition("/")
    copy = dict(state)
    if rest:
        copy[key] = changed(state[key], rest, value)
    elif value is ...:
        del copy[key]
    else:
        copy[key] = value
    return copy


CHANGES = [
    ("settings", ...), ("settings", [1]), ("settings/dim", "8"), ("settings/dim", 10**15),
    ("settings/dim", 10**9), ("settings/dim", -1), ("settings/head", "x"), ("settings/new", 1),
    ("vocabulary", 3), ("vocabulary", ["a"]), ("vocabulary", [1, 2]), ("text", 1), ("paths", "x"),
    ("model", {}), ("model/embedding.weight", torch.zeros(2, 2)), ("model/bias", None),
    ("model/embedding.weight", torch.zeros(1).double()),
]  # fmt: skip


@pytest.mark.parametrize("command", ["eval", "train"])
@pytest.mark.parametrize(("path", "value"), CHANGES)
def test_commands_refuse_odd_checkpoints_in_one_line(
    command, path, value, trained, tmp_path, capsys
):
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    torch.save(changed(state, path, value), tmp_path / "checkpoint.pt")
    before = peak()
    words = ["eval", str(tmp_path)] if command == "eval" else ["train", "--resume", "--out"]
    assert main([*words, *([str(tmp_path)] if command == "train" else []), "--quiet"]) == 2
    assert peak() - before < 200_000
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "is not a checkpoint of xent train" in err


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimizer", {}), ("optimizer/state", {}), ("random", ...), ("random", torch.zeros(3)),
        ("memory", torch.zeros(2)), ("history/loss", ["a"]), ("times", {}), ("results", {"a": 1}),
        ("optimizer/state", {k: {"step": 1} for k in range(9)}), ("memory", ...),
        ("model/bias", torch.zeros(3)),
    ],
)  # fmt: skip
def test_only_a_complete_state_resumes(path, value, trained, tmp_path, capsys):
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    state = changed(changed(state, "settings/steps", 6), path, value)
    if path != "results":
        state["results"] = {}
    torch.save(state, tmp_path / "checkpoint.pt")
    code = main(["train", "--resume", "--out", str(tmp_path), "--quiet"])
    err = capsys.readouterr().err
    if (path, value) == ("optimizer/state", {}):  # as before the first step
        assert code == 0
    else:
        assert code == 2
        assert err.count("\n") == 1


def test_a_model_of_json_takes_no_memory_that_it_asks_for(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("pyarrow")
    table = tmp_path / "t.csv"
    table.write_text("x,y\n" + "".join(f"{k % 7},{'uv'[k % 2]}\n" for k in range(80)))
    assert main(["fit", str(table), "--out", str(tmp_path), "--quiet"]) == 0
    saved = json.loads((tmp_path / "model.json").read_text())
    file = tmp_path / "odd.json"
    before = peak()
    for path, value in [
        ("classes/dtype", f"<U{10**8}"), ("classes/dtype", 3), ("classes/values", "ab"),
        ("features", 10**12), ("features", 1e400), ("coef", 3), ("coef", [[[1.0]]]),
        ("coef", [["1"]]), ("history", 5), ("about", 3), ("about/columns", "12A"),
        ("about/columns", []), ("about/columns", {"x": 3}), ("about/target", ...),
        ("parameters", 3), ("parameters/C", "x"), ("parameters/solver", "x"),
        ("parameters/loss", {"name": "os.system", "options": {}}), ("parameters/evil", 1),
        ("classes", 3), ("class", ["x"]), ("format", ...), ("intercept", None),
        ("parameters/loss", {"name": "focal_loss", "options": 3}), ("feature_names", 3),
    ]:  # fmt: skip
        file.write_text(json.dumps(changed(saved, path, value)))
        capsys.readouterr()
        words = ["fit", str(table), "--model", str(file), "--out", str(tmp_path / "p"), "--quiet"]
        code = main(words)
        err = capsys.readouterr().err
        if path == "classes/dtype" and value != 3:  # the length of the words is not checked
            assert code == 0
        else:
            assert code == 2, (path, value)
            assert err.count("\n") == 1
            assert "--model" in err
    assert peak() - before < 200_000
    for data in (b"", b"[1]", b"\xff\xfe", b"[" * 10**5, b"9" * 10**5, b"{}", b"\x00"):
        file.write_bytes(data)
        assert main(["fit", str(table), "--model", str(file), "--quiet"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
