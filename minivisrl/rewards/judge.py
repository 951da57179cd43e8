r"""Judge: apply a reward function to a rollout, check what it returns, keep its terms apart.

Survey: sections 2.2.1, 2.2.3 and 4.1, Eq. (16).
Symbols: M_samp, R_phi(y, p), v(p, y) -> a reward function; r -> `rewards`.
Departs: rewards may also be given per column, (N, T), for process and step rewards.

A reward function has the signature that TRL's trainers accept:
`reward(completions, prompts=..., **columns) -> list[float]`, one entry per completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minivisrl import UserError
from minivisrl.rollout import Rollout

RewardFn = Callable[..., Sequence[float] | Tensor]


def text_of(completion: Any) -> str:
    """The text of a completion: a str, or TRL's list of messages (text parts are joined)."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    parts = [[{"text": c}] if isinstance(c, str) else c for c in contents]
    return " ".join(part.get("text") or "" for content in parts for part in content)


class Weighted:
    """A weighted sum of reward functions that is itself a reward function."""

    def __init__(self, parts: Mapping[RewardFn, float]) -> None:
        self.parts = dict(parts)
        self.__name__ = "+".join(name_of(part) for part in parts)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        scores = [
            weight * torch.as_tensor(part(completions=completions, **columns), dtype=torch.float32)
            for part, weight in self.parts.items()
        ]
        return torch.stack(scores).sum(dim=0).tolist()


def weighted(parts: Mapping[RewardFn, float]) -> Weighted:
    """Compose rewards by weights; `judge` logs the unweighted terms one by one.

    Raises:
        UserError: no part, or two parts of one name.
    """
    names = [name_of(part) for part in parts]
    if not names or len(set(names)) < len(names):
        raise UserError(f"weighted() needs at least one reward and distinct names, got {names}")
    return Weighted(parts)


def name_of(reward_fn: RewardFn) -> str:
    """The name under which a reward is logged."""
    return getattr(reward_fn, "__name__", type(reward_fn).__name__)


def judge(reward_fn: RewardFn, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Score every output of a rollout.  Eq. (16): :math:`M_{samp} = R_\phi(y, p)`.

    Args:
        reward_fn: called as `reward_fn(completions=outputs, prompts=..., **columns)`, the columns
            of the prompts repeated for the group.

    Returns:
        rewards, (N,) or (N, T), and the unweighted terms by name.

    Raises:
        UserError: the reward raises, or returns another number of scores, or a non-finite score.
    """
    columns = rollout.prompts.repeat(rollout.group_size).columns
    columns = {("prompts" if name == "prompt" else name): c for name, c in columns.items()}
    parts = reward_fn.parts if isinstance(reward_fn, Weighted) else {reward_fn: 1.0}
    terms = {name_of(part): _scores(part, rollout, columns) for part in parts}
    if len({term.shape for term in terms.values()}) > 1:
        raise UserError(f"rewards {list(terms)} mix one score per row with one per column")
    weights = list(parts.values())
    rewards = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
    return rewards, terms


def _scores(reward_fn: RewardFn, rollout: Rollout, columns: dict[str, Any]) -> Tensor:
    """The checked scores of one reward function, on the rollout's device."""
    name = name_of(reward_fn)
    try:
        scores = reward_fn(completions=rollout.outputs, **columns)
        scores = torch.as_tensor(scores, dtype=torch.float32, device=rollout.mask.device)
    except (Exception, SystemExit) as error:  # whatever a user's function raises becomes one line
        raise UserError(
            f"reward {name!r} raised {type(error).__name__}: {' '.join(str(error).split())[:160]}; "
            "it must return one number per completion"
        ) from error
    if scores.shape not in (rollout.mask.shape, rollout.mask.shape[:1]):
        raise UserError(
            f"reward {name!r} returned shape {tuple(scores.shape)} for {len(rollout)} completions; "
            "it must return one number per completion"
        )
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).sum())
        raise UserError(f"reward {name!r} returned {bad} non-finite scores; return finite numbers")
    return scores.detach()


def reward_stats(rewards: Tensor, terms: dict[str, Tensor], rollout: Rollout) -> dict[str, float]:
    """Mean reward, its terms, share of groups without variance, and completion length."""

    def total(scores: Tensor) -> Tensor:
        hidden = rollout.mask == 0
        return scores if scores.ndim == 1 else scores.masked_fill(hidden, 0.0).sum(dim=1)  # (N,)

    totals = total(rewards)
    groups = totals.view(-1, rollout.group_size)  # (B, G)
    spread = groups.max(dim=1).values - groups.min(dim=1).values  # (B,)
    stats = {
        "reward": totals.mean().item(),
        "reward_std": totals.std(correction=0).item(),
        "zero_variance_groups": (spread == 0).float().mean().item(),
        "completion_length": rollout.mask.float().sum(dim=1).mean().item(),
    }
    return stats | {f"reward/{name}": total(term).mean().item() for name, term in terms.items()}
