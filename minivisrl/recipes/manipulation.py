"""Manipulation, beside the VLA row: a hand, things and goals; a program says whether it was done.

Survey: section 3.4.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from torch import Generator

from minivisrl import DATA, UserError
from minivisrl.evaluation.sets import Evaluation
from minivisrl.optimization import GRPOConfig, PPOConfig, validate
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.recipes.common import experiment, online
from minivisrl.recipes.run import Experiment, RunOptions
from minivisrl.recipes.vla import fresh_critic, paths, shown
from minivisrl.rollout import Prompts
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.manipulation import WORLD, dense, manipulation_prompts
from minivisrl.vla.navigation import spl, success
from minivisrl.vla.policy import VLAPolicy

REWARDS = {"sparse": success, "dense": dense}


@dataclass(frozen=True, kw_only=True)
class ManipulateConfig:
    """Tables and instructions, and what is rewarded."""

    train_prompts: int = 2048  # distinct tables to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    # sparse: success; dense: in failures half the share of the way that was covered
    reward: Literal["sparse", "dense"] = "sparse"

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("train_prompts", "eval_prompts"), (1, inf))
        validate(self, counts | {"temperature": (1e-3, inf)})


def half(group_size: int) -> OnlineConfig:
    """Half as many episodes a step as in navigation: every one of their states is another."""
    return OnlineConfig(batch_size=128 // group_size, group_size=group_size, learning_rate=5e-4)


@dataclass(frozen=True, kw_only=True)
class RLVRGRPO:
    """vla/rlvr-grpo-manipulation: a hand learns to push and reach by GRPO; success is rewarded."""

    steps: int = 60  # batches of episodes, each used for two optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: half(group_size=8))
    optimization: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.0, minibatches=2))
    task: ManipulateConfig = field(default_factory=ManipulateConfig)


@dataclass(frozen=True, kw_only=True)
class RLVRPPO:
    """vla/rlvr-ppo-manipulation: a hand learns to push and reach by PPO; success is rewarded."""

    steps: int = 45  # batches of episodes, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: half(group_size=4))
    optimization: PPOConfig = field(default_factory=lambda: replace(fresh_critic(), minibatches=2))
    task: ManipulateConfig = field(default_factory=ManipulateConfig)


def load_policy(task: ManipulateConfig, options: RunOptions) -> VLAPolicy:
    """The base agent, on the device of the run, set up for the task.

    Raises:
        UserError: there is no base yet, or one that acts in another world.
    """
    base = options.base(WORLD.name)
    if base == DATA / "checkpoints" / WORLD.name and not base.is_dir():
        raise UserError("no base has been made: minivisrl pretrain manipulation --install")
    policy = VLAPolicy.load(base).to(options.torch_device())
    if policy.world.name != WORLD.name:
        raise UserError(f"checkpoint {str(base)!r} acts in {policy.world.name}, not on tables")
    policy.temperature = task.temperature
    return policy


def rlvr(config: RLVRGRPO | RLVRPPO, options: RunOptions) -> Experiment:
    """The experiment: instructions at tables, and a program that says whether they were followed.

    Sampled episodes, measured by success, whatever is rewarded.
    """
    task = config.task
    prompts = manipulation_prompts(task.train_prompts, "train", options.generator(1))
    trainer = online(load_policy(task, options), prompts, REWARDS[task.reward], config, options)

    def monitor(heldout: Evaluation) -> dict[str, float]:
        told = {"spl": heldout.scored_by(spl), "dense": heldout.scored_by(dense)}
        return {name: sum(scores) / len(scores) for name, scores in told.items()}

    def make(split: str, generator: Generator) -> Prompts:
        return manipulation_prompts(task.eval_prompts, split, generator)

    how = {"show": shown, "monitor": monitor, "splits": SPLITS[1:], "samples": 2, "others": paths}
    return experiment(trainer, make, success, **how)
