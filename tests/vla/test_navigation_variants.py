"""Variants of RL on agents: each formula by hand and by gradients; methods; and the mutants.

The checks that take nothing but `lib` also run against wrong versions of the library.
"""

import csv
import math
import statistics
from dataclasses import replace

import pytest
import torch
from mutants.library import namespace
from mutants.variants import changed, must_be_noticed
from vla.tiny import agent, level, prompts_of, seeded

from minivisrl import DATA, UserError
from minivisrl.evaluation.sets import evaluate
from minivisrl.optimization import GRPO, PPO, GRPOConfig, tgrpo
from minivisrl.paradigms import stages, success_replay, temporal
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.policy import frozen
from minivisrl.recipes import navigation_methods
from minivisrl.recipes.navigation_methods import (
    METHODS,
    MethodOptions,
    measure,
    progress_by_step,
    time_decayed,
)
from minivisrl.recipes.vla import NavigateConfig, fresh_critic
from minivisrl.rewards import timing
from minivisrl.rollout import Prompts, Rollout
from minivisrl.vla.navigation import Episode, success

MODULES = {m.__name__: m for m in (tgrpo, success_replay, temporal, stages, timing)}
STEP = {"max_grad_norm": 1.0}
INF = 1e30  # what stands under a zero mask must not matter


LIB = namespace(MODULES.values())


LEVELS = (level(("pick", 0)), level(("open", 2)))  # two and six actions away
NEAR = (level(("go", 1), agent=(1, 3, 3)), level(("open", 2), agent=(4, 3, 0)))  # two, and one
CFG = OnlineConfig(batch_size=2, group_size=8, learning_rate=3e-3)


def unsure():
    """A tiny agent that succeeds in the near levels two times in five."""
    policy = agent()
    policy.temperature = 3.0
    return policy


def rate(policy) -> float:
    """Success in the near levels, 64 episodes each."""
    return evaluate(policy, prompts_of(*NEAR), success, samples=64, generator=seeded(9)).score


def gain(job, seed=0, steps=10, reward=success, collect=act_and_judge):
    """Success gained in the near levels, in batches of sixteen episodes, and the rows."""
    policy = unsure()
    before = rate(policy)
    trainer = OnlineTrainer(
        policy, prompts_of(*NEAR), reward, job, CFG, seeded(seed), collect=collect
    )
    rows = [trainer.step() for _ in range(steps)]
    return rate(policy) - before, rows


# TGRPO: two advantages for every action.


def test_step_advantages_by_hand(lib=LIB):
    """Three siblings at t = 0, two at t = 1, one at t = 2; at t = 3 two who earn the same."""
    mask = torch.tensor([[[1.0, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]]])
    rewards = torch.tensor([[[1.0, 2, 5, INF], [0, 0, -INF, 0.3], [0, INF, INF, 0.3]]])
    third, half = 1 / math.sqrt(3), 1 / math.sqrt(2)
    expected = [[2 * third, half, 0, 0], [-third, -half, 0, 0], [-third, 0, 0, 0]]
    found = lib.step_advantages(rewards, mask, std_eps=0.0)
    torch.testing.assert_close(found, torch.tensor([expected]))
    assert lib.step_advantages(rewards, mask, std_eps=1.0)[0, 0, 1].item() == pytest.approx(
        1 / (1 + math.sqrt(2))
    )


def ragged(seed=0, groups=3, size=5, columns=4):
    g = seeded(seed)
    rewards = torch.randint(-2, 3, (groups, size, columns), generator=g).float()
    lengths = torch.randint(1, columns + 1, (groups, size, 1), generator=g)
    return rewards, (torch.arange(columns) < lengths).float()


