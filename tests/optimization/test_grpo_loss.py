"""grpo_loss: worked numbers, quadrants, switches, identities, padding, detached inputs."""

import math

import pytest
import torch
from mutants.library import REAL
from optimization.cases import QUADRANTS, RAGGED

F64 = {"dtype": torch.float64}


def plain(lib=REAL, **changes):
    """The clipped objective alone, unless a test says otherwise."""
    return lib.GRPOConfig(**{"kl_coef": 0.0} | changes)


def one(ratio, advantage, cfg, lib=REAL):
    """Loss and d loss / d log-prob of a single column whose probability changed by `ratio`."""
    logprob = torch.tensor([[math.log(ratio) - 1]], **F64, requires_grad=True)
    old = torch.tensor([[-1.0]], **F64)
    loss, stats = lib.grpo_loss(
        logprob, old, None, torch.tensor([advantage], **F64), torch.ones(1, 1), cfg
    )
    return loss.item(), torch.autograd.grad(loss, logprob)[0].item(), stats


def ragged(seed=0):
    """logprobs (with gradient), old, ref (4, 4), advantages (4,)."""
    generator = torch.Generator().manual_seed(seed)
    new, old, ref = -torch.rand(3, 4, 4, generator=generator, **F64)
    return new.requires_grad_(), old, ref, torch.tensor([1.0, -0.5, 0.25, 2.0], **F64)


def test_quadrants(lib=REAL):
    for ratio, advantage, loss, gradient in QUADRANTS:
        got_loss, got_gradient, stats = one(ratio, advantage, plain(lib), lib)
        assert (got_loss, got_gradient) == (pytest.approx(loss), pytest.approx(gradient))
        assert stats["clip_frac"].item() == (gradient == 0)
        assert stats["ratio"].item() == pytest.approx(ratio)


def test_clip_higher(lib=REAL):
    """clip_eps_high is the upper half-width and leaves the lower one alone."""
    cfg = plain(lib, clip_eps=0.2, clip_eps_high=0.28)
    assert one(1.5, 1.0, cfg, lib)[0] == pytest.approx(-1.28)
    assert one(0.5, -1.0, cfg, lib)[0] == pytest.approx(0.8)


def test_sequence_ratio(lib=REAL):
    """Log-ratios log 2 and 0: one ratio sqrt 2 for the row (here clipped at 1.2), not 2 and 1."""
    old = torch.zeros(1, 3, **F64)
    new = torch.tensor([[math.log(2), 0.0, 50.0]], **F64, requires_grad=True)
    mask, advantages = torch.tensor([[1, 1, 0]]), torch.ones(1, **F64)
    free = plain(lib, ratio="sequence", clip_eps=9.0)
    loss, stats = lib.grpo_loss(new, old, None, advantages, mask, free)
    assert loss.item() == pytest.approx(-(2**0.5))
    assert stats["ratio"].item() == pytest.approx(2**0.5)
    gradient = torch.autograd.grad(loss, new)[0][0]
    assert gradient.tolist() == pytest.approx([-(2**0.5) / 2, -(2**0.5) / 2, 0.0])
    loss, _ = lib.grpo_loss(new, old, None, advantages, mask, plain(lib, ratio="sequence"))
    assert loss.item() == pytest.approx(-1.2)


def test_kl_term_by_hand(lib=REAL):
    """pi 1/2, ref 1/4, kl_coef .5, no advantage: half of .6931, .2402, .1931."""
    new, ref = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    for name, value in {"k1": 0.6931, "k2": 0.2402, "k3": 0.1931}.items():
        cfg = lib.GRPOConfig(kl_coef=0.5, kl_estimator=name)
        loss, stats = lib.grpo_loss(new, new, ref, torch.zeros(1), torch.ones(1, 1), cfg)
        assert loss.item() == pytest.approx(value / 2, abs=1e-4)
        assert stats["kl_ref"].item() == pytest.approx(0.1931, abs=1e-4)


def test_kl_pulls_towards_the_reference(lib=REAL):
    """With kl alone, a step down the gradient brings the log-prob nearer to the reference's."""
    new = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    ref = torch.tensor([[-2.0, -0.5]])
    loss, _ = lib.grpo_loss(
        new, new.detach(), ref, torch.zeros(1), torch.ones(1, 2), lib.GRPOConfig()
    )
    down, up = (-torch.autograd.grad(loss, new)[0][0]).tolist()
    assert down < 0 < up


