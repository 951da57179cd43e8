r"""The two ancestors: REINFORCE, and reward-weighted regression (RWR).

Survey: section 2.3, the policy gradient that Eqs. (10) and (12) clip.
Symbols: A -> advantages, y -> one row.
Departs: the survey prints neither.
"""

from __future__ import annotations

from torch import Tensor

from minivisrl.optimization.kl import aggregate
from minivisrl.optimization.update import Stats


def reinforce_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    how: str = "constant",
    max_length: int = 1,
) -> tuple[Tensor, Stats]:
    r"""Its gradient is minus the policy gradient, :math:`E[A \nabla \log \pi(y)]`.

    With the defaults (sum over a row, mean over rows) the gradient is unbiased, whether
    `advantages` are plain rewards or rewards minus a baseline that does not depend on the row.

    Args:
        logprobs, mask: (N, T).
        advantages: (N,) or (N, T).
        how, max_length: see `aggregate`.

    Returns:
        loss, and stats: `policy_loss`.
    """
    adv = advantages.detach() if advantages.ndim == 2 else advantages.detach()[:, None]
    loss = aggregate(-logprobs * adv, mask, how, max_length)
    return loss, {"policy_loss": loss.detach()}


def reward_weighted_loss(
    logprobs: Tensor, rewards: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Stats]:
    r"""Imitate your own samples, the better the more.

    .. math:: -\sum_i w_i \log \pi(y_i), \quad w = \mathrm{softmax}(r / \tau)

    Args:
        logprobs, mask: (N, T).
        rewards: (N,); the weights sum to 1 over the batch.

    Returns:
        loss, and stats: `policy_loss`, `effective_rows` (1 / sum of squared weights, 1 to N).
    """
    weights = (rewards.detach() / temperature).softmax(dim=0)  # (N,)
    loss = -(weights * logprobs.masked_fill(mask == 0, 0.0).sum(dim=1)).sum()
    return loss, {"policy_loss": loss.detach(), "effective_rows": 1 / weights.square().sum()}
