"""The search for losses: the language of formulas, what judges them, and the search itself."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import xent
from xent import cli
from xent.learn.loss_formula import CROSS_ENTROPY, TERMS, Formula, weighted_sum
from xent.learn.loss_search import RECORD, HeldOutAccuracy, search_loss
from xent.learn.networks.small_networks import SmallNetworks

pytest.importorskip("cma")


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)  # threads only cost time at this size


EVERYTHING = Formula((1.5, 0.25, -0.3, 0.7, -0.2), (2.0, 0.5))


def direct(z, y, formula):
    """Compute the formula on probabilities, class by class."""
    log_p = torch.log_softmax(z, -1)
    p = log_p.exp()
    p_y = p.gather(1, y[:, None])[:, 0]
    c, (a, b) = formula.coefficients, formula.exponents
    entropy = -(p * log_p).sum(-1)
    terms = (-p_y.log(), -log_p.mean(-1), entropy, (1 - p_y) ** a, p_y**b)
    return sum(ck * term for ck, term in zip(c, terms, strict=True))


# ---- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula",
    [
        EVERYTHING,
        Formula.at(CROSS_ENTROPY),
        Formula((0, 0, 0, 1, 0), (0.5, 1)),
        Formula.at([0] * 7),
    ],
    ids=str,
)
def test_what_a_formula_prints_is_what_it_computes(formula, engine):
    z = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randint(6, (20,))
    loss = formula.loss(z, y, reduction="none", engine=engine)
    expected = direct(z, y, formula)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    if any(formula.coefficients):
        grads = [torch.autograd.grad(v.sum(), z)[0] for v in (loss, expected)]
        torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)
    # Pasted as the body of a loss.
    names = {"xent": xent}
    exec(formula.source("pasted"), names)
    assert torch.equal(names["pasted"](z, y, reduction="none", engine=engine), loss)
    s = xent.statistics(z, y, engine=engine, **dict.fromkeys(formula.needs, True))
    assert torch.equal(eval(str(formula), {"s": s}) + 0 * s.lse, loss)


def test_cross_entropy_is_a_point_of_the_search():
    z, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, -100])
    assert torch.equal(Formula.at(CROSS_ENTROPY).loss(z, y), xent.cross_entropy(z, y))
    assert str(Formula.at(CROSS_ENTROPY)) == "1.0 * -s.log_prob"


def test_gradients_survive_certainty_and_ignored_rows():
    z = torch.tensor([[200.0, 0, 0], [0, 200, 0], [1, 2, 3]], requires_grad=True)
    EVERYTHING.loss(z, torch.tensor([0, 0, -100])).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert not z.grad[2].any()


def test_points_are_rounded_and_exponents_bounded():
    formula = Formula.at([1 / 3, 0, 0, -2 / 3, 0, 1.0, 99.0])
    assert formula.coefficients == (0.3333, 0.0, 0.0, -0.6667, 0.0)
    assert formula.exponents == (2.0, 256.0)
    assert formula.needs == ()
    assert EVERYTHING.needs == ("mean", "entropy")
    with pytest.raises(ValueError, match="5 coefficients and 2 exponents"):
        Formula((1.0,), ())


def test_numbers_may_differ_by_row():
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    formulas = [EVERYTHING, Formula.at(CROSS_ENTROPY), Formula((0.0, 1, 1, 1, 1), (3.0, 1.5))]
    numbers = [[*f.coefficients, *f.exponents] for f in formulas]
    numbers = torch.tensor(numbers, dtype=torch.float64)
    columns = numbers.repeat_interleave(2, 0).unbind(1)
    s = xent.statistics(z, y, entropy=True, mean=True)
    together = weighted_sum(s, columns[: len(TERMS)], columns[len(TERMS) :])
    for k, formula in enumerate(formulas):
        rows = slice(2 * k, 2 * k + 2)
        alone = formula.loss(z[rows], y[rows], reduction="none")
        torch.testing.assert_close(together[rows], alone, rtol=1e-12, atol=1e-12)


# ---- networks -----------------------------------------------------------------------------------


def blobs(rows=120, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (rows,), generator=generator)
    return torch.eye(classes)[y] + 0.4 * torch.randn(rows, classes, generator=generator), y


def test_a_network_does_not_notice_its_company():
    x, y = blobs()
    crowd = SmallNetworks(3, 3, [4, 5, 4, 6], hidden=8)
    crowd.train(x, y, xent.cross_entropy, steps=40, batch=16)
    assert torch.equal(crowd.logits(x)[0], crowd.logits(x)[2])
    alone = SmallNetworks(3, 3, [6], hidden=8)
    alone.train(x, y, xent.cross_entropy, steps=40, batch=16)
    torch.testing.assert_close(alone.logits(x)[0], crowd.logits(x)[3], rtol=1e-4, atol=1e-4)


def test_a_network_is_what_torch_trains():
    x, y = blobs()
    ours = SmallNetworks(3, 3, [7], hidden=8)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for layer, weight, bias in (
            (model[0], *ours.parameters[:2]), (model[2], *ours.parameters[2:])
        ):  # fmt: skip
            layer.weight.copy_(weight[0].T)
            layer.bias.copy_(bias[0, 0])
    generator = torch.Generator().manual_seed(7)
    for size in ((3, 8), (8, 3)):
        torch.randn(*size, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        pick = torch.randint(len(x), (16,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    ours.train(x, y, xent.cross_entropy, steps=30, batch=16)
    torch.testing.assert_close(ours.logits(x)[0], model(x), rtol=1e-4, atol=1e-4)


def test_each_network_learns_from_its_own_rows():
    x, y = blobs()
    halves = torch.stack([torch.arange(60), torch.arange(60, 120)])
    calls = []
    networks = SmallNetworks(3, 3, [1, 1], hidden=16)
    networks.train(
        x, torch.cat([y[:60], (y[60:] + 1) % 3]), xent.cross_entropy, steps=150, rows=halves,
        after_step=lambda: calls.append(1),
    )  # fmt: skip
    assert len(calls) == 150
    right, shifted = networks.accuracy(x, y), networks.accuracy(x, (y + 1) % 3)
    assert right[0] > 0.85
    assert shifted[1] > 0.85
    of_each = networks.accuracy(x[halves], torch.stack([y[:60], y[60:]]))
    assert of_each[0] > 0.85
    with pytest.raises(ValueError, match="`rows`"):
        networks.train(x, y, xent.cross_entropy, steps=1, rows=halves[:1])
    with pytest.raises(ValueError, match="`x` must be"):
        networks.train(x, y[:5], xent.cross_entropy, steps=1)


def test_the_judge_trains_every_formula_as_it_would_alone():
    (x, y), (u, v) = blobs(), blobs(seed=1)
    judge = HeldOutAccuracy(x, y, u, v, networks=2, hidden=8, steps=40, batch=16)
    formulas = [Formula.at(CROSS_ENTROPY), EVERYTHING]
    together = judge.of_each_network(formulas, 3)
    for formula, accuracy in zip(formulas, together, strict=True):
        networks = SmallNetworks(3, 3, [6, 7], hidden=8)
        networks.train(x, y, formula.loss, steps=40, batch=16)
        torch.testing.assert_close(networks.accuracy(u, v), accuracy)
    assert judge(formulas, 3) == together.mean(1).tolist()
    assert judge(formulas, 4) != judge(formulas, 3)


# ---- the search ---------------------------------------------------------------------------------


def judge(formulas, round):
    """Score a landscape with its top at a known place, and a little noise set by the round."""
    rng = np.random.default_rng(round)
    top = (0.9, 0.4, -0.2, 0.0, 0.1)
    return [
        -sum((a - b) ** 2 for a, b in zip(f.coefficients, top, strict=True)) + 1e-3 * rng.normal()
        for f in formulas
    ]


def test_it_climbs():
    found = search_loss(judge, generations=25, quiet=True)
    assert found.cross_entropy == pytest.approx(-0.22, abs=0.01)
    assert found.score > -0.05
    assert len(found.history) == 25
    assert found.history[-1][1] > found.history[0][1]
    scores = [score for _, score in found.finalists]
    assert scores == sorted(scores, reverse=True)
    assert found.finalists[0] == (found.formula, found.score)


def test_it_never_returns_less_than_cross_entropy():
    def hostile(formulas, round):
        return [1.0 if f == Formula.at(CROSS_ENTROPY) else float("nan") for f in formulas]

    found = search_loss(hostile, generations=2, quiet=True)
    assert found.formula == Formula.at(CROSS_ENTROPY)
    assert found.score == found.cross_entropy == 1.0


def test_it_leaves_the_random_numbers_of_others_alone():
    def state():  # the random states of NumPy and PyTorch
        return [*np.random.get_state()[1].tolist(), *torch.get_rng_state().tolist()]  # noqa: NPY002

    before = state()
    search_loss(judge, generations=2, quiet=True)
    assert state() == before


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    whole = search_loss(judge, generations=6, folder=tmp_path / "whole", quiet=True)
    calls = []

    def stopped(formulas, round):
        calls.append(round)
        if round == 3:
            raise KeyboardInterrupt
        return judge(formulas, round)

    with pytest.raises(KeyboardInterrupt):
        search_loss(stopped, generations=6, folder=tmp_path / "parts", quiet=True)
    assert len(json.loads((tmp_path / "parts" / RECORD).read_text())["generations"]) == 3
    calls.clear()

    def watched(formulas, round):
        calls.append(round)
        return judge(formulas, round)

    rest = search_loss(watched, generations=6, folder=tmp_path / "parts", resume=True, quiet=True)
    assert calls == [3, 4, 5, 6, 7, 8, 9]  # none of the first three is judged again
    assert rest == whole
    records = [(tmp_path / name / RECORD).read_text() for name in ("whole", "parts")]
    assert records[0] == records[1]
    kept = json.loads(records[0])
    assert kept["source"] == whole.formula.source()
    assert kept["finalists"][0]["formula"] == str(whole.formula)
    assert not list(tmp_path.rglob("*.part"))


def test_a_finished_search_can_be_prolonged_but_not_cut(tmp_path):
    search_loss(judge, generations=3, folder=tmp_path, quiet=True)
    longer = search_loss(judge, generations=5, folder=tmp_path, resume=True, quiet=True)
    assert longer == search_loss(judge, generations=5, quiet=True)
    again = search_loss(judge, generations=2, folder=tmp_path, resume=True, quiet=True)
    assert again == longer


def test_bad_input(tmp_path):
    search_loss(judge, generations=1, folder=tmp_path, quiet=True)
    cases = [
        ({"folder": tmp_path}, "holds a search; resume=True"),
        ({"folder": tmp_path, "resume": True, "seed": 9}, "begun with {'seed': 0}"),
        ({"resume": True}, "say which one"),
        ({"generations": 0}, "`generations` must be at least 1"),
        ({"population": 2}, "`population` must be at least 4"),
        ({"rounds": 0}, "`rounds`"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            search_loss(judge, quiet=True, **options)
    with pytest.raises(ValueError, match="returned 1 scores for 12"):
        search_loss(lambda formulas, round: [1.0], quiet=True)
    record = tmp_path / RECORD
    kept = json.loads(record.read_text())
    kept["generations"][0]["points"][0][0] += 1
    record.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="cannot be continued here"):
        search_loss(judge, folder=tmp_path, resume=True, quiet=True)
    for damaged in ("{", "[]", '{"settings": {}}'):
        record.write_text(damaged)
        with pytest.raises(ValueError, match="not the record of a search"):
            search_loss(judge, folder=tmp_path, resume=True, quiet=True)


def test_progress_and_missing_packages(capsys, monkeypatch):
    search_loss(judge, generations=2)
    assert "generations: 100%" in capsys.readouterr().err
    search_loss(judge, generations=2, quiet=True)
    assert capsys.readouterr().err == ""
    for package in ("cma", "tqdm"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"crossentropy\[search\]"):
                search_loss(judge, generations=1)


def test_the_module_loads_without_the_search_packages():
    code = """
