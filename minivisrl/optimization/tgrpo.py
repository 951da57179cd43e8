r"""TGRPO: actions are compared with the siblings' at the same time, episodes with the siblings'.

Survey: sections 2.3.2 and 3.4.3, Eqs. (11), (12); the formula is TGRPO's (arXiv 2506.08440).
Symbols: G -> group_size, r_{i,t} -> rewards, alpha_1, alpha_2 -> step_weight, trajectory_weight.
Departs: TGRPO stops all siblings together; here each ends by itself, and a time compares those who
    still act.  The weights are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minivisrl import UserError
from minivisrl.optimization.advantages import shape_rewards
from minivisrl.optimization.grpo import GRPO, GRPOConfig
from minivisrl.optimization.kl import masked_mean
from minivisrl.optimization.update import Batch, validate

if TYPE_CHECKING:
    from minivisrl.policy import Policy
    from minivisrl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class TGRPOConfig:
    """What GRPO does, with two advantages fused into one per action."""

    step_weight: float = 0.5  # alpha_1: of the comparison at one time
    trajectory_weight: float = 0.5  # alpha_2: of the comparison of whole episodes
    grpo: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.0))

    def __post_init__(self) -> None:
        validate(self, dict.fromkeys(("step_weight", "trajectory_weight"), (0, inf)))
        if not self.step_weight + self.trajectory_weight:
            raise UserError("TGRPOConfig.step_weight=0 needs trajectory_weight > 0")


def step_advantages(rewards: Tensor, mask: Tensor, *, std_eps: float = 1e-4) -> Tensor:
    r"""Score every action against those of its siblings that act at the same time.  Eq. (11).

    .. math:: S_{i,t} = \frac{r_{i,t} - \bar r_t}{\sigma_t + \delta}

    Args:
        rewards, mask: (B, G, T); mean and unbiased standard deviation are over the siblings with
            mask 1 in column t.

    Returns:
        (B, G, T), zero outside the mask, where one acts alone and where all earn the same.
    """
    keep = mask != 0
    acting = keep.sum(dim=1, keepdim=True)  # (B, 1, T)
    centred = (rewards - masked_mean(rewards, mask, dim=1)[:, None]).masked_fill(~keep, 0.0)
    sigma = (centred.square().sum(dim=1, keepdim=True) / (acting - 1).clamp(min=1)).sqrt()
    highest = rewards.masked_fill(~keep, -inf).amax(dim=1, keepdim=True)  # (B, 1, T)
    same = highest == rewards.masked_fill(~keep, inf).amin(dim=1, keepdim=True)  # (B, 1, T)
    return (centred / (sigma + std_eps)).masked_fill(same, 0.0)


class TGRPO(GRPO):
    """Compare at two levels, improve with `grpo_loss`."""

    def __init__(self, cfg: TGRPOConfig) -> None:
        super().__init__(cfg.grpo)
        self.weights = cfg

    @torch.no_grad()
    def compare(
        self, policy: Policy, ref_policy: Policy | None, rollout: Rollout, rewards: Tensor
    ) -> Batch:
        r"""Rewards (N, T), or (N,) paid at the end, become :math:`\alpha_1 S_{i,t} + \alpha_2 A_i`.

        A_i is GRPO's advantage of the row's sum of rewards.
        """
        whole = super().compare(policy, ref_policy, rollout, rewards)
        paid = shape_rewards(rewards, rollout.logprobs, None, rollout.mask, 0.0)  # (N, T)
        grouped = len(rollout.prompts), rollout.group_size, -1
        steps = step_advantages(
            paid.view(grouped), rollout.mask.view(grouped), std_eps=self.cfg.std_eps
        ).view_as(paid)  # (N, T)
        weights = self.weights
        fused = weights.step_weight * steps + weights.trajectory_weight * whole.advantages[:, None]
        return replace(whole, advantages=fused.where(rollout.mask != 0, 0.0))
