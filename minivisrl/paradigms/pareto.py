r"""Several rewards at once: learn only from samples that no sibling beats in all of them.

Survey: sections 2.3.2 and 3.2.1.
Symbols: G -> group_size, r_1 .. r_M -> the terms of a weighted reward.
Departs: the survey names the family (Parrot) without a formula.  Advantages are still those of the
    weighted sum among all siblings, Eq. (11); what is dominated keeps its place in the mean and
    the spread, but is not learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.paradigms.collect import row_totals
from minivisrl.paradigms.online import Collected, OnlineConfig, act_and_judge
from minivisrl.policy import Policy
from minivisrl.rewards.judge import RewardFn
from minivisrl.rollout import Prompts


def non_dominated(points: Tensor) -> Tensor:
    r"""Which siblings are on the Pareto front of their group: no other is at least as good in
    every reward and better in one.

    Args:
        points: (B, G, M), larger is better.

    Returns:
        (B, G) bool; at least one of every group, and of equal points all or none.
    """
    one, other = points[:, :, None], points[:, None]  # (B, G, 1, M), (B, 1, G, M)
    beaten = (other >= one).all(dim=-1) & (other > one).any(dim=-1)  # (B, G, G)
    return ~beaten.any(dim=2)


def pareto_selection(
    objectives: Sequence[str], collect: Callable[..., Collected] = act_and_judge
) -> Callable[..., Collected]:
    """Act and Judge for `OnlineTrainer`: the mask of a dominated sibling is empty.

    The share that is kept is logged as `reward/kept`.  Rewards per column become one per row.

    Args:
        objectives: names of terms of the weighted reward, see `rewards.judge.weighted`.
        collect: Act and Judge of all siblings.
    """

    def collect_front(
        policy: Policy, prompts: Prompts, reward_fn: RewardFn, cfg: OnlineConfig, g: Generator
    ) -> Collected:
        rollout, rewards, terms = collect(policy, prompts, reward_fn, cfg, g)
        if missing := set(objectives) - set(terms):
            raise UserError(f"no reward named {sorted(missing)}; there are {sorted(terms)}")
        rewards, *totals = (row_totals(x, rollout.mask) for x in (rewards, *terms.values()))
        terms = dict(zip(terms, totals, strict=True))
        points = torch.stack([terms[name] for name in objectives], dim=-1)  # (N, M)
        kept = non_dominated(points.view(-1, rollout.group_size, len(objectives))).flatten()  # (N,)
        selected = replace(rollout, mask=rollout.mask * kept[:, None])
        return selected, rewards, terms | {"kept": kept.float()}

    return collect_front
