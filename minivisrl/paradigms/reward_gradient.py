r"""Follow the reward's own gradient instead of estimating it: the yardstick that is not RL.

Survey: sections 2.2 and 3.2.1 (what the policy gradients of 2.3 can be compared with).
Symbols: r -> `reward_fn`, y -> the images of `replay`, theta -> the policy's weights.
Departs: the survey has no equation for it.  Where reward and sampler are differentiable, the
    gradient of r(y(theta)) needs no likelihood, no siblings and no critic; a program that counts
    objects, a person or an environment cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.optimization.update import descend
from minivisrl.paradigms.online import OnlineConfig, parameter_groups
from minivisrl.paradigms.state import restore, snapshot
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts, Rollout

SmoothReward = Callable[[Tensor, Prompts], Tensor]  # outputs (N, ...), N prompts -> (N,)


class RewardGradientTrainer:
    r"""Act, judge, compare, improve, with :math:`\nabla_\theta r(y(\theta))` in the last beat.

    Args:
        reward_fn: differentiable in its first argument.
        replay: the outputs (N, ...) of a rollout once more, with gradients to the weights.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        reward_fn: SmoothReward,
        replay: Callable[[Policy, Rollout], Tensor],
        cfg: OnlineConfig,
        generator: Generator,
    ) -> None:
        if cfg.batch_size > len(prompts):
            raise UserError(f"batch_size={cfg.batch_size} exceeds the {len(prompts)} prompts")
        self.policy, self.prompts, self.reward_fn, self.replay = policy, prompts, reward_fn, replay
        self.cfg, self.generator = cfg, generator
        groups = parameter_groups(policy, cfg)
        self.optimizer = torch.optim.AdamW(
            groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )
        self.steps = 0

    def step(self) -> dict[str, float]:
        """The four beats, once.  Returns the step's statistics."""
        # Act: draw G outputs for each of B prompts, then repeat their last steps with gradients.
        batch = self.prompts.sample(self.cfg.batch_size, self.generator)
        rollout = self.policy.rollout(batch, self.cfg.group_size, self.generator)  # N = B * G rows
        outputs = self.replay(self.policy, rollout)  # (N, ...)

        # Judge: the reward says how good each output is, and its gradient which way is better.
        rewards = self.reward_fn(outputs, batch.repeat(self.cfg.group_size))  # (N,)

        # Compare: with nothing; every output is its own baseline.
        loss = -rewards.mean()

        # Improve: move the weights along the gradient that came through the sampler.
        grad_norm = descend(self.policy, self.optimizer, loss, self.cfg.max_grad_norm)
        self.steps += 1
        spread = rewards.detach().std(correction=0)
        stats = {"reward": -loss, "reward_std": spread, "grad_norm": grad_norm, "loss": loss}
        return {name: value.item() for name, value in stats.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides the configuration."""
        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        restore(self, state)
