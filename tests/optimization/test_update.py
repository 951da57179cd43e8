"""Batch and update: what is split, what is stepped, and what is averaged."""

import copy
from dataclasses import replace

import pytest
import torch
from mutants.library import REAL
from oracle.tabular import TreePolicy
from torch import Generator

from minivisrl.rollout import Prompts


def seeded(seed=0):
    return Generator().manual_seed(seed)


def world(prompts=4, group_size=3):
    """A random policy, a rollout of it, and rewards (N,)."""
    policy = TreePolicy(prompts, vocabulary=3, length=3, end=2).randomise(0)
    rollout = policy.rollout(Prompts({"prompt": list(range(prompts))}), group_size, seeded())
    rewards = torch.rand(len(rollout), generator=seeded(1), dtype=torch.float64)
    return policy, rollout, rewards


def sgd(policy, lr=0.1):
    return torch.optim.SGD(policy.parameters(), lr=lr)


def test_minibatches_partition_whole_groups(lib=REAL):
    """Every row once, siblings side by side, tensors in step with the rollout, shuffled."""
    _, rollout, rewards = world(prompts=5)
    columns = [torch.rand(15, 3, generator=seeded(i)) for i in range(3)]
    batch = lib.Batch(rollout, rewards, *columns)
    parts = list(batch.minibatches(2, seeded()))
    assert [len(part.rollout) for part in parts] == [9, 6]
    prompts = [p for part in parts for p in part.rollout.prompts["prompt"]]
    assert sorted(prompts) == [0, 1, 2, 3, 4] != prompts
    rows = torch.tensor([3 * p + j for p in prompts for j in range(3)])
    for name in ("advantages", "ref_logprobs", "returns", "values"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name)[rows])
    joined = torch.cat([part.rollout.actions["tokens"] for part in parts])
    assert torch.equal(joined, rollout.actions["tokens"][rows])
    assert all(part.rollout.group_size == 3 for part in parts)


def test_one_minibatch_is_the_batch(lib=REAL):
    _, rollout, rewards = world()
    batch = lib.Batch(rollout, rewards)
    (same,) = batch.minibatches(1, seeded())
    assert same is batch
    part = next(batch.minibatches(2, seeded()))
    assert (part.ref_logprobs, part.returns, part.values) == (None, None, None)


def test_more_minibatches_than_prompts_is_an_error():
    _, rollout, rewards = world(prompts=2)
    with pytest.raises(ValueError, match="minibatches=3 exceeds the 2 prompts"):
        list(REAL.Batch(rollout, rewards).minibatches(3, seeded()))


def test_one_step_is_gradient_descent(lib=REAL):
    """SGD by hand: weights minus rate times the REINFORCE gradient, clipped to the given norm."""
    policy, rollout, rewards = world()
    grpo = lib.GRPO(lib.GRPOConfig(kl_coef=0.0))
    for max_grad_norm in (1e9, 1e-2):
        student = copy.deepcopy(policy)
        batch = grpo.compare(student, None, rollout, rewards)
        stats = grpo.improve(
            student, sgd(student), batch, max_grad_norm=max_grad_norm, generator=seeded()
        )
        advantages = lib.group_advantages(rewards.view(4, 3)).flatten()
        loss = lib.reinforce_loss(
            policy.evaluate_actions(rollout).logprobs, advantages, rollout.mask, how="sequence"
        )[0]
        gradient = torch.autograd.grad(loss, policy.logits)[0]
        assert stats["grad_norm"] == pytest.approx(gradient.norm().item())
        scale = min(1.0, max_grad_norm / (gradient.norm().item() + 1e-6))
        torch.testing.assert_close(student.logits, policy.logits - 0.1 * scale * gradient)