def by_loops(rewards, mask, sizes=(0.3, 0.7), eps=1e-4):
    """The fused advantages, one number at a time."""
    groups, size, columns = rewards.shape
    fused = torch.zeros_like(rewards)
    for b in range(groups):
        totals = [sum(rewards[b, g][mask[b, g] != 0].tolist()) for g in range(size)]
        for g in range(size):
            spread = statistics.stdev(totals)
            whole = (totals[g] - statistics.mean(totals)) / (spread + eps) if spread else 0.0
            for t in range(columns):
                beside = [rewards[b, k, t].item() for k in range(size) if mask[b, k, t]]
                step = 0.0
                if len(beside) > 1 and statistics.stdev(beside):
                    middle = statistics.mean(beside)
                    step = (rewards[b, g, t].item() - middle) / (statistics.stdev(beside) + eps)
                if mask[b, g, t]:
                    fused[b, g, t] = sizes[0] * step + sizes[1] * whole
    return fused


def as_rollout(mask):
    """Rows with the mask (B, G, T) and nothing in them."""
    groups, size, columns = mask.shape
    flat = mask.reshape(-1, columns)
    prompts = Prompts({"prompt": [str(i) for i in range(groups)]})
    return Rollout(prompts, {}, torch.zeros_like(flat), flat, size, [None] * len(flat))


def test_tgrpo_compares_at_both_levels(lib=LIB):
    cfg = lib.TGRPOConfig(step_weight=0.3, trajectory_weight=0.7)
    for seed in range(4):
        rewards, mask = ragged(seed)
        spoilt = rewards.masked_fill(mask == 0, INF).reshape(15, 4)
        batch = lib.TGRPO(cfg).compare(None, None, as_rollout(mask), spoilt)
        torch.testing.assert_close(batch.advantages, by_loops(rewards, mask).reshape(15, 4))


def test_tgrpo_with_one_reward_a_row_pays_it_at_the_end(lib=LIB):
    """Rewards 1 0 after two actions, 0 after one: at t = 0 nobody has earned anything but 0."""
    mask = torch.tensor([[[1.0, 1], [1, 1], [1, 0]]])
    only_steps = lib.TGRPO(lib.TGRPOConfig(step_weight=1.0, trajectory_weight=0.0))
    batch = only_steps.compare(None, None, as_rollout(mask), torch.tensor([1.0, 0, 0]))
    expected = torch.tensor([[0, 0.7070], [0, -0.7070], [0, 0]])
    torch.testing.assert_close(batch.advantages, expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="step_weight=0"):
        lib.TGRPOConfig(step_weight=0.0, trajectory_weight=0.0)


def test_tgrpo_learns_and_the_control_does_not(lib=LIB):
    """Seeds 0-7: .367 +- .021; the control -.05 +- .13, never above .1."""
    job = lib.TGRPO(lib.TGRPOConfig())
    assert gain(job, reward=progress_by_step)[0] > 0.25
    assert gain(job, reward=progress_by_step, collect=shuffled(act_and_judge))[0] < 0.25


# Success replay.


def scripted(*batches, size=2):
    """Act and Judge that tells what it was given: (rows of prompts, rewards (B, G), columns)."""
    turns = iter(enumerate(batches))

    def collect(policy, prompts, reward_fn, cfg, generator):
        turn, (rows, rewards, columns) = next(turns)
        rewards = torch.tensor(rewards)
        tokens = 100 * turn + torch.arange(rewards.numel())[:, None].expand(-1, columns)
        logprobs, outputs = -tokens.float(), [f"{turn}.{i}" for i in range(rewards.numel())]
        actions, mask = {"tokens": tokens.clone()}, torch.ones(rewards.numel(), columns)
        rollout = Rollout(prompts.rows(rows), actions, logprobs, mask, size, outputs)
        return rollout, rewards.flatten(), {"minus": -rewards.flatten()}

    return collect


def calls(replay, count, seed=0):
    prompts, g = Prompts({"prompt": ["a", "b", "c"]}), seeded(seed)
    return [replay(None, prompts, None, CFG, g) for _ in range(count)]


