r"""State-level metrics: how far a policy has moved, and what it has become.

Survey: section 4.1, Eq. (17).
Symbols: pi_theta_t -> `policy`, pi_theta_0 -> `start`, M_state -> `kl_to_start`.
Departs: D is the exact KL of every column, summed over the columns of an episode that the current
    policy sampled, and averaged over episodes.
"""

from __future__ import annotations

import torch
from torch import Generator

from minivisrl.optimization.kl import kl_exact, masked_mean
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts


@torch.no_grad()
def kl_to_start(
    policy: Policy, start: Policy, prompts: Prompts, generator: Generator, group_size: int = 4
) -> dict[str, float]:
    r"""Drift from the starting policy on validation prompts.  Eq. (17).

    Returns:
        `kl_start`: nats per episode, KL(policy || start); `entropy`: nats per column;
        `completion_length`: columns per episode.
    """
    rollout = policy.rollout(prompts, group_size, generator)
    stats, before = policy.evaluate_actions(rollout), start.evaluate_actions(rollout)
    drift = kl_exact(stats.dist, before.dist)  # (N, T)
    return {
        "kl_start": (drift * rollout.mask).sum(dim=1).mean().item(),
        "entropy": masked_mean(stats.entropy, rollout.mask).item(),
        "completion_length": rollout.mask.float().sum(dim=1).mean().item(),
    }
