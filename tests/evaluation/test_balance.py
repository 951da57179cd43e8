"""Two abilities: how far apart they are, and how far each has moved."""

import pytest
import torch
from torch import Generator

from minivisrl.evaluation.balance import imbalance, kl_by_kind
from minivisrl.optimization.kl import kl_exact
from minivisrl.policy import frozen
from minivisrl.rollout import Prompts
from minivisrl.unified.policy import new_unified


def test_imbalance_by_hand():
    assert imbalance([1, 0, 1, 0], [0.25, 0.25]) == pytest.approx(0.25)
    assert imbalance([0.25, 0.25], [1, 0, 1, 0]) == pytest.approx(0.25)
    assert imbalance([0.5], [1, 0]) == 0.0


def test_drift_is_measured_for_each_kind_of_prompt():
    """A bias on the picture codes moves what is drawn; words with no code among them hardly."""
    start = new_unified(0, width=32, layers=1).eval()
    policy = frozen(start)
    prompts = {
        "draw": Prompts({"prompt": ["red circle top left"] * 8}),
        "describe": Prompts(
            {"prompt": ["describe the picture"] * 8, "image": [torch.zeros(3, 16, 16)] * 8}
        ),
    }
    assert kl_by_kind(policy, start, prompts) == {"kl_draw": 0.0, "kl_describe": 0.0}
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)
    moved = kl_by_kind(policy, start, prompts)
    for kind in prompts:
        rollout = policy.rollout(prompts[kind], 1, Generator().manual_seed(0))
        new, old = policy.evaluate_actions(rollout).dist, start.evaluate_actions(rollout).dist
        byhand = torch.distributions.kl_divergence(new, old)
        expected = (byhand * rollout.mask).sum(dim=1).mean().item()
        assert moved[f"kl_{kind}"] == pytest.approx(expected, rel=1e-5) and expected > 1e-4
        torch.testing.assert_close(kl_exact(new, old), byhand, atol=1e-5, rtol=1e-4)