def test_a_success_comes_back_where_all_fail(lib=LIB):
    """Prompt 0 succeeded in the first batch; in the second it fails, as does prompt 1."""
    script = ([1, 0], [[0.0, 0], [0, 1]], 3), ([0, 1], [[0.0, 0.5], [0, 0]], 2)
    places = set()
    for seed in range(8):
        first, second = calls(lib.SuccessReplay(collect=scripted(*script)), 2, seed)
        assert first[0].outputs == ["0.0", "0.1", "0.2", "0.3"] and not first[2]["replayed"].any()
        rollout, rewards, terms = second
        assert rollout.outputs[2:] == ["1.2", "1.3"] and rollout.group_size == 2
        assert "0.3" in rollout.outputs
        place = rollout.outputs.index("0.3")
        places.add(place)
        other = 1 - place
        assert rollout.outputs[other] == f"1.{other}" and rewards[other] == other / 2
        assert rewards[place] == 1 and terms["minus"][place] == -1
        assert rollout.logprobs[place].tolist() == [-3, -3, -3]  # of the weights that sampled it
        assert rollout.mask.sum(1).tolist() == [3 if i == place else 2 for i in range(4)]
        assert rollout.prompts["prompt"] == ["a", "b"]
        assert terms["replayed"].tolist() == [0.5] * 4
    assert places == {0, 1}  # any sibling may make way


def test_the_newest_success_is_kept_and_successes_make_no_way(lib=LIB):
    lost, won, both = [[0.0, 0]], [[1.0, 0]], [[0.5, 2.0]]
    script = [([2], rewards, 1) for rewards in (won, both, lost, lost, won)]
    told = calls(lib.SuccessReplay(collect=scripted(*script)), 5)
    assert [rollout.outputs for rollout, *_ in told[:2]] == [["0.0", "0.1"], ["1.0", "1.1"]]
    for turn in (2, 3):
        assert "1.1" in told[turn][0].outputs and told[turn][1].max() == 2
    assert told[4][0].outputs == ["4.0", "4.1"]
    strict = calls(lib.SuccessReplay(threshold=2.0, collect=scripted(*script)), 3)
    assert strict[2][0].outputs.count("1.1") == 1


def test_rewards_per_column_come_back_whole(lib=LIB):
    inner = scripted(([0], [[0.5, 0]], 2), ([0], [[0.0, 0]], 3))

    def collect(*args):
        rollout, rewards, _ = inner(*args)
        return rollout, rewards[:, None] * rollout.mask, {}

    rollout, rewards, _ = calls(lib.SuccessReplay(collect=collect), 2)[1]
    assert "0.0" in rollout.outputs
    assert rewards[rollout.outputs.index("0.0")].tolist() == [0.5, 0.5, 0]


def test_a_group_that_fails_as_a_whole_learns_from_its_success(lib=LIB):
    """Without replay the gradient is zero; with it, the success becomes likelier."""
    policy = agent()
    prompts = prompts_of(LEVELS[1])
    way, lost = Episode(LEVELS[1], (1, 2, 0, 2, 2, 5)), Episode(LEVELS[1], (0,) * 16)
    assert [room for room, _ in way.watch()][-1].success
    shown = iter([[way, lost], [lost, lost]])

    def collect(policy, prompts, reward_fn, cfg, generator):
        outputs = next(shown)
        rollout = policy.encode(prompts, outputs, generator)
        rollout = replace(rollout, logprobs=policy.logprobs(rollout).detach())
        return rollout, torch.tensor([float(y is way) for y in outputs]), {}

    replay, job = lib.SuccessReplay(collect=collect), GRPO(GRPOConfig(kl_coef=0.0))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    alone = policy.encode(prompts, [way], seeded())
    replay(policy, prompts, None, CFG, seeded())
    rollout, rewards, _ = replay(policy, prompts, None, CFG, seeded())
    before = policy.logprobs(alone).sum().item()
    batch = job.compare(policy, None, rollout, rewards)
    job.improve(policy, optimizer, batch, generator=seeded(), **STEP)
    assert policy.logprobs(alone).sum().item() > before + 0.01


# RFTF: the order of frames.


