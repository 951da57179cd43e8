r"""Proximal Policy Optimization: a critic says what was expected, the step is clipped.

Survey: section 2.3.1, Eqs. (8), (9), (10).
Symbols: epsilon -> clip_eps, beta -> kl_coef, rho -> ratio, V_psi -> values, gamma -> gamma,
    lambda -> gae_lambda.
Departs: Eq. (10) is maximised, so the loss is minus it; the loss of the critic, its clipping, the
    normalisation of advantages and the entropy bonus (off) are not in the survey.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from minivisrl.optimization.advantages import gae, shape_rewards
from minivisrl.optimization.kl import kl_k3, masked_mean
from minivisrl.optimization.update import Batch, Stats, update, validate

if TYPE_CHECKING:
    from minivisrl.policy import ActionStats, Policy
    from minivisrl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The constants of PPO, with the values usual for generative models."""

    clip_eps: float = 0.2  # epsilon: half-width of the interval the ratio may move in
    value_clip_eps: float | None = 0.2  # furthest a value may move in one batch; None: no limit
    value_coef: float = 0.5  # weight of the critic's loss
    entropy_coef: float = 0.0  # weight of the entropy bonus
    kl_coef: float = 0.04  # beta: price of a nat away from the reference policy; 0: no reference
    gamma: float = 1.0  # discount per decision
    gae_lambda: float = 0.95  # 1: Monte Carlo returns; 0: one-step differences
    normalize: bool = True  # advantages get mean 0 and std 1 over the masked batch
    update_epochs: int = 2  # passes over a batch
    minibatches: int = 1  # optimiser steps per pass

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(["clip_eps", "value_clip_eps"], (1e-8, inf))
        ranges |= dict.fromkeys(["value_coef", "entropy_coef", "kl_coef"], (0, inf))
        ranges |= dict.fromkeys(["gamma", "gae_lambda"], (0, 1))
        validate(self, ranges | dict.fromkeys(["update_epochs", "minibatches"], (1, inf)))


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cfg: PPOConfig,
    entropy: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    r"""Minus the clipped surrogate, averaged over all masked columns.  Eq. (10).

    .. math:: -\min\big(\rho_t A_t, \mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon) A_t\big)

    Args:
        logprobs, old_logprobs, advantages, mask, entropy: (N, T); entropy may be None if
            entropy_coef = 0.

    Returns:
        loss, and stats: `policy_loss`, `ratio`, `clip_frac`, `entropy`.
    """
    log_ratio = (logprobs - old_logprobs.detach()).masked_fill(mask == 0, 0.0)  # (N, T)
    ratio, adv = log_ratio.exp(), advantages.detach()
    clipped_ratio = ratio.clamp(1 - cfg.clip_eps, 1 + cfg.clip_eps)
    policy_loss = masked_mean(-torch.minimum(ratio * adv, clipped_ratio * adv), mask)
    cut = (ratio * adv > clipped_ratio * adv).float()  # (N, T)
    stats = {
        "policy_loss": policy_loss.detach(),
        "ratio": masked_mean(ratio, mask).detach(),
        "clip_frac": masked_mean(cut, mask),
    }
    if entropy is None:
        if cfg.entropy_coef > 0:
            raise ValueError(f"entropy_coef={cfg.entropy_coef} needs entropy")
        return policy_loss, stats
    mean_entropy = masked_mean(entropy, mask)
    return policy_loss - cfg.entropy_coef * mean_entropy, stats | {"entropy": mean_entropy.detach()}


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cfg: PPOConfig
) -> tuple[Tensor, Stats]:
    r"""Half the squared error of the critic, the worse of the clipped and the free value.

    Args:
        values, old_values, returns, mask: (N, T).

    Returns:
        loss (mean over the masked columns, without value_coef), and stats: `value_loss`,
        `explained_variance` of the returns by `old_values` (1: perfect; 0: no better than a
        constant, or nothing to explain).
    """
    old, returns = old_values.detach(), returns.detach()
    error = (values - returns).square()  # (N, T)
    if cfg.value_clip_eps is not None:
        clipped = old + (values - old).clamp(-cfg.value_clip_eps, cfg.value_clip_eps)
        error = torch.maximum(error, (clipped - returns).square())
    loss = 0.5 * masked_mean(error, mask)
    residual, spread = _variance(returns - old, mask), _variance(returns, mask)
    explained = torch.where(spread > 1e-8, 1 - residual / spread, 0.0)
    return loss, {"value_loss": loss.detach(), "explained_variance": explained}


def _variance(x: Tensor, mask: Tensor) -> Tensor:
    """Biased variance over the mask."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def normalize_advantages(advantages: Tensor, mask: Tensor) -> Tensor:
    """(N, T) -> (N, T): mean 0 and unbiased std 1 over the mask; zero outside it."""
    count = (mask != 0).sum()
    std = (_variance(advantages, mask) * count / (count - 1).clamp(min=1)).sqrt()
    centred = advantages - masked_mean(advantages, mask)  # 1e-5: equal advantages stay near 0
    return (centred / (std + 1e-5)).masked_fill(mask == 0, 0.0)


class PPO:
    """Compare with the critic, improve with `ppo_loss` and `value_loss`."""

    needs_critic = True

    def __init__(self, cfg: PPOConfig) -> None:
        self.cfg = cfg

    @torch.no_grad()
    def compare(
        self, policy: Policy, ref_policy: Policy | None, rollout: Rollout, rewards: Tensor
    ) -> Batch:
        """Rewards (N,) or (N, T), with the KL penalty, become (N, T) advantages and returns."""
        cfg, mask = self.cfg, rollout.mask
        values = policy.evaluate_actions(rollout, values=True).values  # (N, T)
        needs_ref = cfg.kl_coef > 0
        ref_logprobs = ref_policy.evaluate_actions(rollout).logprobs if needs_ref else None
        shaped = shape_rewards(rewards, rollout.logprobs, ref_logprobs, mask, cfg.kl_coef)
        advantages, returns = gae(
            shaped, values, mask, gamma=cfg.gamma, gae_lambda=cfg.gae_lambda
        )  # (N, T), (N, T)
        if cfg.normalize:
            advantages = normalize_advantages(advantages, mask)
        return Batch(rollout, advantages, ref_logprobs, returns, values)

    def improve(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        max_grad_norm: float,
        generator: Generator,
    ) -> dict[str, float]:
        """Clipped steps of policy and critic; returns the statistics averaged over steps."""

        def loss_fn(forward: ActionStats, part: Batch) -> tuple[Tensor, Stats]:
            old, mask = part.rollout.logprobs, part.rollout.mask
            loss, stats = ppo_loss(
                forward.logprobs, old, part.advantages, mask, self.cfg, forward.entropy
            )
            critic, critic_stats = value_loss(
                forward.values, part.values, part.returns, mask, self.cfg
            )
            if part.ref_logprobs is not None:
                kl = kl_k3(forward.logprobs.detach(), part.ref_logprobs).where(mask != 0, 0.0)
                critic_stats["kl_ref"] = masked_mean(kl, mask)
            return loss + self.cfg.value_coef * critic, stats | critic_stats

        return update(policy, optimizer, batch, loss_fn, self.cfg, max_grad_norm, generator)
