"""reinforce_loss and reward_weighted_loss, by hand."""

import math

import pytest
import torch
from mutants.library import REAL

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_reinforce_by_hand(lib=REAL):
    """Rows of log-prob -3 and -5, advantages 1 and -1: -(1 * -3 - 1 * -5) / 2 = -1."""
    logprobs = torch.tensor([[-1.0, -2.0, 1e9], [-5.0, 1e9, 1e9]], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0], requires_grad=True)
    loss, stats = lib.reinforce_loss(logprobs, advantages, MASK)
    assert loss.item() == stats["policy_loss"].item() == pytest.approx(-1.0)
    loss.backward()
    assert logprobs.grad.tolist() == [[-0.5, -0.5, 0.0], [0.5, 0.0, 0.0]]
    assert advantages.grad is None
    steps, _ = lib.reinforce_loss(logprobs, advantages[:, None].expand(2, 3), MASK)
    assert steps.item() == pytest.approx(-1.0)


def test_reward_weights_by_hand(lib=REAL):
    """Rewards log 3 and 0 at temperature 1: weights 3/4 and 1/4 on rows of log-prob -3 and -5."""
    logprobs = torch.tensor([[-1.0, -2.0, 1e9], [-5.0, 1e9, 1e9]], requires_grad=True)
    rewards = torch.tensor([math.log(3), 0.0], requires_grad=True)
    loss, stats = lib.reward_weighted_loss(logprobs, rewards, MASK, temperature=1.0)
    assert loss.item() == pytest.approx(0.75 * 3 + 0.25 * 5)
    assert stats["effective_rows"].item() == pytest.approx(1.6)
    loss.backward()
    assert logprobs.grad.flatten().tolist() == pytest.approx([-0.75, -0.75, 0, -0.25, 0, 0])
    assert rewards.grad is None


def test_temperature_goes_from_the_best_row_to_all_rows(lib=REAL):
    logprobs = torch.tensor([[-1.0, -2.0, 0.0], [-5.0, 0.0, 0.0]])
    rewards = torch.tensor([1.0, 0.0])
    cold, _ = lib.reward_weighted_loss(logprobs, rewards, MASK, temperature=1e-3)
    hot, _ = lib.reward_weighted_loss(logprobs, rewards, MASK, temperature=1e6)
    assert cold.item() == pytest.approx(3.0)
    assert hot.item() == pytest.approx(4.0, abs=1e-4)
