"""`xent.evaluate` and `xent eval`: against float64 by hand, window by window."""

import dataclasses
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import xent
from xent.cli import main
from xent.commands.model import LanguageModel
from xent.commands.run_folder import load_checkpoint
from xent.commands.text import END, TOKEN, UNKNOWN
from xent.information import bin_confidences

CLASSES, WIDTH = 13, 6


class Averaging(nn.Module):
    """A causal model: its features are the mean of the embeddings so far."""

    def __init__(self, dtype=torch.float32, kind="tensor"):
        super().__init__()
        random_ = torch.Generator().manual_seed(3)
        draw = torch.randn(2, CLASSES, WIDTH, generator=random_)
        self.embedding = nn.Parameter(2 * draw[0].to(dtype))
        self.head = nn.Parameter(2 * draw[1].to(dtype))
        self.kind, self.seen = kind, []

    def forward(self, ids):
        self.seen.append((ids, self.training, torch.is_grad_enabled()))
        counts = torch.arange(1, ids.shape[1] + 1).to(self.embedding.dtype)
        hidden = self.embedding[ids].cumsum(1) / counts[:, None]
        if self.kind == "lean":
            return xent.LinearLogits(hidden, self.head)
        logits = hidden @ self.head.T
        return SimpleNamespace(logits=logits) if self.kind == "output" else logits


def text_of(size, seed=0):
    return torch.randint(CLASSES, (size,), generator=torch.Generator().manual_seed(seed))


def by_hand(text, length, stride):
    """Log-probabilities of all tokens but the first, each from the first window that holds it.

    In float64, ``(T - 1, V)``.
    """
    model, last = Averaging(torch.float64), len(text) - 1
    width = min(length, last)
    rows = []
    for t in range(1, len(text)):
        start = 0
        while start + width < t:
            start = min(start + stride, last - width)
        with torch.no_grad():
            rows.append(model(text[None, start:t])[0, -1].log_softmax(0))
    return torch.stack(rows)


def ece_by_hand(log_probs, target, bins):
    p, right = log_probs.exp().max(1).values.tolist(), (log_probs.argmax(1) == target).tolist()
    total = 0.0
    for k in range(bins):
        inside = [i for i, x in enumerate(p) if math.ceil(x * bins) - 1 == k]
        if inside:
            total += abs(math.fsum(p[i] for i in inside) - sum(right[i] for i in inside))
    return total / len(p)


