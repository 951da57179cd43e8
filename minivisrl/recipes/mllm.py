"""The MLLM row: counting for a verifier, and describing for annotators.

The verifier's task: questions that need two counts, graded by exact match.  The annotators' task:
describing a scene, where training sees comparisons or a reward learned from them, and the gold
metric reads the scene graph.

Survey: section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Generator

from minivisrl import DATA
from minivisrl.evaluation.sets import Evaluation
from minivisrl.mllm.policy import VLMPolicy
from minivisrl.mllm.pretraining import DESCRIBE
from minivisrl.optimization import GRPOConfig, PPOConfig, validate
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import OfflineConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.paradigms.rlhf import LearnedReward
from minivisrl.recipes.common import experiment, learned_reward, offline, online
from minivisrl.recipes.run import Experiment, RunOptions
from minivisrl.rewards import exact_match, text_of
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.worlds.annotators import PreferenceConfig, annotate, ceiling, read
from minivisrl.worlds.questions import question_prompts
from minivisrl.worlds.scenes import render, sample_scenes

COUNTS = dict.fromkeys(("train_prompts", "eval_prompts", "max_tokens"), (1, inf))


@dataclass(frozen=True, kw_only=True)
class QuestionConfig:
    """Questions that need two counts."""

    kinds: tuple[str, ...] = ("difference",)  # kinds of questions, in turn
    about: tuple[str, ...] = ("color",)  # what both counts of a question are about
    train_prompts: int = 2048  # distinct questions to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    max_tokens: int = 14  # longest completion

    def __post_init__(self) -> None:
        validate(self, COUNTS | {"temperature": (1e-3, inf)})


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Describing a scene to annotators."""

    train_prompts: int = 4096  # distinct scenes to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    max_tokens: int = 28  # longest description; nine objects and the end take 27
    pairs: int = 2048  # comparisons of descriptions by the base model
    candidates: int = 8  # descriptions that an annotator sees at once; best and worst are kept
    annotator: PreferenceConfig = field(default_factory=PreferenceConfig)

    def __post_init__(self) -> None:
        validate(self, COUNTS | {"temperature": (1e-3, inf), "pairs": (1, inf)})
        validate(self, {"candidates": (2, inf)})


def fresh_critic() -> PPOConfig:
    """PPO for a critic that starts at zero: its values may move as far as a batch tells them."""
    return PPOConfig(value_clip_eps=None, value_coef=1.0)


@dataclass(frozen=True, kw_only=True)
class RLVRGRPO:
    """mllm/rlvr-grpo: a VLM learns to count by GRPO against an exact-match verifier."""

    steps: int = 80  # optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=3e-4))
    optimization: GRPOConfig = field(default_factory=GRPOConfig)
    task: QuestionConfig = field(default_factory=QuestionConfig)


@dataclass(frozen=True, kw_only=True)
class RLVRPPO:
    """mllm/rlvr-ppo: a VLM learns to count by PPO, with a critic on its own trunk."""

    steps: int = 60  # batches of completions, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=3e-4))
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: QuestionConfig = field(default_factory=QuestionConfig)


@dataclass(frozen=True, kw_only=True)
class RLHFGRPO:
    """mllm/rlhf-grpo: a VLM learns to describe by GRPO, against a reward learned from pairs."""

    steps: int = 60  # optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=2e-4))
    optimization: GRPOConfig = field(default_factory=GRPOConfig)
    task: DescribeConfig = field(default_factory=DescribeConfig)


@dataclass(frozen=True, kw_only=True)
class RLHFPPO:
    """mllm/rlhf-ppo: a VLM learns to describe by PPO, against a reward learned from pairs."""

    steps: int = 45  # batches of descriptions, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=2e-4))
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: DescribeConfig = field(default_factory=DescribeConfig)


@dataclass(frozen=True, kw_only=True)
class DirectPreference:
    """mllm/dpo: a VLM learns to describe from comparisons alone."""

    steps: int = 100  # optimiser steps
    trainer: OfflineConfig = field(default_factory=OfflineConfig)
    optimization: DPOConfig = field(default_factory=lambda: DPOConfig(dpo_beta=0.5))
    task: DescribeConfig = field(default_factory=DescribeConfig)


def load_policy(task: QuestionConfig | DescribeConfig, options: RunOptions) -> VLMPolicy:
    """The base VLM, on the device of the run, set up for the task."""
    policy = VLMPolicy.load(options.base("vlm")).to(options.torch_device())
    policy.temperature, policy.max_tokens = task.temperature, task.max_tokens
    return policy


