r"""Success replay: a group that failed as a whole gets back an earlier success at its prompt.

Survey: sections 2.3.2 and 3.4.1; a group of equal rewards has no advantage in Eq. (11).
Symbols: G -> group_size.
Departs: not in the survey's equations; ARPO (arXiv 2505.16282) brought it.  Of every prompt the
    newest success is kept.  `collect.Replay` brings back whole groups; this brings back one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator

from minivisrl.paradigms.collect import join, row_totals, take_groups
from minivisrl.paradigms.online import Collected, OnlineConfig, act_and_judge
from minivisrl.policy import Policy
from minivisrl.rewards.judge import RewardFn
from minivisrl.rollout import Prompts


class SuccessReplay:
    """Act and Judge for `OnlineTrainer`: remembers successes, for groups that fail as a whole.

    A row that comes back replaces a sibling drawn at random.  It keeps its reward and the log-probs
    of the weights that sampled it, so its ratio is not 1 and the clip applies.  Prompts are known
    by their row numbers, so the prompt set must not change.  The share of groups that got a
    success back is logged as `reward/replayed`; `reward` counts what came back, too.

    Args:
        threshold: least reward of a success.
        collect: Act and Judge; `shuffled(act_and_judge)` for the control.
    """

    def __init__(
        self, threshold: float = 1.0, collect: Callable[..., Collected] = act_and_judge
    ) -> None:
        self.threshold, self.collect = threshold, collect
        self.stored: dict[int, Collected] = {}

    def __call__(
        self, policy: Policy, prompts: Prompts, reward_fn: RewardFn, cfg: OnlineConfig, g: Generator
    ) -> Collected:
        numbered = Prompts({**prompts.columns, "row": torch.arange(len(prompts))})
        fresh, rewards, terms = self.collect(policy, numbered, reward_fn, cfg, g)
        size = fresh.group_size
        won = row_totals(rewards, fresh.mask).view(-1, size).cpu() >= self.threshold  # (B, G)
        parts = [(fresh.rows(range(len(fresh))), rewards, terms)]  # groups of one
        order = torch.arange(len(fresh))
        for group, number in enumerate(fresh.prompts["row"].tolist()):
            if won[group].any():
                best = group * size + won[group].int().argmax(dim=0, keepdim=True)  # (1,)
                self.stored[number] = take_groups(parts[0], best)
            elif number in self.stored:
                place = int(torch.randint(size, (), generator=g))
                order[group * size + place] = len(fresh) + len(parts) - 1
                parts.append(self.stored[number])
        rows, rewards, terms = take_groups(join(parts), order.to(rewards.device))
        share = torch.full((len(rows),), (len(parts) - 1) / len(fresh.prompts))
        rollout = replace(rows, prompts=fresh.prompts, group_size=size)
        return rollout, rewards, terms | {"replayed": share}