def test_aggregates_differ_on_ragged_rows(lib=REAL):
    """At ratio 1 a column's gradient is -A / divisor.  Row 1 has 2 of the 8 masked columns."""
    new, _, _, advantages = ragged()
    divisors = {"sequence": 4 * 2, "token": 8, "constant": 4 * 10}
    for how, divisor in divisors.items():
        cfg = plain(lib, aggregate=how, max_length=10)
        loss, _ = lib.grpo_loss(new, new.detach(), None, advantages, RAGGED, cfg)
        gradient = torch.autograd.grad(loss, new)[0]
        assert gradient[1].tolist() == pytest.approx([0.5 / divisor, 0.5 / divisor, 0.0, 0.0])
        assert (gradient[3] == 0).all()  # the empty row


def test_on_policy_gradient_is_the_policy_gradient(lib=REAL):
    """Before the first update the loss is 0 for centred advantages; its gradient is not.

    Users of every public implementation ask whether a zero loss is a bug (numerics.md, 4).
    """
    new = -torch.rand(4, 3, generator=torch.Generator().manual_seed(0), **F64)
    new.requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5], **F64)
    loss, stats = lib.grpo_loss(new, new.detach(), None, advantages, torch.ones(4, 3), plain(lib))
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert stats["ratio"].item() == 1.0 and stats["clip_frac"].item() == 0.0
    gradient = torch.autograd.grad(loss, new)[0]
    torch.testing.assert_close(gradient, -advantages[:, None].expand(4, 3) / 12)


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_gradient_by_finite_differences(ratio, aggregate):
    new, old, ref, advantages = ragged(1)
    entropy = torch.rand(4, 4, generator=torch.Generator().manual_seed(2), **F64)
    cfg = REAL.GRPOConfig(ratio=ratio, aggregate=aggregate, max_length=6, entropy_coef=0.1)

    def loss(x):
        return REAL.grpo_loss(x, old, ref, advantages, RAGGED, cfg, entropy * x)[0]

    assert torch.autograd.gradcheck(loss, [new])


def test_nothing_under_a_zero_mask_matters(lib=REAL):
    """Junk that would overflow exp, in every argument: same loss, same finite gradient."""
    new, old, ref, advantages = ragged()
    adv = advantages[:, None].expand(4, 4)
    entropy = torch.rand(4, 4, **F64)
    junk = 1e4 * (1 - RAGGED)
    for ratio in ("token", "sequence"):
        for aggregate in ("sequence", "token", "constant"):
            cfg = lib.GRPOConfig(ratio=ratio, aggregate=aggregate, max_length=6, entropy_coef=0.1)
            loss, stats = lib.grpo_loss(new, old, ref, adv, RAGGED, cfg, entropy)
            gradient = torch.autograd.grad(loss, new)[0]
            dirty_loss, dirty_stats = lib.grpo_loss(
                new + junk, old - junk, ref + 3 * junk, adv + junk, RAGGED, cfg, entropy - junk
            )
            torch.testing.assert_close(dirty_loss, loss)
            torch.testing.assert_close(torch.autograd.grad(dirty_loss, new)[0], gradient)
            torch.testing.assert_close(dirty_stats, stats)
            assert (gradient[RAGGED == 0] == 0).all()


def test_only_the_current_policy_learns(lib=REAL):
    """Advantages, old and reference log-probs are constants even if someone forgot a detach."""
    new, old, ref, advantages = ragged()
    others = [x.clone().requires_grad_() for x in (old, ref, advantages)]
    loss, stats = lib.grpo_loss(new, others[0], others[1], others[2], RAGGED, lib.GRPOConfig())
    loss.backward()
    assert [x.grad for x in others] == [None, None, None]
    assert new.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in stats.values())


def test_step_advantages_generalise_row_advantages(lib=REAL):
    new, old, ref, advantages = ragged()
    adv = advantages[:, None].expand(4, 4)
    rows, _ = lib.grpo_loss(new, old, ref, advantages, RAGGED, lib.GRPOConfig())
    steps, _ = lib.grpo_loss(new, old, ref, adv, RAGGED, lib.GRPOConfig())
    torch.testing.assert_close(rows, steps)


