r"""Supervised fine-tuning: raise the log-probability of demonstrations.

Survey: section 2.2.1 (first stage of RLHF).
Symbols: pi_SFT -> the policy after training, y -> the masked columns of a demonstration.
Departs: the loss is averaged over all masked columns of the batch (token mean); the learning rate
    rises over `warmup` steps, stays, and falls to zero in a line over the second half of
    `total_steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from minivisrl.optimization.kl import masked_mean
from minivisrl.optimization.update import descend
from minivisrl.paradigms.state import restore, snapshot
from minivisrl.policy import Policy
from minivisrl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    learning_rate: float = 1.5e-3  # peak step size of AdamW
    weight_decay: float = 0.01  # decoupled
    warmup: int = 50  # steps of linear increase
    total_steps: int = 1000  # step at which the learning rate reaches zero
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    autocast: bool = False  # bf16 in the forward pass

    def __post_init__(self) -> None:
        for name in ("learning_rate", "total_steps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")


def sft_loss(logprobs: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood, mean over the masked columns of (N, T)."""
    loss = -masked_mean(logprobs, mask)
    return loss, {"loss": loss.detach(), "token_probability": (-loss).exp().detach()}


class SFTTrainer:
    """Learn from demonstrations that `draw(generator, step)` returns as encoded rollouts."""

    def __init__(
        self,
        policy: Policy,
        draw: Callable[[Generator, int], Rollout],
        cfg: SFTConfig,
        generator: Generator,
    ) -> None:
        self.policy, self.draw, self.cfg, self.generator = policy, draw, cfg, generator
        self.steps = 0
        parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, betas=(0.9, 0.95)
        )

    def step(self) -> dict[str, float]:
        """One batch, one update."""
        rollout = self.draw(self.generator, self.steps)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.cfg.autocast):
            logprobs = self.policy.logprobs(rollout)  # (N, T)
        loss, stats = sft_loss(logprobs, rollout.mask)
        descend(self.policy, self.optimizer, loss, self.cfg.max_grad_norm)
        self.steps += 1
        return {name: float(value) for name, value in stats.items()} | {"learning_rate": rate}

    def learning_rate(self) -> float:
        """Step size at the current step."""
        warm = min(1.0, (self.steps + 1) / max(1, self.cfg.warmup))
        left = max(0.0, 1 - self.steps / self.cfg.total_steps)
        return self.cfg.learning_rate * min(warm, 2 * left)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        restore(self, state)