def shown(told: Evaluation) -> tuple[torch.Tensor, list[str]]:
    """Images, each with the question, what the policy said, and the truth."""
    asked = zip(told.prompts["prompt"], told.outputs, told.prompts["answer"], strict=True)
    return told.prompts["image"], [f"{q}\n{y}\n(truth: {a})" for q, y, a in asked]


def rlvr(config: RLVRGRPO | RLVRPPO, options: RunOptions) -> Experiment:
    """The experiment: questions that need two counts, against an exact-match verifier."""
    task = config.task

    def make(split: str, generator: Generator, count: int = task.eval_prompts) -> Prompts:
        return question_prompts(count, task.kinds, split, generator, about=task.about)

    train = make("train", options.generator(1), task.train_prompts)
    trainer = online(load_policy(task, options), train, exact_match, config, options)
    return experiment(
        trainer,
        make,
        exact_match,
        show=shown,
        monitor=lambda heldout: {"extracted": heldout.extracted},
    )


def describe_prompts(count: int, split: str, generator: Generator) -> Prompts:
    """`count` scenes to describe: columns image, prompt, scene, and answer, the true caption."""
    scenes = sample_scenes(count, split, generator)
    answers = [scene.caption() for scene in scenes]
    columns = {"prompt": [DESCRIBE] * count, "answer": answers, "scene": scenes}
    return Prompts({"image": render(scenes), **columns})


def truth_and_completeness(completions: Sequence[Any], scene: Sequence, **_: Any) -> list[float]:
    """The gold metric of descriptions: harmonic mean of truth and completeness."""
    return [read(text_of(c), s).gold for c, s in zip(completions, scene, strict=True)]


def comparisons(
    policy: VLMPolicy, task: DescribeConfig, count: int, split: str, generator: Generator
) -> PreferencePairs:
    """Sampled descriptions of `count` scenes: an annotator's favourite and least favourite."""
    prompts, texts = describe_prompts(count, split, generator), []
    for start in range(0, count, 256):
        part = prompts.rows(range(start, min(start + 256, count)))
        told = policy.rollout(part, task.candidates, generator).outputs
        texts += [told[i : i + task.candidates] for i in range(0, len(told), task.candidates)]
    return annotate(prompts, texts, task.annotator, generator)


def describing(
    trainer: Any, task: DescribeConfig, facts: dict[str, float], proxy: LearnedReward | None = None
) -> Experiment:
    """Descriptions, measured by truth and completeness; `facts` are logged beside them."""

    def monitor(heldout: Evaluation) -> dict[str, float]:
        if proxy is None:
            return facts
        scores = heldout.scored_by(proxy)
        return facts | {"proxy": sum(scores) / len(scores)}

    def make(split: str, generator: Generator) -> Prompts:
        return describe_prompts(task.eval_prompts, split, generator)

    return experiment(trainer, make, truth_and_completeness, show=shown, monitor=monitor, samples=2)


def rlhf(config: RLHFGRPO | RLHFPPO, options: RunOptions) -> Experiment:
    """The experiment: PPO or GRPO against the shipped reward model, whatever the base is.

    The gold metric is logged at every step with weight 0: training never sees it.
    """
    task, policy = config.task, load_policy(config.task, options)
    scorer = VLMPolicy.load(DATA / "checkpoints" / "vlm_reward").to(options.torch_device())
    pairs = comparisons(policy, task, min(512, task.pairs), "heldout", options.generator(3))
    model, reward_fn, facts = learned_reward(
        scorer, pairs, truth_and_completeness, lambda labelled: ceiling(labelled, task.annotator)
    )
    prompts = describe_prompts(task.train_prompts, "train", options.generator(1))
    trainer = online(policy, prompts, reward_fn, config, options)
    return describing(trainer, task, facts, None if options.reward else model)


def dpo(config: DirectPreference, options: RunOptions) -> Experiment:
    """The experiment: two descriptions of each scene by the base VLM, and which was preferred."""
    task, policy = config.task, load_policy(config.task, options)
    pairs = comparisons(policy, task, task.pairs, "train", options.generator(3))
    facts = {"annotator_ceiling": ceiling(pairs, task.annotator)}
    return describing(offline(policy, pairs, config, options), task, facts)
