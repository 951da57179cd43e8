"""mllm/rlhf-ppo: a VLM learns to describe by PPO, against a reward learned from comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field

from minivisrl.optimization import PPO, PPOConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.paradigms.rlhf import RewardModelConfig
from minivisrl.recipes.mllm_tasks import DescribeConfig, rlhf
from minivisrl.recipes.run import Experiment, RunOptions


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 80  # batches of descriptions, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=OnlineConfig)
    optimization: PPOConfig = field(default_factory=PPOConfig)
    reward: RewardModelConfig = field(default_factory=RewardModelConfig)
    task: DescribeConfig = field(default_factory=DescribeConfig)


def build(config: Config, options: RunOptions) -> Experiment:
    """The experiment: scenes described by the shipped VLM, for simulated annotators."""
    job = PPO(config.optimization)
    return rlhf(config.task, config.reward, config.trainer, job, options)