def test_entropy_bonus_by_hand(lib=REAL):
    """Entropy 2 and 4 (mean 3), coefficient .1: the loss falls by .3."""
    logprobs, entropy = torch.zeros(1, 2), torch.tensor([[2.0, 4.0]])
    cfg = plain(lib, entropy_coef=0.1)
    loss, stats = lib.grpo_loss(
        logprobs, logprobs, None, torch.zeros(1), torch.ones(1, 2), cfg, entropy
    )
    assert loss.item() == pytest.approx(-0.3)
    assert stats["entropy"].item() == pytest.approx(3.0)
    assert stats["policy_loss"].item() == 0.0


def test_two_siblings_without_std_are_half_of_rloo(lib=REAL):
    """G = 2: r_1 - (r_1 + r_2) / 2 is half of r_1 - r_2."""
    new, old, _, _ = ragged()
    rewards = torch.tensor([[1.0, 0.2], [0.3, 0.9]], **F64)
    half = lib.group_advantages(rewards, scale="none").flatten()
    full = lib.leave_one_out_advantages(rewards).flatten()
    small, _ = lib.grpo_loss(new, old, None, half, RAGGED, plain(lib))
    large, _ = lib.grpo_loss(new, old, None, full, RAGGED, plain(lib))
    torch.testing.assert_close(small * 2, large)
    assert large.abs() > 0.01


def test_dr_grpo_is_grpo_when_lengths_are_equal_and_std_is_one(lib=REAL):
    new, old, _, _ = ragged()
    rewards = torch.tensor([[0.0, 2**0.5], [2**0.5, 0.0]], **F64)  # each row has std 1
    ours = lib.group_advantages(rewards, std_eps=0.0).flatten()
    theirs = lib.group_advantages(rewards, scale="none").flatten()
    one_length = torch.ones(4, 4)
    grpo, _ = lib.grpo_loss(new, old, None, ours, one_length, plain(lib))
    dr_grpo, _ = lib.grpo_loss(new, old, None, theirs, one_length, lib.dr_grpo(max_length=4))
    torch.testing.assert_close(grpo, dr_grpo)
    ragged_rows, _ = lib.grpo_loss(new, old, None, theirs, RAGGED, lib.dr_grpo(max_length=4))
    assert (ragged_rows - lib.grpo_loss(new, old, None, ours, RAGGED, plain(lib))[0]).abs() > 1e-3


def test_missing_arguments_are_named():
    new, old, _, advantages = ragged()
    with pytest.raises(ValueError, match="ref_logprobs"):
        REAL.grpo_loss(new, old, None, advantages, RAGGED, REAL.GRPOConfig())
    with pytest.raises(ValueError, match="needs entropy"):
        REAL.grpo_loss(new, old, None, advantages, RAGGED, plain(entropy_coef=0.1))


WRONG = [
    ({"clip_eps": -0.1}, "clip_eps=-0.1"),
    ({"clip_eps_high": 0.0}, "clip_eps_high=0.0"),
    ({"kl_coef": float("nan")}, "kl_coef=nan"),
    ({"kl_estimator": "k4"}, "kl_estimator='k4'.*k1, k2, k3"),
    ({"ratio": "word"}, "ratio='word'.*token, sequence"),
    ({"aggregate": "mean"}, "aggregate='mean'.*sequence, token, constant"),
    ({"aggregate": "constant"}, "max_length=None"),
    ({"max_length": 0}, "max_length=0.*between 1"),
    ({"baseline": "leave_one_out"}, "scale='std'"),
    ({"scale": "median"}, "scale='median'.*std, none, batch"),
    ({"update_epochs": 0}, "update_epochs=0"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_config_errors_name_field_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        REAL.GRPOConfig(**fields)


def test_presets_say_what_their_docstring_says():
    assert (REAL.GSPO.ratio, REAL.GSPO.kl_coef) == ("sequence", 0.0)
    assert (REAL.DAPO.clip_eps_high, REAL.DAPO.aggregate) == (0.28, "token")
    assert (REAL.RLOO.baseline, REAL.RLOO.scale, REAL.RLOO.max_length) == (
        "leave_one_out",
        "none",
        1,
    )
    assert REAL.dr_grpo(7).max_length == 7
