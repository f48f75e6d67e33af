"""Populations over workers: any ``map``, any number of workers, workers that fail."""

import json
import pickle
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool

import pytest
import torch

from xent.cli import main
from xent.commands.console import UserError
from xent.commands.workers import workers
from xent.learn import Bernoulli, CrossEntropyMethod, Gaussian, PolicyScores, deep_cem
from xent.learn.loss_formula import CROSS_ENTROPY, Formula
from xent.learn.loss_search import RECORD, search_loss

from .worker_calls import FailingScore, judge, lucky_score, score


def search():
    return CrossEntropyMethod(Gaussian(torch.zeros(2), 4.0), population=12, elite=0.25)


def reversed_map(function, items):
    """Give the results in another order, as ``imap_unordered`` may."""
    return reversed([function(item) for item in items])


@pytest.fixture(scope="module", params=["map", "threads", "imap", "order", "joblib"])
def any_map(request):
    if request.param == "map":
        yield map
    elif request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool.map
    elif request.param == "imap":
        with ThreadPool(2) as pool:
            yield pool.imap_unordered
    elif request.param == "order":
        yield reversed_map
    else:
        joblib = pytest.importorskip("joblib")
        # A new Parallel for each round: one that failed may give a late result to the next.
        yield lambda function, items: joblib.Parallel(2, prefer="threads")(
            joblib.delayed(function)(item) for item in items
        )


# ---- the cross-entropy method --------------------------------------------------------------------


def test_each_point_gets_its_score(any_map):
    whole = search().run(lambda points: [score(p) for p in points], 6, quiet=True)
    found = search().run(score, 6, map=any_map, quiet=True)
    assert found.history == whole.history
    assert torch.equal(found.centre, whole.centre)


def test_luck_belongs_to_the_point(any_map):
    search_of_all = search()
    whole = search_of_all.run(
        lambda points: [lucky_score(p, search_of_all.iteration, k) for k, p in enumerate(points)],
        4, quiet=True,
    )  # fmt: skip
    found = search().run(lucky_score, 4, map=any_map, numbered=True, quiet=True)
    assert found.history == whole.history


def test_points_keep_their_type():
    dtypes = set()

    def of_bits(point):
        dtypes.add(point.dtype)
        return point.sum()

    start = Bernoulli(torch.full((4,), 0.5))
    CrossEntropyMethod(start, population=8, elite=0.5).run(of_bits, 1, map=map, quiet=True)
    assert dtypes == {start.sample(1).dtype}


@pytest.mark.parametrize("fails", ["call", "interrupt", "scores"])
def test_an_iteration_that_fails_leaves_the_search_as_it_was(fails):
    expected = search().run(lucky_score, 5, map=map, numbered=True, quiet=True)
    interrupted, calls = search(), []

    def failing(point, iteration, number):
        calls.append(number)
        if len(calls) == 30:  # the sixth point of the third iteration
            if fails == "scores":
                return float("nan")
            raise KeyboardInterrupt if fails == "interrupt" else ValueError("out of fuel")
        return lucky_score(point, iteration, number)

    kind, message = {
        "call": (RuntimeError, r"^point 5 of iteration 3: ValueError: out of fuel\. The search is"),
        "interrupt": (KeyboardInterrupt, None),
        "scores": (ValueError, "of points 5"),
    }[fails]
    with pytest.raises(kind, match=message):
        interrupted.run(failing, 5, map=map, numbered=True, quiet=True)
    assert interrupted.iteration == 2
    found = interrupted.run(failing, 5, map=map, numbered=True, quiet=True)
    assert found.history == expected.history
    assert torch.equal(found.centre, expected.centre)


def test_a_failure_of_all_points_leaves_the_search_as_it_was():
    expected = search().run(lambda points: -points.square().sum(1), 3, quiet=True)
    broken = search()
    with pytest.raises(ZeroDivisionError):
        broken.run(lambda points: 1 / 0, 3, quiet=True)
    found = broken.run(lambda points: -points.square().sum(1), 3, quiet=True)
    assert found.history == expected.history


