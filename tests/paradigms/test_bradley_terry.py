"""bradley_terry_loss: worked numbers, its gradient, and what it does not depend on."""

import math

import pytest
import torch
from mutants.library import REAL


def test_by_hand(lib=REAL):
    """Margins log 3 and -log 3: sigma = 3/4 and 1/4, so the losses are .2877 and 1.3863."""
    chosen, rejected = torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)])
    loss, stats = lib.bradley_terry_loss(chosen, rejected)
    assert loss.item() == pytest.approx((0.287682 + 1.386294) / 2, abs=1e-5)
    assert stats["accuracy"].item() == 0.5 and stats["margin"].item() == pytest.approx(0.0)
    loss, stats = lib.bradley_terry_loss(chosen[:1], rejected[:1])
    assert loss.item() == pytest.approx(0.287682, abs=1e-5)
    assert stats["accuracy"].item() == 1.0
    assert stats["margin"].item() == pytest.approx(math.log(3))


def test_equal_scores_are_a_coin_toss(lib=REAL):
    """log 2, with a gradient of a half each way: up for the chosen one, down for the other."""
    scores = torch.zeros(2, requires_grad=True)
    loss, _ = lib.bradley_terry_loss(scores[:1], scores[1:])
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(loss, scores)[0].tolist() == [-0.5, 0.5]


def test_only_differences_count_and_extremes_stay_finite(lib=REAL):
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    loss, _ = lib.bradley_terry_loss(chosen, rejected)
    shifted, _ = lib.bradley_terry_loss(chosen + 100, rejected + 100)
    assert shifted.item() == pytest.approx(loss.item(), abs=1e-5)
    extreme, _ = lib.bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4]))
    assert extreme.item() == 2e4