def test_epochs_times_minibatches_steps(lib=REAL):
    """Old gradients do not add up from step to step, and every part is stepped on."""
    policy, rollout, rewards = world()
    cfg = lib.GRPOConfig(kl_coef=0.0, update_epochs=2, minibatches=2, clip_eps=1e9)
    grpo, steps = lib.GRPO(cfg), []
    optimizer = sgd(policy)
    optimizer.register_step_post_hook(lambda *_: steps.append(policy.logits.detach().clone()))
    by_hand = copy.deepcopy(policy)
    batch = grpo.compare(policy, None, rollout, rewards)
    grpo.improve(policy, optimizer, batch, max_grad_norm=1e9, generator=seeded(5))
    assert len(steps) == 4
    generator = seeded(5)
    for step in steps:  # the same four minibatches, drawn again
        if step is steps[0] or step is steps[2]:
            parts = batch.minibatches(2, generator)
        part = next(parts)
        log_ratio = by_hand.evaluate_actions(part.rollout).logprobs - part.rollout.logprobs
        surrogate = -(log_ratio.exp() * part.advantages[:, None])
        loss = lib.aggregate(surrogate, part.rollout.mask, "sequence")
        gradient = torch.autograd.grad(loss, by_hand.logits)[0]
        with torch.no_grad():
            by_hand.logits -= 0.1 * gradient
        torch.testing.assert_close(step, by_hand.logits.detach())


def test_ratio_is_one_before_the_first_update_only(lib=REAL):
    policy, rollout, rewards = world()
    for epochs, expected in ((1, True), (3, False)):
        grpo = lib.GRPO(lib.GRPOConfig(kl_coef=0.0, update_epochs=epochs))
        batch = grpo.compare(policy, None, rollout, rewards)
        stats = grpo.improve(
            copy.deepcopy(policy), sgd(policy), batch, max_grad_norm=1.0, generator=seeded()
        )
        assert stats["ratio"] == pytest.approx(1.0, abs=1e-12) or not expected
    student = copy.deepcopy(policy)
    stats = grpo.improve(student, sgd(student), batch, max_grad_norm=1.0, generator=seeded())
    assert abs(stats["ratio"] - 1) > 1e-6


def test_old_logprobs_are_those_of_the_rollout(lib=REAL):
    """A rollout from other weights has a ratio that is not 1, even with a single update."""
    policy, rollout, rewards = world()
    stale = replace(rollout, logprobs=rollout.logprobs - 0.1)
    for algorithm in (lib.GRPO(lib.GRPOConfig(kl_coef=0.0)), lib.PPO(lib.PPOConfig(kl_coef=0.0))):
        batch = algorithm.compare(policy, None, stale, rewards)
        stats = algorithm.improve(
            copy.deepcopy(policy), sgd(policy), batch, max_grad_norm=1.0, generator=seeded()
        )
        assert stats["ratio"] == pytest.approx(torch.tensor(0.1).exp().item(), abs=1e-6)


def test_stats_are_averages_over_the_steps(lib=REAL):
    """With a learning rate of 0 the average over two parts of equal size is that of the batch."""
    policy, rollout, rewards = world()
    rollout = replace(rollout, logprobs=rollout.logprobs - 0.1 * rewards[:, None])
    halves, whole = (
        lib.GRPO(lib.GRPOConfig(kl_coef=0.0, minibatches=n, aggregate="sequence")) for n in (2, 1)
    )
    batch = halves.compare(policy, None, rollout, rewards)
    for name in ("loss", "policy_loss"):
        a, b = (
            algorithm.improve(
                policy, sgd(policy, lr=0.0), batch, max_grad_norm=1.0, generator=seeded()
            )[name]
            for algorithm in (halves, whole)
        )
        assert a == pytest.approx(b, abs=1e-9)
        assert isinstance(a, float)


def test_divergence_is_loud_and_leaves_the_weights_alone(lib=REAL):
    policy, rollout, rewards = world()
    before = copy.deepcopy(policy.state_dict())
    grpo = lib.GRPO(lib.GRPOConfig(kl_coef=0.0))
    for poison in (float("nan"), float("inf")):
        batch = lib.Batch(rollout, rewards * poison)
        with pytest.raises(ValueError, match="training diverged") as error:
            grpo.improve(policy, sgd(policy), batch, max_grad_norm=1.0, generator=seeded())
        assert "\n" not in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


class Untouchable(TreePolicy):
    def evaluate_actions(self, rollout, *, values=False):
        raise AssertionError("the reference ran although kl_coef = 0")