def test_order_loss_worked_numbers(lib=LIB):
    """log 3 apart: the odds are 3 to 1.  Of three frames all pairs count alike."""
    loss, stats = lib.order_loss(torch.tensor([[0.0, math.log(3)]]), torch.ones(1, 2))
    assert loss.item() == pytest.approx(-math.log(3 / 4)) and stats["accuracy"] == 1
    loss, stats = lib.order_loss(torch.tensor([[1.0, 0, 3]]), torch.ones(1, 3))
    wrong, right = math.log1p(math.e), [math.log1p(math.exp(-2)), math.log1p(math.exp(-3))]
    assert loss.item() == pytest.approx((wrong + sum(right)) / 3)
    assert stats["accuracy"].item() == pytest.approx(2 / 3)


def test_order_loss_by_loops(lib=LIB):
    """Gaps, a row of one frame, an empty row; the mean is over pairs, then over episodes."""
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    values = torch.randn(4, 4, generator=seeded(), dtype=torch.float64)
    rows = []
    for value, kept in zip(values.tolist(), mask.tolist(), strict=True):
        shown = [v for v, k in zip(value, kept, strict=True) if k]
        pairs = [(a, b) for i, a in enumerate(shown) for b in shown[i + 1 :]]
        rows.append(statistics.mean([math.log1p(math.exp(a - b)) for a, b in pairs] or [0.0]))
    spoilt = values.masked_fill(mask == 0, INF)
    assert lib.order_loss(spoilt, mask)[0].item() == pytest.approx(statistics.mean(rows))


def test_order_loss_lifts_what_comes_later(lib=LIB):
    values = torch.zeros(1, 3, requires_grad=True)
    lib.order_loss(values, torch.ones(1, 3))[0].backward()
    assert values.grad.tolist() == [[pytest.approx(1 / 3), 0, pytest.approx(-1 / 3)]]


def test_progress_rewards_by_hand(lib=LIB):
    """Gains 2 and -1 at half their worth, then the outcome; a gap is stepped over."""
    values = torch.tensor([[1.0, 3, 2, INF], [1, INF, 4, INF], [7, INF, INF, INF]])
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]])
    told = lib.progress_rewards(values, torch.tensor([1.0, 0, 1]), mask, 0.5)
    assert told.tolist() == [[1, -0.5, 1, 0], [1.5, 0, 0, 0], [1, 0, 0, 0]]


def shown_ways(levels=LEVELS, ways=((2, 3), (1, 2, 0, 2, 2, 5))):
    """Levels, and the way to success in each."""
    told = [Episode(where, way, True) for where, way in zip(levels, ways, strict=True)]
    assert all([room.success for room, _ in episode.watch()][-1] for episode in told)
    return prompts_of(*levels), told


def test_a_value_model_learns_the_order(lib=LIB):
    """Frames of two successes.  The control sees them in a new random order every time."""

    def trained(control):
        model = agent()
        tidy = lib.draws(model, shown_ways(), 4)

        def draw(generator, step):
            rollout = tidy(generator, step)
            views = rollout.actions["observations"].clone()
            for row, kept in enumerate(rollout.mask.sum(1).int().tolist()):
                order = torch.randperm(kept, generator=generator) if control else range(kept)
                views[row, :kept] = views[row, list(order)]
            return replace(rollout, actions=rollout.actions | {"observations": views})

        cfg = lib.OrderConfig(steps=25, learning_rate=3e-3)
        rows = list(lib.learn_order(model, draw, cfg, seeded()))
        assert len(rows) == 25
        rollout = model.encode(*shown_ways(), seeded())
        return lib.order_loss(model.evaluate_actions(rollout, values=True).values, rollout.mask)

    assert trained(control=False)[0] < 0.35 < trained(control=True)[0]