import sys
sys.modules.update(dict.fromkeys(("cma", "tqdm", "numpy", "sklearn")))
import xent.learn.loss_search
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_it_finds_label_smoothing_like_losses_for_few_noisy_rows():
    # A fifth of the labels is wrong, so a loss that avoids certainty is better here.
    (x, y), (u, v) = blobs(90, 4), blobs(600, 4, seed=1)
    y = torch.where(torch.arange(90) % 5 == 0, (y + 1) % 4, y)
    accuracy = HeldOutAccuracy(x, y, u, v, networks=2, hidden=32, steps=120, batch=32, lr=1e-2)
    found = search_loss(accuracy, generations=4, population=8, rounds=2, quiet=True)
    assert found.score >= found.cross_entropy
    (w, t) = blobs(600, 4, seed=2)  # rows that the search has not seen
    fresh = HeldOutAccuracy(x, y, w, t, networks=6, hidden=32, steps=120, batch=32, lr=1e-2)
    best, plain = fresh([found.formula, Formula.at(CROSS_ENTROPY)], 1000)
    assert best > plain


# ---- the command --------------------------------------------------------------------------------


def write_table(path, rows=150):
    x, y = blobs(rows)
    lines = [f"{a},{b},{c},{'xyz'[k]}" for (a, b, c), k in zip(x.tolist(), y.tolist(), strict=True)]
    path.write_text("\n".join(["first,second,third,class", *lines]))
    return str(path)


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "run")
    call = ["search", write_table(tmp_path / "a.csv"), "--out", out, "--steps", "120"]
    call += ["--hidden", "8", "--population", "4"]
    assert cli.main([*call, "--generations", "2"]) == 0
    told, progress = capsys.readouterr()
    assert "@xent.row_loss" in told
    assert "on 50 unseen rows" in told
    assert "generations: 100%" in progress
    assert cli.main([*call, "--generations", "3"]) == 2
    assert "holds a search; --resume continues it" in capsys.readouterr().err
    assert cli.main([*call, "--generations", "3", "--resume", "--quiet", "--json"]) == 0
    told, progress = capsys.readouterr()
    assert not progress
    result = json.loads(told)
    assert result["judged"]["found"] >= result["judged"]["cross-entropy"]
    assert 0.5 < result["test"]["found"] <= 1


def test_tables_that_are_none(tmp_path, capsys):
    path = tmp_path / "a.csv"
    good = write_table(path)
    text = path.read_text()
    for broken, message in (
        ("", "cannot be read"),
        ("\n".join(text.splitlines()[:30]), "29 rows; a search takes at least 40"),
        (text.replace("\n", "\ninf,1,2,x\n", 1), "row 1 is infinite"),
        (text + "\n1,2,x", "Expected 4 columns, got 3"),
        ("\n".join(f"{k},1,{k}" for k in range(60)), "60 different values in 60 rows"),
        ("\n".join(f"{k},1,{k // 2}" for k in range(60)), "30 classes in 60 rows"),
    ):
        path.write_text(broken)
        assert cli.main(["search", good, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["search", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert cli.main(["search", "--decimal", ","]) == 2
    assert "--decimal is about a table; name one" in capsys.readouterr().err
    assert cli.main(["search", good, "--steps", "0"]) == 2
    assert "--steps" in capsys.readouterr().err