def test_the_reference_runs_only_for_a_kl(lib=REAL):
    policy, rollout, rewards = world()
    reference = TreePolicy(4, 3, 3, end=2).randomise(9)
    for algorithm, config in ((lib.GRPO, lib.GRPOConfig), (lib.PPO, lib.PPOConfig)):
        off = algorithm(config(kl_coef=0.0))
        batch = off.compare(policy, Untouchable(4, 3, 3), rollout, rewards)
        assert batch.ref_logprobs is None
        on = algorithm(config(kl_coef=0.1))
        batch = on.compare(policy, reference, rollout, rewards)
        expected = reference.evaluate_actions(rollout).logprobs
        assert torch.equal(batch.ref_logprobs, expected) and not batch.ref_logprobs.requires_grad
        stats = on.improve(policy, sgd(policy), batch, max_grad_norm=1.0, generator=seeded())
        assert stats["kl_ref"] > 0


def test_grpo_compares_siblings(lib=REAL):
    """Rows i * G + j are siblings; step rewards are summed over the mask first."""
    policy, rollout, rewards = world()
    batch = lib.GRPO(lib.GRPOConfig(kl_coef=0.0)).compare(policy, None, rollout, rewards)
    sums = batch.advantages.view(4, 3).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums))
    steps = torch.full((12, 3), 1e6, dtype=torch.float64)
    steps[rollout.mask == 1] = (rewards[:, None] * rollout.mask)[rollout.mask == 1]
    got = lib.GRPO(lib.dr_grpo(3)).compare(policy, None, rollout, steps).advantages
    totals = rewards * rollout.mask.sum(1)
    expected = lib.group_advantages(totals.view(4, 3), scale="none").flatten()
    torch.testing.assert_close(got, expected)
    rloo = lib.GRPO(lib.RLOO).compare(policy, None, rollout, rewards).advantages
    expected = lib.leave_one_out_advantages(rewards.view(4, 3)).flatten()
    torch.testing.assert_close(rloo, expected)


def test_ppo_compares_with_the_critic(lib=REAL):
    """lambda = gamma = 1: the return is all shaped reward still to come, whatever the values."""
    policy, rollout, rewards = world()
    reference = TreePolicy(4, 3, 3, end=2).randomise(9)
    cfg = lib.PPOConfig(kl_coef=0.3, gae_lambda=1.0, normalize=False)
    batch = lib.PPO(cfg).compare(policy, reference, rollout, rewards)
    penalty = 0.3 * (rollout.logprobs - reference.evaluate_actions(rollout).logprobs)
    for n in range(len(rollout)):
        length = int(rollout.mask[n].sum())
        for t in range(length):
            to_go = rewards[n] - penalty[n, t:length].sum()
            assert batch.returns[n, t].item() == pytest.approx(to_go.item())
            advantage = batch.advantages[n, t] + batch.values[n, t]
            assert advantage.item() == pytest.approx(to_go.item())
    whitened = lib.PPO(replace(cfg, normalize=True)).compare(policy, reference, rollout, rewards)
    kept = whitened.advantages[rollout.mask == 1]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert kept.std().item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(whitened.returns, batch.returns)


def test_ppo_improves_policy_and_critic(lib=REAL):
    """One step by hand: d loss / d values is value_coef times (value - return) / columns."""
    policy, rollout, rewards = world()
    start = policy.values.detach().clone()
    ppo = lib.PPO(lib.PPOConfig(kl_coef=0.0, value_coef=0.5, update_epochs=1, value_clip_eps=None))
    batch = ppo.compare(policy, None, rollout, rewards)
    stats = ppo.improve(policy, sgd(policy), batch, max_grad_norm=1e9, generator=seeded())
    expected = start.clone()
    index = policy._nodes(rollout)
    error = (batch.values - batch.returns) * rollout.mask / rollout.mask.sum()
    expected.index_put_((index[0].expand_as(index[1]), index[1]), -0.05 * error, accumulate=True)
    torch.testing.assert_close(policy.values.detach(), expected)
    names = {"loss", "policy_loss", "value_loss", "explained_variance", "ratio", "clip_frac"}
    assert names | {"entropy", "grad_norm"} == set(stats)
