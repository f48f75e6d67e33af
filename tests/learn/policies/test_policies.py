"""Policies that learn in gymnasium environments: episodes, REINFORCE, the best episodes."""

import doctest
import importlib
import json
import math
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

import xent
from xent.cli import main
from xent.learn import (
    CrossEntropyMethod,
    Gaussian,
    PolicyScores,
    deep_cem,
    evaluate_policy,
    reinforce,
)
from xent.learn.policies import policy_learning
from xent.learn.policies.episodes import Episodes, Stage, greedy, sampled, seeds_of
from xent.plot import learning_curves


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)


class Corridor(gymnasium.Env):
    """An environment: steps to the right give 1, to the left 0; it ends after random many steps."""

    observation_space = Box(-1, 100, (1,))
    action_space = Discrete(2, start=5)  # 5: left, 6: right

    def __init__(self):
        self.buffer = np.zeros(1, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(1, 9))
        return self._seen(), {}

    def step(self, action):
        assert self.left > 0, "a step after the end"
        assert action in (5, 6)
        self.left -= 1
        return self._seen(), float(action == 6), self.left == 0, False, {}

    def _seen(self):
        self.buffer[0] = self.left  # the same array each time, so a caller must copy it
        return self.buffer


def endless():
    class Endless(Corridor):
        def reset(self, *, seed=None, options=None):
            seen, info = super().reset(seed=seed)
            self.left = 1000
            return seen, info

    return gymnasium.wrappers.TimeLimit(Endless(), 7)


def right(seen, which):
    return torch.full((len(seen),), 6)


def network(seed=0, inputs=1):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


# ---- episodes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2, 50])
def test_an_episode_is_the_same_whatever_plays_beside_it(copies):
    seeds = list(range(20))
    with Stage(Corridor, copies) as stage:
        played = stage.play(right, seeds)
        assert torch.equal(stage.play(right, seeds).observations, played.observations)
    alone = []
    for seed in seeds:
        env = Corridor()
        env.reset(seed=seed)
        alone.append(env.length)
    assert played.lengths.tolist() == alone
    assert played.returns.tolist() == alone
    assert not played.truncated.any()
    # The observation before each step is the number of steps left.
    expected = [left for length in alone for left in range(length, 0, -1)]
    assert played.observations[:, 0].tolist() == expected


def test_cartpole_is_what_gymnasium_plays():
    def act(seen, _):
        return (seen[:, 2] + seen[:, 3] > 0).long()

    with Stage("CartPole-v1") as stage:
        played = stage.play(act, [3, 4])
    env = gymnasium.make("CartPole-v1")
    for k, seed in enumerate((3, 4)):
        seen, _ = env.reset(seed=seed)
        steps, over = [], False
        while not over:
            steps.append(seen)
            action = int(seen[2] + seen[3] > 0)
            seen, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        ours = played.observations[played.index == k]
        np.testing.assert_array_equal(ours.numpy(), np.stack(steps))


def test_a_limit_of_time_is_no_end():
    with Stage(endless) as stage:
        played = stage.play(right, [0, 1])
    assert played.truncated.all()
    assert played.lengths.tolist() == [7, 7]


def test_discounted_returns_by_hand():
    zeros = torch.zeros(5)
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    played = Episodes(zeros, zeros, rewards, torch.tensor([3, 2]), torch.zeros(2).bool())
    assert played.discounted(0.5).tolist() == [1 + 1 + 0.75, 2 + 1.5, 3, 4 + 2.5, 5]
    assert played.returns.tolist() == [6, 9]
    assert played.index.tolist() == [0, 0, 0, 1, 1]
    assert played.discounted(0.0).tolist() == rewards.tolist()


def test_actions_are_drawn_with_the_probabilities_of_the_logits():
    logits = torch.tensor([0.0, math.log(3.0)])
    policy = torch.nn.Linear(1, 2)
    torch.nn.init.zeros_(policy.weight)
    policy.bias.data = logits
    act = sampled(policy, Discrete(2, start=5), torch.Generator().manual_seed(0))
    actions = act(torch.zeros(20_000, 1), torch.arange(20_000))
    assert set(actions.tolist()) == {5, 6}
    assert (actions == 6).double().mean().item() == pytest.approx(0.75, abs=0.015)


