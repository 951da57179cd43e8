"""mllm/dpo: a VLM learns to describe from comparisons alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from minivisrl import UserError
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import DPO, OfflineConfig, OfflineTrainer, shuffled_pairs
from minivisrl.recipes.mllm_tasks import DescribeConfig, comparisons, describing, load_policy
from minivisrl.recipes.run import Experiment, RunOptions
from minivisrl.worlds.annotators import ceiling


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 150  # optimiser steps
    trainer: OfflineConfig = field(default_factory=OfflineConfig)
    optimization: DPOConfig = field(default_factory=DPOConfig)
    task: DescribeConfig = field(default_factory=DescribeConfig)


def build(config: Config, options: RunOptions) -> Experiment:
    """The experiment: two descriptions of each scene by the shipped VLM, and which was preferred.

    Raises:
        UserError: a reward was given, which DPO has no use for.
    """
    if options.reward:
        raise UserError("mllm/dpo learns from comparisons, not rewards; leave --reward out")
    task = config.task
    policy = load_policy(task, options)
    pairs = comparisons(policy, task, task.pairs, "train", options.generator(3))
    facts = {"annotator_ceiling": ceiling(pairs, task.annotator)}
    pairs = shuffled_pairs(pairs, options.generator(4)) if options.shuffle_rewards else pairs
    trainer = OfflineTrainer(
        policy, pairs, DPO(config.optimization), config.trainer, options.generator(2)
    )
    return describing(trainer, task, facts)