def test_temporal_feedback_pays_gains_and_the_outcome(lib=LIB):
    policy = unsure()
    policy.add_value_head(seeded(1))
    with torch.no_grad():
        policy.value_head.weight.mul_(100)
    collect = lib.temporal_feedback(frozen(policy), 0.25)
    told, rewards, terms = collect(policy, prompts_of(*NEAR), success, CFG, seeded(3))
    assert not rewards.requires_grad and set(terms) == {"success", "progress"}
    assert 0 < terms["success"].sum() < 16
    values = policy.evaluate_actions(told, values=True).values
    for row, episode in enumerate(told.outputs):
        seen = values[row, : episode.steps]
        expected = [0.25 * (b - a).item() for a, b in zip(seen, seen[1:], strict=False)]
        expected += [float(episode.success)] + [0.0] * (rewards.shape[1] - episode.steps)
        assert rewards[row].tolist() == pytest.approx(expected, abs=1e-5)
        assert terms["success"][row] == float(episode.success)
        gained = 0.25 * (seen[-1] - seen[0]).item()
        assert terms["progress"][row].item() == pytest.approx(gained, abs=1e-4)


def progress_gain(lib, seed=0, collect=act_and_judge):
    """As `gain`, with PPO and a model that knows the order of frames in the near levels."""
    model, cfg = agent(), lib.OrderConfig(steps=15, learning_rate=3e-3)
    shown = shown_ways(NEAR, ((0, 0), (5,)))
    assert len(list(lib.learn_order(model, lib.draws(model, shown, 4), cfg, seeded(seed)))) == 15
    feedback = lib.temporal_feedback(frozen(model), 0.1, collect)
    return gain(PPO(fresh_critic()), seed, collect=feedback)


def test_progress_trains_an_agent(lib=LIB):
    """Seeds 0-7: .426 +- .031."""
    moved, rows = progress_gain(lib)
    assert moved > 0.3 and "reward/progress" in rows[0]


# Stages: a part at a time, and imitation of successes.


def test_only_some_parameters_get_gradients(lib=LIB):
    policy = agent()
    policy.add_value_head(seeded())
    policy.model.lm_head.weight.requires_grad_(True)
    fixed = policy.model.base_model.multi_modal_projector.linear_1.bias.requires_grad_(False)
    before = {name for name, p in policy.named_parameters() if p.requires_grad}
    with pytest.raises(RuntimeError, match="stop"), lib.only(policy, "model.lm_head.", "value_"):
        told = {name for name, p in policy.named_parameters() if p.requires_grad}
        assert told == {"model.lm_head.weight", "value_head.weight", "value_head.bias"}
        raise RuntimeError("stop")
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == before
    assert not fixed.requires_grad
    with pytest.raises(UserError, match="no parameter"), lib.only(policy, "critic."):
        pass


