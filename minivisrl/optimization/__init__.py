"""Survey: section 2.3.  Tensors in, tensors out; no module here knows a pillar."""

from minivisrl.optimization.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    shape_rewards,
)
from minivisrl.optimization.grpo import DAPO, GRPO, GSPO, RLOO, GRPOConfig, dr_grpo, grpo_loss
from minivisrl.optimization.kl import (
    KL_ESTIMATORS,
    aggregate,
    kl_exact,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
)
from minivisrl.optimization.ppo import PPO, PPOConfig, ppo_loss, value_loss
from minivisrl.optimization.reinforce import reinforce_loss, reward_weighted_loss
from minivisrl.optimization.update import Batch, update, validate

__all__ = [
    "DAPO",
    "GRPO",
    "GSPO",
    "KL_ESTIMATORS",
    "PPO",
    "RLOO",
    "Batch",
    "GRPOConfig",
    "PPOConfig",
    "aggregate",
    "dr_grpo",
    "gae",
    "group_advantages",
    "grpo_loss",
    "kl_exact",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "leave_one_out_advantages",
    "masked_mean",
    "ppo_loss",
    "reinforce_loss",
    "reward_weighted_loss",
    "shape_rewards",
    "update",
    "validate",
    "value_loss",
]
