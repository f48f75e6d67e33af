"""`xent train`: the text, the training, what happens when it is stopped, and what it refuses."""

import copy
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from xent.cli import main
from xent.commands import run_folder, session, trainer
from xent.commands.console import UserError, progress_bar
from xent.commands.model import HEADS, LanguageModel, make_lanes
from xent.commands.ranks import Ranks, Split, joined
from xent.commands.report import report
from xent.commands.text import END, TOKEN, UNKNOWN, read_corpus
from xent.commands.train import check_shares
from xent.commands.trainer import DEFAULT_MINUTES, Settings

SMALL = ["--dim", "8", "--batch", "4", "--length", "8", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return thirty files of made-up sentences, each with a few words of its own."""
    path = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    words = ["the", "a", "cat", "dog", "house", "tree", "sees", "likes", "and", "or", "not"]
    for i in range(30):
        lines = (" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(40))
        own = f"{chr(97 + i % 10)}{chr(97 + i // 10)}only écrit\n"
        (path / f"{i}.txt").write_text("".join(lines) + own, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(*paths: object, seed: int = 0, vocab: int = 1000):
    return read_corpus([str(p) for p in paths], seed, vocab, partial(progress_bar, True))


def train(folder: Path, out: Path, *options: str) -> dict:
    """Train to the end; return the record."""
    assert main(["train", str(folder), "--out", str(out), *SMALL, *options]) == 0
    return json.loads((out / "record.json").read_text())


# --- the text


@pytest.mark.parametrize(
    "text",
    [
        "", "a b", " \n \n  ",  # nothing, the simplest, white space alone
        "  x = 1.5e-3  # été\n\n\tif (a):\r\n",  # code
        "²½ _a__b1 \u2003 \x0c ##!? 日本語 12ab",  # letters and digits beyond a-z and 0-9
        "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x40000)))),
    ],
)  # fmt: skip
def test_tokens_joined_are_the_text(text):
    assert "".join(TOKEN.findall(text)) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("我的猫,cat 12。", ["我", "的", "猫", ",", "cat", " 12", "。"]),
        ("これはネコ", list("これはネコ")),
        ("แมว ก็", ["แ", "ม", "ว", " ", "ก", "็"]),
        ("\u1781\u17d2\u1798\u17c2\u179a", list("\u1781\u17d2\u1798\u17c2\u179a")),
        ("고양이 a", ["고양이", " a"]),  # Korean and Hindi have spaces
        ("кот\u0301 हिन्दी", ["кот", "\u0301", " ह", "ि", "न", "्", "द", "ी"]),
    ],
)
def test_scripts_without_spaces_come_apart_by_characters(text, tokens):
    assert TOKEN.findall(text) == tokens


@pytest.mark.parametrize(
    ("first", "count"), [(0x4E00, 800), (0x3041, 80), (0x0E01, 46), (0x1780, 50), (0x1000, 50)],
    ids=["Chinese", "Japanese", "Thai", "Khmer", "Burmese"],
)  # fmt: skip
def test_text_without_spaces_is_learnt(first, count, tmp_path, capsys):
    """Nearly no token is unknown, and a code of this text is shorter than its bytes."""
    draw = random.Random(0)
    letters = [chr(first + k) for k in range(count)]
    weights = [1 / (k + 1) for k in range(count)]
    lines = ("".join(draw.choices(letters, weights, k=draw.randint(8, 25))) for _ in range(900))
    (tmp_path / "t.txt").write_text("。\n".join(lines), encoding="utf-8")
    command = [
        "train",
        str(tmp_path / "t.txt"),
        "--out",
        str(tmp_path),
        *SMALL[:-1],
        "--steps",
        "5",
    ]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    found, record = json.loads(out), json.loads((tmp_path / "record.json").read_text())
    assert record["text"]["classes"] > count / 2
    assert found["unknown_share"] < 0.02
    assert found["bits_per_byte"] < 4
    assert "scripts that have no spaces between words" in err


def test_text_of_which_much_is_unknown_says_so(tmp_path, capsys):
    draw = random.Random(0)
    lines = ("".join(draw.choices("ACGT", k=40)) for _ in range(900))
    (tmp_path / "t.txt").write_text("\n".join(lines))
    train(tmp_path / "t.txt", tmp_path, "--steps", "2")
    assert "of the validation tokens are unknown" in capsys.readouterr().err


def test_the_standard_library_is_covered_by_tokens():
    text = Path(json.__file__).read_text(encoding="utf-8")
    assert "".join(TOKEN.findall(text)) == text


def test_every_byte_and_file_is_counted_once(folder):
    corpus = read(folder)
    sizes = {len(p.read_bytes()) for p in folder.iterdir()}
    assert corpus.files == 30
    ends = torch.cat([corpus.train, corpus.valid]) == END
    assert int(ends.sum()) == 30
    # Validation is whole files: its bytes are those of the files that it took.
    assert int(corpus.valid[-1]) == END
    assert (
        min(sizes)
        <= int(corpus.valid_bytes.sum())
        <= 0.06 * sum(len(p.read_bytes()) for p in folder.iterdir())
    )


def test_classes_are_the_tokens_seen_twice(folder):
    corpus = read(folder)
    assert corpus.vocabulary[:2] == ["<unk>", "<end>"]
    assert " cat" in corpus.vocabulary
    assert not any(token.endswith("only") for token in corpus.vocabulary)
    assert int(corpus.counts.sum()) == len(corpus.train)
    assert int(corpus.counts[UNKNOWN]) == int((corpus.train == UNKNOWN).sum()) > 0
    assert corpus.counts[2:].min() >= 2


def test_vocabulary_keeps_the_most_frequent(folder):
    corpus, all_of_it = read(folder, vocab=5), read(folder)
    assert corpus.vocabulary == all_of_it.vocabulary[:5]


def test_the_split_depends_on_content_and_seed_only(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / f"x{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "copy.txt").write_bytes((folder / "3.txt").read_bytes())
    one, same, other = read(folder), read(tmp_path), read(folder, seed=1)
    assert one.fingerprint == same.fingerprint == other.fingerprint
    assert torch.equal(one.train, same.train)
    assert torch.equal(one.valid, same.valid)
    assert not torch.equal(one.valid, other.valid)


def test_of_few_files_the_ends_are_for_validation(folder):
    corpus = read(folder / "0.txt", folder / "1.txt")
    assert 0.04 < len(corpus.valid) / (len(corpus.valid) + len(corpus.train)) < 0.06


def test_folders_are_searched_and_what_is_not_text_is_left_out(tmp_path, capsys, folder):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("words and words and words\n" * 20)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "b.txt").write_text("no")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    corpus = read(tmp_path)
    assert corpus.files == 1
    assert {path.name for path in corpus.skipped} == {"nul.txt", "latin.txt"}


# --- the training


def test_lanes_are_stretches_of_the_text():
    lanes = make_lanes(torch.arange(11), 3)
    assert lanes.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it")
def test_the_peak_of_memory_is_that_of_the_process_itself():
    """Not that of the process that started it, which Linux hands on in ``ru_maxrss``."""
    here = Path(trainer.__file__).parents[2]
    child = (
        "import resource, sys; from xent.commands.trainer import peak_memory; "
        "print(peak_memory(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    parent = (
        "import subprocess, sys; held = bytearray(b'x') * 2**30; "
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True)"
        ".stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(here)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own, inherited = map(int, done.stdout.split())
    assert own < 2**30 <= inherited


def test_an_untrained_model_knows_the_frequencies():
    counts = torch.tensor([1, 5, 94])
    model = LanguageModel(counts, dim=4)
    torch.nn.init.zeros_(model.projection.weight)
    torch.nn.init.zeros_(model.projection.bias)
    features, _ = model(torch.zeros(1, 1, dtype=torch.int32), model.blank(1))
    logits = model.logits(features).materialize()
    torch.testing.assert_close(logits[0, 0].softmax(-1), (counts + 1) / (counts + 1).sum())


@pytest.mark.parametrize("head", HEADS)
def test_a_step_moves_as_autograd_in_float64_says(head, folder):
    """The gradient in two parts equals the whole one, with both uses of the embedding."""
    settings = trainer.Settings(head=head, steps=1, dim=8, batch=2, length=8)
    run = trainer.Trainer(settings, read(folder))
    whole = copy.deepcopy(run.model).double()
    input, target = run._next_batch()
    states, _ = whole.gru(whole.embedding(input), whole.blank(2).double())
    features = whole.projection(states).flatten(0, 1)
    logits = features @ whole.embedding.weight.T + whole.bias
    loss = torch.nn.functional.cross_entropy(logits, target)
    loss.backward()
    found = {}
    run.optimizer.register_step_pre_hook(
        lambda *_: found.update((n, p.grad.clone()) for n, p in run.model.named_parameters())
    )
    assert run.advance() == pytest.approx(loss.item(), rel=1e-6)
    true = {name: p.grad for name, p in whole.named_parameters()}
    norm = torch.stack([g.norm() for g in true.values()]).norm()
    for name, grad in true.items():
        clipped = grad / max(1.0, norm.item() / trainer.CLIP)
        torch.testing.assert_close(found[name].double(), clipped, rtol=1e-5, atol=1e-6)


def test_it_learns_and_accounts_for_it(folder, tmp_path, capsys):
    record = train(folder, tmp_path, "--steps", "60")
    losses, results = record["history"]["loss"], record["results"]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert results["steps"] == len(losses) == 60
    assert results["training_tokens"] == 60 * 4 * 8
    assert results["bits_per_token"] == pytest.approx(results["nats_per_token"] / math.log(2))
    assert results["perplexity"] == pytest.approx(math.exp(results["nats_per_token"]))
    assert 0 < results["head_share_of_time"] < 1
    assert [p["step"] for p in record["history"]["validation"]] == list(range(6, 61, 6))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "record.json", "curves.png"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out.splitlines()
    assert f"record: {tmp_path / 'record.json'}" in told
    assert told[-1] == f"picture: {tmp_path / 'curves.png'}"


def test_bits_per_byte_is_the_length_of_a_code(folder):
    settings = trainer.Settings(steps=1, dim=8, batch=1, length=8)
    corpus = read(folder)
    run = trainer.Trainer(settings, corpus)
    nats, bits_per_byte, unknown = run.evaluate(8)
    target, sizes = corpus.valid[1:65], corpus.valid_bytes[1:65]
    spelled = sum(8 * (int(n) + 1) for t, n in zip(target, sizes, strict=True) if t == UNKNOWN)
    assert unknown == (target == UNKNOWN).double().mean()
    assert bits_per_byte * int(sizes.sum()) == pytest.approx(64 * nats / math.log(2) + spelled)


def test_past_the_end_of_the_text_it_starts_again(folder):
    corpus = read(folder / "0.txt")
    settings = trainer.Settings(steps=40, dim=8, batch=4, length=16)
    run = trainer.Trainer(settings, corpus)
    for _ in range(40):
        assert math.isfinite(run.advance())


@pytest.mark.slow
def test_all_heads_train_the_same(folder, tmp_path):
    options = ["--steps", "20", "--out", str(tmp_path), *SMALL, "--json"]
    assert main(["train", str(folder), "--compare", *options]) == 0
    records = [json.loads((tmp_path / head / "record.json").read_text()) for head in HEADS]
    lean, *others = (r["history"]["loss"] for r in records)
    assert [other == pytest.approx(lean, rel=1e-4) for other in others] == [True, True]
    nats = [r["results"]["nats_per_token"] for r in records]
    assert nats == pytest.approx([nats[0]] * 3, rel=1e-4)
    assert list(json.loads((tmp_path / "record.json").read_text())) == list(HEADS)
    assert (tmp_path / "curves.png").exists()


def test_a_run_follows_the_schedule_of_another(folder, tmp_path):
    first = train(folder, tmp_path / "a", "--minutes", "0.01")
    second = train(folder, tmp_path / "b", "--like", str(tmp_path / "a"))
    assert first["history"]["loss"] == second["history"]["loss"]
    steps = [[p["step"] for p in r["history"]["validation"]] for r in (first, second)]
    assert steps[0] == steps[1]


def test_minutes_are_the_default_budget_and_are_kept(folder, tmp_path):
    started = time.monotonic()
    record = train(folder, tmp_path, "--minutes", "0.02")
    assert record["results"]["seconds"] >= 1.2
    assert time.monotonic() - started < 20
    assert DEFAULT_MINUTES == 2


# --- stopped and continued


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT) -> None:
    """Send a signal to this process during a step."""
    advance = trainer.Trainer.advance

    def stopping(self: trainer.Trainer) -> float:
        if self.step == steps - 1:
            os.kill(os.getpid(), number)
        return advance(self)

    monkeypatch.setattr(trainer.Trainer, "advance", stopping)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_is_as_never_stopped(folder, tmp_path, monkeypatch, capsys, number):
    whole = train(folder, tmp_path / "whole", "--steps", "23")
    with monkeypatch.context() as patch:
        stop_after(patch, 9, number)
        command = ["train", str(folder), "--out", str(tmp_path / "parts"), *SMALL, "--steps", "23"]
        assert main(command) == 130
    assert "continue: xent train --resume --out" in capsys.readouterr().err
    partial_record = json.loads((tmp_path / "parts" / "record.json").read_text())
    assert len(partial_record["history"]["loss"]) == 9
    assert partial_record["results"] == {}
    resume = ["train", "--resume", "--out", str(tmp_path / "parts"), "--quiet", "--threads", "1"]
    assert main(resume) == 0
    parts = json.loads((tmp_path / "parts" / "record.json").read_text())
    assert parts["history"]["loss"] == whole["history"]["loss"]
    assert parts["results"]["nats_per_token"] == whole["results"]["nats_per_token"]
    assert parts["settings"] == whole["settings"]


def test_a_second_ctrl_c_stops_at_once():
    with session.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_resuming_a_finished_run_shows_its_results(folder, tmp_path, capsys):
    train(folder, tmp_path, "--steps", "5")
    before = capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().out == before


def test_a_run_of_an_earlier_version_goes_on(folder, tmp_path):
    """That version had two heads, xent the first of them, and timed the loss alone."""
    run = trainer.Trainer(Settings(head="xent", steps=4, dim=8, batch=4, length=8), read(folder))
    run.advance()
    state = run.state()
    state["times"]["loss"] = state["times"].pop("head")
    state["paths"] = [str(folder)]
    run_folder.RunFolder(tmp_path).save_checkpoint(state)
    assert main(["train", "--resume", "--out", str(tmp_path), "--quiet", "--threads", "1"]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["head"] == "xent"
    assert record["results"]["steps"] == 4
    assert record["results"]["head_share_of_time"] is None
    assert "not known" in report([record])
    del record["results"]["head_share_of_time"]  # and a run that was complete in that version
    assert "not known" in report([record])


@pytest.mark.slow
def test_ctrl_c_from_outside(folder, tmp_path):
    command = [sys.executable, "-m", "xent", "train", str(folder), "--out", str(tmp_path)]
    child = subprocess.Popen(
        [*command, *SMALL, "--minutes", "0.1"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err.startswith("stopped after step ")
    assert err.count("\n") == 1


# --- what it refuses


def refusal(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Run a command that must fail with exit code 2 and one line; return the line."""
    capsys.readouterr()
    assert main(["train", *map(str, words), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("xent train: ")
    assert err.count("\n") == 1
    return err


def test_text_that_cannot_be_used(tmp_path, capsys, folder):
    out = ["--out", tmp_path / "out", "--steps", "1"]
    empty, nul, short = tmp_path / "empty.txt", tmp_path / "nul.txt", tmp_path / "short.txt"
    latin, nothing = tmp_path / "latin.txt", tmp_path / "nothing"
    empty.touch()
    nothing.mkdir()
    nul.write_bytes(b"a\0b")
    latin.write_bytes("é".encode("latin-1"))
    short.write_text("too little")
    assert "no such file or folder" in refusal(capsys, tmp_path / "missing", *out)
    assert "no text in" in refusal(capsys, empty, *out)
    assert "no text files" in refusal(capsys, nothing, *out)
    assert "binary file" in refusal(capsys, nul, *out)
    assert "not UTF-8 text" in refusal(capsys, latin, *out)
    assert "too little text" in refusal(capsys, short, *out)


def test_a_folder_that_cannot_be_written(tmp_path, capsys, folder):
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, folder, "--out", tmp_path / "file")
    assert "cannot be written" in refusal(capsys, folder, "--out", tmp_path / "file" / "below")


def test_what_cannot_be_resumed(tmp_path, capsys, folder):
    resume = ["--resume", "--out", tmp_path]
    assert "there is no" in refusal(capsys, *resume)
    (tmp_path / "checkpoint.pt").write_bytes(b"junk")
    assert "not a readable checkpoint" in refusal(capsys, *resume)
    train(folder, tmp_path, "--steps", "2")
    message = refusal(capsys, *resume, "--dim", "16", "--lr", str(Settings().lr), "--steps", "3")
    assert "--dim 16 (was 8)" in message
    assert "--steps 3 (was 2)" in message
    assert "--lr" not in message
    assert "the text is not the one" in refusal(capsys, folder / "0.txt", *resume)


def test_ranks_that_nobody_started(capsys, monkeypatch):
    """Processes and the option belong together, and one of the processes says so."""
    message = refusal(capsys, "--parallel", "classes", "--steps", "2")
    assert "torchrun --nproc-per-node 2 -m xent train --parallel classes" in message
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert "torchrun started 4 processes; say what they share" in refusal(capsys, "--steps", "2")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--steps", "2"])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "kind"), [("0", KeyboardInterrupt), ("1", SystemExit)])
def test_one_rank_tells_of_an_interruption(rank, kind, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(kind), joined(None):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "head", "message"),
    [
        ("lanes", "torch", "4 ranks cannot share 3 lanes of text; take a larger --batch"),
        ("classes", "lean", "4 ranks cannot share 2 classes"),
        ("classes", "torch", "--head torch goes with --parallel data"),
        ("classes", "xent", "--head xent goes with --parallel data"),
    ],
)
def test_ranks_without_a_share(what, head, message):
    split = Split()
    split.parts = 4
    with pytest.raises(UserError, match=message):
        check_shares(Settings(head=head, batch=3), 2, Ranks(**{what: split}))


def test_compare_runs_every_head(tmp_path, capsys, folder):
    command = [folder, "--compare", "--head", "torch", "--out", tmp_path]
    assert "leave --head out" in refusal(capsys, *command)
    with pytest.raises(SystemExit):
        main(["train", "--compare", "--parallel", "data"])
    assert "--parallel: not allowed with argument --compare" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--steps=0", "--steps=x", "--lr=-1", "--lr=nan", "--vocab=2"])
def test_numbers_out_of_range(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", word])
    assert stopped.value.code == 2
    assert f"{word.partition('=')[0]}: expected a" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, capsys, folder):
    assert "smaller --lr" in refusal(
        capsys, folder, "--out", tmp_path, *SMALL, "--lr", "1e30", "--steps", "40"
    )


def test_a_full_disk_loses_no_results(tmp_path, capsys, folder, monkeypatch):
    """A file that could not be saved sets the exit code; files saved before are kept."""
    write_whole, saved = run_folder.write_whole, tmp_path / "checkpoint.pt"

    def full(path: Path, data: bytes) -> None:
        if data and saved.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, data)

    monkeypatch.setattr(run_folder, "write_whole", full)
    command = ["train", str(folder), "--out", str(tmp_path), *SMALL, "--steps", "20"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "perplexity" in out
    assert "record:" not in out
    assert f"cannot save {saved}: No space left on device; the one before is kept; the tr" in err
    assert "xent train: cannot save" in err.splitlines()[-1]
    assert err.count("the training goes on") == 1
    state = torch.load(saved, weights_only=True)
    assert 0 < len(state["history"]["loss"]) < 20


def test_a_run_that_is_killed_is_not_taken_for_the_one_before(tmp_path, capsys, folder):
    """The files of the old run are removed as soon as the new run has its text."""
    train(folder, tmp_path, "--steps", "3")
    assert main(["train", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert {"checkpoint.pt", "record.json"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.MonkeyPatch.context() as patch:

        def killed(self: trainer.Trainer) -> float:
            raise SystemExit(137)

        patch.setattr(trainer.Trainer, "advance", killed)
        with pytest.raises(SystemExit):
            train(folder, tmp_path, "--steps", "5")
    assert list(tmp_path.iterdir()) == []
    assert "there is no" in refusal(capsys, "--resume", "--out", tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x"
    run_folder.write_whole(path, b"first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            run_folder.write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_records_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        run_folder.load_record(tmp_path)