@pytest.mark.parametrize(
    ("size", "length", "stride", "batch"),
    [
        (60, 100, None, 8),
        (60, 7, 3, 4),
        (61, 7, 7, 3),
        (2, 5, 1, 1),
        (30, 2, 1, 100),
        (38, 8, 5, 2),
    ],
)
@pytest.mark.parametrize("kind", ["tensor", "lean", "output"])
def test_it_is_what_float64_finds_by_hand(kind, size, length, stride, batch):
    text = text_of(size)
    log_probs = by_hand(text, length, stride or length // 2)
    target = text[1:]
    own = log_probs.gather(1, target[:, None])
    found = xent.evaluate(
        Averaging(kind=kind), text, length=length, stride=stride, batch=batch, total_bytes=3 * size
    )
    assert found.tokens == size - 1
    # Float32 logits are about 10. Each is a sum of six products, with one or two roundings each.
    close = {"rel": 1e-6, "abs": 1e-6}
    assert found.nats == pytest.approx(-own.sum().item(), **close)
    assert found.nats_per_token == pytest.approx(-own.mean().item(), **close)
    assert found.perplexity == pytest.approx(own.mean().neg().exp().item(), rel=1e-5)
    assert found.bits_per_token == pytest.approx(-own.mean().item() / math.log(2), **close)
    assert found.bits_per_byte == pytest.approx(-own.sum().item() / math.log(2) / 3 / size, **close)
    assert found.accuracy == (log_probs.argmax(1) == target).double().mean().item()
    confidence = log_probs.exp().max(1).values.mean().item()
    assert found.confidence == pytest.approx(confidence, **close)
    assert found.calibration_error == pytest.approx(ece_by_hand(log_probs, target, 15), **close)


@pytest.mark.parametrize("length", [2, 3, 4, 7, 16])
def test_every_token_is_scored_once(length):
    """A model without context gives each token another number; only then the sum is right."""
    table = torch.randn(CLASSES, CLASSES, dtype=torch.float64)
    for size in (2, 3, length, length + 1, length + 2, 41):
        text = text_of(size)
        rows = table[text[:-1]].log_softmax(1).gather(1, text[1:, None])
        for stride in range(1, length + 1):
            found = xent.evaluate(table.__getitem__, text, length=length, stride=stride, batch=3)
            assert found.tokens == size - 1
            assert found.nats == pytest.approx(-rows.sum().item(), rel=1e-12)
            assert int(found.reliability.count.sum()) == size - 1


def test_labels_left_out_are_context_only():
    text = text_of(50)
    labels = torch.where(torch.arange(50) % 3 == 0, -1, text)
    log_probs = by_hand(text, 50, 25)
    kept = labels[1:] != -1
    own = log_probs.gather(1, text[1:, None])[kept]
    found = xent.evaluate(Averaging(), text, labels=labels, ignore_index=-1)
    assert found.tokens == int(kept.sum())
    assert found.nats == pytest.approx(-own.sum().item(), rel=1e-6)
    nothing = torch.full_like(text, -1)
    with pytest.raises(ValueError, match="no token to score"):
        xent.evaluate(Averaging(), text, labels=nothing, ignore_index=-1)


def test_a_stretch_that_is_left_out_is_not_run():
    text = text_of(80)
    labels = torch.where(torch.arange(80) < 40, -100, text)
    model = Averaging()
    xent.evaluate(model, text, labels=labels, length=10, stride=10, batch=1)
    assert len(model.seen) == 5  # of eight windows, as the fourth ends with the 40th token


def test_several_texts_are_each_for_itself():
    texts = torch.stack([text_of(40, seed) for seed in range(3)])
    one_by_one = [xent.evaluate(Averaging(), text, length=9, stride=4) for text in texts]
    found = xent.evaluate(Averaging(), texts, length=9, stride=4, batch=7)
    assert found.tokens == 3 * 39
    assert found.nats == pytest.approx(sum(one.nats for one in one_by_one), rel=1e-7)
    assert found.correct == sum(one.correct for one in one_by_one)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_texts_of_different_lengths(batch, as_list):
    sizes = [31, 5, 1, 17, 5, 0, 2, 9]
    texts = [text_of(size, seed) for seed, size in enumerate(sizes)]
    nats, right = 0.0, 0
    for text in texts:
        if len(text) > 1:
            log_probs = by_hand(text, 9, 4)
            nats -= log_probs.gather(1, text[1:, None]).sum().item()
            right += int((log_probs.argmax(1) == text[1:]).sum())
    given = [text.tolist() for text in texts] if as_list else texts
    found = xent.evaluate(Averaging(), given, length=9, stride=4, batch=batch)
    assert (found.tokens, found.correct) == (30 + 4 + 16 + 4 + 1 + 8, right)
    assert found.nats == pytest.approx(nats, rel=1e-6)  # of logits in float32
    assert xent.evaluate(Averaging(), given[0]).tokens == 30  # a list of tokens is a text


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_padding_is_neither_shown_nor_scored(dtype):
    texts = [text_of(size, size) for size in (12, 7, 3)]
    ids, mask = torch.full((3, 12), 5), torch.zeros(3, 12, dtype=dtype)
    labels = [torch.where(text == 3, -100, text) for text in texts]
    for row, (text, start) in enumerate(zip(texts, (0, 5, 2), strict=True)):
        ids[row, start : start + len(text)], mask[row, start : start + len(text)] = text, 1
    goals = ids.masked_fill(ids == 3, -100)
    options = {"length": 6, "prefix": 1}
    for one, other in ((None, None), (goals, labels)):
        found = xent.evaluate(Averaging(), ids, labels=one, attention_mask=mask, **options)
        alone = xent.evaluate(Averaging(), texts, labels=other, **options)
        assert (found.tokens, found.nats) == (alone.tokens, alone.nats)


def by_hand_after(prefix, text, length, stride):
    """Log-probabilities of all tokens, each from the first window that holds it.

    A window starts with the prefix, and has room for ``length - 1`` tokens of the text.
    """
    model, room = Averaging(torch.float64), length - 1
    rows = []
    for t in range(len(text)):
        end = length - 1  # of the first window, whose last token predicts the one there
        while end < t:
            end = min(end + stride, len(text) - 1)
        context = [prefix, *text[max(end - room, 0) : t].tolist()]
        with torch.no_grad():
            rows.append(model(torch.tensor([context]))[0, -1].log_softmax(0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("size", "length", "stride"), [(40, 9, 4), (40, 9, 8), (3, 9, 1), (1, 2, 1)]
)
def test_a_prefix_starts_every_window(size, length, stride):
    text, model = text_of(size), Averaging()
    found = xent.evaluate(model, text, prefix=7, length=length, stride=stride, batch=1)
    own = by_hand_after(7, text, length, stride).gather(1, text[:, None])
    assert found.tokens == size
    assert found.nats == pytest.approx(-own.sum().item(), rel=1e-6)
    for ids, *_ in model.seen:
        assert ids[0, 0] == 7
        assert ids.shape[1] <= length


@pytest.mark.parametrize("length", [2, 3, 7, 16])
def test_every_token_is_scored_once_after_a_prefix(length):
    table = torch.randn(CLASSES, CLASSES, dtype=torch.float64)
    texts = [text_of(size) for size in (1, 2, length - 1, length, length + 1, 41)]
    before = torch.cat([torch.cat([torch.tensor([7]), text[:-1]]) for text in texts])
    rows = table[before].log_softmax(1).gather(1, torch.cat(texts)[:, None])
    for stride in range(1, length + 1):
        found = xent.evaluate(
            table.__getitem__, texts, prefix=7, length=length, stride=stride, batch=3
        )
        assert found.tokens == len(before)
        assert found.nats == pytest.approx(-rows.sum().item(), rel=1e-12)


def test_the_time_per_token():
    found = xent.evaluate(Averaging(), text_of(60))
    assert found.seconds_per_token == found.to_dict()["seconds_per_token"] == found.seconds / 59
    assert f"{1e3 * found.seconds / 59:.4g} ms" in str(found)
    without = dataclasses.replace(found, seconds=None)
    assert without.seconds_per_token is None
    assert " ms" not in str(without)


def test_the_logits_are_never_there_as_a_whole(monkeypatch):
    monkeypatch.setattr(xent.LinearLogits, "materialize", None)
    found = xent.evaluate(Averaging(kind="lean"), text_of(60).int(), length=8)
    assert found.tokens == 59


def test_a_module_evaluates_without_gradient_and_is_then_as_it_was():
    model = nn.Sequential(Averaging(), nn.Dropout(0.5))
    model[1].eval()
    first = xent.evaluate(model, text_of(30), length=7)
    assert first.nats == xent.evaluate(model[0], text_of(30), length=7).nats
    assert {seen[1:] for seen in model[0].seen} == {(False, False)}
    assert [module.training for module in model] == [True, False]


def test_narrow_logits():
    model, text = Averaging(), text_of(60)
    found = xent.evaluate(lambda ids: model(ids).bfloat16(), text, length=100)
    rounded = model(text[None, :-1])[0].bfloat16().double().log_softmax(1)
    true = -rounded.gather(1, text[1:, None]).sum().item()
    assert found.nats == pytest.approx(true, rel=torch.finfo(torch.float32).eps)


def test_it_prints_and_is_plain(capsys):
    found = xent.evaluate(Averaging(), text_of(60), bins=4, progress=True)
    shown = capsys.readouterr().err
    assert "evaluating" in shown
    assert "59.0/59.0" in shown  # tokens
    assert f"{found.perplexity:.2f}" in str(found)
    assert "byte" not in str(found)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["tokens"] == 59
    assert told["bits_per_byte"] is None
    assert len(told["reliability"]["edges"]) == 5
    assert sum(told["reliability"]["count"]) == 59
    sure = xent.evaluate(lambda ids: torch.eye(5)[ids] * 1e4, torch.arange(5))
    assert sure.perplexity == math.inf  # e to the 10000
    assert sure.to_dict()["reliability"]["accuracy"][0] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "`length` must be a whole number from 2, got 1"),
        ({"length": 8.0}, "`length` must be"),
        ({"stride": 0}, "`stride` must be"),
        ({"length": 4, "stride": 5}, "`stride` must be at most `length`, 4"),
        ({"batch": 0}, "`batch` must be"),
        ({"total_bytes": 0}, "`total_bytes` must be"),
        ({"bins": 0}, "`bins` must be"),
        ({"prefix": -1}, "`prefix` must be a whole number from 0, got -1"),
        ({"attention_mask": torch.ones(19)}, "`attention_mask` must have the shape of `tokens`"),
        ({"attention_mask": torch.full((20,), -torch.inf)}, "must be 1 for tokens and 0 for"),
        ({"attention_mask": torch.arange(20) % 2}, "must not be 0 between two tokens"),
        ({"attention_mask": torch.arange(20) == 3}, "a text of two tokens or more"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "shape of `tokens`"),
    ],
)
def test_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        xent.evaluate(Averaging(), text_of(20), **options)