def done(value):
    future = Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (ThreadPoolExecutor(1), TypeError, "got ThreadPoolExecutor; pass its `map`"),
        (4, TypeError, "a function like the built-in map, got int$"),
        (lambda f, items: [f(x) for x in items[1:]], ValueError, "for each of the 12 points of"),
        (lambda f, items: [f(items[0])] * 12, ValueError, "returned 12, of 1 points"),
        (lambda f, items: [done(f(x)) for x in items], TypeError, "Future.*client.gather"),
        (lambda f, items: [1.0 for _ in items], TypeError, "results of the calls, returned float"),
        (lambda f, items: None, TypeError, "results of the calls, returned NoneType"),
    ],
)
def test_maps_that_are_none(given, kind, message):
    with pytest.raises(kind, match=message):
        search().run(score, 1, map=given, quiet=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda point: None, r"`function` gets one point, shape \(2,\).*it returned NoneType"),
        (lambda point: point, r"it returned shape \(2,\)"),
        (lambda points: points.square().sum(1), "point 0 of iteration 1: IndexError"),
    ],
)
def test_functions_that_return_no_number(function, message):
    with pytest.raises(RuntimeError, match=message):
        search().run(function, 1, map=map, quiet=True)


def test_what_cannot_be_pickled_is_named():
    def by_pickle(function, items):  # as pools of processes do
        return map(pickle.loads(pickle.dumps(function)), items)

    def as_of_python_3_12(function, items):
        raise AttributeError("Can't get local object")

    search().run(score, 1, map=by_pickle, quiet=True)
    for given in (by_pickle, as_of_python_3_12):
        with pytest.raises(TypeError, match="`function` cannot be sent to the workers of `map`"):
            search().run(lambda point: 0.0, 1, map=given, quiet=True)
    pytest.importorskip("cma")
    with pytest.raises(TypeError, match="`judge` cannot be sent"):
        search_loss(lambda formulas, round: [0.0], map=by_pickle, quiet=True)
    pytest.importorskip("gymnasium")
    policy = torch.nn.Linear(4, 2)
    with pytest.raises(TypeError, match="`env` cannot be sent"):
        deep_cem(policy, lambda: _cart_pole(), map=by_pickle, quiet=True)
    policy.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="`policy` cannot be sent"):
        deep_cem(policy, "CartPole-v1", map=by_pickle, quiet=True)


def _cart_pole():
    import gymnasium

    return gymnasium.make("CartPole-v1")


# ---- policies ------------------------------------------------------------------------------------


def test_policies_play_alone_what_they_play_together(any_map):
    pytest.importorskip("gymnasium")
    policy = torch.nn.Linear(4, 2)
    scores = PolicyScores(policy, "CartPole-v1", episodes=2, seed=3)
    sent = pickle.loads(pickle.dumps(scores))
    points = Gaussian(torch.zeros(scores.dimensions), 1.0).sample(
        3, torch.Generator().manual_seed(0)
    )
    together = scores(points, 1).tolist()
    calls = [(point, 1, k) for k, point in enumerate(points)]
    assert sorted(any_map(partial(_spread, sent.of_one), calls)) == sorted(together)
    assert torch.equal(sent(points, 1), scores(points, 1))


def _spread(function, arguments):
    return function(*arguments)


def test_episodes_by_workers(any_map, tmp_path):
    """Any map gives the same policy, also after an update that failed."""
    pytest.importorskip("gymnasium")
    policies = [torch.nn.Linear(4, 2) for _ in range(3)]
    for policy in policies[1:]:
        policy.load_state_dict(policies[0].state_dict())
    options = {"batch": 3, "elite": 2, "episodes": 9, "quiet": True}
    expected = deep_cem(policies[0], "CartPole-v1", map=map, **options)
    assert deep_cem(policies[1], "CartPole-v1", map=any_map, **options) == expected
    assert torch.equal(policies[0].weight, policies[1].weight)
    file, rounds = tmp_path / "a.pt", []

    def failing(function, items):
        rounds.append(1)
        if len(rounds) == 3:
            raise OSError("the network is down")
        return any_map(function, items)

    with pytest.raises(RuntimeError, match="episode 0 of update 3: OSError: the network is down"):
        deep_cem(policies[2], "CartPole-v1", map=failing, checkpoint=file, **options)
    resumed = {**options, "checkpoint": file, "resume": True}
    with pytest.raises(ValueError, match=r"begun with \{'map': True\}"):
        deep_cem(policies[2], "CartPole-v1", **resumed)
    assert deep_cem(policies[2], "CartPole-v1", map=failing, **resumed) == expected
    assert torch.equal(policies[0].weight, policies[2].weight)


