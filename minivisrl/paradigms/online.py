r"""The one online loop: act, judge, compare, improve.

Survey: sections 2.2.1, 2.2.3 and 2.3, Figures 2 and 3.
Symbols: pi_theta -> `policy`, pi_ref -> `ref_policy`, G -> `group_size`.
Departs: nothing; RLHF and RLVR differ by `reward_fn`, PPO and GRPO by `optimization`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.paradigms.state import restore, snapshot
from minivisrl.policy import Policy, frozen
from minivisrl.rewards.judge import RewardFn, judge, reward_stats
from minivisrl.rollout import Prompts, Rollout


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    batch_size: int = 32  # B: prompts per step
    group_size: int = 8  # G: completions per prompt
    learning_rate: float = 1e-4  # of AdamW
    critic_learning_rate: float | None = None  # of the value head; None: the policy's
    weight_decay: float = 0.0  # decoupled
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm

    def __post_init__(self) -> None:
        for name in ("batch_size", "group_size", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.critic_learning_rate is not None and not self.critic_learning_rate > 0:
            raise ValueError(
                f"critic_learning_rate={self.critic_learning_rate} must be positive, or None"
            )
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative")


class Optimization(Protocol):
    """What turns rewards into an update: `optimization.grpo.GRPO` or `optimization.ppo.PPO`."""

    needs_critic: bool
    cfg: Any

    def compare(
        self, policy: Policy, ref_policy: Policy | None, rollout: Rollout, rewards: Tensor
    ) -> Any: ...

    def improve(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        batch: Any,
        *,
        max_grad_norm: float,
        generator: Generator,
    ) -> dict[str, float]: ...


Collected = tuple[Rollout, Tensor, dict[str, Tensor]]


def act_and_judge(
    policy: Policy, prompts: Prompts, reward_fn: RewardFn, cfg: OnlineConfig, generator: Generator
) -> Collected:
    """The first two beats: a rollout of fresh prompts, its rewards, and their terms."""
    # Act: draw G completions for each of B prompts from the current policy.
    batch = prompts.sample(cfg.batch_size, generator)
    rollout = policy.rollout(batch, cfg.group_size, generator)  # N = B * G rows

    # Judge: a learned model or a program scores every completion.
    rewards, terms = judge(reward_fn, rollout)  # (N,)
    return rollout, rewards, terms


def shuffled(collect: Callable[..., Collected]) -> Callable[..., Collected]:
    """The control: the same rewards, dealt out to rows at random, so that they teach nothing."""

    def collect_shuffled(*args: Any) -> Collected:
        rollout, rewards, terms = collect(*args)
        generator = args[-1]
        order = torch.randperm(len(rewards), generator=generator, device=generator.device)
        return rollout, rewards[order.to(rewards.device)], terms

    return collect_shuffled


def parameter_groups(policy: Policy, cfg: OnlineConfig) -> list[dict[str, Any]]:
    """What AdamW steps on: all parameters, the value head at its own rate if it has one."""
    rate, head = cfg.critic_learning_rate, policy.value_head
    if rate is None or head is None:
        return [{"params": list(policy.parameters())}]
    others = [p for name, p in policy.named_parameters() if not name.startswith("value_head.")]
    return [{"params": others}, {"params": list(head.parameters()), "lr": rate}]


class OnlineTrainer:
    r"""Act, judge, compare, improve.  RLHF if `reward_fn` is learned, RLVR if it is a program.

    Args:
        optimization: `GRPO(cfg)` or `PPO(cfg)`; a critic is added to the policy if it needs one.
        collect: Act and Judge; swap it for dynamic sampling, replay or the shuffled control.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        reward_fn: RewardFn,
        optimization: Optimization,
        cfg: OnlineConfig,
        generator: Generator,
        *,
        collect: Callable[..., Collected] = act_and_judge,
    ) -> None:
        if not optimization.cfg.minibatches <= cfg.batch_size <= len(prompts):
            raise UserError(
                f"batch_size={cfg.batch_size} must lie between minibatches="
                f"{optimization.cfg.minibatches} and the {len(prompts)} prompts there are"
            )
        self.policy, self.prompts, self.reward_fn = policy, prompts, reward_fn
        self.optimization, self.cfg, self.generator = optimization, cfg, generator
        self.collect = collect
        self.ref_policy = frozen(policy) if optimization.cfg.kl_coef > 0 else None
        if optimization.needs_critic and policy.value_head is None:
            policy.add_value_head(generator)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(policy, cfg), lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )
        self.steps = 0

    def step(self) -> dict[str, float]:
        """The four beats, once.  Returns the step's statistics."""
        # Act and judge: G completions for each of B prompts, every one scored.
        rollout, rewards, terms = self.collect(
            self.policy, self.prompts, self.reward_fn, self.cfg, self.generator
        )

        # Compare: better than its siblings (GRPO), or better than the critic expected (PPO)?
        batch = self.optimization.compare(self.policy, self.ref_policy, rollout, rewards)

        # Improve: raise the log-probability of what did better, near the sampling policy.
        stats = self.optimization.improve(
            self.policy,
            self.optimizer,
            batch,
            max_grad_norm=self.cfg.max_grad_norm,
            generator=self.generator,
        )
        self.steps += 1
        return reward_stats(rewards, terms, rollout) | stats

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides the configuration."""
        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        restore(self, state)
