r"""Act and Judge, but not on every prompt alike: dynamic sampling, and replay.

Survey: section 2.3.2; a group of equal rewards has no advantage in Eq. (11).
Symbols: G -> group_size.
Departs: neither is in the survey's equations (DAPO and VL-Rethinker brought them).  Both change
    which prompts are learned from: those that are sometimes answered well and sometimes not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from minivisrl.paradigms.online import Collected, OnlineConfig, act_and_judge
from minivisrl.policy import Policy
from minivisrl.rewards.judge import RewardFn
from minivisrl.rollout import Prompts, Rollout


def row_totals(rewards: Tensor, mask: Tensor) -> Tensor:
    """(N,) rewards as they are; (N, T) summed over the mask."""
    return rewards if rewards.ndim == 1 else rewards.masked_fill(mask == 0, 0.0).sum(dim=1)


def informative(collected: Collected) -> Tensor:
    """(B,) bool: groups whose completions did not all earn the same."""
    rollout, rewards, _ = collected
    groups = row_totals(rewards, rollout.mask).view(-1, rollout.group_size)  # (B, G)
    return groups.amax(dim=1) != groups.amin(dim=1)


def take_groups(collected: Collected, index: Tensor) -> Collected:
    """The groups `index`, with their rewards and terms."""
    rollout, rewards, terms = collected
    size = rollout.group_size
    rows = (index[:, None] * size + torch.arange(size, device=index.device)).flatten()
    taken = {name: term[rows] for name, term in terms.items()}
    return rollout.groups(index), rewards[rows], taken


def join(parts: list[Collected]) -> Collected:
    """Stack collections of one group size; rewards per column are padded like the rollouts."""
    rollout = Rollout.cat([part[0] for part in parts])
    width = rollout.mask.shape[1]

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.cat([x if x.ndim == 1 else pad(x, [0, width - x.shape[1]]) for x in tensors])

    terms = {name: stack([part[2][name] for part in parts]) for name in parts[0][2]}
    return rollout, stack([part[1] for part in parts]), terms


def dynamic_sampling(
    rounds: int = 4, collect: Callable[..., Collected] = act_and_judge
) -> Callable[..., Collected]:
    """Draw again until every group of the batch is informative, at most `rounds` times.

    After the last round, groups without variance fill the places that are left.  The number of
    rounds is logged as `reward/rounds`: compare runs by completions sampled, not by steps.

    Args:
        collect: Act and Judge of one round; `shuffled(act_and_judge)` for the control.
    """

    def collect_informative(
        policy: Policy, prompts: Prompts, reward_fn: RewardFn, cfg: OnlineConfig, g: Generator
    ) -> Collected:
        parts: list[Collected] = []
        found = 0
        while found < cfg.batch_size and len(parts) < rounds:
            parts.append(collect(policy, prompts, reward_fn, cfg, g))
            found += int(informative(parts[-1]).sum())
        everything = join(parts)
        order = informative(everything).int().argsort(descending=True, stable=True)
        rollout, rewards, terms = take_groups(everything, order[: cfg.batch_size])
        return rollout, rewards, terms | {"rounds": torch.full((len(rewards),), float(len(parts)))}

    return collect_informative


class Replay:
    """Groups without variance make way for earlier groups that had successes and failures.

    Stored groups keep the log-probs of the weights that sampled them, so their ratio is not 1 and
    the clip applies.  Prompts are stored as row numbers of the prompt set, which must not change.

    Args:
        capacity: groups to remember; the oldest are forgotten first.
        collect: Act and Judge; `shuffled(act_and_judge)` for the control.
    """

    def __init__(
        self, capacity: int = 256, collect: Callable[..., Collected] = act_and_judge
    ) -> None:
        self.capacity, self.collect = capacity, collect
        self.stored: Collected | None = None

    def __call__(
        self, policy: Policy, prompts: Prompts, reward_fn: RewardFn, cfg: OnlineConfig, g: Generator
    ) -> Collected:
        numbered = Prompts({**prompts.columns, "row": torch.arange(len(prompts))})
        fresh = self.collect(policy, numbered, reward_fn, cfg, g)
        useful = informative(fresh)
        kept, stale = useful.nonzero()[:, 0], (~useful).nonzero()[:, 0]
        parts = [take_groups(fresh, kept)] if len(kept) else []
        replayed = min(len(stale), 0 if self.stored is None else len(self.stored[0].prompts))
        if replayed < len(stale):
            parts.append(take_groups(fresh, stale[replayed:]))
        if replayed:
            order = torch.randperm(len(self.stored[0].prompts), generator=g, device=g.device)
            rollout, *scores = take_groups(self.stored, order[:replayed].to(stale.device))
            parts.append((_with_prompts(rollout, numbered), *scores))
        if len(kept):
            self._remember(take_groups(fresh, kept))
        rollout, rewards, terms = join(parts)
        share = torch.full((len(rewards),), replayed / len(useful))
        return rollout, rewards, terms | {"replayed": share}

    def _remember(self, collected: Collected) -> None:
        rollout, *scores = collected
        rows = Prompts({"row": rollout.prompts["row"]})
        new = (replace(rollout, prompts=rows), *scores)
        stored = new if self.stored is None else join([self.stored, new])
        groups = len(stored[0].prompts)
        self.stored = take_groups(stored, torch.arange(max(0, groups - self.capacity), groups))

    def state_dict(self) -> dict[str, Any]:
        """The memory, for a checkpoint."""
        if self.stored is None:
            return {}
        rollout, rewards, terms = self.stored
        columns = vars(rollout) | {"prompts": rollout.prompts.columns}
        return {"rollout": columns, "rewards": rewards, "terms": terms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what a `state_dict()` held."""
        self.stored = None
        if state:
            columns = state["rollout"] | {"prompts": Prompts(state["rollout"]["prompts"])}
            self.stored = (Rollout(**columns), state["rewards"], state["terms"])


def _with_prompts(rollout: Rollout, numbered: Prompts) -> Rollout:
    """A stored rollout with the prompts that its row numbers stand for."""
    return replace(rollout, prompts=numbered.rows(rollout.prompts["row"]))
