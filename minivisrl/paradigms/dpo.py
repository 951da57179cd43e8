r"""Learn from pairs without a reward model: prefer the chosen output more than the reference does.

Survey: section 2.2.2, Eqs. (5), (6).
Symbols: beta -> dpo_beta, y_A -> chosen, y_B -> rejected, Delta_theta -> log_ratio.
Departs: label smoothing, IPO and KTO are not in the survey. A row is scored by the sum of its
    log-probs, as in Eq. (6); TRL's IPO averages them, which is `DPOConfig(average=True)`. KTO
    takes its reference point from the batch itself unless other log-ratios are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from minivisrl import UserError
from minivisrl.optimization.kl import masked_mean
from minivisrl.optimization.update import Stats, validate


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Direct preference optimisation."""

    dpo_beta: float = 0.1  # beta: inverse temperature of the implicit reward, per nat
    loss: Literal["sigmoid", "ipo"] = "sigmoid"  # logistic, or a squared error from 1 / (2 beta)
    label_smoothing: float = 0.0  # share of the labels taken to be flipped; sigmoid only
    average: bool = False  # score rows by the mean log-prob of a column, not the sum

    def __post_init__(self) -> None:
        validate(self, {"dpo_beta": (1e-8, inf), "label_smoothing": (0, 0.5)})
        if self.loss == "ipo" and self.label_smoothing:
            raise UserError(
                f"DPOConfig.label_smoothing={self.label_smoothing} is not allowed: "
                "loss='ipo' takes only 0"
            )


def row_scores(logprobs: Tensor, mask: Tensor, average: bool = False) -> Tensor:
    """(N, T) -> (N,): log pi(y | p), the sum over the mask; or its mean, with `average`."""
    if average:
        return masked_mean(logprobs, mask, dim=1)
    return logprobs.masked_fill(mask == 0, 0.0).sum(dim=1)


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    cfg: DPOConfig,
) -> tuple[Tensor, Stats]:
    r"""Classify which output of a pair was chosen, by the implicit reward.  Eqs. (5), (6).

    .. math:: -\log\sigma(\beta\Delta), \quad \Delta =
        \log\frac{\pi(y_A)}{\pi_{ref}(y_A)} - \log\frac{\pi(y_B)}{\pi_{ref}(y_B)}

    IPO instead regresses: :math:`(\Delta - 1/(2\beta))^2`.

    Args:
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs: (B,), one
            score per output, see `row_scores`.

    Returns:
        loss (mean over pairs), and stats: `chosen_reward`, `rejected_reward` (beta times the
        log-ratio to the reference), `reward_margin` (their difference), `accuracy`.
    """
    chosen = chosen_logprobs - ref_chosen_logprobs.detach()  # (B,)
    rejected = rejected_logprobs - ref_rejected_logprobs.detach()  # (B,)
    log_ratio = chosen - rejected  # (B,)
    if cfg.loss == "ipo":
        losses = (log_ratio - 1 / (2 * cfg.dpo_beta)).square()
    else:
        right, flipped = logsigmoid(cfg.dpo_beta * log_ratio), logsigmoid(-cfg.dpo_beta * log_ratio)
        losses = -(1 - cfg.label_smoothing) * right - cfg.label_smoothing * flipped
    stats = {
        "chosen_reward": cfg.dpo_beta * chosen.detach().mean(),
        "rejected_reward": cfg.dpo_beta * rejected.detach().mean(),
        "reward_margin": cfg.dpo_beta * log_ratio.detach().mean(),
        "accuracy": (log_ratio > 0).float().mean(),
    }
    return losses.mean(), stats


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    cfg: DPOConfig,
    *,
    unrelated: Tensor | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Stats]:
    r"""Learn from single outputs with a thumb up or down (Kahneman-Tversky optimisation).

    .. math:: w \cdot \big(1 - \sigma(\pm\beta(\log\tfrac{\pi(y)}{\pi_{ref}(y)} - z))\big),
              \quad z = \max(0, \text{mean log-ratio})

    Plus for a desirable output, minus for an undesirable one.

    Args:
        logprobs, ref_logprobs: (B,), see `row_scores`.
        desirable: (B,) bool.
        unrelated: (M,) log-ratios of outputs paired with other prompts, which estimate z as the
            KL to the reference; None uses the batch itself, which is cheaper and biased.

    Returns:
        loss (mean over outputs), and stats: `chosen_reward`, `rejected_reward`, `reward_margin`,
        `kl_ref` (z).  z carries no gradient.
    """
    log_ratio = logprobs - ref_logprobs.detach()  # (B,)
    z = (log_ratio if unrelated is None else unrelated).detach().mean().clamp(min=0)
    sign = desirable.float() * 2 - 1  # (B,)
    weights = desirable_weight * (sign > 0) + undesirable_weight * (sign < 0)  # (B,)
    losses = weights * (1 - (cfg.dpo_beta * sign * (log_ratio - z)).sigmoid())
    rewards = cfg.dpo_beta * log_ratio.detach()
    chosen, rejected = masked_mean(rewards, sign > 0), masked_mean(rewards, sign < 0)
    stats = {"chosen_reward": chosen, "rejected_reward": rejected}
    return losses.mean(), stats | {"reward_margin": chosen - rejected, "kl_ref": z}
