r"""What else can be done with the same prompts, rewards and samples.

Survey: section 2.2 (what RLHF, DPO and RLVR should be compared with).
Symbols: n, G -> group_size, R_phi or v -> reward_fn.
Departs: the survey has no equations for best-of-n, expert iteration (rejection sampling followed
    by supervised fine-tuning) or reward-weighted regression.  The latter two fit `OnlineTrainer` in
    the place of PPO and GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import ClassVar

import torch
from torch import Generator, Tensor

from minivisrl.optimization.reinforce import reward_weighted_loss
from minivisrl.optimization.update import Batch, Stats, update, validate
from minivisrl.paradigms.collect import row_totals
from minivisrl.paradigms.sft import sft_loss
from minivisrl.policy import ActionStats, Policy
from minivisrl.rewards.judge import RewardFn, judge
from minivisrl.rollout import Prompts, Rollout


def best_rows(rewards: Tensor, group_size: int) -> Tensor:
    """(N,) -> (B,): the row of the best completion of every group; of equal ones, the first."""
    groups = rewards.view(-1, group_size)  # (B, G)
    first = torch.arange(len(groups), device=rewards.device) * group_size  # (B,)
    return first + groups.argmax(dim=1)


def best_of_n(
    policy: Policy, prompts: Prompts, reward_fn: RewardFn, n: int, generator: Generator
) -> Rollout:
    """Sample n completions a prompt and keep the one that the reward likes best: B rows."""
    rollout = policy.rollout(prompts, n, generator)
    rewards, _ = judge(reward_fn, rollout)
    return rollout.rows(best_rows(row_totals(rewards, rollout.mask), n))


def best_of_n_kl(n: int) -> float:
    r"""KL(best of n || policy) in nats, :math:`\log n - (n - 1) / n`; an upper bound with ties."""
    return log(n) - (n - 1) / n


@dataclass(frozen=True, kw_only=True)
class ExpertIterationConfig:
    """Imitate the best of your own samples."""

    threshold: float | None = None  # least reward that is imitated; None: the best of every group
    update_epochs: int = 1  # passes over what is imitated
    minibatches: int = 1  # optimiser steps per pass
    kl_coef: ClassVar[float] = 0.0  # no reference policy

    def __post_init__(self) -> None:
        validate(self, dict.fromkeys(["update_epochs", "minibatches"], (1, inf)))


class ExpertIteration:
    """Rejection sampling and supervised fine-tuning, one round per step of `OnlineTrainer`."""

    needs_critic = False

    def __init__(self, cfg: ExpertIterationConfig) -> None:
        self.cfg = cfg

    def compare(
        self, policy: Policy, ref_policy: Policy | None, rollout: Rollout, rewards: Tensor
    ) -> Batch:
        """One row per prompt, with 1 where it is good enough to be imitated and 0 where not."""
        totals = row_totals(rewards, rollout.mask)
        index = best_rows(totals, rollout.group_size)
        threshold = -inf if self.cfg.threshold is None else self.cfg.threshold
        return Batch(rollout.rows(index), (totals[index] >= threshold).float())

    def improve(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        max_grad_norm: float,
        generator: Generator,
    ) -> dict[str, float]:
        """Supervised steps; `kept` is the share of prompts with something to imitate."""

        def loss_fn(forward: ActionStats, part: Batch) -> tuple[Tensor, Stats]:
            kept = part.advantages[:, None]  # (B, 1)
            loss, stats = sft_loss(forward.logprobs, part.rollout.mask * kept)
            return loss, stats | {"kept": kept.mean()}

        return update(policy, optimizer, batch, loss_fn, self.cfg, max_grad_norm, generator)


@dataclass(frozen=True, kw_only=True)
class RWRConfig:
    """Imitate all of your own samples, the better the more."""

    temperature: float = 0.2  # difference in reward that makes a sample e times as important
    update_epochs: int = 1  # passes over a batch
    minibatches: int = 1  # optimiser steps per pass
    kl_coef: ClassVar[float] = 0.0  # no reference policy

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(["update_epochs", "minibatches"], (1, inf))
        validate(self, ranges | {"temperature": (1e-8, inf)})


class RWR:
    """Reward-weighted regression.  Rewards of different prompts compete: there is no baseline."""

    needs_critic = False

    def __init__(self, cfg: RWRConfig) -> None:
        self.cfg = cfg

    def compare(
        self, policy: Policy, ref_policy: Policy | None, rollout: Rollout, rewards: Tensor
    ) -> Batch:
        """The rewards themselves, one a row."""
        return Batch(rollout, row_totals(rewards, rollout.mask))

    def improve(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        max_grad_norm: float,
        generator: Generator,
    ) -> dict[str, float]:
        """Weighted supervised steps; the weights of a minibatch sum to 1."""

        def loss_fn(forward: ActionStats, part: Batch) -> tuple[Tensor, Stats]:
            mask = part.rollout.mask
            return reward_weighted_loss(
                forward.logprobs, part.advantages, mask, self.cfg.temperature
            )

        return update(policy, optimizer, batch, loss_fn, self.cfg, max_grad_norm, generator)
