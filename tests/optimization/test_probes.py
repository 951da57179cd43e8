"""A ladder of tiny tasks with known answers, one component each: a failure names the broken part.

Next to each bound stand mean and standard deviation over seeds 0-7; at least four of the latter lie
between the mean and the bound.
"""

import copy

import pytest
import torch
from oracle.tabular import TreePolicy
from torch import Generator

from minivisrl.optimization import GRPO, PPO, GRPOConfig, PPOConfig
from minivisrl.rollout import Prompts


def train(algorithm, policy, reward, *, steps=60, group_size=8, seed=0, lr=0.1, shuffle=False):
    """The four beats; `reward(prompt, tokens) -> float` judges a row."""
    generator = Generator().manual_seed(seed)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    prompts = Prompts({"prompt": list(range(len(policy.logits)))})
    for _ in range(steps):
        rollout = policy.rollout(prompts, group_size, generator)
        rows = zip(rollout.prompts.repeat(group_size)["prompt"], rollout.outputs, strict=True)
        rewards = torch.tensor([reward(p, tokens) for p, tokens in rows], dtype=torch.float64)
        if shuffle:
            rewards = rewards[torch.randperm(len(rewards), generator=generator)]
        batch = algorithm.compare(policy, reference, rollout, rewards)
        stats = algorithm.improve(policy, optimizer, batch, max_grad_norm=1.0, generator=generator)
    return stats


def first_is_one(prompt, tokens):
    return float(tokens[0] == 1)


def parity(prompt, tokens):
    return float(tokens[0] == prompt % 2)


def ppo(**changes):
    return PPO(PPOConfig(**{"kl_coef": 0.0, "value_clip_eps": None} | changes))


def grpo(**changes):
    return GRPO(GRPOConfig(**{"kl_coef": 0.0} | changes))


BOTH = pytest.mark.parametrize("algorithm", [ppo(), grpo()], ids=["ppo", "grpo"])


def test_constant_reward_one_action():
    """The critic and its optimiser: V = 1."""
    policy = TreePolicy(prompts=1, vocabulary=1, length=1)
    stats = train(ppo(), policy, lambda prompt, tokens: 1.0, steps=120)
    assert policy.values.item() == pytest.approx(1.0, abs=0.05)
    assert stats["policy_loss"] == pytest.approx(0.0, abs=1e-6)


def test_reward_by_observation():
    """The critic sees the prompt: V = -1 and +1, and explains all variance."""
    policy = TreePolicy(prompts=2, vocabulary=1, length=1)
    stats = train(ppo(), policy, lambda prompt, tokens: 2.0 * prompt - 1, steps=120)
    assert policy.values[:, 0].tolist() == pytest.approx([-1.0, 1.0], abs=0.05)
    assert stats["explained_variance"] > 0.99


def test_delayed_reward():
    """GAE and gamma: with gamma = .5 and a reward of 1 after three columns, V = .25 .5 1."""
    policy = TreePolicy(prompts=1, vocabulary=1, length=3)
    train(ppo(gamma=0.5), policy, lambda prompt, tokens: 1.0, steps=150)
    assert policy.values[0].tolist() == pytest.approx([0.25, 0.5, 1.0], abs=0.05)


@BOTH
def test_two_actions(algorithm):
    """The sign of the policy gradient."""
    policy = TreePolicy(prompts=1, vocabulary=2, length=1)
    train(algorithm, policy, first_is_one)
    assert policy.logits.softmax(-1)[0, 0, 1].item() > 0.98  # ppo .998 +- .001, grpo .996 +- .001


@BOTH
def test_best_action_depends_on_the_observation(algorithm):
    """Rows, prompts and advantages stay aligned; shuffled rewards teach nothing."""

    def share_right(shuffle):
        policy = TreePolicy(prompts=64, vocabulary=2, length=1)
        train(algorithm, policy, parity, steps=30, group_size=4, shuffle=shuffle)
        return policy.logits.softmax(-1)[range(64), 0, [0, 1] * 32].mean().item()

    assert share_right(shuffle=False) > 0.97  # ppo .995 +- .000, grpo .979 +- .001
    assert share_right(shuffle=True) < 0.73  # ppo .485 +- .059, grpo .489 +- .021


@BOTH
def test_credit_for_an_early_action(algorithm):
    """Only the first of three actions counts, and it is paid at the end."""
    policy = TreePolicy(prompts=1, vocabulary=2, length=3)
    train(algorithm, policy, first_is_one)
    assert policy.logits.softmax(-1)[0, 0, 1].item() > 0.98  # ppo .999 +- .001, grpo .995 +- .002


@BOTH
def test_minibatches_and_epochs_learn_too(algorithm):
    """Four prompts, two parts, three passes: reused samples stay useful."""
    kind = type(algorithm)
    reused = (ppo if kind is PPO else grpo)(update_epochs=3, minibatches=2)
    policy = TreePolicy(prompts=4, vocabulary=2, length=1)
    train(reused, policy, parity, steps=20)
    probs = policy.logits.softmax(-1)[:, 0]
    assert probs[range(4), [0, 1, 0, 1]].mean().item() > 0.97  # ppo .995 +- .002, grpo .994 +- .003


@BOTH
def test_a_large_kl_coef_holds_the_policy(algorithm):
    """The anchor: J - 5 KL is largest at sigmoid(1 / 5) = .55; without it the policy runs off."""
    kind = type(algorithm)
    held = (ppo if kind is PPO else grpo)(kl_coef=5.0)
    free, tied = (TreePolicy(prompts=1, vocabulary=2, length=1) for _ in range(2))
    train(algorithm, free, first_is_one)
    stats = train(held, tied, first_is_one)
    assert free.logits.softmax(-1)[0, 0, 1].item() > 0.98
    assert tied.logits.softmax(-1)[0, 0, 1].item() < 0.71  # ppo .556 +- .037, grpo .589 +- .016
    assert stats["kl_ref"] < 0.05  # ppo .008 +- .007, grpo .015 +- .004