def test_an_episode_that_fails_is_named():
    pytest.importorskip("gymnasium")

    class Loose(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * float("nan")

    with pytest.raises(RuntimeError, match="episode 0 of update 1: ValueError: `policy` returned"):
        deep_cem(Loose(4, 2), "CartPole-v1", map=map, quiet=True)


# ---- losses --------------------------------------------------------------------------------------


def test_formulas_by_workers(any_map, tmp_path):
    pytest.importorskip("cma")
    expected = search_loss(judge, generations=3, quiet=True)
    assert search_loss(judge, generations=3, map=any_map, quiet=True) == expected
    calls = []

    def failing(formulas, round):
        calls.append(round)
        assert len(formulas) == 1
        if len(calls) == 30:
            raise ValueError("out of fuel")
        return judge(formulas, round)

    options = {"generations": 3, "folder": tmp_path, "quiet": True}
    with pytest.raises(RuntimeError, match=r"formula \d+ of round 2: ValueError: out of fuel"):
        search_loss(failing, map=any_map, **options)
    assert (tmp_path / RECORD).exists()
    assert search_loss(failing, map=any_map, resume=True, **options) == expected


def test_a_judge_must_score_each_formula():
    pytest.importorskip("cma")
    with pytest.raises(RuntimeError, match=r"formula 0 of round 0: .* returned 0 scores for 1"):
        search_loss(lambda formulas, round: [], map=map, quiet=True)
    assert judge([Formula.at(CROSS_ENTROPY)], 0)


# ---- processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_that_fail(tmp_path):
    """A worker that raises, and one that ends: both are named, and the search goes on."""
    expected = search().run(lucky_score, 3, map=map, numbered=True, quiet=True)
    run = partial(search().run, iterations=3, numbered=True, quiet=True)
    new_pool = partial(ProcessPoolExecutor, 2, get_context("spawn"))
    raising = FailingScore(tmp_path, 1, 4, deadly=False)
    (tmp_path / "deadly").mkdir()
    ending = FailingScore(tmp_path / "deadly", 2, 5, deadly=True)
    with new_pool() as pool:
        with pytest.raises(RuntimeError, match="point 4 of iteration 2: ValueError: the simulator"):
            run(raising, map=pool.map)
        with pytest.raises(TypeError, match="`function` cannot be sent to the workers"):
            run(lambda point, iteration, number: 0.0, map=pool.map)
        with pytest.raises(RuntimeError, match=r"result of point \d+ of iteration 3: BrokenProces"):
            run(ending, map=pool.map)
    with new_pool() as pool:
        found = run(ending, map=pool.map)
    assert found.history == expected.history
    assert torch.equal(found.centre, expected.centre)


# ---- commands ------------------------------------------------------------------------------------


def test_the_error_of_a_command_says_how_to_go_on():
    with workers(None) as no_map:
        assert no_map is None
    for of_library, of_command in (
        (
            "It is in `folder`, and resume=True goes on",
            "It is in the folder of --out, and --resume",
        ),
        ("It goes on if `run` is called again", "It goes on with --resume$"),
    ):
        with pytest.raises(UserError, match=f"--workers 2: {of_command}"), workers(2):
            raise RuntimeError(of_library)


@pytest.mark.slow
def test_a_command_with_workers_plays_what_it_plays_without(tmp_path, capsys):
    pytest.importorskip("gymnasium")
    call = ["cem", "--env", "FrozenLake-v1", "--population", "10", "--quiet", "--json"]
    records = []
    for steps in (["--iterations", "2"], ["--iterations", "1"], ["--iterations", "2", "--resume"]):
        out = tmp_path / ("whole" if not records else "parts")
        more = [] if not records else ["--workers", "1"]
        assert main([*call, *steps, *more, "--out", str(out)]) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert records[2]["history"] == records[0]["history"]
    assert records[2]["centre"] == records[0]["centre"]
