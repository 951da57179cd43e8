r"""DPOK: stay near the reference at every denoising step, by the exact KL between its Gaussians.

Survey: sections 2.3.2 and 3.2.1, the KL term of Eq. (12) for actions that are Gaussian draws.
Symbols: beta -> kl_coef, N(mu, s) -> mean, std, pi_ref -> ref_mean, ref_std.
Departs: Eq. (13) estimates the KL from sampled log-probs; here it is known in closed form.  Rewards
    are compared with siblings and the ratio is clipped, as in GRPO; DPOK subtracts a learned
    baseline.  As in DPOK the effect of an action on later steps' KL is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.optimization.grpo import GRPO, GRPOConfig, grpo_loss
from minivisrl.optimization.kl import aggregate, masked_mean
from minivisrl.optimization.update import Batch, Stats, update, validate

if TYPE_CHECKING:
    from minivisrl.policy import ActionStats, Policy
    from minivisrl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class DPOKConfig:
    """What GRPO does, with a KL term that is exact."""

    kl_coef: float = 0.04  # beta: weight of the pull towards the reference policy
    reduce: Literal["mean", "sum"] = "mean"  # of the KL over latents; as the policy's log-probs
    grpo: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.0))

    def __post_init__(self) -> None:
        validate(self, {"kl_coef": (1e-12, inf)})
        if self.grpo.kl_coef:
            raise UserError(
                f"DPOKConfig.grpo.kl_coef={self.grpo.kl_coef} is not allowed: choose 0, "
                "the KL term is DPOK's own"
            )

    @property
    def minibatches(self) -> int:
        """Optimiser steps per pass over a batch."""
        return self.grpo.minibatches

    @property
    def update_epochs(self) -> int:
        """Passes over a batch."""
        return self.grpo.update_epochs


def gaussian_kl(mean: Tensor, std: Tensor, ref_mean: Tensor, ref_std: Tensor) -> Tensor:
    r"""KL(N(mean, std) || N(ref_mean, ref_std)) of every latent, in nats.

    .. math:: \log\frac{s_{ref}}{s} + \frac{s^2 + (\mu - \mu_{ref})^2}{2 s_{ref}^2} - \frac12

    A denoising step has the same std under both policies; what is left is the squared distance of
    the means, and so of what the two denoisers say.
    """
    ratio = std / ref_std
    distance = (mean - ref_mean) / ref_std
    return (ratio.square() + distance.square() - 1) / 2 - ratio.log()


def dpok_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    kl: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cfg: DPOKConfig,
) -> tuple[Tensor, Stats]:
    r"""Minus the clipped objective of Eq. (12), with :math:`\beta D_{KL}` exact.

    Args:
        logprobs, old_logprobs, mask: (N, T).
        kl: (N, T), divergence of each step's Gaussian from the reference's; with gradient.
        advantages: (N,) or (N, T).

    Returns:
        loss, and stats: those of `grpo_loss`, and `kl_ref`, the mean KL of a step.
    """
    loss, stats = grpo_loss(logprobs, old_logprobs, None, advantages, mask, cfg.grpo)
    penalty = aggregate(kl, mask, cfg.grpo.aggregate, cfg.grpo.max_length)
    return loss + cfg.kl_coef * penalty, stats | {"kl_ref": masked_mean(kl, mask).detach()}


class DPOK:
    """Compare as GRPO does, improve with `dpok_loss`.  For policies whose actions are Gaussian."""

    needs_critic = False

    def __init__(self, cfg: DPOKConfig) -> None:
        self.cfg, self.grpo = cfg, GRPO(cfg.grpo)

    @torch.no_grad()
    def compare(
        self, policy: Policy, ref_policy: Policy, rollout: Rollout, rewards: Tensor
    ) -> Batch:
        """GRPO's advantages; the reference's Gaussians join the actions of the rollout."""
        batch = self.grpo.compare(policy, None, rollout, rewards)
        near = ref_policy.evaluate_actions(rollout).dist.base_dist  # Normal, (N, T, C, H, W)
        actions = rollout.actions | {"ref_mean": near.loc, "ref_std": near.scale}
        return replace(batch, rollout=replace(rollout, actions=actions))

    def improve(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        max_grad_norm: float,
        generator: Generator,
    ) -> dict[str, float]:
        """Clipped steps with the exact KL; returns the statistics averaged over steps."""

        def loss_fn(forward: ActionStats, part: Batch) -> tuple[Tensor, Stats]:
            rollout, now = part.rollout, forward.dist.base_dist
            near = rollout.actions["ref_mean"], rollout.actions["ref_std"]
            kl = gaussian_kl(now.loc, now.scale, *near).flatten(2)  # (N, T, C * H * W)
            kl = kl.mean(dim=2) if self.cfg.reduce == "mean" else kl.sum(dim=2)  # (N, T)
            stored, mask = rollout.logprobs, rollout.mask
            return dpok_loss(forward.logprobs, stored, kl, part.advantages, mask, self.cfg)

        return update(policy, optimizer, batch, loss_fn, self.cfg, max_grad_norm, generator)