def test_preferred_actions():
    output = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert greedy(output, Discrete(2, start=5)).tolist() == [6, 5]
    bounded = greedy(output, Box(-1, 1.5, (2, 1)))
    assert bounded.tolist() == [[[1.0], [1.5]], [[1.5], [-1.0]]]


def test_seeds_differ_between_rounds_and_trainings():
    drawn = {seed for s in range(5) for r in range(5) for seed in seeds_of(s, r, 20)}
    assert len(drawn) == 500


def test_environments_and_policies_that_do_not_fit():
    class Odd(Corridor):
        action_space = MultiBinary(2)

    class Dicts(Corridor):
        observation_space = Dict({"left": Box(0, 1, (1,))})

    with pytest.raises(TypeError, match="the id of a gymnasium environment, or a function"):
        Stage(Corridor())
    with pytest.raises(TypeError, match=r"must make a gymnasium.Env, made list"):
        Stage(list)
    with pytest.raises(ValueError, match="FlattenObservation"):
        Stage(Dicts)
    with Stage(Corridor) as stage, pytest.raises(ValueError, match="at least one"):
        stage.play(right, [])
    with pytest.raises(TypeError, match="logits choose among actions of a Discrete space"):
        reinforce(network(), Odd, quiet=True)
    with pytest.raises(TypeError, match="Discrete or Box"):
        evaluate_policy(network(), Odd, 1)
    with pytest.raises(ValueError, match=r"return \(2,\) numbers for each observation.*\(10, 3\)"):
        reinforce(torch.nn.Linear(1, 3), Corridor, quiet=True)
    with pytest.raises(TypeError, match="must return a tensor, returned tuple"):
        reinforce(torch.nn.RNN(1, 2), Corridor, quiet=True)
    broken = network()
    broken[0].bias.data.fill_(math.nan)
    with pytest.raises(ValueError, match="`policy` returned NaN or infinity"):
        deep_cem(broken, Corridor, quiet=True)
    broken[2].bias.data.fill_(math.inf)
    with pytest.raises(ValueError, match="`policy` returned NaN or infinity"):
        reinforce(broken, Corridor, quiet=True)

    class OneAnswer(torch.nn.Linear):
        def forward(self, input):
            return super().forward(input)[:1]

    with pytest.raises(ValueError, match="each of the 3 observations it gets at a time, gave 1"):
        evaluate_policy(OneAnswer(1, 2), Corridor, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_are_not_learnt_from(bad):
    """Otherwise episodes with a return of NaN would count as the best."""

    class Broken(Corridor):
        def step(self, action):
            seen, _, *rest = super().step(action)
            return seen, bad, *rest

    for learn in (reinforce, deep_cem):
        with pytest.raises(ValueError, match=f"`env` must give finite rewards, gave {bad} for"):
            learn(network(), Broken, quiet=True)


def test_policies_in_double_precision():
    for seed in range(2):
        policy = network(seed).double()
        assert reinforce(policy, Corridor, episodes=20, quiet=True).loss[0] != 0
        vector = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
        returns = PolicyScores(policy, Corridor, episodes=5, seed=3).of_each_episode(vector[None])
        assert torch.equal(returns[0], evaluate_policy(policy, Corridor, 5, seed=3))


def test_policies_are_judged_in_evaluation_mode():
    """Otherwise dropout would draw, and a batch norm would count the observations."""
    norm = torch.nn.BatchNorm1d(1)
    policy = torch.nn.Sequential(norm, torch.nn.Dropout(0.9), network())
    policy[1].eval()
    before = torch.get_rng_state()
    vector = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    returns = [evaluate_policy(policy, Corridor, 20) for _ in range(2)]
    scores = PolicyScores(policy, Corridor, episodes=20, seed=1_000_000)
    returns.append(scores.of_each_episode(vector[None])[0])
    assert torch.equal(returns[0], returns[1])
    assert torch.equal(returns[0], returns[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert norm.num_batches_tracked == 0
    assert [part.training for part in policy] == [True, False, True]


def test_logits_in_the_shape_of_an_image_are_logits():
    flat, tall = network(), torch.nn.Sequential(network(), torch.nn.Unflatten(1, (2, 1)))
    assert torch.equal(evaluate_policy(flat, Corridor, 9), evaluate_policy(tall, Corridor, 9))


# ---- learning -----------------------------------------------------------------------------------


def test_the_gradient_is_that_of_weighted_cross_entropy():
    """One update of plain SGD by hand: A (p - onehot) / N, with advantages of the batch."""
    policy = network()
    with Stage(Corridor) as stage:
        played = stage.play(
            sampled(policy, stage.action_space, torch.Generator().manual_seed(1)), range(10)
        )
    logits = policy(played.observations)
    classes = played.actions - 5
    loss = policy_learning._policy_gradient(played, logits, classes, 0.9, 0.0)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    returns = played.discounted(0.9)
    advantage = (returns - returns.mean()) / (returns.std() + 1e-4)
    onehot = torch.nn.functional.one_hot(classes, 2)
    expected = advantage[:, None] * (logits.detach().softmax(1) - onehot) / len(returns)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-8)
    weighted = xent.cross_entropy(logits, classes, row_weight=advantage.float(), normalizer="count")
    torch.testing.assert_close(loss.float(), weighted, rtol=1e-4, atol=1e-6)


def test_the_elite_loss_is_the_cross_entropy_of_the_best_episodes():
    lengths = torch.tensor([2, 1, 3, 1])
    rewards = torch.tensor([1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 0.0])
    observations, actions = torch.randn(7, 1), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    played = Episodes(observations, actions, rewards.double(), lengths, torch.zeros(4).bool())
    logits = torch.randn(7, 2)
    loss = policy_learning._elite_cross_entropy(played, logits, actions, 2)
    best = [2, 3, 4, 5]  # steps of the second and the third episode
    expected = torch.nn.functional.cross_entropy(logits[best], actions[best])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("learn", [reinforce, deep_cem])
def test_it_learns_to_go_right(learn):
    for seed in range(3):
        policy = network(seed)
        record = learn(policy, endless, episodes=960, target=6.5, lr=0.03, seed=seed, quiet=True)
        assert record.solved
        assert record.average() >= 6.5
        assert len(record.loss) == len(record.entropy) == len(record.returns) / record.batch
        assert record.entropy[-1] < record.entropy[0] < math.log(2) + 1e-6
        assert evaluate_policy(policy, endless, 5).tolist() == [7.0] * 5


@pytest.mark.parametrize("learn", [reinforce, partial(deep_cem, elite=0.5)])
def test_a_target_that_is_the_most_there_is_can_be_met(learn):
    policy = network()
    with torch.no_grad():
        policy[2].bias.copy_(torch.tensor([-100.0, 100.0]))  # always to the right
    record = learn(policy, endless, batch=10, episodes=200, target=7.0, quiet=True)
    assert record.solved
    assert record.returns == [7.0] * 100  # no sooner and no later


def test_the_entropy_weight_keeps_a_policy_undecided():
    spread = []
    for weight in (0.0, 10.0):
        record = reinforce(network(), endless, entropy_weight=weight, episodes=300, quiet=True)
        spread.append(record.entropy[-1])
    assert spread[0] < 0.5 < 0.68 < spread[1]


@pytest.mark.parametrize("learn", [reinforce, deep_cem])
def test_an_interrupted_training_goes_on_to_the_same_bits(learn, tmp_path):
    whole = network()
    options = {"batch": 5, "episodes": 30, "seed": 4, "quiet": True}
    expected = learn(whole, Corridor, **options)
    file, policy = tmp_path / "run" / "a.pt", network()

    def stop(record):
        if len(record.loss) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(policy, Corridor, checkpoint=file, callback=stop, **options)
    other = network(seed=9)  # the start is in the checkpoint
    record = learn(other, Corridor, checkpoint=file, resume=True, **options)
    assert record == expected
    for a, b in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    # A longer run; then other options, another file, a damaged file.
    longer = learn(other, Corridor, checkpoint=file, resume=True, **{**options, "episodes": 40})
    assert longer.returns[:30] == expected.returns
    with pytest.raises(ValueError, match="holds a training; resume=True"):
        learn(other, Corridor, checkpoint=file, **options)
    with pytest.raises(ValueError, match=r"begun with \{'seed': 4\}"):
        learn(other, Corridor, checkpoint=file, resume=True, **{**options, "seed": 5})
    with pytest.raises(ValueError, match="there is no"):
        learn(other, Corridor, checkpoint=tmp_path / "none", resume=True, **options)
    with pytest.raises(ValueError, match="say which one"):
        learn(other, Corridor, resume=True, **options)


@pytest.mark.parametrize("learn", [reinforce, deep_cem])
def test_checkpoints_that_do_not_fit(learn, tmp_path):
    file = tmp_path / "a.pt"
    options = {"checkpoint": file, "batch": 4, "episodes": 4, "quiet": True}
    learn(network(inputs=4), "CartPole-v1", **options)
    whole = torch.load(file, weights_only=True)
    start = network(inputs=4)
    before = start[0].weight.detach().clone()
    resumed = {**options, "resume": True}
    with pytest.raises(ValueError, match=r"begun with \{'env': 'CartPole-v1'\}"):
        learn(start, CartPoleEnv, **resumed)
    with pytest.raises(ValueError, match=r"a\.pt does not fit this policy: .* size mismatch"):
        learn(torch.nn.Sequential(torch.nn.Linear(4, 2)), "CartPole-v1", **resumed)
    cases = [
        (b"PK broken", "is not a readable checkpoint: it is damaged"),
        (file.read_bytes()[:-200], "is not a readable checkpoint: it is damaged"),
        (b"", "is not a readable checkpoint"),
        (torch.zeros(3), "holds a Tensor"),
        ({"model": 1}, "is not a checkpoint of a policy's training"),
        ({**whole, "settings": [1]}, "is not a checkpoint of a policy's training"),
        ({**whole, "record": {"nothing": 1}}, "does not fit this policy"),
        ({**whole, "record": {**whole["record"], "returns": ["x"]}}, "does not fit this policy"),
        ({k: v for k, v in whole.items() if k != "optimizer"}, "does not fit this policy"),
    ]
    for content, message in cases:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(ValueError, match=message) as caught:
            learn(start, "CartPole-v1", **resumed)
        assert "weights_only" not in str(caught.value)
    assert not torch.equal(before, whole["policy"]["0.weight"])


def test_it_shows_progress_and_leaves_the_random_numbers_of_others_alone(capsys):
    policy = network()
    before = torch.get_rng_state()
    calls = []
    reinforce(policy, Corridor, episodes=25, callback=lambda record: calls.append(record.average()))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(calls) == 2  # whole batches of ten
    assert "last 100" in capsys.readouterr().err
    reinforce(policy, Corridor, episodes=20, quiet=True)
    assert capsys.readouterr().err == ""


def test_bad_options():
    cases = [
        (reinforce, {"gamma": 1.5}, "`gamma` must be at least 0 and at most 1"),
        (reinforce, {"entropy_weight": -1.0}, "`entropy_weight` must be at least 0"),
        (reinforce, {"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        (reinforce, {"batch": 1}, "`batch` must be a whole number of at least 2"),
        (reinforce, {"lr": 0.0}, "`lr` must be greater than 0"),
        (reinforce, {"episodes": 9}, "`episodes` must be at least `batch`, 10, got 9"),
        (deep_cem, {"elite": 0.05}, "an `elite` of 0.05 of a `batch` of 16 is 1"),
        (deep_cem, {"batch": 2}, "`batch` must be a whole number of at least 3"),
    ]
    for learn, options, message in cases:
        with pytest.raises(ValueError, match=message):
            learn(network(), Corridor, quiet=True, **options)


# ---- parameters ---------------------------------------------------------------------------------


def test_scores_are_those_of_the_policies_one_by_one():
    policy = network(inputs=4)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
    scores = PolicyScores(policy, "CartPole-v1", episodes=2, seed=3)
    points = Gaussian(torch.zeros(scores.dimensions), 1.0).sample(
        4, torch.Generator().manual_seed(0)
    )
    together = scores.of_each_episode(points, round=1)
    assert torch.equal(scores(points, 1), together.mean(1))
    assert not torch.equal(scores.of_each_episode(points, round=2), together)
    now = torch.nn.utils.parameters_to_vector(policy.parameters())
    assert torch.equal(now, before)
    seeds = seeds_of(3, 1, 8)
    for k, point in enumerate(points):
        torch.nn.utils.vector_to_parameters(point.float(), policy.parameters())
        with Stage("CartPole-v1") as stage, torch.no_grad():
            alone = stage.play(
                lambda seen, _: policy(seen).argmax(1), seeds[2 * k : 2 * k + 2]
            ).returns
        assert torch.equal(alone, together[k])


def test_the_method_balances_a_pole():
    policy = torch.nn.Linear(4, 2, bias=False)
    scores = PolicyScores(policy, "CartPole-v1")
    search = CrossEntropyMethod(Gaussian(torch.zeros(8), 1.0), population=40, elite=0.2)
    found = search.run(lambda x: scores(x, search.iteration), 8, target=150.0, quiet=True)
    assert found.history[-1].mean >= 150
    judge = PolicyScores(policy, "CartPole-v1", episodes=5, seed=99)
    assert judge(found.centre[None]).item() > 150


def test_numbers_as_actions():
    scores = PolicyScores(torch.nn.Linear(3, 1), "Pendulum-v1")
    returns = scores(torch.zeros(2, 4))
    assert (returns < -100).all()


def test_bad_parameters():
    scores = PolicyScores(network(), Corridor)
    with pytest.raises(ValueError, match=r"`points` must have shape \(n, 34\), got \(2, 3\)"):
        scores(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`episodes` must be a whole number of at least 1"):
        PolicyScores(network(), Corridor, episodes=0)
    with pytest.raises(ValueError, match="`policy` has no parameters"):
        PolicyScores(torch.nn.Identity(), Corridor)


@pytest.mark.parametrize(
    "name",
    [
        "search.cross_entropy_method", "search.rare_events", "search.gaussians", "search.choices",
        "policies.episodes", "policies.policy_learning", "policies.policy_search",
    ],
)  # fmt: skip
def test_the_examples_of_the_docstrings_run(name):
    tested = doctest.testmod(importlib.import_module(f"xent.learn.{name}"))
    assert tested.attempted > 0
    assert tested.failed == 0


# ---- the commands and the picture ---------------------------------------------------------------


def test_the_command_reinforce(tmp_path, capsys):
    out = tmp_path / "run"
    call = ["reinforce", "--out", str(out), "--hidden", "8", "--batch", "5"]
    assert main([*call, "--episodes", "10", "--quiet"]) == 0
    told, progress = capsys.readouterr()
    assert "over 100 fresh episodes" in told
    assert not progress
    assert (out / "curves.png").stat().st_size > 1000
    assert main([*call, "--episodes", "20"]) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert main([*call, "--episodes", "20", "--resume", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "record.json").read_text())
    assert len(record["returns"]) == 20
    assert len(record["entropy"]) == 4
    assert record["fresh"]["episodes"] == 100


def test_the_command_cem(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call = ["cem", "--env", "FrozenLake-v1", "--population", "20", "--episodes", "2", "--quiet"]
    assert main([*call, "--out", str(whole), "--iterations", "4"]) == 0
    assert main([*call, "--out", str(parts), "--iterations", "2"]) == 0
    capsys.readouterr()
    assert main([*call, "--out", str(parts), "--iterations", "4"]) == 2
    assert "holds a run; --resume continues it" in capsys.readouterr().err
    assert main([*call, "--out", str(parts), "--iterations", "4", "--resume", "--seed", "1"]) == 2
    assert "begun with {'seed': 0}" in capsys.readouterr().err
    assert main([*call, "--out", str(parts), "--iterations", "4", "--resume", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["history"] == json.loads((whole / "record.json").read_text())["history"]
    assert record["evaluations"] == 80
    assert (parts / "curves.png").stat().st_size > 1000
    file = parts / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    for broken, message in [
        (torch.zeros(2), "holds a Tensor"),
        ({"model": {}}, "holds no search of `xent cem`"),
        ({**state, "search": {}}, "is not what `state_dict` gave: KeyError"),
        ({**state, "search": {**state["search"], "evaluations": "x"}}, "is not what `state_dict`"),
        ({**state, "search": {**state["search"], "history": [["x"] * 4]}}, "is not what"),
    ]:
        torch.save(broken, file)
        assert main([*call, "--out", str(parts), "--iterations", "5", "--resume"]) == 2
        assert message in capsys.readouterr().err


def test_commands_are_interrupted_and_go_on(tmp_path, capsys, monkeypatch):
    """Each command continues from the state saved before Ctrl-C."""
    step = Corridor.step
    gymnasium.register("Corridor-v0", Corridor, disable_env_checker=True)
    try:
        for command, size in (("cem", "--population"), ("reinforce", "--batch")):
            played = []

            def counted(self, action, played=played):
                played.append(action)
                if len(played) == 300:
                    raise KeyboardInterrupt
                return step(self, action)

            length = "--iterations=40" if command == "cem" else "--episodes=400"
            call = [command, "--env", "Corridor-v0", size, "10", length, "--target", "99"]
            call += ["--quiet", "--out"]
            monkeypatch.setattr(Corridor, "step", counted)
            assert main([*call, str(tmp_path / command)]) == 130
            assert "interrupted" in capsys.readouterr().err
            half = json.loads((tmp_path / command / "record.json").read_text())
            monkeypatch.setattr(Corridor, "step", step)
            assert main([*call, str(tmp_path / command), "--resume"]) == 0
            assert main([*call, str(tmp_path / "whole" / command)]) == 0
            course = "history" if command == "cem" else "returns"
            records = [
                json.loads((folder / "record.json").read_text())[course]
                for folder in (tmp_path / command, tmp_path / "whole" / command)
            ]
            assert records[0] == records[1]
            assert 0 < len(half[course]) < len(records[0])
            assert records[0][: len(half[course])] == half[course]
    finally:
        del gymnasium.registry["Corridor-v0"]


def test_action_spaces_without_a_shape_are_refused(tmp_path, capsys):
    class Odd(Corridor):
        action_space = Dict({"a": Discrete(2)})

    gymnasium.register("Odd-v0", Odd, disable_env_checker=True)
    try:
        for command in ("cem", "reinforce"):
            words = [command, "--env", "Odd-v0", "--out", str(tmp_path / command), "--quiet"]
            assert main(words) == 2
            assert "Discrete" in capsys.readouterr().err
    finally:
        del gymnasium.registry["Odd-v0"]


def test_commands_with_bad_options(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    cases = [
        (["reinforce", "--env", "Nope-v1"], "--env Nope-v1"),
        (["reinforce", "--env", "Pendulum-v1"], "Discrete"),
        (["reinforce", "--hidden", "-1"], "--hidden must be at least 0"),
        (["reinforce", "--gamma", "2"], "--gamma"),
        (["reinforce", "--resume"], "--resume"),
        (["cem", "--population", "2"], "--population"),
        (["cem", "--noise", "-1"], "--noise"),
        (["cem", "--seed", "-1"], "--seed must be"),
        (["cem", "--resume"], "--resume"),
    ]
    for words, message in cases:
        assert main([*words, *out, "--quiet"]) == 2
        assert message in capsys.readouterr().err


def test_learning_curves():
    pytest.importorskip("matplotlib")
    ax = learning_curves({"one": [1.0, 2.0, 6.0]}, window=2, target=5)
    assert [line.get_label() for line in ax.lines] == ["each", "one", "target: 5"]
    assert ax.lines[1].get_ydata().tolist() == [1.0, 1.5, 4.0]
    ax = learning_curves({"a": [[1, 2], [3]], "b": [4, 5]}, window=1, unit="iteration")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1, 2], [3], [4, 5]]
    assert ax.lines[0].get_color() == ax.lines[1].get_color() != ax.lines[2].get_color()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("iteration", "return")
    arrays = {"a": [np.arange(2), np.arange(3)], "b": torch.arange(4.0), "c": []}
    ax = learning_curves(arrays, window=1)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0, 1], [0, 1, 2], [0, 1, 2, 3], []]
    with pytest.raises(ValueError, match="`window`"):
        learning_curves({"a": [1.0]}, window=0)
