r"""How much better than expected: siblings as the baseline (GRPO), or a critic (PPO).

Survey: sections 2.3.1 and 2.3.2, Eqs. (8), (9), (11).
Symbols: G -> group_size, beta -> kl_coef, r^PPO -> the result of `shape_rewards`, V_psi -> values,
    gamma -> gamma, lambda -> gae_lambda.
Departs: Eq. (11) indexes steps, we compare whole completions; a small constant is added to its
    denominator, and a group without variance or siblings gets zeros. Eq. (9) names GAE without
    gamma and lambda; we add both, and a mask that may have gaps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _no_signal(rewards: Tensor) -> Tensor:
    """(B, G) -> (B, 1): groups of equal rewards.  Rounding may leave them a std above zero."""
    return rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)


def group_advantages(rewards: Tensor, *, scale: str = "std", std_eps: float = 1e-4) -> Tensor:
    r"""Score every completion against all completions of its own prompt.  Eq. (11).

    .. math:: A_{i,j} = \frac{r_{i,j} - \bar r_i}{\sigma_i + \delta}

    Args:
        rewards: (B, G), one row per prompt.
        scale: sigma is the unbiased standard deviation of the row ("std") or of all rewards
            ("batch"); "none" does not divide.

    Returns:
        (B, G); every row sums to zero. A group of equal rewards, a singleton included, is zero.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (B, G)
    if scale == "std":
        sigma = rewards.std(dim=1, keepdim=True, correction=min(1, rewards.shape[1] - 1))  # (B, 1)
        centred = centred / (sigma + std_eps)
    elif scale == "batch":
        centred = centred / (rewards.std(correction=min(1, rewards.numel() - 1)) + std_eps)
    elif scale != "none":
        raise ValueError(f"scale={scale!r} is not allowed: choose one of std, none, batch")
    return centred.masked_fill(_no_signal(rewards), 0.0)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    r"""Score every completion against the mean of its siblings only (RLOO).

    .. math:: A_{i,j} = r_{i,j} - \frac{1}{G-1} \sum_{k \ne j} r_{i,k}
              = \frac{G}{G-1} (r_{i,j} - \bar r_i)

    Returns:
        (B, G).  The baseline is independent of the completion, so the gradient is unbiased; a
        singleton has no sibling and gets 0.
    """
    group_size = rewards.shape[1]
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (B, G)
    centred = centred * group_size / max(group_size - 1, 1)
    return centred.masked_fill(_no_signal(rewards), 0.0)


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation.  Eq. (9).

    .. math:: A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l}, \quad
              \delta_t = r_t + \gamma V_{t+1} - V_t

    Here t + 1 is the next masked column; after the last one the value is 0.

    Args:
        rewards, values, mask: (N, T).

    Returns:
        advantages and returns (advantages + values), (N, T), zero outside the mask, no gradient.
    """
    keep = mask != 0
    rewards, values = rewards.where(keep, 0.0), values.where(keep, 0.0)
    advantages = torch.zeros_like(values)  # (N, T)
    next_value = next_advantage = values.new_zeros(len(values))  # (N,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # (N,)
        advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[:, t].where(keep[:, t], next_value)  # a gap hands its successor on
        next_advantage = advantage.where(keep[:, t], next_advantage)
        advantages[:, t] = advantage.where(keep[:, t], 0.0)
    return advantages, advantages + values


@torch.no_grad()
def shape_rewards(
    rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor | None, mask: Tensor, kl_coef: float
) -> Tensor:
    r"""Put the task reward and the KL penalty on every step.  Eq. (8).

    .. math:: r_t^{PPO} = r_t - \beta \log \frac{\pi_\theta(a_t \mid s_t)}{\pi_{ref}(a_t \mid s_t)}

    Args:
        rewards: (N,), paid on the last masked column of the row, or (N, T).
        ref_logprobs: (N, T); None leaves the penalty out and needs kl_coef = 0.

    Returns:
        (N, T), zero outside the mask, no gradient. A row with an empty mask gets no reward.
    """
    keep = mask != 0
    if rewards.ndim == 1:
        last = keep & (keep.flip(1).cumsum(1).flip(1) == 1)  # (N, T)
        rewards = rewards[:, None] * last  # (N, T)
    if ref_logprobs is None and kl_coef > 0:
        raise ValueError(f"kl_coef={kl_coef} needs ref_logprobs")
    if ref_logprobs is not None:
        rewards = rewards - kl_coef * (logprobs - ref_logprobs)
    return rewards.where(keep, 0.0)