def test_tokens_and_logits_that_do_not_fit():
    with pytest.raises(ValueError, match="two tokens or more"):
        xent.evaluate(Averaging(), text_of(1))
    for wrong in (torch.rand(5), [torch.rand(5)], [[0.5, 1.0]], ["some", "text"]):
        with pytest.raises(TypeError, match="must hold integers"):
            xent.evaluate(Averaging(), wrong)
    for none in ([], [text_of(1), []], torch.zeros(0, 5).long()):
        with pytest.raises(ValueError, match="two tokens or more"):
            xent.evaluate(Averaging(), none)
    for wrong in (torch.zeros(2, 3, 4).long(), [torch.zeros(2, 3).long()], torch.tensor(1)):
        with pytest.raises(ValueError, match=r"must hold texts of shape \(T,\)"):
            xent.evaluate(Averaging(), wrong)
    with pytest.raises(ValueError, match="2 texts; got 1"):
        xent.evaluate(Averaging(), [text_of(3), text_of(4)], labels=[text_of(3)])
    with pytest.raises(ValueError, match="text 1 has 4 tokens and 3 labels"):
        xent.evaluate(Averaging(), [text_of(3), text_of(4)], labels=[text_of(3), text_of(3)])
    with pytest.raises(ValueError, match="a list, which has no padding"):
        xent.evaluate(Averaging(), [text_of(3)], attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"must return logits of shape \(1, 4, 'V'\)"):
        xent.evaluate(lambda ids: torch.zeros(1, 5, 3), torch.tensor([0, 1, 2, 0, 1]))
    with pytest.raises(ValueError, match="got str"):
        xent.evaluate(lambda ids: "logits", text_of(5))
    with pytest.raises(xent.TargetError, match="out of bounds"):
        xent.evaluate(lambda ids: torch.zeros(*ids.shape, 3), torch.tensor([0, 1, 5]))