def test_the_critic_warms_up_alone(lib=LIB):
    """All but the value head stays bit for bit, though the optimiser has momentum already."""
    policy = agent()
    cfg = replace(CFG, critic_learning_rate=0.05)
    job = PPO(fresh_critic())
    trainer = OnlineTrainer(policy, prompts_of(*LEVELS), success, job, cfg, seeded())
    trainer.step()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    rows = list(lib.warm_critic(trainer, 6))
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"value_head.weight", "value_head.bias"} and len(rows) == 6
    assert all(row["ratio"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert rows[-1]["value_loss"] < rows[0]["value_loss"]
    trainer.step()
    assert not torch.equal(policy.model.lm_head.weight, before["model.lm_head.weight"])


def test_successes_are_kept_with_their_prompts(lib=LIB):
    script = ([1, 2], [[0.0, 1], [2, 0]], 2), ([0, 1], [[0.0, 0], [0, 0]], 1)
    kept = lib.Successes(collect=scripted(*script))
    with pytest.raises(UserError, match="nothing to imitate"):
        kept.shown()
    told = calls(kept, 2)
    assert told[0][1].tolist() == [0, 1, 2, 0] and len(told[1][0]) == 4
    prompts, outputs = kept.shown()
    assert prompts["prompt"] == ["b", "c"] and outputs == ["0.1", "0.2"]
    strict = lib.Successes(threshold=1.5, collect=scripted(*script))
    calls(strict, 1)
    assert strict.shown()[1] == ["0.2"]


def test_batches_are_drawn_from_what_was_shown(lib=LIB):
    """Every demonstration is drawn, with its own prompt and all of its actions."""
    policy = agent()
    prompts, ways = shown_ways()
    rollout = lib.draws(policy, (prompts, ways), 32)(seeded(), 0)
    assert len(rollout) == 32 and rollout.group_size == 1
    assert set(map(str, rollout.outputs)) == set(map(str, ways))
    for row, (mission, way) in enumerate(
        zip(rollout.prompts["prompt"], rollout.outputs, strict=True)
    ):
        assert mission == way.level.mission and rollout.mask[row].sum() == way.steps


def failure(completions, **_):
    return [1.0 - float(episode.success) for episode in completions]


def imitation_gain(lib, reward=success, seed=0, steps=30):
    """Success gained by cloning those of 64 own episodes that earned 1."""
    policy, kept = unsure(), lib.Successes()
    kept(policy, prompts_of(*NEAR), reward, replace(CFG, group_size=32), seeded(seed))
    sft = SFTConfig(learning_rate=3e-3, warmup=1, total_steps=steps)
    trainer = SFTTrainer(policy, lib.draws(policy, kept.shown(), 16), sft, seeded(seed))
    before = rate(policy)
    for _ in range(steps):
        trainer.step()
    return rate(policy) - before


def test_an_agent_imitates_its_own_successes(lib=LIB):
    """Seeds 0-7: .287 +- .032.  The control clones its failures: -.094 +- .047, never above 0."""
    assert imitation_gain(lib) > 0.16
    assert imitation_gain(lib, failure) < 0.09


# VLN-R1: agreement with an expert, decayed.


def test_decayed_agreement_by_hand(lib=LIB):
    """Weights 1, 1/2, 1/4 for three actions of the expert."""
    told = lib.decayed_agreement
    assert told((1, 0, 0), (1, 2, 0), 0.5) == pytest.approx(1.25 / 1.75)
    assert told((0, 2, 0), (1, 2, 0), 0.5) == pytest.approx(0.75 / 1.75)
    assert told((1, 2, 0, 5, 5), (1, 2, 0), 0.5) == 1.0
    assert told((1,), (1, 2, 0), 0.5) == pytest.approx(1 / 1.75)
    assert told((0, 2, 0), (1, 2, 0), 1.0) == pytest.approx(2 / 3)
    assert told((0, 2), (1, 2), 0.0) == 0.0
    assert told((), (1,), 0.5) == 0.0
    with pytest.raises(UserError, match="at least one action"):
        told((1,), (), 0.5)


def test_the_expert_of_a_level_is_followed():
    """The bot steps forward and picks up."""
    ends = [(2, 3), (2, 0), (0, 3), (0, 0)]
    told = time_decayed([Episode(LEVELS[0], actions) for actions in ends])
    assert told == pytest.approx([1.0, 1 / 1.9, 0.9 / 1.9, 0.0])


def test_the_decayed_reward_trains_an_agent():
    """Twenty batches.  Seeds 0-7: .376 +- .023; with rewards shuffled .04 +- .12."""
    assert gain(GRPO(GRPOConfig(kl_coef=0.0)), steps=20, reward=time_decayed)[0] > 0.28


def test_progress_by_step_by_hand():
    """Two actions away, limit 8.  Aside and back; success; the wrong thing; out of time."""
    told = progress_by_step(
        [
            Episode(LEVELS[0], (0, 1, 2, 3), True),
            Episode(LEVELS[0], (2, 3), True),
            Episode(level(("pick", 1)), (2, 3)),
        ]
    )
    near = level(("pick", 1)).limit
    ways = [level(("pick", 1)).shortest, level(("pick", 1), agent=(3, 2, 0)).shortest, near]
    lost = [(a - b) / near for a, b in zip(ways, ways[1:], strict=False)]
    expected = [[-1 / 8, 1 / 8, 1 / 8, 9 / 8], [1 / 8, 9 / 8, 0, 0], [*lost, 0, 0]]
    torch.testing.assert_close(told, torch.tensor(expected))


# The runnable methods.

TASK = NavigateConfig(train_prompts=24, eval_prompts=4)
TINY = MethodOptions(
    name="grpo",
    episodes=16,
    imitation=2,
    demonstrations=8,
    few=2,
    task=TASK,
    trainer=OnlineConfig(batch_size=2, group_size=4, learning_rate=1e-3),
    order=temporal.OrderConfig(steps=2),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny base."""
    folder = str(tmp_path_factory.mktemp("base"))
    agent().save(folder)
    return folder


def near_levels():
    """Four times the two near levels, with all columns of training levels."""
    more = {"seed": [0] * 8, "kind": ["go", "open"] * 4}
    return Prompts(prompts_of(*NEAR * 4).columns | more)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name, base, tmp_path, monkeypatch):
    """At equal episodes, up to a batch; the same numbers again; nothing is written."""
    monkeypatch.chdir(tmp_path)
    options = replace(TINY, name=name, checkpoint=base)
    if name in ("ire-vla", "rldg"):  # there must be successes to imitate
        monkeypatch.setattr(navigation_methods, "levels", lambda _: near_levels())
        options = replace(options, episodes=32, task=replace(TASK, temperature=3.0))
    told = measure(options)
    largest = 4 * 8 if name == "ript-vla" else 2 * 8
    assert options.episodes <= told["episodes"] < options.episodes + largest
    assert all(0 <= told[when][s] <= 1 for when in ("before", "after") for s in told["before"])
    assert list(told["after"]) == ["heldout", "appearance", "semantics", "execution"]
    assert not list(tmp_path.iterdir())
    if name in ("tgrpo", "rftf", "rldg"):
        again = measure(options)
        assert all(told[key] == again[key] for key in told if key != "seconds")


def test_methods_are_in_the_catalogue():
    with open(DATA / "papers.csv", newline="") as file:
        known = {row["id"] for row in csv.DictReader(file)}
    assert {method.paper for method in METHODS.values()} - {None} <= known
    assert {method.rival for method in METHODS.values()} - {None} <= set(METHODS)


@pytest.mark.parametrize("wrong", [{"name": "dpok"}, {"name": "arpo", "episodes": 0}])
def test_method_options_out_of_range(wrong):
    with pytest.raises(UserError, match="unknown method|episodes=0"):
        MethodOptions(**wrong)


# Would a machine notice?

T, R, V, S, D = MODULES
MUTANTS = [
    (T, "mean over all rows", "masked_mean(rewards, mask, dim=1)[:, None]", "rewards.mean(dim=1, keepdim=True)"),
    (T, "biased standard deviation", "(acting - 1).clamp(min=1)", "acting.clamp(min=1)"),
    (T, "times are mixed", "rewards.masked_fill(~keep, -inf).amax(dim=1, keepdim=True)", "rewards.masked_fill(~keep, -inf).amax()"),
    (T, "equal rewards divide by zero", ".masked_fill(same, 0.0)", ""),
    (T, "the weights swapped", "weights.step_weight * steps + weights.trajectory_weight *", "weights.trajectory_weight * steps + weights.step_weight *"),
    (T, "episodes do not count", "+ weights.trajectory_weight * whole.advantages[:, None]", "+ 0 * whole.advantages[:, None]"),
    (T, "what is masked is learned from", "fused.where(rollout.mask != 0, 0.0)", "fused"),
    (T, "siblings of other groups", "grouped = len(rollout.prompts), rollout.group_size, -1", "grouped = 1, len(rollout), -1"),
    (T, "no signal from the steps", "steps = step_advantages(", "steps = 0 * step_advantages("),
    (R, "failures come back", ">= self.threshold", "< self.threshold"),
    (R, "the oldest is kept", "self.stored[number] = take_groups(parts[0], best)", "self.stored.setdefault(number, take_groups(parts[0], best))"),
    (R, "the first row is stored", "best = group * size + won", "best = 0 * size + won"),
    (R, "always the first makes way", "place = int(torch.randint(size, (), generator=g))", "place = 0"),
    (R, "by position, not by prompt", 'enumerate(fresh.prompts["row"].tolist())', "enumerate(range(len(fresh.prompts)))"),
    (R, "nothing comes back", "parts.append(self.stored[number])", "parts.append(take_groups(parts[0], torch.tensor([group * size])))"),
    (R, "columns are not summed", "row_totals(rewards, fresh.mask)", "(rewards if rewards.ndim == 1 else rewards[:, 0])"),
    (V, "the earlier is worth more", "values[:, None, :] - values[:, :, None]", "values[:, :, None] - values[:, None, :]"),
    (V, "each with itself", "triu(diagonal=1)", "triu(diagonal=0)"),
    (V, "mean over all pairs", "masked_mean(-logsigmoid(gains), pairs, dim=1).mean()", "masked_mean(-logsigmoid(gains), pairs)"),
    (V, "masked frames are read", "(keep[:, :, None] & keep[:, None, :])", "(keep[:, :, None] | keep[:, None, :])"),
    (V, "the last action loses its value", "weight * gains * (1 - last)", "weight * gains"),
    (V, "the weight is lost", "paid + weight * gains", "paid + gains"),
    (V, "the outcome is lost", "return paid + weight", "return 0 * paid + weight"),
    (V, "returns, not gains", "gae_lambda=0.0)", "gae_lambda=1.0)"),
    (V, "it does not learn", "        descend(model, optimizer, loss, max_grad_norm=1.0)\n", ""),
    (V, "progress counts the outcome", "dense.sum(dim=1) - outcome", "dense.sum(dim=1)"),
    (S, "the others are trained", "if not name.startswith(parts)]", "if name.startswith(parts)]"),
    (S, "frozen for good", "parameter.requires_grad_(True)", "parameter.requires_grad_(False)"),
    (S, "not after an error", "    try:\n        yield\n    finally:\n        for parameter in others:\n            parameter", "    yield\n    if True:\n        for parameter in others:\n            parameter"),
    (S, "what was fixed is freed", "if p.requires_grad]", "if True]"),
    (S, "the actor warms up, too", 'only(trainer.policy, "value_head.")', 'only(trainer.policy, "value_head.", "model.")'),
    (S, "failures are kept", ">= self.threshold", "< self.threshold"),
    (S, "prompts of other rows", "self.prompts.append(kept.prompts)", "self.prompts.append(rollout.prompts.rows([0] * len(kept)))"),
    (S, "outputs of other prompts", "[outputs[i] for i in index]", "[outputs[i - 1] for i in index]"),
    (S, "the first is drawn again and again", "torch.randint(len(prompts),", "torch.randint(1,"),
    (D, "no decay", "gamma**k", "1.0"),
    (D, "later actions count more", "range(len(expert))]", "reversed(range(len(expert)))]"),
    (D, "not normalised", "/ sum(weights)", ""),
    (D, "disagreement", "if one == other", "if one != other"),
    (D, "the agent's length", "for k in range(len(expert))", "for k in range(len(actions))"),
]  # fmt: skip
# ruff: noqa: E501


PUBLIC = {
    T: ("step_advantages", "TGRPO"),
    R: ("SuccessReplay",),
    V: ("order_loss", "progress_rewards", "learn_order", "temporal_feedback"),
    S: ("lib.only", "warm_critic", "Successes", "lib.draws"),
    D: ("decayed_agreement",),
}


@pytest.mark.filterwarnings("ignore")  # wrong versions may warn
@pytest.mark.parametrize(("module", "wrong", "old", "new"), MUTANTS)
def test_every_wrong_variant_is_rejected(module, wrong, old, new):
    """By a check that concerns its module; a crash does not count."""
    must_be_noticed(changed(MODULES, module, old, new), globals(), PUBLIC[module], wrong)
