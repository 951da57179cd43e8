"""Dynamic sampling and replay: which groups are kept, in what order, and how a run resumes."""

import json

import pytest
import torch
from recorded import Recorded, numbered, seeded

from minivisrl.fit import load_checkpoint, save_checkpoint
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.collect import Replay, dynamic_sampling, informative, join, take_groups
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.rollout import Rollout

CFG = OnlineConfig(batch_size=4, group_size=4, learning_rate=0.1)


def is_one(completions, prompts, **_):
    """1 for an answer that starts with token 1."""
    return [float(tokens[0] == 1) for tokens in completions]


def constant(completions, **_):
    return [1.0] * len(completions)


def divided(hopeless=16, count=32):
    """Prompts below `hopeless` always answer 0; the others answer 0 or 1."""
    policy = Recorded(count, 2, 1)
    policy.logits.data[:hopeless, :, 0] = 50.0
    return policy, numbered(count)


def collected(rewards, group_size=2, width=1):
    """Rewards as a collection over prompts 0, 1, ..., with a term that is minus the reward."""
    rewards = torch.tensor(rewards)
    rows = len(rewards)
    rollout = Rollout(
        numbered(rows // group_size),
        {"tokens": torch.arange(rows * width).view(rows, width)},
        torch.zeros(rows, width),
        torch.ones(rows, width),
        group_size,
        list(range(rows)),
    )
    return rollout, rewards, {"minus": -rewards}


def test_informative_groups_by_hand():
    assert informative(collected([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])).tolist() == [False, True, False]
    rollout, _, _ = collected([0.0, 0.0], width=2)
    per_column = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert not informative((rollout, per_column, {})).any()
    assert informative((rollout, per_column.cumsum(1), {})).all()


def test_groups_move_with_their_rewards_and_terms():
    rollout, rewards, terms = take_groups(
        collected([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([2, 0])
    )
    assert rewards.tolist() == [5.0, 6.0, 1.0, 2.0] == (-terms["minus"]).tolist()
    assert rollout.outputs == [4, 5, 0, 1] and rollout.prompts["prompt"] == [2, 0]
    assert rollout.actions["tokens"][:, 0].tolist() == [4, 5, 0, 1]


def test_join_pads_rewards_per_column():
    short, long = collected([1.0, 2.0], width=2), collected([3.0, 4.0], width=3)
    parts = [(r, rewards[:, None].expand_as(r.mask), terms) for r, rewards, terms in (short, long)]
    rollout, rewards, _ = join(parts)
    assert rewards.tolist() == [[1, 1, 0], [2, 2, 0], [3, 3, 3], [4, 4, 4]]
    assert rollout.mask[:2, 2].sum() == 0


def test_dynamic_sampling_fills_the_batch_with_informative_groups():
    """Half of the prompts are hopeless: drawn once, they fill half of a batch; here, none of it."""
    policy, prompts = divided()
    plain, dynamic = [], []
    for seed in range(20):
        plain.append(act_and_judge(policy, prompts, is_one, CFG, seeded(seed)))
        dynamic.append(dynamic_sampling(8)(policy, prompts, is_one, CFG, seeded(seed)))
    shares = [sum(informative(c).float().mean().item() for c in cs) / 20 for cs in (plain, dynamic)]
    assert shares[0] < 0.65 and shares[1] == 1.0
    for rollout, rewards, terms in dynamic:
        assert len(rollout) == 16 and rollout.group_size == 4 and len(rewards) == 16
        assert min(rollout.prompts["prompt"]) >= 16
        rows = rollout.prompts.repeat(4)
        again = is_one(rollout.outputs, rows["prompt"])
        assert rewards.tolist() == again == terms["is_one"].tolist()
        assert torch.allclose(policy.logprobs(rollout).detach(), rollout.logprobs)
    assert 1 < sum(c[2]["rounds"][0].item() for c in dynamic) / 20 < 5


def test_the_first_round_is_the_plain_one_and_comes_first():
    """Groups are taken in the order they were drawn; one round without waste changes nothing."""
    policy, prompts = divided(hopeless=0)
    policy.logits.data[:, :, 1] = 0.1
    cfg = OnlineConfig(batch_size=4, group_size=16)
    plain = act_and_judge(policy, prompts, is_one, cfg, seeded())
    same = dynamic_sampling()(policy, prompts, is_one, cfg, seeded())
    assert torch.equal(plain[1], same[1]) and same[0].outputs == plain[0].outputs
    assert same[2]["rounds"][0] == 1


def test_dynamic_sampling_gives_up_after_its_rounds():
    """A constant reward has no informative group: the batch is full all the same."""
    policy, prompts = divided()
    rollout, rewards, terms = dynamic_sampling(3)(policy, prompts, constant, CFG, seeded())
    assert len(rollout) == 16 and terms["rounds"][0] == 3 and rewards.unique().tolist() == [1.0]
    rollout, rewards, _ = dynamic_sampling(1)(policy, prompts, is_one, CFG, seeded())
    useful = informative((rollout, rewards, {})).tolist()
    assert useful == sorted(useful, reverse=True) and len(useful) == 4


def test_replay_fills_stale_groups_with_informative_ones():
    policy, prompts = divided()
    replay, cfg = Replay(capacity=6), OnlineConfig(batch_size=8, group_size=4)
    first = replay(policy, prompts, is_one, cfg, seeded())
    assert first[2]["replayed"].max() == 0  # nothing to replay yet: the plain batch, reordered
    known = set(replay.stored[0].prompts["row"].tolist())
    second = replay(policy, prompts, is_one, cfg, seeded(1))
    rollout, rewards, terms = second
    assert len(rollout) == 32 and 0 < terms["replayed"][0].item() < 1
    count = round(8 * terms["replayed"][0].item())
    assert set(rollout.prompts["prompt"][-count:]) <= known  # replayed groups come last
    assert informative(take_groups(second, torch.arange(8 - count, 8))).all()
    assert rewards.tolist() == is_one(rollout.outputs, rollout.prompts.repeat(4)["prompt"])
    assert "row" in rollout.prompts.columns and len(set(map(len, rollout.outputs))) == 1
    for seed in range(5):
        replay(policy, prompts, is_one, cfg, seeded(seed))
    assert len(replay.stored[0].prompts) == 6 and informative(replay.stored).all()
    newest = act_and_judge(policy, prompts, is_one, cfg, seeded(4))  # what the last call saw
    rows = take_groups(newest, informative(newest).nonzero()[:, 0])[0].prompts["prompt"]
    assert replay.stored[0].prompts["row"].tolist()[-len(rows) :] == rows[-6:]


def test_replayed_groups_keep_the_logprobs_of_the_weights_that_sampled_them():
    policy, prompts = divided()
    replay = Replay()
    replay(policy, prompts, is_one, CFG, seeded())
    before = replay.stored[0].logprobs.clone()
    policy.logits.data[:, :, 1] += 1.0
    rollout, _, terms = replay(policy, prompts, is_one, CFG, seeded(3))
    count = 4 * round(4 * terms["replayed"][0].item())
    assert count > 0
    assert set(rollout.logprobs[-count:].flatten().tolist()) <= set(before.flatten().tolist())
    assert not torch.allclose(policy.logprobs(rollout)[-count:], rollout.logprobs[-count:])


def test_the_memory_survives_a_checkpoint(tmp_path):
    """Through the runner's own file: tensors and JSON only; the next batch is the same."""
    policy, prompts = divided()
    replay, other = Replay(), Replay()
    other.load_state_dict(replay.state_dict())
    assert other.stored is None
    for seed in range(3):
        replay(policy, prompts, is_one, CFG, seeded(seed))
    save_checkpoint(tmp_path, replay.state_dict(), {})
    other.load_state_dict(load_checkpoint(tmp_path)[0])
    one, two = (r(policy, prompts, is_one, CFG, seeded(9)) for r in (replay, other))
    assert torch.equal(one[1], two[1]) and torch.equal(one[0].logprobs, two[0].logprobs)
    assert one[0].prompts["prompt"] == two[0].prompts["prompt"]
    assert json.dumps(one[0].outputs) == json.dumps(two[0].outputs)


@pytest.mark.parametrize(
    ("kind", "least", "most"), [(dynamic_sampling, 0.76, 0.25), (Replay, 0.64, 0.18)]
)
def test_they_drive_the_online_loop_and_the_control_does_not(kind, least, most):
    """Rare successes: share of right answers after 40 steps, start .119; seeds 0-7.

    Dynamic sampling .805 +- .011 (control .147 +- .024), replay .703 +- .014 (.109 +- .017); plain
    sampling .649 +- .041.
    """
    ends = []
    for collect in (kind(), kind(collect=shuffled(act_and_judge))):
        policy, prompts = divided(hopeless=0)
        policy.logits.data[:, :, 0] = 2.0
        cfg = OnlineConfig(batch_size=8, group_size=4, learning_rate=0.1)
        job = GRPO(GRPOConfig(kl_coef=0.0))
        trainer = OnlineTrainer(policy, prompts, is_one, job, cfg, seeded(), collect=collect)
        rows = [trainer.step() for _ in range(40)]
        assert {"reward/rounds", "reward/replayed"} & set(rows[0])
        ends.append(policy.logits.softmax(-1)[:, 0, 1].mean().item())
    assert ends[0] > least and ends[1] < most


@pytest.mark.parametrize("kind", [dynamic_sampling, Replay])
def test_the_control_is_possible_inside_and_outside(kind):
    """Rewards dealt out at random before groups are chosen, or after: nothing breaks."""
    policy, prompts = divided(hopeless=0)
    for collect in (kind(collect=shuffled(act_and_judge)), shuffled(kind())):
        rollout, rewards, _ = collect(policy, prompts, is_one, CFG, seeded())
        assert len(rewards) == len(rollout) == 16
        assert rewards.tolist() != is_one(rollout.outputs, None)