# ---- tables that merge ----------------------------------------------------------------------


def test_tables_of_parts_merge_into_that_of_the_whole():
    confidence = torch.rand(200, dtype=torch.float64)
    right = torch.rand(200) < confidence
    whole = bin_confidences(confidence, right, 9)
    parts = bin_confidences(confidence[:3], right[:3], 9)
    for part in (slice(3, 4), slice(4, 150), slice(150, 200)):
        parts = parts.merge(bin_confidences(confidence[part], right[part], 9))
    assert torch.equal(parts.count, whole.count)
    torch.testing.assert_close(parts.confidence, whole.confidence, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.accuracy, whole.accuracy, rtol=1e-14, atol=0)
    assert parts.ece == pytest.approx(whole.ece, rel=1e-12)
    with pytest.raises(ValueError, match="different bins"):
        whole.merge(bin_confidences(confidence, right, 8))


# ---- the command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    words = ["the", "a", "cat", "dog", "house", "tree", "sees", "likes", "and", "or", "not"]
    for i in range(30):
        lines = (" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(20))
        (path / f"{i}.txt").write_text("".join(lines) + f"{i}rare\n")
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = ["--steps", "30", "--dim", "8", "--batch", "4", "--length", "8", "--quiet"]
    assert main(["train", str(folder), "--out", str(out), *words]) == 0
    return out


def test_a_run_on_a_text(trained, folder, capsys, tmp_path):
    capsys.readouterr()
    extra = tmp_path / "more.txt"
    extra.write_text("the cat écoute the dog\n")
    command = ["eval", str(trained), str(folder / "3.txt"), str(extra), "--length", "100000"]
    assert main([*command, "--plot", str(tmp_path / "r.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")

    saved = load_checkpoint(trained)
    ids = {token: k for k, token in enumerate(saved["vocabulary"])}
    spelled, tokens = 0, []
    for path in (folder / "3.txt", extra):
        for token in TOKEN.findall(path.read_text()):
            tokens.append(ids.get(token, UNKNOWN))
            spelled += 0 if token in ids else 8 * (len(token.encode()) + 1)
        tokens.append(END)
    assert spelled
    model = LanguageModel(torch.ones(len(ids)), 8).double()
    model.load_state_dict(saved["model"])
    text = torch.tensor(tokens)
    states, _ = model.gru(model.embedding(text[:-1, None]), model.blank(1).double())
    logits = model.projection(states)[:, 0] @ model.embedding.weight.T + model.bias
    nats = torch.nn.functional.cross_entropy(logits, text[1:]).item()
    assert found["tokens"] == len(text) - 1
    assert found["nats_per_token"] == pytest.approx(nats, rel=1e-6)
    assert found["unknown_share"] == (text[1:] == UNKNOWN).double().mean().item()
    first = TOKEN.findall((folder / "3.txt").read_text())[0]
    size = sum(len(p.read_bytes()) for p in (folder / "3.txt", extra)) - len(first)
    bits = nats * found["tokens"] / math.log(2) + spelled
    assert found["bits_per_byte"] == pytest.approx(bits / size, rel=1e-6)


def test_a_run_on_its_validation_text(trained, capsys):
    assert main(["eval", str(trained), "--length", "32", "--batch", "4"]) == 0
    out = capsys.readouterr().out
    record = json.loads((trained / "record.json").read_text())
    assert f"tokens scored             {record['text']['validation_tokens'] - 1}" in out
    assert "unknown tokens *" in out
    assert "spelling" in out


def test_a_model_of_hugging_face(tmp_path, folder, capsys):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    text = (folder / "3.txt").read_text()
    words = {word: k for k, word in enumerate(sorted({*text.split(), "<s>", "<unk>"}))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", unk_token="<unk>"
    )
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=24, n_embd=8, n_layer=1, n_head=2,
        bos_token_id=words["<s>"], eos_token_id=words["<s>"],
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    files = [folder / "3.txt", folder / "5.txt"]
    command = ["eval", "--hf", str(tmp_path / "model"), *map(str, files), "--json", "--quiet"]
    assert main([*command, "--stride", "9"]) == 0
    found = json.loads(capsys.readouterr().out)

    model, nats, tokens = model.double(), 0.0, 0
    for file in files:
        ids = torch.tensor([words.get(word, words["<unk>"]) for word in file.read_text().split()])
        tokens += len(ids)
        for t in range(len(ids)):
            end = 23
            while end < t:
                end = min(end + 9, len(ids) - 1)
            context = [words["<s>"], *ids[max(end - 23, 0) : t].tolist()]
            with torch.no_grad():
                logits = model(torch.tensor([context])).logits[0, -1]
            nats -= logits.log_softmax(0)[ids[t]].item()
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    bits = nats / math.log(2) / sum(len(file.read_bytes()) for file in files)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)

    assert main([*command, "--length", "25"]) == 2
    assert "--length 25: the model sees 24 tokens at most" in capsys.readouterr().err


def refusal(capsys, *words):
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("xent eval: ")
    assert err.count("\n") == 1
    return err


def test_what_is_refused(trained, folder, tmp_path, capsys):
    text, empty = folder / "3.txt", tmp_path / "empty.txt"
    empty.touch()
    assert "name the folder of a run" in refusal(capsys)
    assert "RUN: there is no" in refusal(capsys, tmp_path / "nowhere", text)
    assert "no such file or folder" in refusal(capsys, trained, tmp_path / "missing.txt")
    assert "no text in" in refusal(capsys, trained, empty)
    assert "--length must be a whole number from 2" in refusal(capsys, trained, text, "--length", 1)
    assert "--stride must be" in refusal(capsys, trained, text, "--stride", 0)
    assert "--device nonsense" in refusal(capsys, trained, text, "--device", "nonsense")
    plot = tmp_path / "no" / "r.png"
    capsys.readouterr()
    assert main(["eval", str(trained), str(text), "--plot", str(plot), "--quiet"]) == 2
    assert "--plot" in capsys.readouterr().err
    assert "--hf needs text" in refusal(capsys, "--hf", tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path, folder, capsys):
    pytest.importorskip("transformers")
    assert f"--hf {tmp_path}" in refusal(capsys, "--hf", tmp_path, folder / "3.txt")


def test_text_that_has_changed_since_is_refused(folder, tmp_path, capsys):
    own = tmp_path / "text"
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    words = ["--steps", "1", "--dim", "8", "--batch", "4", "--length", "8", "--quiet"]
    assert main(["train", str(own), "--out", str(tmp_path / "run"), *words]) == 0
    (own / "3.txt").write_text("something else\n" * 30)
    assert "has changed since" in refusal(capsys, tmp_path / "run")
