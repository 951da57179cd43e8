r"""A progress reward learned from the order of frames: what comes later in a success is worth more.

Survey: sections 2.2.1 and 3.4.3, the loss of Eq. (3); the method is RFTF's (arXiv 2505.19767).
Symbols: V_phi(s_t) -> values, v_t < v_{t+1} -> `order_loss`.
Departs: the survey calls RFTF's reward rule-based; it is the gain in a learned value.  A rollout
    holds what was seen before every action, so the last action is judged by the outcome alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from minivisrl.optimization.advantages import gae, shape_rewards
from minivisrl.optimization.kl import masked_mean
from minivisrl.optimization.update import Stats, descend, validate
from minivisrl.paradigms.collect import row_totals
from minivisrl.paradigms.online import Collected, act_and_judge
from minivisrl.policy import Policy
from minivisrl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How the value model learns, and what its word is worth."""

    steps: int = 40  # optimiser steps on demonstrations
    learning_rate: float = 1e-3  # of AdamW
    weight: float = 0.1  # of a gain in value, where the outcome is 0 or 1

    def __post_init__(self) -> None:
        validate(self, {"steps": (1, inf), "learning_rate": (1e-12, inf), "weight": (0, inf)})


def order_loss(values: Tensor, mask: Tensor) -> tuple[Tensor, Stats]:
    r"""Cross-entropy of "the later frame is worth more", over all pairs of frames of an episode.

    .. math:: -\frac{1}{\binom n2} \sum_{t < u} \log \sigma\big(V_\phi(s_u) - V_\phi(s_t)\big)

    Args:
        values, mask: (N, T), of successful episodes.

    Returns:
        loss (mean over pairs, then over episodes; one of a single frame adds 0), and stats: `loss`
        and `accuracy` (share of pairs in the right order).
    """
    keep = mask != 0
    pairs = (keep[:, :, None] & keep[:, None, :]).triu(diagonal=1).flatten(1)  # (N, T * T)
    gains = (values[:, None, :] - values[:, :, None]).flatten(1)  # (N, T * T): entry t, u
    loss = masked_mean(-logsigmoid(gains), pairs, dim=1).mean()
    return loss, {"loss": loss.detach(), "accuracy": masked_mean((gains > 0).float(), pairs)}


def progress_rewards(values: Tensor, outcome: Tensor, mask: Tensor, weight: float) -> Tensor:
    r"""Pay every action for the gain in value that it brought, and the last one for the outcome.

    .. math:: r_t = w \, (V_\phi(s_{t+1}) - V_\phi(s_t)), \quad r_n = \text{outcome}

    Args:
        values, mask: (N, T); t + 1 is the next masked column.
        outcome: (N,).

    Returns:
        (N, T), zero outside the mask.  A row sums to the outcome and w times the gain from its
        first to its last frame.
    """
    ends = (shape_rewards(x, values, None, mask, 0.0) for x in (outcome, torch.ones_like(outcome)))
    paid, last = ends  # (N, T), (N, T)
    gains, _ = gae(torch.zeros_like(values), values, mask, gamma=1.0, gae_lambda=0.0)  # (N, T)
    return paid + weight * gains * (1 - last)


def learn_order(
    model: Policy, draw: Callable[[Generator, int], Rollout], cfg: OrderConfig, generator: Generator
) -> Iterator[dict[str, float]]:
    """Steps that train a policy's trunk and value head on the order of frames, not its actions.

    Args:
        draw: `draw(generator, step)`, a batch of successful demonstrations.
    """
    if model.value_head is None:
        model.add_value_head(generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate)
    for step in range(cfg.steps):
        rollout = draw(generator, step)
        values = model.evaluate_actions(rollout, values=True).values  # (N, T)
        loss, stats = order_loss(values, rollout.mask)
        descend(model, optimizer, loss, max_grad_norm=1.0)
        yield {name: value.item() for name, value in stats.items()}


def temporal_feedback(
    model: Policy, weight: float, collect: Callable[..., Collected] = act_and_judge
) -> Callable[..., Collected]:
    """Act and Judge for `OnlineTrainer`: what `collect` rewards is the outcome, the rest is dense.

    What is paid beside the outcome is logged as `reward/progress`.

    Args:
        model: what `learn_order` has trained; never the policy that collects.
    """

    def collect_progress(*args: object) -> Collected:
        rollout, rewards, terms = collect(*args)
        mask, outcome = rollout.mask, row_totals(rewards, rollout.mask)
        with torch.no_grad():
            values = model.evaluate_actions(rollout, values=True).values  # (N, T)
        dense = progress_rewards(values, outcome, mask, weight)
        terms = {name: row_totals(term, mask) for name, term in terms.items()}
        return rollout, dense, terms | {"progress": dense.sum(dim=1) - outcome}

    return collect_progress
