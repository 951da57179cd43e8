"""advantages.py: worked numbers, brute force, invariances, gaps in the mask."""

import math
import warnings

import pytest
import torch
from mutants.library import REAL

# Rows with gaps: a full one, one with two gaps, one that starts late, an empty one.
GAPS = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double_sum(rewards, values, mask, gamma, gae_lambda):
    """A_t = sum_{l >= 0} (gamma * lambda)^l delta_{t+l}, row by row, masked columns only."""
    advantages = torch.zeros_like(values)
    for n in range(len(mask)):
        columns = mask[n].nonzero()[:, 0].tolist()
        v = [values[n, c].item() for c in columns] + [0.0]
        delta = [rewards[n, c].item() + gamma * v[i + 1] - v[i] for i, c in enumerate(columns)]
        for i, c in enumerate(columns):
            terms = ((gamma * gae_lambda) ** k * d for k, d in enumerate(delta[i:]))
            advantages[n, c] = math.fsum(terms)
    return advantages


def test_worked_group(lib=REAL):
    """Rewards 1 1 0 0: mean .5, unbiased std .5774, advantages +-.866."""
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.866, 0.866, -0.866, -0.866]])
    torch.testing.assert_close(lib.group_advantages(rewards), expected, atol=2e-4, rtol=0)


def test_one_success_in_a_group(lib=REAL):
    """The std is unbiased: a biased one gives 1, 1.732 and 2.646 (numerics.md, section 2)."""
    for group_size, top in ((2, 0.7071), (4, 1.5), (8, 2.4749)):
        advantages = lib.group_advantages(torch.eye(group_size)[:1], std_eps=1e-8)  # (1, G)
        assert advantages[0, 0].item() == pytest.approx(top, abs=1e-4)


def test_std_eps_enters_the_denominator(lib=REAL):
    """Rewards 1 0 with std_eps 1: .5 / (.7071 + 1)."""
    rewards = torch.tensor([[1.0, 0.0]])
    assert lib.group_advantages(rewards, std_eps=1.0)[0, 0].item() == pytest.approx(
        0.29289, abs=1e-5
    )


def test_scales_by_hand(lib=REAL):
    """Rows 0 2 and 0 4: without division +-1, +-2; over the std of all four rewards, 1.9149."""
    rewards = torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    plain = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]])
    torch.testing.assert_close(lib.group_advantages(rewards, scale="none"), plain)
    batch = lib.group_advantages(rewards, scale="batch", std_eps=0.0)
    torch.testing.assert_close(batch, plain / 1.91485, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="scale='rows'"):
        lib.group_advantages(rewards, scale="rows")


