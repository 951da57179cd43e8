"""Steps a second of our PPO against Stable-Baselines3's, and of the table against bare MuJoCo."""

import pytest
import torch
from benchmarks import contest, vla_contest
from vla.tiny import need_table

from minivisrl.vla.navigation import Episode

NEED = "pip install stable-baselines3"


@pytest.fixture
def theirs():
    """Their PPO of 4 rooms by 6 steps, beside our trainer with the same weights."""
    stable = pytest.importorskip("benchmarks.stable", reason=NEED)
    trainer, twin = vla_contest.ours(4, 2), vla_contest.ours(4, 2)
    value_head, twin.policy.value_head = twin.policy.value_head, None
    cfg = trainer.optimization.cfg
    made = stable.stable_ppo(twin.policy, trainer.prompts, 4, 6, trainer.cfg, cfg)
    made.policy.value_net.load_state_dict(value_head.state_dict())
    return trainer, made


def weights(policy) -> int:
    return sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)


def test_the_network_is_the_same(theirs):
    """As many weights; the same values and log-probs of what our agent did."""
    trainer, made = theirs
    assert weights(made.policy) == weights(trainer.policy)
    prompts = trainer.prompts.rows(range(3))
    rollout = trainer.policy.rollout(prompts, 2, torch.Generator().manual_seed(0))
    told = trainer.policy.evaluate_actions(rollout, values=True)
    tokens = trainer.policy.inputs(trainer.prompts)["input_ids"][:3]
    for row, time in rollout.mask.nonzero().tolist():
        seen = {"image": rollout.actions["observations"][row, time, None]}
        seen["mission"] = tokens[row // 2, None]
        action = trainer.policy.numbers(rollout.actions["tokens"][row, time, None])
        values, logprobs, entropy = made.policy.evaluate_actions(seen, action)
        assert logprobs.item() == pytest.approx(told.logprobs[row, time].item(), abs=1e-4)
        assert values.item() == pytest.approx(told.values[row, time].item(), abs=1e-4)
        assert entropy.item() == pytest.approx(told.entropy[row, time].item(), abs=1e-4)


def test_the_rooms_and_the_batches_are_the_same(theirs):
    """What their environments say is what our episodes say; one call is one batch of theirs."""
    trainer, made = theirs
    before = made.policy.state_dict()["features_extractor.agent.model.lm_head.weight"].clone()
    made.learn(24, reset_num_timesteps=False)
    assert made.num_timesteps == 24 and made.n_epochs == 2 and made.batch_size == 24
    after = made.policy.state_dict()["features_extractor.agent.model.lm_head.weight"]
    assert not torch.equal(before, after)
    room, rewards, ended, actions = made.env.envs[0], 0.0, False, []
    room.reset()
    while not ended:
        actions.append(len(actions) % 3)
        image, reward, ended, cut, _ = room.step(actions[-1])
        rewards += reward
        assert not cut and image["image"].shape == (3, 40, 40)
    episode = Episode(room.room.level, tuple(actions), bool(rewards))
    assert torch.equal(episode.frames()[-1], torch.from_numpy(image["image"].copy()))


def test_the_median_counts(monkeypatch):
    """The first turn warms up; then a median of steps a second, not of seconds."""
    clock, costs = [0.0], {"a": iter([9.0, 1.0, 2.0, 4.0]), "b": iter([1.0, 5.0, 10.0, 20.0])}
    monkeypatch.setattr(vla_contest.time, "process_time", lambda: clock[0])
    order = []

    def turn(name, steps):
        order.append(name)
        clock[0] += next(costs[name])
        return steps

    players = {"a": lambda: turn("a", 10), "b": lambda: turn("b", 30)}
    assert vla_contest.speeds(players, rounds=3) == {"a": 5.0, "b": 3.0}
    assert order == ["a", "b"] * 4


@pytest.mark.parametrize("name", vla_contest.CONTESTS)
def test_ratio(name):
    if "table" in name:
        need_table()
    else:
        pytest.importorskip("stable_baselines3", reason=NEED)
    assert torch.get_num_threads() == 1
    ratio = contest.measure(name, vla_contest.CONTESTS, vla_contest.BOUNDS)
    assert contest.within(name, ratio, vla_contest.BOUNDS), f"{name}: {ratio:.2f}"
