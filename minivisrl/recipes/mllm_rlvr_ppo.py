"""mllm/rlvr-ppo: a VLM learns to count by PPO, with a critic on its own trunk."""

from __future__ import annotations

from dataclasses import dataclass, field

from minivisrl.optimization import PPO, PPOConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.recipes.mllm_tasks import TaskConfig, rlvr
from minivisrl.recipes.run import Experiment, RunOptions


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 150  # batches of completions, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=OnlineConfig)
    optimization: PPOConfig = field(default_factory=PPOConfig)
    task: TaskConfig = field(default_factory=TaskConfig)


def build(config: Config, options: RunOptions) -> Experiment:
    """The experiment: questions that need two counts, answered by the shipped VLM."""
    return rlvr(config.task, config.trainer, PPO(config.optimization), options)
