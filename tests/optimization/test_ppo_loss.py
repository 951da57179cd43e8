"""ppo_loss and value_loss: worked numbers, quadrants, identities, padding, detached inputs."""

import math

import pytest
import torch
from mutants.library import REAL
from optimization.cases import QUADRANTS, RAGGED

F64 = {"dtype": torch.float64}


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 4, generator=generator, **F64)


def test_quadrants(lib=REAL):
    for ratio, advantage, expected, slope in QUADRANTS:
        logprob = torch.tensor([[math.log(ratio)]], **F64, requires_grad=True)
        old, adv = torch.zeros(1, 1, **F64), torch.tensor([[advantage]], **F64)
        loss, stats = lib.ppo_loss(logprob, old, adv, torch.ones(1, 1), lib.PPOConfig())
        gradient = torch.autograd.grad(loss, logprob)[0].item()
        assert (loss.item(), gradient) == (pytest.approx(expected), pytest.approx(slope))
        assert stats["clip_frac"].item() == (slope == 0)
        assert stats["ratio"].item() == pytest.approx(ratio)


def test_one_unclipped_epoch_is_reinforce_with_a_baseline(lib=REAL):
    """Gradient of the mean of -A log pi: advantages = returns - values, ratio 1."""
    returns, values, logprobs = draw(3)
    logprobs.requires_grad_()
    adv = returns - values
    ppo, _ = lib.ppo_loss(logprobs, logprobs.detach(), adv, RAGGED, lib.PPOConfig())
    ours = torch.autograd.grad(ppo, logprobs)[0]
    reinforce, _ = lib.reinforce_loss(logprobs, adv, RAGGED, how="token")
    torch.testing.assert_close(ours, torch.autograd.grad(reinforce, logprobs)[0])
    torch.testing.assert_close(ours, -adv * RAGGED / 8)


def test_entropy_bonus_by_hand(lib=REAL):
    """Entropy 2, 4 (mean 3), coefficient .1: the loss falls by .3."""
    zeros, entropy = torch.zeros(1, 2), torch.tensor([[2.0, 4.0]])
    cfg = lib.PPOConfig(entropy_coef=0.1)
    loss, stats = lib.ppo_loss(zeros, zeros, zeros, torch.ones(1, 2), cfg, entropy)
    assert loss.item() == pytest.approx(-0.3)
    assert stats["entropy"].item() == pytest.approx(3.0)
    with pytest.raises(ValueError, match="needs entropy"):
        lib.ppo_loss(zeros, zeros, zeros, torch.ones(1, 2), cfg)


def test_value_loss_by_hand(lib=REAL):
    """Return 1, old value 0.  Value .5 (clip .2): errors .25 and .64; half of the worse is .32."""
    values = torch.tensor([[0.5]], requires_grad=True)
    old, returns, mask = torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    clipped, _ = lib.value_loss(values, old, returns, mask, lib.PPOConfig())
    assert clipped.item() == pytest.approx(0.32)
    assert torch.autograd.grad(clipped, values)[0].item() == 0.0
    free, stats = lib.value_loss(values, old, returns, mask, lib.PPOConfig(value_clip_eps=None))
    assert free.item() == stats["value_loss"].item() == pytest.approx(0.125)
    assert torch.autograd.grad(free, values)[0].item() == pytest.approx(-0.5)


def test_a_value_that_moved_away_is_pulled_back(lib=REAL):
    """Return 1, old value 0, value -.5: the free error 2.25 is the worse one, slope kept."""
    values = torch.tensor([[-0.5]], requires_grad=True)
    loss, _ = lib.value_loss(
        values, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), lib.PPOConfig()
    )
    assert loss.item() == pytest.approx(1.125)
    assert torch.autograd.grad(loss, values)[0].item() == pytest.approx(-1.5)


def test_explained_variance(lib=REAL):
    """Perfect 1; a constant 0; minus the return -3; nothing to explain 0."""
    returns, mask = torch.tensor([[1.0, -1.0, 9.0]]), torch.tensor([[1, 1, 0]])
    for old, expected in ((returns, 1.0), (0 * returns + 7, 0.0), (-returns, -3.0)):
        _, stats = lib.value_loss(old, old, returns, mask, lib.PPOConfig())
        assert stats["explained_variance"].item() == pytest.approx(expected)
    flat = torch.full((1, 7), 0.1)
    _, stats = lib.value_loss(flat * 3, torch.rand(1, 7), flat, torch.ones(1, 7), lib.PPOConfig())
    assert stats["explained_variance"].item() == 0.0


def test_normalised_advantages(lib=REAL):
    """1, 3 become -+.7071 (unbiased std 1.4142); no junk; equal ones become 0, not noise."""
    mask = torch.tensor([[1, 0, 1]])
    got = lib.normalize_advantages(torch.tensor([[1.0, 1e20, 3.0]]), mask)
    torch.testing.assert_close(got, torch.tensor([[-0.7071, 0.0, 0.7071]]), atol=1e-4, rtol=0)
    equal = lib.normalize_advantages(torch.full((1, 7), 0.1), torch.ones(1, 7))
    assert equal.abs().max() < 1e-2
    assert (lib.normalize_advantages(torch.ones(1, 1), torch.ones(1, 1)) == 0).all()


def test_nothing_under_a_zero_mask_matters(lib=REAL):
    new, old, adv, entropy = draw(4)
    new.requires_grad_()
    junk = 1e4 * (1 - RAGGED)
    cfg = lib.PPOConfig(entropy_coef=0.1)
    for function, clean, dirty in (
        (
            lib.ppo_loss,
            (new, old, adv, RAGGED, cfg, entropy),
            (new + junk, old - junk, adv + junk, RAGGED, cfg, entropy - junk),
        ),
        (
            lib.value_loss,
            (new, old, adv, RAGGED, cfg),
            (new + junk, old - junk, adv - 3 * junk, RAGGED, cfg),
        ),
    ):
        (loss, stats), (dirty_loss, dirty_stats) = function(*clean), function(*dirty)
        torch.testing.assert_close(dirty_loss, loss)
        torch.testing.assert_close(dirty_stats, stats)
        gradient = torch.autograd.grad(loss, new)[0]
        torch.testing.assert_close(torch.autograd.grad(dirty_loss, new)[0], gradient)


def test_only_the_current_policy_and_critic_learn(lib=REAL):
    new, *others = [x.clone().requires_grad_() for x in draw(3)]
    for function in (lib.ppo_loss, lib.value_loss):
        loss, stats = function(new, *others, RAGGED, lib.PPOConfig())
        loss.backward()
        assert [x.grad for x in others] == [None, None]
        assert new.grad.abs().sum() > 0
        assert not any(value.requires_grad for value in stats.values())


def test_gradients_by_finite_differences():
    new, old, adv = draw(3)
    new.requires_grad_()
    cfg = REAL.PPOConfig()
    assert torch.autograd.gradcheck(lambda x: REAL.ppo_loss(x, old, adv, RAGGED, cfg)[0], [new])
    assert torch.autograd.gradcheck(lambda x: REAL.value_loss(x, old, adv, RAGGED, cfg)[0], [new])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 1.5}, "gamma=1.5.*between 0 and 1"),
        ({"gae_lambda": -0.1}, "gae_lambda=-0.1"),
        ({"value_coef": -1.0}, "value_coef=-1.0"),
        ({"minibatches": 0}, "minibatches=0"),
    ],
)
def test_config_errors_name_field_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        REAL.PPOConfig(**fields)
