r"""Group Relative Policy Optimization: compare completions with their siblings, clip the step.

Survey: section 2.3.2, Eqs. (11), (12), (13).
Symbols: G -> group_size, epsilon -> clip_eps, beta -> kl_coef, rho -> ratio, |a_i| -> mask.sum(1).
Departs: one advantage per completion, where Eq. (11) indexes steps; a small constant in the
    denominator; the non-negative k3 estimator, where Eq. (13) prints the plain mean log-ratio;
    the objective of Eq. (12) is maximised, so the loss is minus it; an entropy bonus (off).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.optimization.advantages import group_advantages, leave_one_out_advantages
from minivisrl.optimization.kl import KL_ESTIMATORS, aggregate, kl_k3, masked_mean
from minivisrl.optimization.update import Batch, Stats, update, validate

if TYPE_CHECKING:
    from minivisrl.policy import ActionStats, Policy
    from minivisrl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """GRPO and its variants.  The presets below differ from the defaults in these fields:

    - RLOO: baseline="leave_one_out", scale="none", aggregate="constant", max_length=1, kl_coef=0
      (with one update per batch; later ones clip tokens, where RLOO clips completions);
    - Dr.GRPO: scale="none", aggregate="constant", max_length, kl_coef=0;
    - DAPO: clip_eps_high=0.28, aggregate="token", kl_coef=0 (its dynamic sampling is a `collect`);
    - GSPO: ratio="sequence", clip_eps=3e-4, clip_eps_high=4e-4, kl_coef=0.
    """

    clip_eps: float = 0.2  # epsilon: half-width of the interval the ratio may move in
    clip_eps_high: float | None = None  # upper half-width; None: clip_eps
    kl_coef: float = 0.04  # beta: weight of the pull towards the reference policy; 0: no reference
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # see kl.py for what each one's gradient is
    ratio: Literal["token", "sequence"] = "token"  # sequence: exp of the row's mean log-ratio
    aggregate: Literal["sequence", "token", "constant"] = "sequence"  # how (N, T) becomes a scalar
    max_length: int | None = None  # columns; the constant of aggregate="constant"
    entropy_coef: float = 0.0  # weight of the entropy bonus
    baseline: Literal["group", "leave_one_out"] = "group"  # mean of all siblings, or of the others
    scale: Literal["std", "none", "batch"] = "std"  # what Eq. (11) divides by
    std_eps: float = 1e-4  # delta, added to the standard deviation
    update_epochs: int = 1  # passes over a batch
    minibatches: int = 1  # optimiser steps per pass

    def __post_init__(self) -> None:
        above_zero, from_zero, from_one = (1e-8, inf), (0, inf), (1, inf)
        ranges = dict.fromkeys(["clip_eps", "clip_eps_high"], above_zero)
        ranges |= dict.fromkeys(["kl_coef", "entropy_coef", "std_eps"], from_zero)
        ranges |= dict.fromkeys(["max_length", "update_epochs", "minibatches"], from_one)
        validate(self, ranges)
        if self.aggregate == "constant" and self.max_length is None:
            raise UserError("GRPOConfig.max_length=None: aggregate='constant' needs a number >= 1")
        if self.baseline == "leave_one_out" and self.scale != "none":
            raise UserError(
                f"GRPOConfig.scale={self.scale!r}: baseline='leave_one_out' allows only 'none'"
            )


RLOO = GRPOConfig(
    baseline="leave_one_out", scale="none", aggregate="constant", max_length=1, kl_coef=0.0
)
DAPO = GRPOConfig(clip_eps_high=0.28, aggregate="token", kl_coef=0.0)
GSPO = GRPOConfig(ratio="sequence", clip_eps=3e-4, clip_eps_high=4e-4, kl_coef=0.0)


def dr_grpo(max_length: int) -> GRPOConfig:
    """Dr.GRPO for completions of at most `max_length` columns."""
    return GRPOConfig(scale="none", aggregate="constant", max_length=max_length, kl_coef=0.0)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    cfg: GRPOConfig,
    entropy: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    r"""Minus the clipped objective, plus the KL term.  Eqs. (12), (13).

    .. math:: -\min\big(\rho_{i,t} A_i, \mathrm{clip}(\rho_{i,t}, 1-\epsilon, 1+\epsilon) A_i\big)
              + \beta D_{KL}(\pi_\theta \Vert \pi_{ref})

    averaged as cfg.aggregate says. Its gradient flows through `logprobs` and `entropy` only.

    Args:
        logprobs, old_logprobs, ref_logprobs, mask, entropy: (N, T); ref_logprobs may be None if
            kl_coef = 0, entropy if entropy_coef = 0.
        advantages: (N,), one per completion, or (N, T).

    Returns:
        loss, and stats: `policy_loss`, `ratio`, `clip_frac` (share of columns whose gradient is
        cut), `kl_ref` (k3, whatever the loss uses), `entropy`; means over the masked columns.
    """
    hidden = mask == 0  # filled before exp: a finite number there must not become inf * 0
    log_ratio = (logprobs - old_logprobs.detach()).masked_fill(hidden, 0.0)  # (N, T)
    if cfg.ratio == "sequence":
        log_ratio = masked_mean(log_ratio, mask, dim=1)[:, None].expand_as(log_ratio)  # (N, T)
    ratio = log_ratio.exp()
    adv = advantages.detach() if advantages.ndim == 2 else advantages.detach()[:, None]
    high = cfg.clip_eps if cfg.clip_eps_high is None else cfg.clip_eps_high
    clipped_ratio = ratio.clamp(1 - cfg.clip_eps, 1 + high)
    losses = -torch.minimum(ratio * adv, clipped_ratio * adv)  # (N, T)
    cut = (ratio * adv > clipped_ratio * adv).float()  # (N, T)
    stats = {
        "policy_loss": aggregate(losses, mask, cfg.aggregate, cfg.max_length),
        "ratio": masked_mean(ratio, mask),
        "clip_frac": masked_mean(cut, mask),
    }
    if ref_logprobs is not None:
        new = logprobs.masked_fill(hidden, 0.0)
        ref = ref_logprobs.detach().masked_fill(hidden, 0.0)
        losses = losses + cfg.kl_coef * KL_ESTIMATORS[cfg.kl_estimator](new, ref)
        stats["kl_ref"] = masked_mean(kl_k3(new, ref), mask)
    elif cfg.kl_coef > 0:
        raise ValueError(f"kl_coef={cfg.kl_coef} needs ref_logprobs")
    if entropy is not None:
        losses = losses - cfg.entropy_coef * entropy
        stats["entropy"] = masked_mean(entropy, mask)
    elif cfg.entropy_coef > 0:
        raise ValueError(f"entropy_coef={cfg.entropy_coef} needs entropy")
    loss = aggregate(losses, mask, cfg.aggregate, cfg.max_length)
    return loss, {name: value.detach() for name, value in stats.items()}


class GRPO:
    """Compare with siblings, improve with `grpo_loss`.  Needs no critic."""

    needs_critic = False

    def __init__(self, cfg: GRPOConfig) -> None:
        self.cfg = cfg

    @torch.no_grad()
    def compare(
        self, policy: Policy, ref_policy: Policy | None, rollout: Rollout, rewards: Tensor
    ) -> Batch:
        """Rewards (N,), or (N, T) to be summed over the mask, become one advantage per row."""
        if rewards.ndim == 2:
            rewards = rewards.masked_fill(rollout.mask == 0, 0.0).sum(dim=1)  # (N,)
        grouped = rewards.view(-1, rollout.group_size)  # (B, G)
        if self.cfg.baseline == "leave_one_out":
            advantages = leave_one_out_advantages(grouped)
        else:
            advantages = group_advantages(grouped, scale=self.cfg.scale, std_eps=self.cfg.std_eps)
        needs_ref = self.cfg.kl_coef > 0
        ref_logprobs = ref_policy.evaluate_actions(rollout).logprobs if needs_ref else None
        return Batch(rollout, advantages.flatten(), ref_logprobs)

    def improve(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        max_grad_norm: float,
        generator: Generator,
    ) -> dict[str, float]:
        """Clipped steps on the stored log-probs; returns the statistics averaged over steps."""

        def loss_fn(forward: ActionStats, part: Batch) -> tuple[Tensor, Stats]:
            old, mask = part.rollout.logprobs, part.rollout.mask
            new, ref, entropy = forward.logprobs, part.ref_logprobs, forward.entropy
            return grpo_loss(new, old, ref, part.advantages, mask, self.cfg, entropy)

        return update(policy, optimizer, batch, loss_fn, self.cfg, max_grad_norm, generator)
