"""dpo_loss and kto_loss: worked numbers, identities, gradients, configuration errors."""

import math

import pytest
import torch
from mutants.library import REAL

F64 = {"dtype": torch.float64}


def pair(delta, cfg, lib=REAL):
    """Loss, its slope in the chosen and rejected log-probs, stats; the log-ratio gap is delta."""
    chosen = torch.tensor([-3.0 + 0.75 * delta], **F64, requires_grad=True)
    rejected = torch.tensor([-2.0 - 0.25 * delta], **F64, requires_grad=True)
    ref = torch.tensor([-3.0], **F64), torch.tensor([-2.0], **F64)
    loss, stats = lib.dpo_loss(chosen, rejected, *ref, cfg)
    slopes = torch.autograd.grad(loss, (chosen, rejected))
    return loss.item(), [slope.item() for slope in slopes], stats


def test_sigmoid_by_hand(lib=REAL):
    """beta Delta = log 3: -log(3/4) = .2877, slope -beta / 4 for the chosen one."""
    loss, slopes, stats = pair(10 * math.log(3), lib.DPOConfig(dpo_beta=0.1), lib)
    assert loss == pytest.approx(0.287682, abs=1e-5)
    assert slopes == pytest.approx([-0.025, 0.025])
    assert stats["reward_margin"].item() == pytest.approx(math.log(3))
    assert stats["chosen_reward"].item() == pytest.approx(0.75 * math.log(3))
    assert stats["rejected_reward"].item() == pytest.approx(-0.25 * math.log(3))
    assert stats["accuracy"].item() == 1.0
    loss, _, stats = pair(-10 * math.log(3), lib.DPOConfig(), lib)
    assert loss == pytest.approx(1.386294, abs=1e-5) and stats["accuracy"].item() == 0.0


def test_at_the_reference_it_is_log_2_with_a_gradient(lib=REAL):
    """The first loss of every run, whatever beta; the gradient is not zero: -beta / 2."""
    for beta in (0.01, 0.1, 1.0):
        loss, slopes, _ = pair(0.0, lib.DPOConfig(dpo_beta=beta), lib)
        assert loss == pytest.approx(math.log(2))
        assert slopes == pytest.approx([-beta / 2, beta / 2])


def test_ipo_by_hand(lib=REAL):
    """beta .1 aims at a gap of 5: at a gap of 2 the loss is 9 and the slope -6; at 5 both are 0."""
    cfg = lib.DPOConfig(loss="ipo", dpo_beta=0.1)
    loss, slopes, _ = pair(2.0, cfg, lib)
    assert (loss, slopes) == (pytest.approx(9.0), pytest.approx([-6.0, 6.0]))
    loss, slopes, _ = pair(5.0, cfg, lib)
    assert (loss, slopes) == (pytest.approx(0.0), pytest.approx([0.0, 0.0]))


def test_label_smoothing_by_hand(lib=REAL):
    """A tenth of the labels is flipped: the loss is least where sigma(beta Delta) = .9."""
    cfg = lib.DPOConfig(label_smoothing=0.1, dpo_beta=1.0)
    loss, slopes, _ = pair(math.log(9), cfg, lib)
    assert loss == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert slopes == pytest.approx([0.0, 0.0], abs=1e-12)


def test_the_reference_carries_no_gradient(lib=REAL):
    scores = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    chosen, rejected, *ref = [x.requires_grad_() for x in scores]
    for loss, stats in (
        lib.dpo_loss(chosen, rejected, *ref, lib.DPOConfig()),
        lib.kto_loss(chosen, ref[0], torch.tensor([True, False, True]), lib.DPOConfig()),
    ):
        loss.backward()
        assert not any(value.requires_grad for value in stats.values())
    assert [x.grad for x in ref] == [None, None]


def test_extremes_stay_finite(lib=REAL):
    loss, slopes, _ = pair(-1e6, lib.DPOConfig(), lib)
    assert loss == pytest.approx(1e5) and slopes == pytest.approx([-0.1, 0.1])


def test_row_scores(lib=REAL):
    """Log-probs -1, -3 and a masked one: sum -4, mean -2.  An empty row scores 0."""
    logprobs, mask = torch.tensor([[-1.0, -3.0, 1e9]] * 2), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert lib.row_scores(logprobs, mask).tolist() == [-4.0, 0.0]
    assert lib.row_scores(logprobs, mask, average=True).tolist() == [-2.0, 0.0]


def kto(log_ratios, desirable, lib=REAL, **changes):
    log_ratios = torch.tensor(log_ratios, **F64, requires_grad=True)
    loss, stats = lib.kto_loss(
        log_ratios - 7, torch.full_like(log_ratios, -7.0), torch.tensor(desirable),
        lib.DPOConfig(dpo_beta=1.0), **changes,
    )  # fmt: skip
    return loss.item(), torch.autograd.grad(loss, log_ratios)[0].tolist(), stats


def test_kto_by_hand(lib=REAL):
    """z = 0.  Log-ratio log 3: 1 - 3/4 if wanted, 1 - 1/4 if not; slope -+ 3/16."""
    zero = torch.zeros(2)
    loss, slope, stats = kto([math.log(3)], [True], lib, unrelated=zero)
    assert (loss, slope) == (pytest.approx(0.25), pytest.approx([-3 / 16]))
    loss, slope, _ = kto([math.log(3)], [False], lib, unrelated=zero, undesirable_weight=2.0)
    assert (loss, slope) == (pytest.approx(1.5), pytest.approx([3 / 8]))
    assert stats["kl_ref"].item() == 0.0 and stats["chosen_reward"].item() > 1.09


def test_kto_reference_point(lib=REAL):
    """z is the mean log-ratio, at least 0, without a gradient; at z itself the loss is 1/2."""
    loss, slope, stats = kto([2.0, 2.0], [True, False], lib)
    assert stats["kl_ref"].item() == 2.0
    assert (loss, slope) == (pytest.approx(0.5), pytest.approx([-0.125, 0.125]))
    assert kto([-2.0], [True], lib)[2]["kl_ref"].item() == 0.0
    _, _, stats = kto([3.0, 1.0], [True, False], lib, unrelated=torch.tensor([0.5, 1.5]))
    assert stats["kl_ref"].item() == 1.0
    assert stats["reward_margin"].item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dpo_beta": 0.0}, "dpo_beta=0.0"),
        ({"loss": "hinge"}, "loss='hinge'.*sigmoid, ipo"),
        ({"label_smoothing": 0.6}, "label_smoothing=0.6.*between 0 and 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1"),
    ],
)
def test_config_errors_name_field_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        REAL.DPOConfig(**fields)