def test_group_invariances(lib=REAL):
    """Adding a constant changes nothing, nor does a positive factor under std; order follows."""
    rewards = draw(6, 5)
    plain = lib.group_advantages(rewards, scale="none")
    base = lib.group_advantages(rewards, std_eps=0.0)
    torch.testing.assert_close(lib.group_advantages(3 * rewards + 7, std_eps=0.0), base)
    torch.testing.assert_close(lib.group_advantages(rewards + 7, scale="none"), plain)
    torch.testing.assert_close(lib.group_advantages(rewards.flip(1), std_eps=0.0), base.flip(1))
    torch.testing.assert_close(base.sum(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(base.std(1), torch.ones(6, dtype=torch.float64))


def test_groups_do_not_mix(lib=REAL):
    """Prompt 1 has its own baseline, whatever prompt 0 earns."""
    rewards = torch.tensor([[0.0, 1.0], [10.0, 11.0]])
    for advantages in (lib.group_advantages(rewards), lib.leave_one_out_advantages(rewards)):
        torch.testing.assert_close(advantages[0], advantages[1])


def test_equal_rewards_teach_nothing(lib=REAL):
    """Exactly zero: the float32 mean of seven .1 is not .1, and 1e-8 / 1e-8 would be 1."""
    rewards = torch.full((3, 7), 0.1)
    for scale in ("std", "none", "batch"):
        for std_eps in (1e-9, 0.0):
            advantages = lib.group_advantages(rewards, scale=scale, std_eps=std_eps)
            assert (advantages == 0).all()
    assert (lib.leave_one_out_advantages(rewards) == 0).all()


def test_a_singleton_gets_zero(lib=REAL):
    """Our choice: no sibling, no signal.  Without a NaN or a warning from std of one number."""
    rewards = torch.tensor([[3.0], [-1.0]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in ("std", "none", "batch"):
            assert (lib.group_advantages(rewards, scale=scale) == 0).all()
            assert (lib.group_advantages(rewards[:1], scale=scale) == 0).all()
        assert (lib.leave_one_out_advantages(rewards) == 0).all()
    assert not caught


def test_leave_one_out_by_brute_force(lib=REAL):
    rewards = draw(4, 5)
    expected = torch.zeros_like(rewards)
    for i in range(4):
        for j in range(5):
            others = [rewards[i, k].item() for k in range(5) if k != j]
            expected[i, j] = rewards[i, j] - sum(others) / 4
    torch.testing.assert_close(lib.leave_one_out_advantages(rewards), expected)


def test_gae_on_paper(lib=REAL):
    """Rewards 0 0 1, values .5: deltas 0 0 .5; with gamma = 1, lambda = .5: .125 .25 .5."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5)
    advantages, returns = lib.gae(rewards, values, torch.ones(1, 3), gamma=1.0, gae_lambda=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.125, 0.25, 0.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.625, 0.75, 1.0]]))


def test_gae_discounts(lib=REAL):
    """Reward 1 at the end, no critic, gamma = .5: returns .25 .5 1; lambda = 1 keeps all of it."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3)
    advantages, _ = lib.gae(rewards, values, torch.ones(1, 3), gamma=0.5, gae_lambda=1.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.25, 0.5, 1.0]]))


def test_gae_is_the_double_sum(lib=REAL):
    rewards, values = draw(4, 5), draw(4, 5, seed=1)
    for gamma, gae_lambda in ((1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (0.7, 1.0)):
        advantages, returns = lib.gae(rewards, values, GAPS, gamma=gamma, gae_lambda=gae_lambda)
        expected = double_sum(rewards, values, GAPS, gamma, gae_lambda)
        torch.testing.assert_close(advantages, expected)
        torch.testing.assert_close(returns, expected + values * GAPS)


def test_a_gap_is_not_a_step(lib=REAL):
    """Masked columns cut out by hand give the same advantages, with no discount for the gap."""
    rewards, values = draw(1, 5), draw(1, 5, seed=1)
    mask = torch.tensor([[1, 0, 1, 0, 1]])
    kept = mask[0] == 1
    gapped, _ = lib.gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    dense, _ = lib.gae(
        rewards[:, kept], values[:, kept], torch.ones(1, 3), gamma=0.9, gae_lambda=0.8
    )
    torch.testing.assert_close(gapped[:, kept], dense)
    assert (gapped[:, ~kept] == 0).all()


def test_gae_never_reads_under_the_mask(lib=REAL):
    rewards, values = draw(4, 5), draw(4, 5, seed=1)
    junk = 1e30 * (1 - GAPS)
    clean = lib.gae(rewards, values, GAPS, gamma=0.9, gae_lambda=0.8)
    dirty = lib.gae(rewards + junk, values - junk, GAPS, gamma=0.9, gae_lambda=0.8)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert (b[GAPS == 0] == 0).all()


def test_gae_carries_no_gradient(lib=REAL):
    values = draw(4, 5).requires_grad_()
    advantages, returns = lib.gae(draw(4, 5), values, GAPS, gamma=1.0, gae_lambda=0.9)
    assert not advantages.requires_grad and not returns.requires_grad


def test_shaped_rewards_by_hand(lib=REAL):
    """Log-ratios 1 2 3, kl_coef .1, reward 5 at the end: -.1 -.2 4.7.  Drifting away costs."""
    ref = torch.tensor([[-1.0, -1.0, -1.0]])
    logprobs = ref + torch.tensor([[1.0, 2.0, 3.0]])
    shaped = lib.shape_rewards(torch.tensor([5.0]), logprobs, ref, torch.ones(1, 3), 0.1)
    torch.testing.assert_close(shaped, torch.tensor([[-0.1, -0.2, 4.7]]))


def test_rewards_land_on_the_last_masked_column(lib=REAL):
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0])
    shaped = lib.shape_rewards(rewards, torch.zeros(4, 5), None, GAPS, 0.0)
    expected = torch.zeros(4, 5)
    expected[0, 4], expected[1, 4], expected[2, 3] = 1.0, 2.0, 3.0  # the empty row gets nothing
    assert torch.equal(shaped, expected)


def test_step_rewards_stay_where_they_are(lib=REAL):
    rewards = draw(4, 5)
    shaped = lib.shape_rewards(rewards, draw(4, 5), draw(4, 5), GAPS, 0.0)
    assert torch.equal(shaped, rewards * GAPS)


def test_shaping_never_reads_under_the_mask(lib=REAL):
    rewards, logprobs, ref = draw(4, 5), draw(4, 5, seed=1), draw(4, 5, seed=2)
    junk = 1e30 * (1 - GAPS)
    clean = lib.shape_rewards(rewards, logprobs, ref, GAPS, 0.1)
    assert torch.equal(lib.shape_rewards(rewards + junk, logprobs - junk, ref, GAPS, 0.1), clean)
    assert not lib.shape_rewards(rewards, logprobs.requires_grad_(), ref, GAPS, 0.1).requires_grad


def test_a_penalty_needs_a_reference(lib=REAL):
    with pytest.raises(ValueError, match="ref_logprobs"):
        lib.shape_rewards(torch.ones(4), draw(4, 5), None, GAPS, 0.1)
