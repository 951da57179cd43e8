"""The VLA row: rooms, missions and agents; judged by success, or by annotators who watch.

The verifier says whether a mission was accomplished.  The annotators see segments of episodes side
by side and like progress; training sees their comparisons or a reward learned from them, and the
gold metric is success.

Survey: section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Generator

from minivisrl import DATA
from minivisrl.evaluation.sets import Evaluation, evaluate
from minivisrl.optimization import GRPOConfig, PPOConfig, validate
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import OfflineConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.paradigms.rlhf import LearnedReward
from minivisrl.policy import Policy
from minivisrl.recipes.common import EVALUATION_SEED, experiment, learned_reward, offline, online
from minivisrl.recipes.run import Experiment, RunOptions
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.navigation import Episode, navigation_prompts, spl, success
from minivisrl.vla.policy import VLAPolicy
from minivisrl.vla.segments import (
    SegmentConfig,
    SegmentJudge,
    compare_segments,
    worth,
)

FRAMES = 6  # of a film strip


@dataclass(frozen=True, kw_only=True)
class NavigateConfig:
    """Missions, and the annotators who watch."""

    train_prompts: int = 4096  # distinct levels to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    pairs: int = 1024  # comparisons of segments of episodes by the base
    candidates: int = 4  # segments that an annotator sees at once; best and worst are kept
    annotator: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("train_prompts", "eval_prompts", "pairs"), (1, inf))
        validate(self, counts | {"temperature": (1e-3, inf), "candidates": (2, inf)})


def fresh_critic() -> PPOConfig:
    """PPO for a critic that starts at zero: its values may move as far as a batch tells them."""
    return PPOConfig(value_clip_eps=None, value_coef=1.0, kl_coef=0.0, gamma=0.98)


def whole_episodes() -> NavigateConfig:
    """Annotators who watch whole episodes, for whole episodes are what DPO scores."""
    return NavigateConfig(pairs=3072, annotator=SegmentConfig(length=None))


@dataclass(frozen=True, kw_only=True)
class RLVRGRPO:
    """vla/rlvr-grpo: an agent learns to carry out missions by GRPO; success is the reward."""

    steps: int = 75  # optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=5e-4))
    optimization: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.0))
    task: NavigateConfig = field(default_factory=NavigateConfig)


@dataclass(frozen=True, kw_only=True)
class RLVRPPO:
    """vla/rlvr-ppo: an agent learns to carry out missions by PPO, with a critic of every step."""

    steps: int = 50  # batches of episodes, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=5e-4))
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: NavigateConfig = field(default_factory=NavigateConfig)


@dataclass(frozen=True, kw_only=True)
class RLHFGRPO:
    """vla/rlhf-grpo: an agent learns by GRPO, against a reward learned from segments."""

    steps: int = 60  # optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=5e-4))
    optimization: GRPOConfig = field(default_factory=GRPOConfig)
    task: NavigateConfig = field(default_factory=NavigateConfig)


@dataclass(frozen=True, kw_only=True)
class RLHFPPO:
    """vla/rlhf-ppo: an agent learns by PPO, against a reward learned from segments."""

    steps: int = 45  # batches of episodes, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=5e-4))
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: NavigateConfig = field(default_factory=NavigateConfig)


@dataclass(frozen=True, kw_only=True)
class DirectPreference:
    """vla/dpo: an agent learns from comparisons of whole episodes alone."""

    steps: int = 140  # optimiser steps
    trainer: OfflineConfig = field(default_factory=lambda: OfflineConfig(batch_size=24))
    optimization: DPOConfig = field(  # failures are long: sums would be about little else
        default_factory=lambda: DPOConfig(dpo_beta=2.0, average=True)
    )
    task: NavigateConfig = field(default_factory=whole_episodes)


def load_policy(task: NavigateConfig, options: RunOptions) -> VLAPolicy:
    """The base agent, on the device of the run, set up for the task."""
    policy = VLAPolicy.load(options.base("vla")).to(options.torch_device())
    policy.temperature = task.temperature
    return policy


def film(episode: Episode) -> torch.Tensor:
    """(3, 40, 6 * 41 - 1) uint8: six views, evenly spaced from the first to the last."""
    frames = episode.frames()
    times = torch.linspace(0, len(frames) - 1, FRAMES).round().long()
    strip = torch.nn.functional.pad(frames[times], (0, 1), value=255)  # (6, 3, 40, 41)
    return torch.cat(list(strip), dim=2)[:, :, :-1]


def shown(told: Evaluation) -> tuple[torch.Tensor, list[str]]:
    """Film strips, each with the mission and how it ended."""
    asked = zip(told.prompts["prompt"], told.outputs, strict=True)
    words = [f"{p}\n({'done' if y.success else 'failed'} in {y.steps})" for p, y in asked]
    return torch.stack([film(episode) for episode in told.outputs]), words


def paths(policy: Policy, prompts: Prompts) -> dict[str, float]:
    """Success weighted by path length, of sampled and of greedy episodes."""
    dice = Generator().manual_seed(EVALUATION_SEED)
    sampled = evaluate(policy, prompts, spl, samples=1, generator=dice)
    return {"spl_sampled": sampled.score, "spl_greedy": evaluate(policy, prompts, spl).score}


def navigating(
    trainer: Any,
    task: NavigateConfig,
    facts: dict[str, float] | None = None,
    proxy: LearnedReward | None = None,
) -> Experiment:
    """Sampled episodes, measured by success; `facts` are logged beside it."""

    def monitor(heldout: Evaluation) -> dict[str, float]:
        told = {"spl": spl} | ({"proxy": proxy} if proxy else {})
        scores = {name: heldout.scored_by(score_fn) for name, score_fn in told.items()}
        return (facts or {}) | {name: sum(s) / len(s) for name, s in scores.items()}

    def make(split: str, generator: Generator) -> Prompts:
        return navigation_prompts(task.eval_prompts, split, generator)

    how = {"show": shown, "monitor": monitor, "splits": SPLITS[1:], "samples": 2, "others": paths}
    return experiment(trainer, make, success, **how)


def rlvr(config: RLVRGRPO | RLVRPPO, options: RunOptions) -> Experiment:
    """The experiment: missions in rooms, and a program that says whether they were accomplished."""
    task = config.task
    prompts = navigation_prompts(task.train_prompts, "train", options.generator(1))
    policy = load_policy(task, options)
    return navigating(online(policy, prompts, success, config, options), task)


def comparisons(
    policy: VLAPolicy, task: NavigateConfig, count: int, split: str, generator: Generator
) -> PreferencePairs:
    """Episodes in `count` levels: the favourite and the least favourite piece of an annotator."""
    prompts, episodes = navigation_prompts(count, split, generator), []
    for start in range(0, count, 64):
        part = prompts.rows(range(start, min(start + 64, count)))
        episodes += policy.rollout(part, task.candidates, generator).outputs
    return compare_segments(prompts, episodes, task.annotator, generator)


def ceiling(task: NavigateConfig) -> Callable[[PreferencePairs], float]:
    """Share of labels that the annotator's own taste, without noise, would have predicted."""

    def share(pairs: PreferencePairs) -> float:
        sides = (torch.tensor(worth(s, task.annotator)) for s in (pairs.chosen, pairs.rejected))
        chosen, rejected = sides
        return (0.5 + 0.5 * (chosen - rejected).sign()).mean().item()

    return share


def rlhf(config: RLHFGRPO | RLHFPPO, options: RunOptions) -> Experiment:
    """The experiment: PPO or GRPO against the shipped reward model, whatever the base is.

    Success is logged at every step with weight 0: training never sees it.
    """
    task, policy = config.task, load_policy(config.task, options)
    scorer = SegmentJudge.load(DATA / "checkpoints" / "vla_reward").to(options.torch_device())
    count = min(256, task.pairs)
    pairs = comparisons(policy, task, count, "heldout", options.generator(3))
    model, reward_fn, facts = learned_reward(scorer, pairs, success, ceiling(task))
    prompts = navigation_prompts(task.train_prompts, "train", options.generator(1))
    trainer = online(policy, prompts, reward_fn, config, options)
    return navigating(trainer, task, facts, None if options.reward else model)


def dpo(config: DirectPreference, options: RunOptions) -> Experiment:
    """The experiment: two episodes of the base in each level, and which was preferred."""
    task, policy = config.task, load_policy(config.task, options)
    pairs = comparisons(policy, task, task.pairs, "train", options.generator(3))
    trainer = offline(policy, pairs, config, options)
    return navigating(trainer, task, {"annotator_ceiling": ceiling(task)(pairs)})
